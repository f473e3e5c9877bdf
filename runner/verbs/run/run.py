"""Renders what is missing of a request: items in, pictures and records out, reported as a stream of events.

The ledger says what is missing. Torch, which takes seconds, is imported only if something is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator

from runner.engine.base import Engine
from runner.engine.stops import Stop
from runner.events import ModelLoaded, Outcome, RunEvent, RunFinished, RunStarted
from runner.folder.ledger import Ledger
from runner.folder.names import UNFINISHED, WANTED
from runner.folder.store import Store
from runner.folder.writer import Writer
from runner.report import gallery
from runner.report.gallery.growth import Growth
from runner.report.wanted import MOST, Wanted
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
            session = Session(request, loader, ledger, backlog, stop, outcome)
            yield from _growing(session.run(make_writer), request, ledger)
        _report(request, stop, asked=backlog.missing > 0)
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


def _growing(events: Generator[RunEvent, None, None], request: Request, ledger: Ledger) -> Iterator[RunEvent]:
    """The same events; the gallery follows them as soon as the folder is prepared."""
    growth: Growth | None = None
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, ModelLoaded) and growth is None and not request.settings.skip_grid:
                growth = Growth(_ask(request), ledger)
            yield event
            if growth:
                growth.update()


def _ask(request: Request) -> Wanted | None:
    """Writes into the folder what the manifest asks for, if that has changed, and that the gallery is behind it."""
    store, listed = request.store, request.listed is not None
    # A folder of a shard or of listed items has this part alone, and is whole with it.
    part = (request.settings.shard or listed) and request.count() <= MOST
    wanted, saved = Wanted.of(sorted(request.chosen()) if part else request.items), Wanted.load(store)
    if wanted is None:
        store.remove(WANTED)  # of an earlier, smaller manifest
    elif saved and (saved.mark == wanted.mark or (listed and set(wanted.ids) <= set(saved.ids))):
        return saved
    else:
        store.put(UNFINISHED, b"")
        wanted.save(store)
    return wanted


def _report(request: Request, stop: Stop, *, asked: bool) -> None:
    """Builds the gallery, if something was rendered since it was built the last time, or the manifest has changed."""
    if request.settings.skip_grid:
        return
    with stop.harmless():
        if not asked:
            _ask(request)
        if request.store.size(UNFINISHED) >= 0:
            gallery.build(request.store, request.settings.n_rows)
            request.store.remove(UNFINISHED)
