"""The verb `plan`: what a run would do, without doing it. It counts; `text` prints.

Items are read once, as a stream; of each one a few bytes are kept, so a manifest may have millions of them. Nothing is
rendered or written, and torch is never imported.

    survey = make_survey(request)
    survey.missing, survey.to_dict()
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.engine.fleet import Strength, strength
from runner.errors import SettingError
from runner.folder.ledger import read_index
from runner.folder.names import RECORDS, image_name
from runner.item import Item, Model, item_digest
from runner.machine import memory
from runner.machine.describe import device_name
from runner.planning import choices
from runner.planning.layouts import Execution
from runner.request import OUTPUTS, Request
from runner.settings import RAY
from runner.verbs.plan.forecast import Forecast, Kind, forecast, read_past
from runner.verbs.plan.lint import EXAMPLES, NAME_TAKEN, SAME_PICTURE, Linter, Warned
from runner.verbs.plan.reading import Reading, read_prompt

VALUES_KEPT, VALUES_LISTED = 10**5, 100  # of an axis: counted, and named in the JSON document
READ_AS_KEPT = 100
MOST_READ = 10**7  # items: a minute, and 250 MB
TOGETHER = 200  # items that are looked at; few, so that the garbage collector isn't woken
DIGEST_KEPT = 8  # bytes
Work = tuple[Model, Kind]


@dataclass(slots=True)
class Axis:
    """How many items have each value of an axis; `more` have one that comes after the first `VALUES_KEPT`."""

    values: Counter[Any] = field(default_factory=Counter)
    more: int = 0

    def add(self, value: Any, images: int) -> None:
        """Counts items."""
        if value in self.values or len(self.values) < VALUES_KEPT:
            self.values[value] += images
        else:
            self.more += images

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the number of values, and the first of them."""
        listed = itertools.islice(self.values.items(), VALUES_LISTED)
        values = [{"value": value, "images": images} for value, images in listed]
        return {"different": len(self.values), "values": values, "images_of_more_values": self.more}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Pictures that go into the same UNet calls of `unet_bs` rows."""

    model: str
    size: str
    sampler: str
    steps: int
    unet_bs: int
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What has to be done while a model is loaded, and what that takes; sizes are in bytes."""

    model: Model
    execution: Execution
    turbo: bool
    missing: int
    waves: int
    memory_bytes: int
    forecast: Forecast
    groups: Sequence[Group]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "model": self.model.name,
            "dtype": self.execution.dtype,
            "turbo": self.turbo,
            "missing": self.missing,
            "waves": self.waves,
            "memory_bytes": self.memory_bytes,
            **_forecast_dict(self.forecast),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a run has to do. Sizes are in bytes.

    `images` counts the items; `done`, `missing` and `failed` the pictures, since two items may wish for the same one.
    `failed` are those of the missing ones that were tried before, `attempts` times in all. `turns` are those of the
    models; `ends` are the first and the last item that is wanted; `read_as` the prompts that are more than plain text.
    `strength` is that of the workers of `engine=ray`; `memory_bytes` is then what each of them holds.
    """

    request: Request
    images: int
    done: int
    failed: int
    attempts: int
    turns: Sequence[Turn]
    axes: Mapping[str, Axis]
    ends: tuple[Item, Item]
    prompts: int
    weighted: int
    read_as: Sequence[Reading]
    warnings: Sequence[Warned]
    strength: Strength | None = None

    @property
    def device(self) -> str:
        """Where the pictures are made."""
        return self.turns[0].execution.device

    @property
    def missing(self) -> int:
        """How many pictures are to be rendered."""
        return sum(turn.missing for turn in self.turns)

    @property
    def waves(self) -> int:
        """In about how many waves."""
        return sum(turn.waves for turn in self.turns)

    @property
    def memory_bytes(self) -> int:
        """What the model that needs most of it holds at most."""
        return max(turn.memory_bytes for turn in self.turns)

    @property
    def groups(self) -> list[Group]:
        """Those of all models."""
        return [group for turn in self.turns for group in turn.groups]

    @property
    def forecast(self) -> Forecast:
        """For all models together; without seconds where those of one aren't known."""
        forecasts = [turn.forecast for turn in self.turns if turn.missing]
        seconds = Counter[str]()
        for each in forecasts:
            seconds.update(each.seconds)
        times = self.strength.times if self.strength else 1
        known = all(each.seconds for each in forecasts)
        return Forecast(
            seconds={stage: share / times for stage, share in seconds.items()} if known else {},
            disk_bytes=sum(each.disk_bytes for each in forecasts),
            pictures=sum(each.pictures for each in forecasts),
        )

    def to_dict(self) -> dict[str, Any]:
        """As one JSON document."""
        return {
            "target": str(self.request.target),
            "folder": str(self.request.store),
            "images": self.images,
            "done": self.done,
            "missing": self.missing,
            "failed": self.failed,
            "attempts": self.attempts,
            "waves": self.waves,
            "device": self.device,
            "device_name": device_name(self.device),
            **({"workers": self.strength.workers} if self.strength else {}),
            "memory_bytes": self.memory_bytes,
            **_forecast_dict(self.forecast),
            "models": [turn.to_dict() for turn in self.turns],
            "axes": {key: axis.to_dict() for key, axis in self.axes.items()},
            "first": _item_dict(self.ends[0]),
            "last": _item_dict(self.ends[1]),
            "groups": [dataclasses.asdict(group) for group in self.groups],
            "prompts": {
                "different": self.prompts,
                "weighted": self.weighted,
                "read_as": [reading.to_dict() for reading in self.read_as],
            },
            "warnings": [warned.to_dict() for warned in self.warnings],
        }


def _forecast_dict(forecast: Forecast) -> dict[str, Any]:
    seconds = dict(forecast.seconds)
    return {
        "disk_bytes": forecast.disk_bytes,
        "seconds": _rounded(seconds | {"total": math.fsum(seconds.values())}) if seconds else None,
        "judged_by": forecast.pictures,
    }


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(value, 3) for stage, value in seconds.items()}


def _item_dict(item: Item) -> dict[str, Any]:
    return item.to_dict() | {"model": item.model.name, "image": image_name(item)}


def make_survey(request: Request) -> Survey:
    """Counts what is wanted and what is missing, looks for what is odd, and estimates what the run takes.

    Raises:
        SettingError: there are too many items, or no layout keeps the ceiling of memory.
    """
    if not request.count():
        raise SettingError(f"shard={request.settings.shard} has no items: there are fewer than shards")
    if request.count() > MOST_READ:
        raise SettingError(
            f"plan reads up to {MOST_READ} items, and these are {request.count()}; set limit={MOST_READ}"
        )
    tally = _Tally(request)
    wanted = request.wanted()
    while items := list(itertools.islice(wanted, TOGETHER)):
        tally.add(items)
    twins = tally.find_twins()
    tally.linter.read_kinds(tally.by_kind(), tally.samples)
    done = np.frombuffer(tally.done, dtype=np.bool_)
    missing = tally.by_kind(~done & ~twins)
    device = choices.guess_device(request.settings.device)
    free = memory.free_main_memory() if device == "cpu" else None
    turns = [_make_turn(request, model, missing, tally.samples, device, free) for model in request.models]
    return Survey(
        request=request,
        images=len(done),
        done=int((done & ~twins).sum()),
        failed=len(tally.failures),
        attempts=sum(tally.failures.values()),
        turns=turns,
        axes=tally.axes,
        ends=tally.ends(),
        prompts=tally.linter.prompts,
        weighted=tally.weighted,
        read_as=tally.read_as,
        warnings=tally.linter.warnings(),
        strength=strength(request.settings) if request.settings.engine == RAY else None,
    )


def _make_turn(
    request: Request,
    model: Model,
    missing: Mapping[Work, int],
    samples: Mapping[Work, Item],
    device: str,
    free: int | None,
) -> Turn:
    kinds = Counter({kind: count for (whose, kind), count in missing.items() if whose == model})
    execution = choices.decide(request.settings, request.models[model], device, free)
    layouts = {size: execution.layout(*size) for size in {kind.size for kind in kinds}}
    rows = {size: layout.unet_bs for size, layout in layouts.items()}
    shares = {kind: samples[model, kind].rows / layouts[kind.size].wave_rows for kind in kinds}
    own = Path(str(request.store))
    near = [] if request.store.remote else [own, *_folders(own.parent)]
    folders = [*near, *_folders(OUTPUTS)]
    return Turn(
        model=model,
        execution=execution,
        turbo=all(layout.turbo for layout in layouts.values()),
        missing=kinds.total(),
        waves=_count_waves(kinds, shares),
        memory_bytes=max((layout.peak for layout in layouts.values()), default=0),
        forecast=forecast(kinds, read_past(folders, dict(model.fingerprints), execution), rows),
        groups=_groups(model.name, kinds, rows),
    )


class _Tally:
    """What is kept while the items pass by: a few bytes of each, and one whole item of each model and kind."""

    def __init__(self, request: Request) -> None:
        self.request, self.linter = request, Linter(request)
        self.index = read_index(request.store)
        self.begun = request.store.size(RECORDS) >= 0
        self.failures: dict[str, int] = {}  # how often an item without a picture was tried before, by its id
        self.ids, self.numbers, self.kinds, self.done = array("Q"), array("Q"), array("Q"), bytearray()
        self.samples: dict[Work, Item] = {}
        self.places: dict[Work, int] = {}  # of the kinds in `samples`
        self.axes: dict[str, Axis] = defaultdict(Axis)
        self.weighted, self.read_as = 0, list[Reading]()

    def add(self, items: Sequence[Item]) -> None:
        """Takes items into account."""
        digests = [item_digest(item) for item in items]
        self.ids.frombytes(b"".join([digest[:DIGEST_KEPT] for digest in digests]))
        self.numbers.extend([item.number for item in items])
        self.kinds.extend([self._place(item) for item in items])
        if self.begun:
            self.done.extend([self._is_done(*each) for each in zip(items, digests, strict=True)])
        else:
            self.done.extend(bytes(len(items)))
        for (key, value), images in Counter(itertools.chain.from_iterable(item.axes for item in items)).items():
            self.axes[key].add(value, images)
        for item in items:
            if self.linter.read(item) and (reading := read_prompt(item)):
                self.weighted += 1
                if len(self.read_as) < READ_AS_KEPT:
                    self.read_as.append(reading)

    def _place(self, item: Item) -> int:
        """The place of an item's model and kind among those that were met."""
        work = item.model, Kind.of(item)
        place = self.places.get(work)
        if place is None:
            place = self.places[work] = len(self.places)
            self.samples[work] = item
        return place

    def _is_done(self, item: Item, digest: bytes) -> bool:
        """Whether an item has its picture; what the ledger says of it otherwise is noted."""
        identity = digest.hex()
        if self.index.is_done(identity):
            return True
        path = image_name(item)
        if self.index.owner(path) not in (None, identity):
            self.linter.note(NAME_TAKEN, path, item=item.number)
        if failures := self.index.failures(identity):
            self.failures[identity] = failures
        return False

    def by_kind(self, which: NDArray[np.bool_] | None = None) -> Counter[Work]:
        """How many items there are of each model and kind; only `which` of them, if that is given."""
        kinds = np.frombuffer(self.kinds, dtype=np.uint64).astype(np.int64)
        counts = np.bincount(kinds if which is None else kinds[which], minlength=len(self.places))
        return Counter({work: int(counts[place]) for work, place in self.places.items() if counts[place]})

    def find_twins(self) -> NDArray[np.bool_]:
        """Which items have the id of an earlier one, by 64 bits of it: by chance once in 10^7 lists of a million."""
        ids = np.frombuffer(self.ids, dtype=np.uint64)
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        twins = np.zeros(len(ids), dtype=np.bool_)
        twins[order[1:][ordered[1:] == ordered[:-1]]] = True
        places = np.flatnonzero(twins)
        for place in places[:EXAMPLES]:
            first = order[np.searchsorted(ordered, ids[place])]
            self.linter.note(SAME_PICTURE, f"the same as item {self.numbers[first]}", item=self.numbers[place])
        if len(places) > EXAMPLES:
            self.linter.note(SAME_PICTURE, "", count=len(places) - EXAMPLES)
        return twins

    def ends(self) -> tuple[Item, Item]:
        """The first and the last item."""
        return self.request.items[self.numbers[0]], self.request.items[self.numbers[-1]]


def _folders(parent: Path) -> Iterator[Path]:
    return (file.parent for file in parent.glob(f"*/{RECORDS}"))


def _count_waves(missing: Mapping[Kind, int], shares: Mapping[Kind, float]) -> int:
    """About how many waves there will be, each item being a share of one: what is left over shares waves by size."""
    waves: dict[tuple[int, int], float] = defaultdict(float)
    for kind, count in missing.items():
        waves[kind.size] += count * shares[kind]
    return sum(math.ceil(number - 1e-9) for number in waves.values())


def _groups(model: str, missing: Mapping[Kind, int], rows: Mapping[tuple[int, int], int]) -> list[Group]:
    images = Counter[tuple[tuple[int, int], str, int]]()
    for kind, count in missing.items():
        images[kind.size, kind.sampler, kind.steps] += count
    return [
        Group(model=model, size=f"{size[0]}x{size[1]}", sampler=sampler, steps=steps, unet_bs=rows[size], images=count)
        for (size, sampler, steps), count in images.items()
    ]
