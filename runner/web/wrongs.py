"""Which fields of a form an error is about, and how the page words it.

wrong_fields(ManifestError("steps: 0 is not ...", place))  # {"steps": "0 is not ..."}
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from runner.errors import ManifestError, RunnerError

TOLD_BY = re.compile(r"([a-z_][a-z_.0-9]*)(?:=[^:]*)?(?:: |=)", re.ASCII)
# Keys of the manifest and of settings, and the fields that say them.
FIELDS: Mapping[str, str] = {
    "seeds": "seed",
    "init": "picture",
    "crop": "fit",
    "mask": "painted",
    "loras": "lora/0",
    "model.path": "model",
    "model.vae": "vae",
    "rows": "rows/values",
    "columns": "columns/values",
}
LONG = ". Shorten it, or set long_prompts: chunk or truncate"  # as `request` words it
LONG_HERE = ". Shorten it, or choose 'chunk' or 'truncate' at 'A prompt that is too long'"


def worded(error: RunnerError) -> str:
    """The message without the manifest's place: the manifest is gone, and it's the form that has to be mended."""
    return (error.message if isinstance(error, ManifestError) else str(error)).replace(LONG, LONG_HERE)


def wrong_fields(error: RunnerError, axes: Mapping[str, str] | None = None) -> dict[str, str]:
    """What is wrong with which fields; `axes` are the names of a matrix's fields by the keys that they vary."""
    found: dict[str, str] = {}
    for each in error.errors if isinstance(error, ManifestError) else [error]:
        message = worded(each)
        if message.endswith(LONG_HERE):
            found |= {"prompt": message, "long_prompts": message}
        elif match := TOLD_BY.match(message):
            key = match[1].removeprefix("matrix.")
            name = (axes or {}).get(key) or FIELDS.get(key) or FIELDS.get(key.partition(".")[0]) or key
            found[name] = message[match.end() :] if match[0].endswith(" ") and "=" not in match[0] else message
    return found
