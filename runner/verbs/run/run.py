"""Renders what is missing of a request: items in, pictures and records out, reported as a stream of events.

The ledger says what is missing. Torch, which takes seconds, is imported only if something is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator

from runner.engine.base import Engine
from runner.engine.stops import Stop
from runner.events import Outcome, RunEvent, RunFinished, RunStarted
from runner.folder.ledger import Ledger
from runner.folder.names import UNFINISHED
from runner.folder.store import Store
from runner.folder.writer import Writer
from runner.report import gallery
from runner.request import Request
from runner.verbs.run import turns
from runner.verbs.run.backlog import Backlog
from runner.verbs.run.session import Session, render_only
from runner.verbs.run.turns import Loader, Start


def run(
    request: Request,
    engine: Engine | None = None,
    stop: Stop | None = None,
    start: Start | None = None,
    make_writer: Callable[[Store], Writer] = Writer,
) -> Generator[RunEvent, None, None]:
    """Renders the items that have no picture yet; closing the iterator stops it and keeps what is finished.

    An `engine` for the request's first model and the same settings is used as it is; `start` makes the others,
    and `make_writer` what writes the pictures.

    Raises:
        RunnerError: nothing can be rendered at all, or nothing more; what was finished is safe.
        Stopped: `stop` was asked to; what was finished is safe.
    """
    begun, stop = time.monotonic(), stop or Stop()
    with contextlib.ExitStack() as held:
        if start is None:
            start = held.enter_context(turns.starting(request))
        yield from _run(request, Loader(request, stop, engine, start), stop, make_writer, begun)


def _run(
    request: Request, loader: Loader, stop: Stop, make_writer: Callable[[Store], Writer], begun: float
) -> Iterator[RunEvent]:
    if request.settings.skip_save:
        yield from render_only(request, loader, stop)
        return
    store = request.store
    if not store.exists() and request.count():  # nothing is written where nothing can be rendered
        loader.load(next(request.wanted()).model)
    with Ledger(store, deep=request.settings.deep, lock=request.settings.lock) as ledger:
        with stop.harmless():
            if store.size(UNFINISHED) >= 0:
                store.sweep()
            backlog = Backlog(request, ledger)
        outcome = Outcome()
        yield RunStarted(wanted=request.count(), missing=backlog.missing)
        if backlog.missing:
            yield from Session(request, loader, ledger, backlog, stop, outcome).run(make_writer)
        _report(request, stop)
        lost = tuple(ledger.lost(outcome.done))
        yield _finished(outcome, backlog, time.monotonic() - begun, lost)


def _finished(outcome: Outcome, backlog: Backlog, seconds: float, lost: tuple[str, ...]) -> RunFinished:
    return RunFinished(
        done=outcome.done,
        failed=(*outcome.failed, *backlog.given_up),
        given_up=tuple(backlog.given_up),
        unwanted=tuple(backlog.unwanted()),
        hopeless=outcome.hopeless,
        lost=lost,
        peak_bytes=outcome.peak_bytes,
        seconds=seconds,
    )


def _report(request: Request, stop: Stop) -> None:
    """Builds the gallery, if something was rendered since it was built the last time."""
    if request.store.size(UNFINISHED) >= 0 and not request.settings.skip_grid:
        with stop.harmless():
            gallery.build(request.store, request.settings.n_rows)
        request.store.remove(UNFINISHED)
