"""The two axes of the page's matrix: what is typed in becomes the manifest's `matrix`, and the other way round.

Values are typed as in a manifest: `1, 3, 7.5` or `{start: 5, stop: 10, step: 2.5}`; seeds also `27-30, 99`. Texts are
one a line, since they hold commas.

    job = {"prompt": "a cat", "scale": 5}
    put_into(job, [("scale", "3, 5"), ("sampler", "ddim, euler")])
    job  # {"prompt": "a cat", "matrix": {"scale": [3, 5], "sampler": ["ddim", "euler"]}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from runner.errors import SettingError
from runner.manifest.loras import ONE

NONE = "none"
AXES = ROWS, COLUMNS = "rows", "columns"
TEXTS = ("prompt", "negative")
KEYS_OF_AXES = (
    "scale", "steps", "sampler", "seed", "prompt", "negative", "strength", "eta", "rescale", "clip_skip", "width",
    "height",
)  # fmt: skip
# What PyYAML raises at a text that isn't YAML; some of it by accident.
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
Axes = Sequence[tuple[str, str]]  # the rows' key and values, and the columns'


def put_into(job: dict[str, Any], given: Axes) -> None:
    """Makes the keys of axes those of a job's `matrix`; a key there has no value of its own any more.

    Raises:
        SettingError: an axis has no values, or both are the same.
    """
    used = [(key, text, of) for (key, text), of in zip(given, AXES, strict=False) if key != NONE]
    if len({key for key, *_ in used}) < len(used):
        raise SettingError(f"columns: both axes are '{used[0][0]}'; choose another one, or none")
    matrix = {key: read_values(key, text, of) for key, text, of in used}
    for key in matrix:
        for own in ("seed", "seeds", "n_samples", "n_iter") if key == "seed" else (key,):
            job.pop(own, None)
        if key.startswith(ONE) and "loras" in job:
            job["loras"] = {name: weight for name, weight in job["loras"].items() if name != key.removeprefix(ONE)}
    if matrix:
        job["matrix"] = matrix


def read_values(key: str, text: str, axis: str) -> Any:
    """What is typed as an axis's values, as the manifest has them."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not lines:
        raise SettingError(f"{axis}: there are no values yet for '{key}'; type some, such as {example(key)}")
    if key in TEXTS:
        return lines
    joined = ", ".join(line.rstrip(",") for line in lines)
    try:
        read = yaml.safe_load(joined if joined.startswith(("{", "[")) else f"[{joined}]")
    except NOT_YAML:
        read = None
    if not isinstance(read, list | dict):
        raise SettingError(f"{axis}: '{joined}' can't be read; type values such as {example(key)}")
    return read


def example(key: str) -> str:
    """Values as they are typed."""
    examples = {
        "prompt": "one prompt a line",
        "negative": "one text a line",
        "sampler": "ddim, euler_a",
        "seed": "27-30, 99",
        "steps": "10, 20, 50",
        "width": "512, 768",
        "height": "512, 768",
        "scale": "3, 5, 7.5 or {start: 3, stop: 9, step: 2}",
    }
    return examples.get(key, "1, 2" if key == "clip_skip" else "0, 0.5, 1 or {start: 0, stop: 1, step: 0.25}")


def loras(given: Axes) -> list[str]:
    """The LoRAs whose weights are axes."""
    return [key.removeprefix(ONE) for key, _ in given if key.startswith(ONE)]


def read_from(matrix: Any) -> list[tuple[str, str]]:
    """The axes of a manifest's matrix, as they are typed."""
    if not isinstance(matrix, Mapping):
        return []
    return [(str(key), _typed(str(key), values)) for key, values in list(matrix.items())[:2]]


def of_cell(form: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The form of one cell: the values of its axes in their own fields, and no axes."""
    told = {key: value for key, value in chosen.items() if isinstance(value, str | int | float)}
    weights = {key.removeprefix(ONE): value for key, value in told.items() if key.startswith(ONE)}
    return {**form, **told, "loras": {**form.get("loras", {}), **weights}, "axes": []}


def _typed(key: str, values: Any) -> str:
    if isinstance(values, Mapping):
        return str(yaml.safe_dump(dict(values), default_flow_style=True, width=2**30)).strip()
    each: Iterable[Any] = values if isinstance(values, list) else [values]
    return ("\n" if key in TEXTS else ", ").join(map(str, each))
