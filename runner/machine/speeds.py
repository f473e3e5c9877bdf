"""How fast a device multiplies in each number type, as `doctor` measured it. Never imports torch.

The times are kept in a small file of the user's cache folder, under the device's identity: its name, its instruction
sets and torch's version. On another machine, or after an update, they don't count. `planning.choices` decides by them.

    keep("cpu", {"float32": 0.14, "bfloat16": 0.03})
    recall("cpu")["bfloat16"]
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from runner.files import atomic_write
from runner.machine.cache import cache_folder
from runner.machine.describe import device_name, instruction_sets


def identity(device: str) -> str:
    """What a device's times are kept under; empty for a device without a name."""
    kind = device.partition(":")[0]
    name = device_name(kind) or (platform.machine() if kind == "cpu" else "")
    sets = instruction_sets() if kind == "cpu" else ()  # clouds give CPUs of several generations one name
    return " ".join((kind, name, *sets, "torch", version("torch"))) if name else ""


def recall(device: str, key: str | None = None) -> dict[str, float]:
    """Seconds of a large layer by number type; infinite for a number type that came out wrong.

    `key` replaces the device's identity. Empty where nothing was measured under it, or the file can't be read.
    """
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        found = _read().get(identity(device) if key is None else key, {}).items()
        seconds = {str(dtype): math.inf if value is None else float(value) for dtype, value in found}
        return seconds if all(value > 0 for value in seconds.values()) else {}
    return {}


def keep(device: str, seconds: Mapping[str, float | None], key: str | None = None) -> Path | None:
    """Keeps such times, None for what came out wrong, and returns the file.

    Returns None if the device has no identity, or the file can't be written.
    """
    if key := identity(device) if key is None else key:
        known = _read() | {key: dict(seconds)}
        with contextlib.suppress(OSError):
            atomic_write(_file(), json.dumps(known, indent=1).encode())
            return _file()
    return None


def _read() -> dict[str, dict[str, float | None]]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(_file().read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _file() -> Path:
    return cache_folder() / "machine.json"
