"""Hydra's multirun as people use it: one run after the other, each in a run folder that is named by what differs.

All values are checked before the first run begins. A job without seeds has the same ones in every run.

    for job in sweep.plan_jobs(command.overrides):
        print(job.name, job.overrides)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from runner import settings
from runner.folder.names import job_name
from runner.overrides import Job, Override, jobs
from runner.settings import Settings


@dataclass(frozen=True, slots=True)
class NamedJob:
    """One run: its overrides, its settings, and its folder within the sweep's, empty where `out` alone says it."""

    overrides: tuple[str, ...]
    name: str
    settings: Settings


def plan_jobs(words: Sequence[str]) -> list[NamedJob]:
    """The runs of a sweep, each checked.

    Raises:
        SettingError: any of them has a setting that is wrong.
    """
    found = jobs(words, lambda key: settings.group_names(key) if key in settings.GROUPS else ())
    composed = [settings.compose(job.overrides) for job in found]
    short = [_name(job.differs, files=True) for job in found]
    if _meet(found, short):
        short = [_name(job.differs, files=False) for job in found]
    if _meet(found, short):
        short = [job_name(f"{name}?{' '.join(job.overrides)}") for job, name in zip(found, short, strict=True)]
    return [NamedJob(job.overrides, name, made) for job, name, made in zip(found, short, composed, strict=True)]


def _name(differs: Sequence[Override], *, files: bool) -> str:
    """What differs, as a folder's name; of a path the file's name alone, with `files`."""
    shown = [each for each in differs if each.key != "out"]
    ends = Counter(each.key.rpartition(".")[2] for each in shown)
    words = []
    for each in shown:
        end = each.key.rpartition(".")[2]
        value = PurePath(each.text).name if files and each.key == "model.path" else each.text
        words.append(f"{end if ends[end] == 1 else each.key}={value}")
    return job_name(",".join(words)) if words else ""


def _meet(found: Sequence[Job], names: Sequence[str]) -> bool:
    """Whether two runs would share a folder; some disks don't tell large letters from small ones."""
    outs = [[each.text for each in job.differs if each.key == "out"] for job in found]
    places = [(*out, name.casefold()) for out, name in zip(outs, names, strict=True)]
    return len(set(places)) < len(places)
