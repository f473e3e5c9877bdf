"""What a press of the page's button becomes: a manifest in a run folder of its own, and a job for the one worker.

One model is held and one job runs at a time, on one thread; the others wait. A job is what its run's events add up
to, for a page to read at any time. Nothing here knows what the page looks like.

    with Studio(settings) as studio:
        job = studio.press(studio.usual_form() | {"prompt": "a red apple"})
        job.wait()
        print(job.manifest, job.pictures)
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import secrets
import shlex
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from PIL import Image

from runner.engine.base import Engine
from runner.errors import RunnerError
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
)
from runner.files import atomic_write, on_disk, writing_to
from runner.folder.names import MANIFEST
from runner.images.inits import flatten
from runner.item import EXTRA, MASK, Item, Model
from runner.keys import KEYS, RANDOM_SEEDS
from runner.manifest.rules import DEFAULTS
from runner.model import files
from runner.report import gallery, progress
from runner.request import LARGEST_DRAWN_SEED, Request, read_request
from runner.settings import Settings, compose, given_defaults
from runner.verbs.plan.forecast import Kind
from runner.verbs.plan.lint import Linter
from runner.verbs.run import run as running
from runner.verbs.run.turns import Start, start

OUTPUTS = Path("outputs/web")
PICTURE, MASK_PICTURE = "init.png", "mask.png"
# Of a model that ships with the package; those of others are the manifest's.
SHIPPED = {"scale": 5.0}
GOOD = {"steps": 20, "sampler": "dpmpp_2m", "strength": 0.75, "seed": "", "n_samples": 4, "n_iter": 1}
ITEM_FIELDS = (
    "prompt", "negative", "width", "height", "steps", "scale", "sampler", "eta", "format", "long_prompts",
    "seed", "n_samples", "n_iter",
)  # fmt: skip
WAITING, LOADING, RUNNING, DONE, STOPPED, BROKEN = "waiting", "loading", "running", "done", "stopped", "broken"
NAME_LENGTH = 40
LINTED = 1000  # items of a press that are looked at for warnings
log = logging.getLogger("runner")


@dataclass(slots=True, kw_only=True)
class Job:
    """A press of the button, and what has become of it. `share` is how much of the work is done, from 0 to 1;
    `pictures` are their files and seeds."""

    request: Request
    folder: Path  # the run folder
    manifest: str
    state: str = WAITING
    message: str = ""
    share: float = 0.0
    begun: float = 0.0
    ended: float = 0.0
    wanted: int = 0
    pictures: list[tuple[Path, int]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)
    _before: int = 0  # pictures of the waves before this one
    _wave: int = 0

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
            case WaveStarted():
                self._before, self._wave = self._before + self._wave, len(event.items)
            case StepDone():
                self.share = min(1.0, (self._before + self._wave * event.step / event.steps) / self.wanted)
            case ItemDone():
                self.pictures.append((self.folder / event.record.image, event.item.seed))
            case ItemFailed():
                self.failed.append(f"seed {event.item.seed}: {event.error}")
            case RunFinished(hopeless=why) if why:
                self.notes.append(f"stopped early: {why}")

    def end(self, state: str, message: str = "") -> None:
        """Says how it ended."""
        self.message, self.ended, self.state = message, time.monotonic(), state
        self._over.set()


class Studio:
    """A model that is held, the folder that its run folders are put into, and the jobs that wait for it."""

    def __init__(self, settings: Settings, start: Start = start) -> None:
        self.settings, self._start = settings, start
        self.model = files.find_model(settings.model.path)
        self.folder = on_disk(settings.out or str(OUTPUTS), "runner web").resolve()
        self._engine: Engine | None = None
        self._made_for: dict[str, str] = {}
        self._jobs: list[Job] = []
        self._numbering = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="studio")

    def __enter__(self) -> Self:
        with writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in list(self._jobs):
            job.stop.set()
        self._worker.shutdown()

    def usual_form(self) -> dict[str, Any]:
        """What a form shows at first: the model's own size, what suits it, and what `defaults.KEY=` says."""
        size = self.model.native_size
        shipped = SHIPPED if self.settings.model.path.startswith(files.BUILTIN) else {}
        own = {"prompt": "", "width": size, "height": size}
        settings = {
            "device": self.settings.device,
            "precision": self.settings.precision,
            "turbo": _word(self.settings.turbo),
            "unet_bs": _word(self.settings.unet_bs),
        }
        return {**DEFAULTS, **GOOD, **shipped, **own, **settings, **given_defaults(self.settings)}

    def press(
        self, form: Mapping[str, Any], picture: Image.Image | None = None, mask: Image.Image | None = None
    ) -> Job:
        """Writes the form's manifest into a new run folder and lets the run wait for its turn.

        `mask` is white where the picture is to be made anew, of the picture's size.

        Raises:
            RunnerError: a value is wrong; nothing stays behind.
        """
        if str(form["seed"]).strip().lower() in RANDOM_SEEDS:
            form = {**form, "seed": ""}
        folder = self._new_folder(str(form["prompt"]))
        try:
            settings = self._settings(form, folder)
            text = to_manifest(form, settings, name=folder.name, picture=picture is not None, masked=mask is not None)
            with writing_to(folder):
                if mask is not None:
                    mask.save(folder / MASK_PICTURE)
                if picture is not None:
                    flatten(picture).save(folder / PICTURE)
                atomic_write(folder / MANIFEST, text.encode("utf-8", "replace"))
            request = read_request(folder / MANIFEST, settings)
            job = Job(request=request, folder=folder, manifest=text, notes=list(_warnings(request)))
        except BaseException:
            shutil.rmtree(folder)
            raise
        self._jobs.append(job)
        self._worker.submit(self._work, job)
        return job

    def ahead(self, job: Job) -> int:
        """How many others have to end before this one begins."""
        jobs = list(self._jobs)
        return jobs.index(job) if job in jobs else 0

    def _settings(self, form: Mapping[str, Any], folder: Path) -> Settings:
        turbo, unet_bs = str(form["turbo"]), str(form["unet_bs"]).strip() or "auto"
        return dataclasses.replace(
            self.settings,
            device=form["device"],
            precision=form["precision"],
            turbo={"true": True, "false": False}.get(turbo, turbo),
            unet_bs=int(unet_bs) if unet_bs.isascii() and unet_bs.isdigit() else unet_bs,
            memory=self.settings.memory or "auto",
            out=str(folder),
        )

    def _new_folder(self, prompt: str) -> Path:
        words = re.sub(r"[^a-z0-9]+", "-", prompt[: 2 * NAME_LENGTH].lower()).strip("-")[:NAME_LENGTH].strip("-")
        with self._numbering, writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            taken = [re.match(r"\d+", path.name) for path in self.folder.iterdir()]
            number = max((int(match[0]) for match in taken if match), default=0) + 1
            folder = self.folder / f"{number:04d}-{words or 'picture'}"
            folder.mkdir()
        return folder

    def _work(self, job: Job) -> None:
        try:
            if not job.stop.is_set():
                self._render(job)
            job.end(STOPPED if job.stop.is_set() else DONE)
        except RunnerError as error:
            job.end(BROKEN, str(error))
        except Exception as error:
            log.exception("a run of the page broke")
            self._engine = None
            job.end(BROKEN, f"a fault of the runner itself: {type(error).__name__}: {error}")
        finally:
            self._jobs.remove(job)

    def _render(self, job: Job) -> None:
        job.state = LOADING
        with (
            closing(running.run(job.request, self._engine_for(job.request))) as events,
            closing(progress.logged(events, job.request.store)) as logged,
        ):
            for event in logged:
                job.note(event)
                if job.stop.is_set():
                    break
        if job.stop.is_set() and job.pictures:
            gallery.build(job.request.store)

    def _engine_for(self, request: Request) -> Engine:
        """The engine that is held, if it was started for the same settings; else a new one takes its place."""
        wanted = asked_for(request.settings)
        if self._engine is None or wanted != self._made_for:
            if self._engine:  # two models may not fit
                self._engine.close()
                self._engine = None
            self._engine, self._made_for = self._start(request, *request.models), wanted
        return self._engine


def asked_for(settings: Settings) -> dict[str, str]:
    """The settings that may change a picture's rounding, as overrides."""
    return {
        "model.path": settings.model.path,
        "model.prediction": settings.model.prediction,
        "model.vae": settings.model.vae,
        "device": settings.device,
        "precision": settings.precision,
        "turbo": _word(settings.turbo),
        "compile": _word(settings.compile),
        "unet_bs": _word(settings.unet_bs),
        "memory": _word(settings.memory),
    }


def to_manifest(form: Mapping[str, Any], settings: Settings, *, name: str, picture: bool, masked: bool = False) -> str:
    """The form as a manifest that says everything, headed by the command that renders it with the same settings."""
    job = {key: form[key] for key in ITEM_FIELDS}
    job |= {key: yaml.safe_load(str(form[key])) for key in EXTRA if form.get(key) not in (None, "", KEYS[key].default)}
    job["prompt"], job["seed"] = " ".join(str(form["prompt"]).split()), _seed(str(form["seed"]))
    if picture:
        job |= {"init": PICTURE, "strength": form["strength"]}
    if masked:
        job |= {MASK: MASK_PICTURE}
    changed = [shlex.quote(f"{key}={value}") for key, value in asked_for(settings).items() if value != _usual()[key]]
    document = yaml.safe_dump(
        {"version": 1, "name": name, "jobs": [job]}, sort_keys=False, allow_unicode=True, width=2**30
    )
    return f"# {' '.join(['runner run', MANIFEST, *changed])}\n{document}"


@cache
def _usual() -> dict[str, str]:
    return asked_for(compose([]))


def _seed(text: str) -> Any:
    """A drawn seed for an empty text; what isn't a number is left for the manifest's own rules to refuse."""
    text = text.strip()
    if not text:
        return secrets.randbelow(LARGEST_DRAWN_SEED)
    return int(text) if text.isascii() and text.isdigit() else text


def _word(value: object) -> str:
    """A setting's value as an override says it."""
    return "auto" if value is None else str(value).lower()


def _warnings(request: Request) -> Iterator[str]:
    """What `plan` would warn of, by the first items: a form makes few kinds."""
    linter, kinds, samples = Linter(request), Counter[tuple[Model, Kind]](), dict[tuple[Model, Kind], Item]()
    for item in itertools.islice(request.wanted(), LINTED):
        linter.read(item)
        kinds[item.model, Kind.of(item)] += 1
        samples.setdefault((item.model, Kind.of(item)), item)
    linter.read_kinds(kinds, samples)
    for warned in linter.warnings():
        yield f"{'; '.join(example.text for example in warned.examples)}: {warned.check.message}"
