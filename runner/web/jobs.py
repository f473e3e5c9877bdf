"""A job: one press of the page's button, and what its run's events add up to, for a page to read at any time.

job = Job(folder=folder, manifest=text, request=request)
for event in run(job.request): job.note(event)
job.pictures, job.share
"""

from __future__ import annotations

import io
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from runner.events import (
    ItemDone,
    ItemFailed,
    MemoryShort,
    ModelLoaded,
    RunEvent,
    RunFinished,
    RunStarted,
    StepDone,
    WaveDone,
    WaveStarted,
)
from runner.request import Request

# What becomes of a job; an EARLIER one is that of a run folder alone.
WAITING, LOADING, RUNNING, DONE, STOPPED, BROKEN, EARLIER = (
    "waiting", "loading", "running", "done", "stopped", "broken", "earlier",
)  # fmt: skip

LOOKED_FOR, LEAST_PAUSE = 2.0, 0.5  # seconds: somebody looks who has looked so lately; between two previews
MOST_SHARE = 0.01  # of the time that previews may take
MOST_PREVIEWED, PREVIEW_QUALITY = 16, 85
log = logging.getLogger("runner")


class Picture(NamedTuple):
    """A finished picture: its file, its seed, and its values of a matrix's axes."""

    path: Path
    seed: int
    axes: Mapping[str, Any]

    @property
    def caption(self) -> str:
        """What the page writes below it."""
        own = [f"{key} {value}" for key, value in self.axes.items() if key != "seed"]
        return ", ".join([*own, f"seed {self.seed}"])


@dataclass(slots=True)
class Pace:
    """How often previews are made: while somebody looks, and for a small share of the time."""

    looked: float = -LOOKED_FOR
    next: float = 0.0
    count: int = 0
    broken: bool = False

    def wants(self, now: float) -> bool:
        """Whether it is time for one."""
        return not self.broken and now - self.looked < LOOKED_FOR and now >= self.next

    def made(self, begun: float, now: float) -> None:
        """Puts the next one off; the first one of a model takes longer than those after it."""
        self.count += 1
        self.next = now + max(LEAST_PAUSE, (now - begun) / MOST_SHARE if self.count > 1 else 0.0)


@dataclass(slots=True, kw_only=True)
class Job:
    """A press of the button, and what has become of it. `share` is how much of the work is done, from 0 to 1."""

    folder: Path  # the run folder
    manifest: str
    kind: str = "txt2img"
    request: Request | None = None
    state: str = WAITING
    message: str = ""
    share: float = 0.0
    begun: float = 0.0
    ended: float = 0.0
    wanted: int = 0
    pictures: list[Picture] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    preview: bytes = b""  # a JPEG of the pictures under way, where somebody looks
    _pace: Pace = field(default_factory=Pace)
    _over: threading.Event = field(default_factory=threading.Event)
    _before: int = 0  # pictures of the waves before this one
    _wave: int = 0

    @property
    def name(self) -> str:
        """What the page calls it by: the name of its run folder."""
        return self.folder.name

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self._over.is_set()

    def wait(self) -> None:
        """Returns when nothing will change any more."""
        self._over.wait()

    def seconds_left(self) -> float | None:
        """What is left at the pace so far; None before there is one."""
        if self.state != RUNNING or not self.share:
            return None
        return (time.monotonic() - self.begun) * (1 - self.share) / self.share

    def note(self, event: RunEvent) -> None:
        """Takes an event of the run into account."""
        match event:
            case RunStarted():
                self.state, self.wanted, self.begun = RUNNING, event.missing, time.monotonic()
            case ModelLoaded():
                self.notes += event.notes
            case MemoryShort():
                self.notes.append(event.message)
            case WaveDone():
                self.preview = b""
            case WaveStarted():
                self._before, self._wave = self._before + self._wave, len(event.items)
            case StepDone():
                self.share = min(1.0, (self._before + self._wave * event.step / event.steps) / self.wanted)
                self._look_ahead(event)
            case ItemDone():
                item = event.item
                self.pictures.append(Picture(self.folder / event.record.image, item.seed, dict(item.axes)))
            case ItemFailed():
                self.failed.append(f"seed {event.item.seed}: {event.error}")
            case RunFinished(hopeless=why) if why:
                self.notes.append(f"stopped early: {why}")

    def look(self) -> None:
        """Says that somebody looks, so that previews are worth making."""
        self._pace.looked = time.monotonic()

    def _look_ahead(self, event: StepDone) -> None:
        """Makes a preview, if somebody looks and the last one is old enough; the run goes on without one."""
        begun = time.monotonic()
        if event.preview is None or not self._pace.wants(begun):
            return
        try:
            self.preview = preview_sheet(event.preview())
        except Exception:  # too little memory, say: no picture needs it
            log.warning("no previews of this run", exc_info=True)
            self._pace.broken = True
        self._pace.made(begun, time.monotonic())

    def end(self, state: str, message: str = "") -> None:
        """Says how it ended."""
        self.message, self.ended, self.state = message, time.monotonic(), state
        self._over.set()


def preview_sheet(pictures: Sequence[Any]) -> bytes:
    """The first of some small pictures, uint8 [h, w, 3], side by side as one JPEG; nothing where there are none."""
    some = [Image.fromarray(picture) for picture in pictures[:MOST_PREVIEWED]]
    if not some:
        return b""
    width, height = some[0].size
    across = math.ceil(len(some) ** 0.5)
    sheet = Image.new("RGB", (across * width, math.ceil(len(some) / across) * height), "white")
    for n, picture in enumerate(some):
        sheet.paste(picture, (n % across * width, n // across * height))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=PREVIEW_QUALITY)
    return file.getvalue()
