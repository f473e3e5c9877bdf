"""One of the processes that make pictures for `engine=ray`: it holds an engine, takes waves, and gives files back.

It knows nothing of Ray: `fleet` makes an actor of it, and `ray` gives it waves. It imports torch with its first model.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from runner.engine.base import Engine
from runner.errors import RunnerError
from runner.events import Failure, ItemFailed, MemoryShort, Rendered
from runner.images.codec import Pixels
from runner.item import MASK, Item, Model
from runner.machine import threads
from runner.machine.describe import THREAD_COUNTS
from runner.planning.layouts import Execution
from runner.planning.waves import Wave
from runner.record import Encoded, Making, Written
from runner.settings import Settings

ENCODERS = 2  # threads
Told = tuple[Item, str]  # an item as its picture tells it, and the picture's path in the run folder
Finish = Callable[[Pixels, Item, str], Encoded | Written]  # as `base.Delivery` has it


class Planned(Engine, Protocol):
    """An engine that says by what it plans."""

    @property
    def execution(self) -> Execution:
        """How its pictures are made."""


Start = Callable[[Settings, Model, int], Planned]


def start_here(settings: Settings, model: Model, sharing: int) -> Planned:
    """An engine on this machine for the model with these fingerprints; `sharing` processes share its memory.

    Raises:
        ModelError: the machine has no such model at its place.
        SettingError: the machine can't do what the settings ask for.
    """
    from runner.engine.start import plan_execution, start_engine  # brings torch, which takes seconds
    from runner.model.find import use_model

    _, files = use_model(model, settings.model)
    return start_engine(settings, files, plan_execution(settings, files, sharing))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker is started for.

    It computes with as many threads as it has `cores`; None leaves the number to its machine. `sharing` workers share
    the machine's memory. `environment` holds what decides about threads where the run was started.
    """

    settings: Settings
    start: Start = start_here
    cores: int | None = None
    sharing: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


class Loaded(NamedTuple):
    """What a worker says once it holds a model."""

    making: Making
    execution: Execution


class Outcome(NamedTuple):
    """What became of the item at a place of a wave: its file, or why there is none."""

    place: int
    finished: Encoded | Written | None
    failure: Failure | None
    seconds: Mapping[str, float]
    peak_bytes: int
    making: Making | None
    rerendered: str


class Answer(NamedTuple):
    """What became of a wave, and what people should know about it."""

    outcomes: Sequence[Outcome]
    notes: Sequence[str]


class Worker:
    """Renders one wave at a time, and encodes it while the next one is rendered: its methods may run side by side."""

    def __init__(self, job: Job) -> None:
        self._job = job
        for name in THREAD_COUNTS:  # Ray sets one of them by itself
            os.environ.pop(name, None)
        os.environ.update(job.environment if job.cores is None else {"OMP_NUM_THREADS": str(job.cores)})
        threads.settle()
        self._engine: Planned | None = None
        # The same thread always: torch and the threads below it keep what belongs to one.
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="render")
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
        self._copies = tempfile.TemporaryDirectory(prefix="runner-worker-")

    def load(self, model: Model) -> Loaded:
        """Lets go of the model that it holds, and loads another one."""
        return self._renderer.submit(self._load, model).result()

    def keep(self, path: str, content: bytes) -> tuple[str, str]:
        """Keeps a copy of a file that another machine has at `path`; returns both places.

        Where there is no room for it they are one: who reads it says that there is no such file.
        """
        try:
            descriptor, copy = tempfile.mkstemp(dir=self._copies.name, suffix=Path(path).suffix)
            with open(descriptor, "wb") as file:
                file.write(content)
        except OSError:
            return path, path
        return path, copy

    def drop(self, *copies: tuple[str, str]) -> None:
        """Removes copies, as `keep` returned them."""
        for path, copy in copies:
            if copy != path:
                Path(copy).unlink(missing_ok=True)

    def run(self, wave: Wave, told: Sequence[Told], finish: Finish | None, *copies: tuple[str, str]) -> Answer:
        """Makes the pictures of a wave; without `finish` no files of them.

        `told` belongs to its items, one for each. `copies` are the kept files among those that the items name.
        """
        kept = dict(copies)
        items = tuple(placed(item, lambda path: kept.get(path, path)) for item in wave.items)
        return self._renderer.submit(self._render, replace(wave, items=items), told, finish).result()()

    def close(self) -> None:
        """Removes the copies of files."""
        self._copies.cleanup()

    def _load(self, model: Model) -> Loaded:
        if self._engine:
            self._engine.close()
            self._engine = None
        self._engine = self._job.start(self._job.settings, model, self._job.sharing)
        return Loaded(self._engine.describe(), self._engine.execution)

    def _render(self, wave: Wave, told: Sequence[Told], finish: Finish | None) -> Callable[[], Answer]:
        """Renders a wave; what it returns waits for the encoding."""
        assert self._engine is not None
        places = {item.number: place for place, item in enumerate(wave.items)}
        made: list[tuple[Rendered | ItemFailed, Future[Encoded | Written] | None]] = []
        notes = []
        for event in self._engine.run([wave]):
            if isinstance(event, Rendered):
                asked = None
                if finish:
                    assert event.pixels is not None  # this process made them
                    asked = self._encoders.submit(finish, event.pixels, *told[places[event.item.number]])
                made.append((event, asked))
            elif isinstance(event, ItemFailed):
                made.append((event, None))
            elif isinstance(event, MemoryShort):
                notes.append(event.message)
        return lambda: Answer([_outcome(places[event.item.number], event, file) for event, file in made], notes)


def _outcome(place: int, event: Rendered | ItemFailed, file: Future[Encoded | Written] | None) -> Outcome:
    """Waits for an item's file.

    Raises:
        RunnerError: the run folder can't be written.
    """
    how = event.seconds, getattr(event, "peak_bytes", 0), event.making, event.rerendered
    if isinstance(event, ItemFailed):
        return Outcome(place, None, event.error, *how)
    try:
        return Outcome(place, file.result() if file else None, None, *how)
    except RunnerError:
        raise
    except Exception as error:  # of this picture alone: it can't be encoded, say
        return Outcome(place, None, Failure.of(error), *how)


def placed(item: Item, where: Callable[[str], str]) -> Item:
    """The item with the files that it names at other places."""
    mask = item.value(MASK)
    moved = item.with_pictures(item.init and where(item.init), where(mask) if mask else None)
    return moved._replace(
        loras=tuple(each._replace(path=where(each.path)) for each in item.loras),
        embeddings=tuple(each._replace(path=where(each.path)) for each in item.embeddings),
    )


def files_of(item: Item) -> Iterator[str]:
    """The paths of the files that an item names."""
    yield from pictures_of(item)
    yield from (each.path for each in item.loras)
    yield from (each.path for each in item.embeddings)


def pictures_of(item: Item) -> Iterator[str]:
    """The paths of the pictures that an item begins with."""
    yield from (path for path in (item.init, item.value(MASK)) if path)
