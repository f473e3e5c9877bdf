"""The runs before: what the run folders in the page's folder say, newest first; nothing is kept in memory.

for run in list_runs(folder, names(folder)[:20]):
    print(run.name, run.prompt, run.pictures)
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from runner.errors import RunnerError
from runner.folder.ledger import iterate_records
from runner.folder.local import LocalStore
from runner.folder.names import IMAGES, MANIFEST, thumbnail_name
from runner.record import DONE as FINISHED
from runner.record import part
from runner.web import forms
from runner.web.jobs import EARLIER, Job, Picture

NAME = re.compile(r"\d{4,18}-[a-z0-9-]{1,64}")  # of a run folder of the page
MOST_READ = 1 << 20  # bytes of a manifest
MOST_RESTORED = 10_000  # records of a run that is shown again
MOST_COUNTED = 100_000  # pictures of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run folder: when it was asked for, its prompt, the number of its pictures, and the first of them."""

    name: str
    made: datetime
    prompt: str
    kind: str
    pictures: int
    first: str  # within the folder, its thumbnail if it has one; "" if there is none


def names(folder: Path) -> list[str]:
    """The names of the run folders, newest first."""
    with contextlib.suppress(OSError):
        found = [entry.name for entry in os.scandir(folder) if NAME.fullmatch(entry.name) and entry.is_dir()]
        return sorted(found, key=lambda name: (int(name.partition("-")[0]), name), reverse=True)
    return []


def list_runs(folder: Path, names: Iterable[str]) -> list[Run]:
    """What the run folders of these names say of themselves, those that have gone left out."""
    return [run for name in names if (run := look_at(folder / name))]


def look_at(folder: Path) -> Run | None:
    """What a run folder says of itself; None if it has gone, or holds no manifest."""
    try:
        text, made = read_manifest(folder), (folder / MANIFEST).stat().st_mtime
        pictures, first = _count(folder)
    except OSError:
        return None
    prompt, kind = forms.headline(text)
    return Run(
        name=folder.name,
        made=datetime.fromtimestamp(made).astimezone(),
        prompt=prompt,
        kind=kind,
        pictures=pictures,
        first=first,
    )


def read_manifest(folder: Path) -> str:
    """A run folder's manifest, as far as one of the page's can go."""
    with LocalStore(folder).open(MANIFEST) as file:
        return file.read(MOST_READ).decode("utf-8", "replace")


def restore(folder: Path, name: str) -> Job | None:
    """A run folder as a job that is over; None if there is none of that name."""
    place = folder / name
    if not NAME.fullmatch(name) or not place.is_dir():
        return None
    try:
        text = read_manifest(place)
    except OSError:
        return None
    job = Job(folder=place, manifest=text, kind=forms.kind_of(text))
    with contextlib.suppress(RunnerError, OSError):
        for record in itertools.islice(iterate_records(LocalStore(place)), MOST_RESTORED):
            item, image = part(record, "item"), record.get("image")
            seed, chosen = item.get("seed"), item.get("axes")
            seed, chosen = seed if type(seed) is int else 0, chosen if isinstance(chosen, dict) else {}
            if record.get("status") != FINISHED:
                job.failed.append(f"seed {seed}: {part(record, 'error').get('message', '')}")
            elif isinstance(image, str) and is_within(place, image):
                job.pictures.append(Picture(place / image, seed, chosen))
    if len(job.pictures) + len(job.failed) == MOST_RESTORED:
        job.notes.append(f"here are the first {MOST_RESTORED:,}; the gallery has all")
    job.end(EARLIER)
    return job


def is_within(folder: Path, name: str) -> bool:
    """Whether a file is there and in the folder, whatever a link says."""
    try:
        path = (folder / name).resolve()
        return path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _count(folder: Path) -> tuple[int, str]:
    """The number of a run's pictures, and what shows the first of them."""
    found: Sequence[str] = list(itertools.islice(_pictures(folder / IMAGES), MOST_COUNTED))
    first = min(found, default="")
    small = thumbnail_name(first)
    return len(found), small if first and is_within(folder, small) else first


def _pictures(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for inner in os.scandir(folder):
            if inner.is_dir():
                names = (entry.name for entry in os.scandir(inner) if entry.name.startswith("seed_"))
                yield from (f"{IMAGES}/{inner.name}/{name}" for name in names)
