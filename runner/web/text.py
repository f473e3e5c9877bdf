"""What the page says of a job: how far it is, how it ended, what was wrong. Everything is HTML, and safe.

describe(job, ahead=2)  # "waiting for 2 others"
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from runner.folder.names import GALLERY
from runner.web.jobs import BROKEN, DONE, LOADING, RUNNING, WAITING, Job

FAILURES_SHOWN = 5


def describe(job: Job, ahead: int) -> str:
    """How far a job is, or how it ended; `ahead` is how many others come first."""
    if job.state == WAITING and ahead:
        return _state(f"<p>waiting for {ahead} other{'s' * (ahead > 1)}</p>")
    if job.state in (WAITING, LOADING):
        return _state("<p>loading the model</p>")
    if job.state == BROKEN:
        return wrong(job.message)
    notes = "".join(f'<p class="left">{html.escape(note)}</p>' for note in job.notes)
    failures = "".join(wrong(line) for line in job.failed[:FAILURES_SHOWN])
    line = _how_far(job) if job.state == RUNNING else _outcome(job)
    return _state(line + notes + failures)


def _how_far(job: Job) -> str:
    left = job.seconds_left()
    rest = "" if left is None else f'<span class="left">{_clock(left)} left</span>'
    bar = f'<div class="bar" role="progressbar"><i style="width: {job.share:.1%}"></i></div>'
    return f"<p><span>{len(job.pictures)} of {job.wanted} pictures</span>{rest}</p>{bar}"


def _outcome(job: Job) -> str:
    made = f"{len(job.pictures)} of {job.wanted} pictures" if job.wanted else "no pictures"
    words = f"{made} in {_clock(job.ended - job.begun)}" if job.state == DONE else f"cancelled: {made}"
    page = job.folder / GALLERY
    link = f'<a href="gradio_api/file={quote(str(page))}" target="_blank">gallery.html</a>' if page.exists() else ""
    return f"<p><span>{words}, in {html.escape(_short(job.folder))}</span>{link}</p>"


def spans(seeds: Iterable[int]) -> str:
    """Seeds in the manifest's way of writing them: `27-46, 99`."""
    found: list[list[int]] = []
    for seed in sorted(seeds):
        if found and seed == found[-1][-1] + 1:
            found[-1][1:] = [seed]
        else:
            found.append([seed])
    return ", ".join("-".join(map(str, ends)) for ends in found)


def wrong(text: str) -> str:
    """A message about what went wrong."""
    return f'<div class="state"><div class="wrong" role="alert">{html.escape(text)}</div></div>'


def _state(inner: str) -> str:
    return f'<div class="state" role="status">{inner}</div>'


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _short(folder: Path) -> str:
    """The folder as it is called from here."""
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


NOTHING_YET = _state('<p class="left">The pictures appear here, with their seeds and their manifest.</p>')
READING = _state("<p>reading</p>")
