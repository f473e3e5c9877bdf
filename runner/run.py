"""Renders what is missing of a request: items in, pictures and records out, told as a stream of events.

It joins the parts: the ledger says what is missing, `plan` groups it, `execute` makes the pictures, threads write
them, and a record is appended when a picture is in its file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent import futures
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from runner import __version__, gallery, plan
from runner.errors import RunnerError
from runner.events import ItemDone, ItemFailed, Rendered, RunEvent, RunFinished, RunStarted
from runner.execute import Executor, available_devices, free_memory, held_memory
from runner.files import atomic_write, writing_to
from runner.images import Writer, Written, image_path
from runner.records import Ledger
from runner.request import RUN_FILE, Request
from runner.spec import Item

INITS = "inits"  # in a run folder, beside its records
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow")


def run(request: Request, executor: Executor | None = None) -> Generator[RunEvent, None, None]:
    """Renders the items that have no picture yet; closing the iterator stops it and keeps what is finished.

    An `executor` that `start_executor` made for the same model and settings is used again, and no other is loaded.

    Raises:
        RunnerError: nothing can be rendered at all, or nothing more; what was finished is safe.
    """
    begun = time.monotonic()
    if request.settings.skip_save:
        yield from _render_only(request, executor or start_executor(request))
        return
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(request.folder)) if request.folder.exists() else None
        missing = _count_missing(request, ledger)
        if not missing:
            yield RunStarted(wanted=request.count(), missing=0, settings={})
            yield RunFinished(done=0, failed=(), seconds=time.monotonic() - begun)
            return
        executor = executor or start_executor(request)
        ledger = ledger or stack.enter_context(Ledger(request.folder))
        settings = describe(request, executor)
        _write_run_files(request, settings)
        yield RunStarted(wanted=request.count(), missing=missing, settings=settings)
        session = Session(request, executor, ledger, stack.enter_context(Writer(request.folder)))
        try:
            yield from session.render()
        finally:
            session.settle()
        if not request.settings.skip_grid:
            gallery.build(request.folder, request.settings.n_rows)
        yield RunFinished(done=session.done, failed=tuple(session.failed), seconds=time.monotonic() - begun)


def _render_only(request: Request, executor: Executor) -> Iterator[RunEvent]:
    """Renders everything and keeps nothing: to measure the time."""
    yield RunStarted(wanted=request.count(), missing=request.count(), settings=describe(request, executor))
    begun, done, failed = time.monotonic(), 0, list[Item]()
    for wave in plan.group(request.wanted(), executor.execution):
        for event in executor.run(wave):
            if isinstance(event, Rendered):
                done += 1
                yield ItemDone(item=event.item, record={"seconds": _rounded(event.seconds)})
            else:
                failed += [event.item] if isinstance(event, ItemFailed) else []
                yield event
    yield RunFinished(done=done, failed=tuple(failed), seconds=time.monotonic() - begun)


class Session:
    """One run under way: pictures on their way into files, and the ledger that follows them."""

    def __init__(self, request: Request, executor: Executor, ledger: Ledger, writer: Writer) -> None:
        self.request, self.executor, self.ledger, self.writer = request, executor, ledger, writer
        self.done = 0
        self.failed: list[Item] = []
        self._under_way: set[str] = set()  # ids that are grouped, rendered or written, but not in the ledger
        self._written: deque[tuple[Rendered, futures.Future[Written]]] = deque()
        self._constant = _constant_record(request, executor)

    def render(self) -> Iterator[RunEvent]:
        """Renders all that is missing, wave by wave."""
        for wave in plan.group(self._missing(), self.executor.execution):
            for event in self.executor.run(wave):
                if isinstance(event, Rendered):
                    self._written.append((event, self._write(event)))
                elif isinstance(event, ItemFailed):
                    self._note_failure(event)
                    yield event
                else:
                    yield event
                yield from self._collect(wait=False)
            self.ledger.flush()
        yield from self._collect(wait=True)

    def settle(self) -> None:
        """Records what is still being written; after an interruption as well."""
        while self._written:
            with contextlib.suppress(RunnerError):  # the first of its kind is on its way to the user already
                for _ in self._collect(wait=True):
                    pass
        self.ledger.flush()

    def _missing(self) -> Iterator[Item]:
        for item in self.request.wanted():
            identity = self.request.identity(item)
            if identity not in self._under_way and not self.ledger.is_done(identity):
                self._under_way.add(identity)
                yield item

    def _write(self, event: Rendered) -> futures.Future[Written]:
        path = self._free_path(event.item)
        return self.writer.submit(event.pixels, self._keep_init(event.item), self._constant["model"], path)

    def _keep_init(self, item: Item) -> Item:
        """The item with its init picture as a copy in the run folder, so that the folder is whole on its own."""
        if item.init is None:
            return item
        name = f"{INITS}/{item.init_sha256}{Path(item.init).suffix.lower()}"
        copy = self.request.folder / name
        if not copy.exists():
            with writing_to(self.request.folder):
                atomic_write(copy, Path(item.init).read_bytes())
        return dataclasses.replace(item, init=name)

    def _free_path(self, item: Item) -> PurePosixPath:
        """The item's path; where the picture of another item stands (of an earlier manifest, say), one with its id."""
        path, identity = image_path(item), self.request.identity(item)
        if self.ledger.image_paths().get(str(path), identity) == identity:
            return path
        return path.with_stem(f"{path.stem}_{identity[:12]}")

    def _collect(self, *, wait: bool) -> Iterator[ItemDone]:
        """Appends the records of pictures that are in their files; those that remain stay noted, whatever happens."""
        while self._written and (wait or self._written[0][1].done()):
            futures.wait([self._written[0][1]])
            event, future = self._written.popleft()
            record = self._record(event.item, event.how) | _done_record(event, future.result())
            self._append(record)
            self.done += 1
            yield ItemDone(item=event.item, record=record)

    def _note_failure(self, event: ItemFailed) -> None:
        error = {"class": type(event.error).__name__, "message": str(event.error)}
        failure = {"status": "failed", "error": error, "seconds": _rounded(event.seconds)}
        self._append(self._record(event.item, {}) | failure)
        self.failed.append(event.item)

    def _append(self, record: Mapping[str, Any]) -> None:
        self.ledger.append(record)
        self._under_way.discard(record["id"])

    def _record(self, item: Item, how: Mapping[str, Any]) -> dict[str, Any]:
        constant = self._constant
        return {
            "id": self.request.identity(item),
            "status": "",
            "item": self._keep_init(item).to_dict() | {"model": self.request.model.name},
            "model": constant["model"],
            "run": constant["run"] | how,
            "env": constant["env"],
        }


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


def _count_missing(request: Request, ledger: Ledger | None) -> int:
    if ledger is None or not ledger.image_paths():
        return request.count()
    return sum(not ledger.is_done(request.identity(item)) for item in request.wanted())


def start_executor(request: Request) -> Executor:
    """The request's model, as its settings want it on this machine."""
    device = plan.check_device(request.settings.device, available_devices())
    free, held = free_memory(device), held_memory(device)
    return Executor(request.model, plan.decide(request.settings, request.model, device, free, held))


def _constant_record(request: Request, executor: Executor) -> dict[str, Any]:
    """What is the same in every record of a run."""
    settings = request.settings
    run_settings = executor.describe() | {
        "precision": settings.precision,
        "memory": settings.memory or "auto",
        "engine": settings.engine,
    }
    return {
        "model": {"name": request.model.name, "fingerprints": dict(request.fingerprints)},
        "run": run_settings,
        "env": environment(),
    }


def environment() -> dict[str, str]:
    """The versions of what has a say in a picture's bytes."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {"runner": __version__, "python": platform.python_version(), **libraries}


def describe(request: Request, executor: Executor) -> dict[str, Any]:
    """The content of `run.json`."""
    return {
        "target": str(request.target),
        "settings": dataclasses.asdict(request.settings),
        "drawn_seeds": {str(job): seed for job, seed in request.drawn_seeds.items()},
        **_constant_record(request, executor),
    }


def _write_run_files(request: Request, settings: Mapping[str, Any]) -> None:
    asked = "manifest.jsonl" if request.target.suffix == ".jsonl" else "manifest.yaml"
    with writing_to(request.folder):
        atomic_write(request.folder / asked, request.target.read_bytes())
        atomic_write(request.folder / RUN_FILE, orjson.dumps(settings, option=orjson.OPT_INDENT_2))
