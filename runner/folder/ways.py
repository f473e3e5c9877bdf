"""In which ways the pictures of a folder were made, and whether a run would mix two ways.

The same item made in the same way gives the same bytes. Which weights stay on the device, the memory and the waves
change no bit, so they are no part of a way (`Making.rounding`).

    for difference in differences(index.ways, lambda width, height: making):
        print(difference)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from runner.record import FACTORS, Making, Pairs, fingerprints_of, part


class Way(NamedTuple):
    """With which weights, in which size and how a picture was made. A tuple, since a million are compared."""

    model: tuple[str, ...]
    size: tuple[int, int]
    making: Making


def way_of(record: Mapping[str, Any]) -> Way | None:
    """How the picture of a record's line was made; None where the line says no size."""
    item = part(record, "item")
    width, height = item.get("width"), item.get("height")
    if not isinstance(width, int) or not isinstance(height, int):
        return None
    hashes = tuple(sha256 for _, sha256 in fingerprints_of(part(record, "model")))
    return Way(hashes, (width, height), Making.from_dict(record).rounding("rerendered" in record))


def differences(recorded: Collection[Way], now: Callable[[int, int], Making]) -> list[str]:
    """The factors in which pictures of the recorded sizes, width and height, would be made differently `now`.

    The ways are those of one model's pictures.
    """
    found: dict[str, None] = {}
    for size in dict.fromkeys(way.size for way in recorded):
        there, new = [way.making for way in recorded if way.size == size], now(*size).rounding()
        for factor in ("dtypes", *FACTORS):
            old, value = {getattr(making, factor) for making in there} - UNKNOWN, getattr(new, factor)
            if factor == "unet_bs" and value in {making.lowered_from for making in there}:
                continue  # a run that was planned like this one made them
            if old and value not in UNKNOWN and value not in old:
                found[f"{factor} was {' or '.join(sorted(map(_as_text, old)))} and is now {_as_text(value)}"] = None
    return list(found)


def lowered(recorded: Iterable[Way]) -> list[str]:
    """Where a run lowered `unet_bs` by itself, since memory was short: such pictures are mixed with others."""
    found = {(way.size, way.making.unet_bs, way.making.lowered_from) for way in recorded if way.making.lowered_from}
    return [f"pictures of {w}x{h} were made with unet_bs={low}, since memory was short for {planned}"
            for (w, h), low, planned in sorted(found)]  # fmt: skip


def changed_versions(recorded: Iterable[Way], env: Pairs) -> list[str]:
    """The libraries whose versions are not among those that are recorded."""
    versions: dict[str, set[str]] = {}
    for way in recorded:
        for name, version in way.making.env:
            versions.setdefault(name, set()).add(version)
    return [
        f"{name} was {' or '.join(sorted(versions[name]))} and is now {version}"
        for name, version in env
        if version not in versions.get(name, {version})
    ]


UNKNOWN: set[Any] = {None, (), ""}  # values of a factor that doesn't count for a picture


def _as_text(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    types = dict.fromkeys(dtype for _, dtype in value)
    return next(iter(types)) if len(types) == 1 else ", ".join(f"{name} {dtype}" for name, dtype in value)
