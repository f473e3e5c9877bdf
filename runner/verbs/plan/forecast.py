"""What pictures will take, judged by what pictures like them took on this machine: seconds by stage, bytes on the disk.

Its only memory is the newest records of the run folders. It measures nothing and keeps nothing, and where there are no
records of this machine, model and number type it says nothing of time.

    past = read_past([Path("outputs/alps")], dict(model.fingerprints), execution)
    forecast(Counter({Kind.of(item): 20}), past, {(512, 512): 4}).seconds
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import operator
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jsonlines
import orjson

from runner.folder.names import RECORDS
from runner.item import Item, steps_made
from runner.machine.describe import device_name
from runner.planning.layouts import Execution
from runner.record import Making
from runner.sampler_names import model_calls

FOLDERS_READ, LINES_READ, TAIL_BYTES = 20, 200, 1 << 20  # the newest run folders; in each the newest records
ENOUGH = 200  # pictures to judge by: older ones may have been made by an older version, or on a busy machine
BYTES_PER_PIXEL = {"png": 1.6, "jpg": 0.45}  # typical of photographs, where no record says better
RECORD_BYTES = 1600  # of a picture's line in the records
STAGES = ("encode", "denoise", "decode")


class Kind(NamedTuple):
    """What is counted together: pictures that are the same work, and whose settings are odd in the same way."""

    width: int
    height: int
    sampler: str
    steps: int
    strength: float | None
    format: str
    guided: bool
    negative: bool

    @classmethod
    def of(cls, item: Item) -> Kind:
        """The kind that an item is of."""
        return _kind(*_kind_values(item))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    @property
    def pixels(self) -> int:
        """Of the picture."""
        return self.width * self.height

    @property
    def rows(self) -> int:
        """Rows in each call of the UNet."""
        return 2 if self.guided else 1

    @property
    def calls(self) -> int:
        """Predictions of the UNet for the whole picture."""
        return model_calls(self.sampler, steps_made(self.steps, self.strength))


_kind_values = operator.attrgetter("scale", "negative", "width", "height", "sampler", "steps", "strength", "format")


@functools.lru_cache(maxsize=4096)
def _kind(scale: float, negative: str, *values: Any) -> Kind:
    return Kind._make([*values, scale != 1.0, negative != ""])


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Pictures of one size that were made together: their kinds, the bytes of their files, and the seconds of all."""

    kinds: Counter[Kind]
    bytes: Counter[str]
    seconds: Mapping[str, float]
    unet_bs: int

    @property
    def size(self) -> tuple[int, int]:
        return next(iter(self.kinds)).size


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """`seconds` are by stage, and empty where no records tell; `pictures` is how many it was judged by."""

    seconds: Mapping[str, float]
    disk_bytes: int
    pictures: int


def forecast(wanted: Mapping[Kind, int], past: Sequence[Made], unet_bs: Mapping[tuple[int, int], int]) -> Forecast:
    """What the `wanted` numbers of pictures will take; `unet_bs` are the rows in a UNet call, by the pictures' size.

    Pictures of the same size are judged by where there are any, and others scaled by their pixels where not.
    """
    seconds, disk, pictures = Counter[str](), 0, 0
    for size, rows in unet_bs.items():
        kinds = Counter({kind: count for kind, count in wanted.items() if kind.size == size})
        alike = _newest(made for made in past if made.size == size) or _newest(past)
        seconds.update(_seconds(kinds, rows, alike))
        disk += sum(count * _file_bytes(kind, alike) for kind, count in kinds.items())
        pictures += sum(made.kinds.total() for made in alike)
    return Forecast(seconds=seconds if past else {}, disk_bytes=disk, pictures=pictures)


def _newest(past: Iterable[Made]) -> list[Made]:
    found: list[Made] = []
    for made in past:
        found.append(made)
        if sum(each.kinds.total() for each in found) >= ENOUGH:
            break
    return found


def _seconds(kinds: Counter[Kind], unet_bs: int, alike: Sequence[Made]) -> dict[str, float]:
    work, done, took = _work(kinds, unet_bs), Counter[str](), Counter[str]()
    for made in alike:
        done.update(_work(made.kinds, made.unet_bs))
        took.update(made.seconds)
    return {stage: work[stage] * took[stage] / done[stage] for stage in STAGES if done[stage]}


def _work(kinds: Counter[Kind], unet_bs: int) -> dict[str, int]:
    """How much there is to do at each stage, for pictures of one size that are made together, in units of its own."""
    size = next(iter(kinds)).pixels
    rows = Counter[int]()
    for kind, count in kinds.items():
        rows[kind.calls] += count * kind.rows
    count = kinds.total()
    return {"encode": count, "denoise": _call_rows(rows, unet_bs) * size, "decode": count * size}


def _call_rows(rows: Mapping[int, int], unet_bs: int) -> int:
    """Rows that go through the UNet, padding included; `rows` counts rows by how many calls each takes part in.

    In each step the rows that aren't finished share calls of `unet_bs` rows, of which the last one is filled up.
    """
    total, active, finished = 0, sum(rows.values()), 0
    for calls, leaving in sorted(rows.items()):
        total += (calls - finished) * math.ceil(active / unet_bs) * unet_bs
        active, finished = active - leaving, calls
    return total


def _file_bytes(kind: Kind, alike: Sequence[Made]) -> int:
    """Bytes of a picture's file and record."""
    written = sum(made.bytes[kind.format] for made in alike)
    pixels = sum(
        count * each.pixels for made in alike for each, count in made.kinds.items() if each.format == kind.format
    )
    return RECORD_BYTES + int(kind.pixels * (written / pixels if pixels else BYTES_PER_PIXEL[kind.format]))


# ---- records


def read_past(folders: Iterable[Path], fingerprints: Mapping[str, str], execution: Execution) -> list[Made]:
    """What the newest records of these run folders say of this model on this machine, the newest first."""
    files = sorted(filter(os.path.isfile, {folder / RECORDS for folder in folders}), key=os.path.getmtime, reverse=True)
    return [made for file in files[:FOLDERS_READ] for made in reversed(_read(file, fingerprints, execution))]


def _read(file: Path, fingerprints: Mapping[str, str], execution: Execution) -> list[Made]:
    """Pictures that were made together stand together, with the same share of the seconds."""
    usable = (record for record in _tail(file) if _is_alike(record, fingerprints, execution))
    return [_made(list(records)) for _, records in itertools.groupby(usable, key=_made_together)]


def _tail(file: Path) -> Iterator[dict[str, Any]]:
    lines: list[bytes] = []
    with contextlib.suppress(OSError), file.open("rb") as stream:  # another run's file may be closed to us
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL_BYTES))
        lines = stream.read().splitlines()[-LINES_READ:]
    # A line may be cut, at the beginning or by a run that is going on.
    yield from jsonlines.Reader(lines, loads=orjson.loads).iter(type=dict, skip_invalid=True)


def _is_alike(record: Any, fingerprints: Mapping[str, str], execution: Execution) -> bool:
    """Whether a record is whole, and of a picture that was made as the wanted ones will be."""
    try:
        made, making = _made([record]), Making.from_dict(record)
        _work(made.kinds, made.unet_bs)
        return record["model"]["fingerprints"] == fingerprints and _is_made_so(making, execution)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return False


def _is_made_so(making: Making, execution: Execution) -> bool:
    name, kind = device_name(execution.device), execution.device.partition(":")[0]
    return (
        making.rounding().device == kind
        and name in (None, making.device_name)
        and {dtype for name, dtype in making.dtypes if name.startswith("unet")} == {execution.dtype}
        and making.compile == execution.compiler
    )


def _made_together(record: Mapping[str, Any]) -> tuple[object, ...]:
    # Large pictures are decoded one by one, each in its own time.
    shares = {stage: share for stage, share in record["seconds"].items() if stage != "decode"}
    return shares, record["item"]["width"], record["item"]["height"], record["run"]["unet_bs"]


def _made(records: Sequence[Mapping[str, Any]]) -> Made:
    kinds, written = Counter[Kind](), Counter[str]()
    for record in records:
        item = record["item"]
        values = {key: item[key] for key in Kind._fields if key != "guided"}
        kind = Kind(**values | {"negative": item["negative"] != ""}, guided=item["scale"] != 1.0)
        kinds[kind] += 1
        written[kind.format] += record["bytes"]
    seconds = Counter[str]()
    for record in records:
        seconds.update({stage: float(share) for stage, share in record["seconds"].items()})
    return Made(kinds=kinds, bytes=written, seconds=seconds, unet_bs=int(records[0]["run"]["unet_bs"]))
