"""Readers of a run's events for people: a progress bar on a terminal, plain lines elsewhere, and the log file."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from runner.errors import FolderUnwritable
from runner.events import (
    ItemDone,
    ItemFailed,
    MemoryShort,
    ModelLoaded,
    RunEvent,
    RunFinished,
    RunStarted,
    StepDone,
    WaveStarted,
    WorkersChanged,
)
from runner.folder.ledger import iterate_records
from runner.folder.names import GALLERY, LOG, RECORDS
from runner.folder.store import Store
from runner.item import Item, item_id
from runner.record import FAILED, part
from runner.terminal import say
from runner.text import name_some, shorten, show_size, visible

LINE_SECONDS = 5.0  # between two plain lines
SHOWN_FAILURES = 10
SHOWN_MACHINES = 8
NAME_LENGTH, REASON_LENGTH = 80, 200  # characters
log = logging.getLogger("runner")


def watch(events: Iterable[RunEvent], store: Store, console: Console) -> RunFinished:
    """Shows a run's events on `console` until its last one, which is returned."""
    reasons: dict[int, str] = {}
    finished = show(_noting(logged(events, store), reasons), console)
    say(console, summary(finished, store, reasons))
    return finished


def _noting(events: Iterable[RunEvent], reasons: dict[int, str]) -> Iterator[RunEvent]:
    """The same events; notes why items failed, by their numbers."""
    for event in events:
        if isinstance(event, ItemFailed):
            reasons[event.item.number] = str(event.error)
        yield event


def show(events: Iterable[RunEvent], console: Console) -> RunFinished:
    """Shows how far a run is until its last event, which is returned; it writes no log."""
    steers = console.is_terminal and not console.is_dumb_terminal
    return _show_bar(events, console) if steers else _show_lines(events, console)


def summary(finished: RunFinished, store: Store, reasons: Mapping[int, str] | None = None) -> list[str]:
    """What is said at the end; `reasons` say why items failed, by their numbers."""
    lines, reasons = [], dict(reasons or {})
    if finished.hopeless:
        lines.append(f"stopped early: {finished.hopeless}")
    if finished.done or finished.failed:
        pace = finished.done / finished.seconds if finished.seconds else 0.0
        where = f", see {store}/{GALLERY}" if store.size(GALLERY) >= 0 else ""
        memory = f", at most {show_size(finished.peak_bytes)} of memory" if finished.peak_bytes else ""
        lines.append(f"{finished.done} pictures in {finished.seconds:.1f} s ({pace:.2f} a second){memory}{where}")
    else:
        lines.append(f"nothing to render: all pictures are in {store}")
    given_up = {item.number for item in finished.given_up}
    failed = [item for item in finished.failed if item.number not in given_up]
    if failed:
        lines.append(f"{len(failed)} failed, see {store}/{RECORDS}; run again to try them again:")
        lines += _name_items(failed, reasons)
    if finished.given_up:
        reasons |= _recorded_reasons(finished.given_up[:SHOWN_FAILURES], store)
        lines.append(
            f"{len(finished.given_up)} skipped, since they failed in earlier runs; raise attempts= to retry them:"
        )
        lines += _name_items(finished.given_up, reasons)
    if finished.lost:
        names = name_some([shorten(path, NAME_LENGTH) for path in finished.lost])
        lines.append(f"{len(finished.lost)} pictures of this run are gone again; run again to make them anew: {names}")
    if finished.unwanted:
        names = name_some([shorten(path, NAME_LENGTH) for path in finished.unwanted])
        lines.append(f"{len(finished.unwanted)} pictures are no longer in the manifest and were kept: {names}")
    return lines


def _recorded_reasons(items: Sequence[Item], store: Store) -> dict[int, str]:
    """Why items failed in earlier runs, as their newest records say."""
    numbers, found = {item_id(item): item.number for item in items}, dict[int, str]()
    for record in iterate_records(store) if store.size(RECORDS) >= 0 else ():
        if record["status"] == FAILED and record["id"] in numbers:
            found[numbers[record["id"]]] = str(part(record, "error").get("message", ""))
    return found


def _name_items(items: Sequence[Item], reasons: Mapping[int, str]) -> list[str]:
    lines = [
        f"  {item.number}: {shorten(item.prompt, NAME_LENGTH)}, seed {item.seed}"
        + (f": {shorten(reason, REASON_LENGTH)}" if (reason := reasons.get(item.number)) else "")
        for item in items[:SHOWN_FAILURES]
    ]
    return lines + ([f"  and {len(items) - SHOWN_FAILURES} more"] if len(items) > SHOWN_FAILURES else [])


class _Pace(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Images a second since the start, in all and by machine."""
        return Text(_pace(task.completed, task.elapsed or 0.0, task.fields["machines"]))


def _pace(done: float, seconds: float, machines: Mapping[str, int]) -> str:
    """Images a second; also of each machine, where there are several."""
    text = f"{done / seconds if seconds else 0.0:.2f} images/s"
    if len(machines) < 2 or not seconds:
        return text
    named = [f"{visible(name)} {count / seconds:.2f}" for name, count in list(machines.items())[:SHOWN_MACHINES]]
    more = [f"{len(machines) - SHOWN_MACHINES} more"] if len(machines) > SHOWN_MACHINES else []
    return f"{text} ({', '.join(named + more)})"


def _show_bar(events: Iterable[RunEvent], console: Console) -> RunFinished:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Pace(), TimeRemainingColumn())
    # What others print meanwhile stays with the screens: rich would let their control sequences pass.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    with bar as progress:
        machines = Counter[str]()
        task = progress.add_task("loading", total=None, machines=machines)
        for event in events:
            match event:
                case RunStarted():
                    progress.update(task, total=event.missing)
                case ModelLoaded():
                    _print_notes(event.notes, console)
                    progress.update(task, description="rendering")
                case StepDone():
                    progress.update(task, description=f"step {event.step}/{event.steps}")
                case MemoryShort() | WorkersChanged():
                    _print_notes([event.message], console)
                case ItemDone() | ItemFailed():
                    machines.update(_machine(event))
                    progress.advance(task)
                case RunFinished():
                    return event
    raise AssertionError("a run's last event is RunFinished")


def _show_lines(events: Iterable[RunEvent], console: Console) -> RunFinished:
    total, done, machines = 0, 0, Counter[str]()
    begun = said = time.monotonic()
    for event in events:
        match event:
            case ModelLoaded():
                _print_notes(event.notes, console)
            case RunStarted():
                total, begun = event.missing, time.monotonic()
                if total:
                    console.print(f"{event.missing} of {event.wanted} pictures to render", highlight=False)
            case MemoryShort() | WorkersChanged():
                _print_notes([event.message], console)
            case ItemDone() | ItemFailed():
                machines.update(_machine(event))
                done += 1
            case RunFinished():
                return event
        now = time.monotonic()
        if done and now - said >= LINE_SECONDS:
            said, left = now, (total - done) * (now - begun) / done
            line = f"{done}/{total} images, {_pace(done, now - begun, machines)}, {left:.0f} s left"
            console.print(line, highlight=False)
    raise AssertionError("a run's last event is RunFinished")


def _machine(event: ItemDone | ItemFailed) -> list[str]:
    """The machine that made a picture, where it was another process."""
    return [event.worker] if isinstance(event, ItemDone) and event.worker else []


def _print_notes(notes: Iterable[str], console: Console) -> None:
    say(console, (f"note: {note}" for note in notes))


def logged(events: Iterable[RunEvent], store: Store) -> Generator[RunEvent, None, None]:
    """Passes the events on and writes `runner.log` as soon as there is a run folder."""
    handler: logging.Handler | None = None
    try:
        for event in events:
            if handler is None and isinstance(event, RunStarted) and event.missing and store.exists():
                handler = _open_log(store)
            _log(event)
            yield event
    finally:
        if handler:
            log.removeHandler(handler)
            handler.close()


class _LogFile(logging.Handler):
    """A log that a full disk cuts off, and nothing else: what matters is in the records."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(FolderUnwritable):
            self._store.append(LOG, f"{visible(self.format(record))}\n".encode())


def _open_log(store: Store) -> logging.Handler:
    store.append(LOG, b"")
    handler = _LogFile(store)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    return handler


def _log(event: RunEvent) -> None:
    match event:
        case RunStarted():
            log.info("started: %d of %d pictures to render", event.missing, event.wanted)
        case ModelLoaded():
            log.info("model %s", event.model.name)
            for note in event.notes:
                log.warning("%s", note)
        case WaveStarted():
            log.info("wave of %d: items %s", len(event.items), [item.number for item in event.items])
        case WorkersChanged():
            log.warning("%s; %d at work", event.message, event.working)
        case ItemFailed():
            log.error("item %d failed: %s\n%s", event.item.number, event.error, event.error.trace.rstrip())
        case RunFinished():
            log.info("finished: %d done, %d failed, %.1f s", event.done, len(event.failed), event.seconds)
            if event.hopeless:
                log.error("stopped early: %s", event.hopeless)
            if event.unwanted:
                log.info(
                    "%d pictures are no longer in the manifest: %s", len(event.unwanted), name_some(event.unwanted)
                )
