"""One run under way: what is missing of a request becomes pictures in files, and records.

`plan` groups the items, `execute` makes the pictures, threads write them, and a record is appended when a picture is in
its file. Who asks for a run, and what is told of it, is the business of `run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from runner.engine.executor import FULL, Executor, NotFinite
from runner.engine.start import constant_record
from runner.engine.stops import Stop
from runner.errors import RunnerError, SettingError
from runner.events import ItemDone, ItemFailed, ModelLoaded, Outcome, Rendered, RunEvent, RunFinished, RunStarted
from runner.files import atomic_write, flush_folder, writing_to
from runner.folder.ledger import UNFINISHED, Index, Ledger
from runner.folder.names import image_path
from runner.folder.ways import Way, changed_versions, differences, lowered, way_of
from runner.folder.writer import Writer, Written
from runner.item import Item, Model, item_id
from runner.planning import waves
from runner.planning.waves import Wave
from runner.request import RUN_FILE, Request
from runner.verbs.run.backlog import Backlog
from runner.verbs.run.turns import Loader

INITS = "inits"  # in a run folder, beside its records
MOST_ALIKE = 10
MOST_OVERFLOWED = 64  # items that wait until they are rendered again in full precision
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
        self._written: deque[tuple[Rendered, Mapping[str, Any], futures.Future[Written]]] = deque()
        self._overflowed: list[Item] = []
        self._rerendered: dict[str, str] = {}  # id -> why
        # A picture is written when others are long rendered, so each stage has failures in a row of its own.
        self._unrendered, self._unwritten = Streak(), Streak()

    def run(self) -> Iterator[RunEvent]:
        """Renders all that is missing; whatever happens, what is in a file gets its record."""
        with Writer(self.request.folder) as writer:
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
        executor = self.loader.load(model)
        making = constant_record(self.request, executor)
        notes = check_rounding(self.request, model, executor, self.ledger, making)
        _prepare_folder(self.request, describe(self.request, making))
        yield ModelLoaded(model=model, notes=tuple(notes))
        for wave in self._waves(items, executor):
            yield from self._render_wave(wave, executor, making)
            if len(self._overflowed) >= MOST_OVERFLOWED:
                yield from self._render_in_full(executor)
            if self.outcome.hopeless:
                return
        yield from self._render_in_full(executor)

    def _render_in_full(self, executor: Executor) -> Iterator[RunEvent]:
        """Renders again, in full precision, what overflowed."""
        items, self._overflowed = self._overflowed, []
        if not items:
            return
        with self.stop.harmless():
            executor = executor.in_full()
        making = constant_record(self.request, executor)
        for wave in self._waves(iter(items), executor):
            yield from self._render_wave(wave, executor, making)
            if self.outcome.hopeless:
                return

    def _waves(self, items: Iterator[Item], executor: Executor) -> Iterator[Wave]:
        return self.stop.through(waves.group(items, executor.execution))

    def _render_wave(self, wave: Wave, executor: Executor, making: Mapping[str, Any]) -> Iterator[RunEvent]:
        making = {**making, "run": {**making["run"], "unet_bs": wave.unet_bs, "turbo": wave.layout.turbo}}
        planned = executor.execution.planned_rows(wave.items[0].width, wave.items[0].height)
        for event in self.stop.wave(executor.run(wave)):
            match event:
                case Rendered():
                    self._unrendered.end()
                    self.outcome.peak_bytes = max(self.outcome.peak_bytes, event.peak_bytes)
                    made = {**making, "run": {**making["run"], **event.how}}
                    if made["run"]["unet_bs"] < planned:
                        made["run"]["lowered_from"] = planned
                    self._written.append((event, made, self._write(event)))
                case ItemFailed() if _overflowed(event, executor):
                    self._put_off(event)
                case ItemFailed():
                    yield self._fail(event, making, self._unrendered)
                case _:
                    yield event
            yield from self._collect(wait=False)
            if self.outcome.hopeless:
                return
        self.ledger.flush()

    def _settle(self) -> None:
        """Records what is still being written; after an interruption as well."""
        while self._written:
            with contextlib.suppress(RunnerError):  # the first of its kind is on its way to the user already
                for _ in self._collect(wait=True):
                    pass

    def _write(self, event: Rendered) -> futures.Future[Written]:
        path = self._free_path(event.item)
        return self._writer.submit(event.pixels, self._keep_init(event.item), path)

    def _keep_init(self, item: Item) -> Item:
        """The item with its init picture as a copy in the run folder, so that the folder is whole on its own."""
        if item.init is None:
            return item
        name = f"{INITS}/{item.init_sha256}{Path(item.init).suffix.lower()}"
        copy = self.request.folder / name
        if not copy.exists():
            try:
                data = Path(item.init).read_bytes()
            except OSError:
                return item  # it has vanished; the record says where it was
            with writing_to(self.request.folder):
                atomic_write(copy, data)
        return item._replace(init=name)

    def _free_path(self, item: Item) -> PurePosixPath:
        """The item's path; where the picture of another item stands (of an earlier manifest, say), one with its id."""
        path, identity = image_path(item), item_id(item)
        if self.ledger.image_paths().get(str(path), identity) == identity:
            return path
        return path.with_stem(f"{path.stem}_{identity[:12]}")

    def _collect(self, *, wait: bool) -> Iterator[ItemDone | ItemFailed]:
        """Appends the records of pictures that are in their files; those that remain stay noted, whatever happens."""
        while self._written and (wait or self._written[0][2].done()):
            futures.wait([self._written[0][2]])
            event, making, future = self._written.popleft()
            try:
                written = future.result()
            except RunnerError:
                raise
            except Exception as error:  # of this picture alone: it can't be encoded, say
                failed = ItemFailed(item=event.item, error=error, seconds=event.seconds)
                yield self._fail(failed, making, self._unwritten)
                continue
            self._unwritten.end()
            record = self._record(event.item, making) | _done_record(event, written)
            self.ledger.append(record)
            self.backlog.settle(record["id"])
            self.outcome.done += 1
            yield ItemDone(item=event.item, record=record)

    def _put_off(self, event: ItemFailed) -> None:
        """Keeps an item for later, when it is rendered in full precision; so far nothing has failed."""
        self._overflowed.append(event.item)
        self._rerendered[item_id(event.item)] = str(event.error)
        log.info("item %d is rendered again in full precision: %s", event.item.number, event.error)

    def _fail(self, event: ItemFailed, making: Mapping[str, Any], streak: Streak) -> ItemFailed:
        """Records a failure; many alike in a row are taken for what all the others would come to."""
        error = {"class": type(event.error).__name__, "message": str(event.error)}
        failure = {"status": "failed", "error": error, "seconds": _rounded(event.seconds)}
        self.ledger.append(self._record(event.item, making) | failure)
        self.outcome.failed.append(event.item)
        if streak.go_on(error) >= MOST_ALIKE:
            self.outcome.hopeless = f"{MOST_ALIKE} items in a row failed alike: {error['class']}: {error['message']}"
        return event

    def _record(self, item: Item, making: Mapping[str, Any]) -> dict[str, Any]:
        identity, model = item_id(item), item.model
        wish = self._keep_init(item).to_dict() | {"model": model.name}
        record = {"id": identity, "status": "", "item": wish, "model": _model_record(model), **making}
        return record | {"rerendered": self._rerendered[identity]} if identity in self._rerendered else record


def render_only(request: Request, loader: Loader, stop: Stop) -> Iterator[RunEvent]:
    """Renders everything and keeps nothing: to measure the time."""
    yield RunStarted(wanted=request.count(), missing=request.count())
    begun, done, failed = time.monotonic(), 0, list[Item]()
    for model, items in _by_model(request.wanted()):
        executor = loader.load(model)
        yield ModelLoaded(model=model)
        for wave in stop.through(waves.group(items, executor.execution)):
            for event in stop.wave(executor.run(wave)):
                if isinstance(event, Rendered):
                    done += 1
                    yield ItemDone(item=event.item, record={"seconds": _rounded(event.seconds)})
                else:
                    failed += [event.item] if isinstance(event, ItemFailed) else []
                    yield event
        del executor
    yield RunFinished(done=done, failed=tuple(failed), seconds=time.monotonic() - begun)


def _by_model(items: Iterable[Item]) -> Iterator[tuple[Model, Iterator[Item]]]:
    """The items of each model in turn; a model's have to be taken before the next model's are."""
    return itertools.groupby(items, key=lambda item: item.model)


def _overflowed(event: ItemFailed, executor: Executor) -> bool:
    return isinstance(event.error, NotFinite) and executor.execution.dtype != FULL


def _done_record(event: Rendered, written: Written) -> dict[str, Any]:
    return {
        "status": "done",
        "image": written.path,
        "sha256": written.sha256,
        "pixels": written.pixels_sha256,
        "bytes": written.bytes,
        "seconds": _rounded(event.seconds),
        "peak_bytes": event.peak_bytes,
    }


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in seconds.items()}


def describe(request: Request, making: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `run.json`; `making` is what is the same in every record of the model that is loaded."""
    return {
        "target": str(request.target),
        "settings": dataclasses.asdict(request.settings),
        "drawn_seeds": {str(job): seed for job, seed in request.drawn_seeds.items()},
        "models": [_model_record(model) for model in request.models],
        **making,
    }


def _model_record(model: Model) -> dict[str, Any]:
    return {"name": model.name, "path": model.path, "fingerprints": dict(model.fingerprints)}


def check_rounding(
    request: Request, model: Model, executor: Executor, index: Index, making: Mapping[str, Any]
) -> list[str]:
    """What people should know before pictures of a model, made in different ways, come into one folder.

    Raises:
        SettingError: the folder's pictures were made in another way, and mixing isn't asked for.
    """

    def now(width: int, height: int) -> Way:
        run = {**making["run"], "unet_bs": executor.execution.planned_rows(width, height)}
        item = {"width": width, "height": height}
        return way_of({"model": model.to_dict(), "item": item, "run": run, "env": making["env"]})

    own = tuple(sha256 for _, sha256 in model.fingerprints)
    ways = [way for way in index.ways if way.model == own]
    found = differences(ways, now)
    if found and not request.settings.mixed:
        raise SettingError(
            f"the pictures in '{request.folder}' were made in another way: {'; '.join(found)}. The same item could "
            "become other bytes. Go on as before, choose another 'out=', or mix them with mixed=true"
        )
    changed = found + changed_versions(ways, making["env"])
    notes = [f"the folder's pictures were made in another way: {'; '.join(changed)}"] if changed else []
    return notes + lowered(ways)


def _prepare_folder(request: Request, settings: Mapping[str, Any]) -> None:
    """Writes what is asked for, and the mark that the folder's report is behind its records from now on."""
    asked = "manifest.jsonl" if request.target.suffix == ".jsonl" else "manifest.yaml"
    manifest = request.target.read_bytes()
    with writing_to(request.folder):
        (request.folder / UNFINISHED).touch()
        atomic_write(request.folder / asked, manifest)
        atomic_write(request.folder / RUN_FILE, orjson.dumps(settings, option=orjson.OPT_INDENT_2))
        flush_folder(request.folder)
