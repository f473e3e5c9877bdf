"""One run under way: what is missing of a request becomes pictures in files, and records.

An engine makes the pictures, threads write them, and a record is appended when a picture is in its file. `run` starts
it and reports its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent import futures
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from runner.engine.base import Delivery, Engine
from runner.engine.stops import Stop
from runner.errors import RunnerError, SettingError
from runner.events import (
    Failure,
    ItemDone,
    ItemFailed,
    ModelLoaded,
    Outcome,
    Rendered,
    RunEvent,
    RunFinished,
    RunStarted,
    WaveDone,
)
from runner.folder.ledger import Index, Ledger
from runner.folder.names import INITS, LINES, MANIFEST, RUN, UNFINISHED, image_name
from runner.folder.store import Store
from runner.folder.ways import changed_versions, differences, lowered
from runner.folder.writer import Finish, Writer
from runner.item import MASK, MASK_SHA256, Item, Model, item_id
from runner.record import Making, Record, Written, item_dict, model_dict
from runner.request import Request
from runner.verbs.run.backlog import Backlog
from runner.verbs.run.turns import Loader

MOST_ALIKE = 10
FLUSH_SECONDS = 1.0  # at least between two flushes of a store, where each is a request that is waited for
log = logging.getLogger(__name__)


class Streak:
    """Failures in a row with one and the same error."""

    def __init__(self) -> None:
        self._error: Mapping[str, str] = {}
        self._length = 0

    def go_on(self, error: Mapping[str, str]) -> int:
        """One more failure; how many in a row that makes."""
        self._length = self._length + 1 if error == self._error else 1
        self._error = error
        return self._length

    def end(self) -> None:
        """Something succeeded."""
        self._length = 0


class Session:
    """One run under way: pictures on their way into files, and the ledger that follows them."""

    def __init__(
        self, request: Request, loader: Loader, ledger: Ledger, backlog: Backlog, stop: Stop, outcome: Outcome
    ) -> None:
        self.request, self.loader, self.outcome = request, loader, outcome
        self.ledger, self.backlog, self.stop = ledger, backlog, stop
        self._written: deque[tuple[Rendered, futures.Future[Written]]] = deque()
        # A picture is written when others are long rendered, so each stage has failures in a row of its own.
        self._unrendered, self._unwritten = Streak(), Streak()
        self._due = False  # a wave has ended, and its records aren't flushed yet
        self._flushed = -FLUSH_SECONDS
        self._kept: set[str] = set()  # copies of init pictures that are in the store, where each look is a request

    def run(self, make_writer: Callable[[Store], Writer] = Writer) -> Generator[RunEvent, None, None]:
        """Renders all that is missing; whatever happens, what is in a file gets its record."""
        with make_writer(self.request.store) as writer:
            self._writer = writer
            try:
                for model, items in _by_model(self.backlog):
                    yield from self._render(model, items)
                    if self.outcome.hopeless:
                        break
                yield from self._collect(wait=True)
            finally:
                self._settle()

    def _render(self, model: Model, items: Iterator[Item]) -> Iterator[RunEvent]:
        """Renders the items of one model."""
        engine = self.loader.load(model)
        making = self._asked(engine.describe())
        notes = check_rounding(self.request, model, engine, self.ledger)
        _prepare_folder(self.request, describe(self.request, making))
        yield ModelLoaded(model=model, notes=tuple(notes))
        for event in self.stop.through(engine.run(engine.group(items), self._delivery())):
            match event:
                case Rendered():
                    self._unrendered.end()
                    self.outcome.peak_bytes = max(self.outcome.peak_bytes, event.peak_bytes)
                    self._written.append((event, self._write(event)))
                case ItemFailed():
                    yield self._fail(event, making, self._unrendered)
                case _:
                    yield event
            yield from self._collect(wait=False)
            self._flush(ended=isinstance(event, WaveDone))
            if self.outcome.hopeless:
                return

    def _flush(self, *, ended: bool) -> None:
        """Once a wave: when its pictures are in their files, at the latest when the next one has `ended`.

        Waves that come faster than requests share a flush; the end of the run is one as well.
        """
        soon = self.request.store.remote and time.monotonic() - self._flushed < FLUSH_SECONDS
        if self._due and not soon and (ended or not self._written):
            self.ledger.flush()
            self._due, self._flushed = False, time.monotonic()
        if ended:
            self._due = True
            self._flush(ended=False)

    def _settle(self) -> None:
        """Records what is still being written; after an interruption as well."""
        while self._written:
            with contextlib.suppress(RunnerError):  # the first of its kind is on its way to the user already
                for _ in self._collect(wait=True):
                    pass

    def _delivery(self) -> Delivery:
        """How pictures come from other processes: as bytes, or put into a folder that those reach as well."""
        store = self.request.store
        place = str(store) if store.remote else os.path.abspath(str(store))
        reached = self.request.settings.ray.shared or store.remote

        def address(item: Item) -> tuple[Item, str]:
            return self._keep_pictures(item), str(self._claim(item))

        return Delivery(address=address, finish=Finish(place if reached else None))

    def _write(self, event: Rendered) -> futures.Future[Written]:
        if isinstance(event.finished, Written):
            there = futures.Future[Written]()
            there.set_result(event.finished)
            return there
        picture = event.pixels if event.finished is None else event.finished
        assert picture is not None
        return self._writer.submit(picture, self._keep_pictures(event.item), self._claim(event.item))

    def _claim(self, item: Item) -> PurePosixPath:
        return PurePosixPath(self.ledger.claim(image_name(item), item_id(item)))

    def _keep_pictures(self, item: Item) -> Item:
        """The item with its init picture and its mask as copies in the run folder, which is whole on its own then."""
        if item.init is None:
            return item
        init, mask = self._keep(item.init, item.init_sha256), item.value(MASK)
        return item.with_pictures(init, self._keep(mask, item.value(MASK_SHA256)) if mask else None)

    def _keep(self, path: str, sha256: str | None) -> str:
        """The path of a picture's copy; its own where it has vanished."""
        name = f"{INITS}/{sha256}{Path(path).suffix.lower()}"
        store = self.request.store
        if store.remote and name in self._kept:
            return name
        if store.size(name) < 0:
            try:
                data = Path(path).read_bytes()
            except OSError:
                return path  # the record says where it was
            store.put(name, data)
        self._kept.add(name)
        return name

    def _collect(self, *, wait: bool) -> Iterator[ItemDone | ItemFailed]:
        """Appends the records of pictures that are in their files; those that remain stay noted, whatever happens."""
        while self._written and (wait or self._written[0][1].done()):
            futures.wait([self._written[0][1]])
            event, future = self._written.popleft()
            try:
                written = future.result()
            except RunnerError:
                raise
            except Exception as error:  # of this picture alone: it can't be encoded, say
                failed = ItemFailed(item=event.item, error=Failure.of(error), seconds=event.seconds)
                yield self._fail(failed, event.making, self._unwritten)
                continue
            self._unwritten.end()
            record = self._record(event, event.making).finished(written, event.seconds, event.peak_bytes)
            self.ledger.append(record.to_dict())
            self.backlog.settle(record.id)
            self.outcome.done += 1
            yield ItemDone(item=event.item, record=record, worker=event.worker)

    def _fail(self, event: ItemFailed, making: Making, streak: Streak) -> ItemFailed:
        """Records a failure; many alike in a row are taken for what all the others would come to."""
        error = event.error.to_dict()
        self.ledger.append(self._record(event, event.making or making).failed(error, event.seconds).to_dict())
        self.outcome.failed.append(event.item)
        if streak.go_on(error) >= MOST_ALIKE:
            self.outcome.hopeless = f"{MOST_ALIKE} items in a row failed alike: {error['class']}: {error['message']}"
        return event

    def _record(self, event: Rendered | ItemFailed, making: Making) -> Record:
        item = event.item
        return Record(
            id=item_id(item),
            item=item_dict(self._keep_pictures(item)),
            model=model_dict(item.model),
            making=self._asked(making),
            rerendered=event.rerendered,
            made=datetime.now().astimezone().isoformat(timespec="milliseconds"),
        )

    def _asked(self, making: Making) -> Making:
        """The making with what was asked for."""
        settings = self.request.settings
        return making._replace(precision=settings.precision, memory=settings.memory or "auto", engine=settings.engine)


def render_only(request: Request, loader: Loader, stop: Stop) -> Iterator[RunEvent]:
    """Renders everything and keeps nothing: to measure the time, without loading the first model."""
    yield RunStarted(wanted=request.count(), missing=request.count())
    loader.load(next(iter(request.models)))
    begun, done, failed = time.monotonic(), 0, list[Item]()
    for model, items in _by_model(request.wanted()):
        engine = loader.load(model)
        yield ModelLoaded(model=model)
        for event in stop.through(engine.run(engine.group(items))):
            if isinstance(event, Rendered):
                done += 1
                record = Record(id="", item={}, model={}, making=event.making, seconds=event.seconds)
                yield ItemDone(item=event.item, record=record, worker=event.worker)
            else:
                failed += [event.item] if isinstance(event, ItemFailed) else []
                yield event
    yield RunFinished(done=done, failed=tuple(failed), seconds=time.monotonic() - begun)


def _by_model(items: Iterable[Item]) -> Iterator[tuple[Model, Iterator[Item]]]:
    """The items of each model in turn; a model's have to be taken before the next model's are."""
    return itertools.groupby(items, key=lambda item: item.model)


def describe(request: Request, making: Making) -> dict[str, Any]:
    """The content of `run.json`; `making` is what is the same in every record of the model that is loaded."""
    return {
        "target": str(request.target),
        "settings": dataclasses.asdict(request.settings),
        "drawn_seeds": {str(job): seed for job, seed in request.drawn_seeds.items()},
        "models": [model_dict(model) for model in request.models],
        **making.to_dict(),
    }


def check_rounding(request: Request, model: Model, engine: Engine, index: Index) -> list[str]:
    """What people should know before pictures of a model, made in different ways, come into one folder.

    Raises:
        SettingError: the folder's pictures were made in another way, and mixing isn't asked for.
    """
    making = engine.describe()

    def now(width: int, height: int) -> Making:
        return making._replace(unet_bs=engine.planned_rows(width, height))

    own = tuple(sha256 for _, sha256 in model.fingerprints)
    ways = [way for way in index.ways if way.model == own]
    found = differences(ways, now)
    if found and not request.settings.mixed:
        raise SettingError(
            f"the pictures in '{request.store}' were made in another way: {'; '.join(found)}. The same item could "
            "become other bytes. Go on as before, choose another 'out=', or mix them with mixed=true"
        )
    changed = found + changed_versions(ways, making.env)
    notes = [f"the folder's pictures were made in another way: {'; '.join(changed)}"] if changed else []
    return notes + lowered(ways)


def _prepare_folder(request: Request, settings: Mapping[str, Any]) -> None:
    """Writes what is asked for, and the mark that the folder's report is behind its records from now on."""
    asked = LINES if request.target.suffix == ".jsonl" else MANIFEST
    request.store.put(UNFINISHED, b"")
    request.store.put(asked, request.target.read_bytes())
    request.store.put(RUN, orjson.dumps(settings, option=orjson.OPT_INDENT_2))
    request.store.flush()
