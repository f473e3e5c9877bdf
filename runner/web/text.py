"""What the page says of a job: how far it is, how it ended, what was wrong. Everything is HTML, and safe.

describe(job, ahead=2)  # "waiting for 2 others"
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from runner.folder.names import GALLERY, IMAGES
from runner.report.table import many
from runner.text import shorten
from runner.web.history import Run
from runner.web.jobs import BROKEN, DONE, EARLIER, LOADING, RUNNING, WAITING, Job
from runner.web.studio import Checked

FAILURES_SHOWN, NOTES_SHOWN = 5, 10
LONGEST_PROMPT = 200
UNSEEN = "\u200b"  # a space without width: a tag, a link or an entity with it inside is none


def describe(job: Job, ahead: int) -> str:
    """How far a job is, or how it ended; `ahead` is how many others come first."""
    if job.state == BROKEN:
        return wrong(job.message)
    failures = "".join(wrong(line) for line in job.failed[:FAILURES_SHOWN])
    return _state(_line(job, ahead) + notes(job.notes) + failures)


def _line(job: Job, ahead: int) -> str:
    if job.state == WAITING and ahead:
        return f"<p>waiting for {ahead} other{'s' * (ahead > 1)}</p>"
    if job.state in (WAITING, LOADING):
        return "<p>loading the model</p>"
    return _how_far(job) if job.state == RUNNING else _outcome(job)


def notes(lines: Sequence[str]) -> str:
    """What people should know before they wait for pictures."""
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in lines[:NOTES_SHOWN])
    return f'<ul class="notes">{shown}</ul>' if shown else ""


def checked(found: Checked) -> str:
    """What a press would do."""
    count = many(found.pictures, "picture")
    time = f", about {_clock(found.seconds)} by this machine's records" if found.seconds else ""
    none = '<p class="left">nothing to warn of</p>' if not found.warnings else ""
    return _state(f"<p><span>{count}{time}</span></p>{notes(found.warnings)}{none}")


def _how_far(job: Job) -> str:
    left = job.seconds_left()
    rest = "" if left is None else f'<span class="left">{_clock(left)} left</span>'
    share = f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{job.share:.0%}"'.replace("%", "")
    bar = f'<div class="bar" role="progressbar" aria-label="done" {share}><i style="width: {job.share:.1%}"></i></div>'
    return f"<p><span>{len(job.pictures)} of {job.wanted} pictures</span>{rest}</p>{bar}{_preview(job.preview)}"


def _preview(jpeg: bytes) -> str:
    if not jpeg:
        return ""
    return f'<img class="preview" alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def _outcome(job: Job) -> str:
    if job.state == EARLIER:  # how many were wanted isn't known any more
        words = many(len(job.pictures), "picture")
    else:
        made = f"{len(job.pictures)} of {job.wanted} pictures" if job.wanted else "no pictures"
        words = f"{made} in {_clock(job.ended - job.begun)}" if job.state == DONE else f"cancelled: {made}"
    return f"<p><span>{words}, in {html.escape(_short(job.folder))}</span>{links(job.folder)}</p>"


def links(folder: Path) -> str:
    """To a run's gallery, if there is one, and to its pictures as a zip, if there are any."""
    place = f"runs/{quote(folder.name)}"
    page = f'<a href="{place}/{GALLERY}" target="_blank">{GALLERY}</a>' if (folder / GALLERY).exists() else ""
    packed = f'<a href="{place}.zip" download>zip</a>' if (folder / IMAGES).is_dir() else ""
    return f'<span class="links">{page} {packed}</span>'


def list_runs(folder: Path, runs: Iterable[Run], going_on: Sequence[Job]) -> str:
    """The runs as a list of links that show them again."""
    now = {job.name: job for job in going_on}
    rows = "".join(_row(folder, run, now.get(run.name)) for run in runs)
    return f'<ol class="runs">{rows}</ol>' if rows else _state('<p class="left">There are no runs yet.</p>')


def _row(folder: Path, run: Run, job: Job | None) -> str:
    place = f"runs/{quote(run.name)}"
    picture = f'<img src="{place}/{quote(run.first)}" alt="" loading="lazy">' if run.first else "<i></i>"
    count = many(run.pictures, "picture")
    state = f" &middot; <b>{'waiting' if job.state == WAITING else 'going on'}</b>" if job else ""
    when = f'<time datetime="{run.made.isoformat(timespec="seconds")}">{run.made:%Y-%m-%d %H:%M}</time>'
    prompt = html.escape(shorten(run.prompt, LONGEST_PROMPT) or run.name)
    return (
        f'<li><a class="again" href="?run={quote(run.name)}">{picture}<span><strong>{prompt}</strong>'
        f"<small>{when} &middot; {run.kind} &middot; {count}{state}</small></span></a>{links(folder / run.name)}</li>"
    )


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


def said(text: str, more: Sequence[str] = ()) -> str:
    """A message that nothing went wrong, and what to know beside it."""
    return _state(f"<p>{html.escape(text)}</p>{notes(more)}")


def plain(text: str) -> str:
    """A text for a place that may read Markdown or HTML, where it stands for itself: no two signs of either touch."""
    return "".join(sign if sign.isalnum() or sign == " " else f"{sign}{UNSEEN}" for sign in text)


def _state(inner: str) -> str:
    return f'<div class="state" role="status">{inner}</div>'


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _short(folder: Path) -> str:
    """The folder as it is called from here."""
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


READING = _state("<p>reading</p>")
