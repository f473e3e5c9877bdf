"""What may change a picture's rounding, as its record says it; and whether a run would mix two ways in one folder.

The same item made in the same way gives the same bytes. Which weights stay on the device, the memory and the waves are
no part of a way: they change no bit. Nothing is decided or measured here.

    for difference in differences(index.ways, lambda width, height: way_of(record)):
        print(difference)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple


class Way(NamedTuple):
    """How a picture was made, with which weights. A factor that doesn't count for it is None. A tuple, since a million
    are compared.

    `lowered_from` is the `unet_bs` that was planned, where the run itself took a lower one because memory was short.
    """

    model: tuple[str, ...]
    size: tuple[int, int]
    unet_bs: int | None
    lowered_from: int | None
    dtypes: tuple[tuple[str, str], ...] | None
    device: str | None
    device_name: str | None
    threads: int | None
    prediction: str | None
    compile: str | None
    env: tuple[tuple[str, str], ...]


FACTORS = ("unet_bs", "dtypes", "device", "device_name", "threads", "prediction", "compile")


def way_of(record: Mapping[str, Any]) -> Way:
    """How the picture of a record was made."""
    item, run = record["item"], record["run"]
    device = run["device"].partition(":")[0]
    again = "rerendered" in record  # in full precision, which says nothing of the run's own ways
    return Way(
        tuple(record["model"]["fingerprints"].values()),
        (item["width"], item["height"]),
        None if again else run["unet_bs"],
        None if again else run.get("lowered_from"),
        None if again else tuple(run["dtypes"].items()),
        device,
        run["device_name"],
        run["threads"] if device == "cpu" else None,  # they share a sum among them
        run["prediction"],
        None if again else run.get("compile", "none"),
        tuple(record["env"].items()),
    )


def differences(recorded: Collection[Way], now: Callable[[int, int], Way]) -> list[str]:
    """In which factors pictures of the recorded sizes, width and height, would be made otherwise `now`.

    The ways are those of one model's pictures.
    """
    found: dict[str, None] = {}
    for size in dict.fromkeys(way.size for way in recorded):
        there, new = [way for way in recorded if way.size == size], now(*size)
        for factor in FACTORS:
            old, value = {getattr(way, factor) for way in there} - {None}, getattr(new, factor)
            if factor == "unet_bs" and value in {way.lowered_from for way in there}:
                continue  # a run that was planned like this one made them
            if old and value is not None and value not in old:
                found[f"{factor} was {' or '.join(sorted(map(_as_text, old)))} and is now {_as_text(value)}"] = None
    return list(found)


def lowered(recorded: Iterable[Way]) -> list[str]:
    """What the run did by itself where memory was short: such pictures are mixed with others, so people should know."""
    found = {(way.size, way.unet_bs, way.lowered_from) for way in recorded if way.lowered_from}
    return [f"pictures of {w}x{h} were made with unet_bs={low}, since memory was short for {planned}"
            for (w, h), low, planned in sorted(found)]  # fmt: skip


def changed_versions(recorded: Iterable[Way], env: Mapping[str, str]) -> list[str]:
    """Which libraries have other versions than all those that are recorded."""
    versions: dict[str, set[str]] = {}
    for way in recorded:
        for name, version in way.env:
            versions.setdefault(name, set()).add(version)
    return [
        f"{name} was {' or '.join(sorted(versions[name]))} and is now {version}"
        for name, version in env.items()
        if version not in versions.get(name, {version})
    ]


def _as_text(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    types = dict.fromkeys(dtype for _, dtype in value)
    return next(iter(types)) if len(types) == 1 else ", ".join(f"{name} {dtype}" for name, dtype in value)
