"""What a press of the page's button becomes: a manifest in a run folder of its own, and a job for the one worker.

One model is held and one job runs at a time, on one thread; the others wait. A job goes on whoever looks at it, until
it ends or is stopped. Nothing here knows what the page looks like.

    with Studio(settings) as studio:
        job = studio.press(studio.usual_form() | {"prompt": "a red apple"})
        job.wait()
        print(job.manifest, job.pictures)
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

from runner.engine.base import Engine
from runner.errors import RunnerError, SettingError, fault
from runner.files import atomic_write, on_disk, writing_to
from runner.folder.names import MANIFEST
from runner.item import Item, Model
from runner.model import files
from runner.report import gallery, progress
from runner.request import Request, read_request
from runner.settings import Settings
from runner.verbs.plan.forecast import Kind
from runner.verbs.plan.lint import Linter, Warned
from runner.verbs.plan.survey import make_survey
from runner.verbs.run import run as running
from runner.verbs.run.turns import Start, start
from runner.web import forms, history
from runner.web.choices import OWN_VAE, Choices
from runner.web.fitting import STRETCH, Fitted, fit
from runner.web.forms import MASK_PICTURE, PICTURE, Beside
from runner.web.jobs import BROKEN, DONE, LOADING, STOPPED, Job

OUTPUTS = Path("outputs/web")
NAME_LENGTH = 40
LINTED = 1000  # items of a press that are looked at for warnings
SURVEYED = 5000  # items that are forecast; more take seconds
MOST_WAITING, MOST_REMEMBERED = 50, 100  # jobs
log = logging.getLogger("runner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a press would do: how many pictures, how long that takes (None: not known), and what `plan` warns of."""

    pictures: int
    seconds: float | None
    warnings: tuple[str, ...]


class Studio:
    """A model that is held, the folder that its run folders are put into, and the jobs that wait for it."""

    def __init__(self, settings: Settings, start: Start = start) -> None:
        self.settings, self._start = settings, start
        self.model = files.find_model(settings.model.path)
        self.folder = on_disk(settings.out or str(OUTPUTS), "runner web").resolve()
        self._engine: Engine | None = None
        self._made_for: dict[str, str] = {}
        self._jobs: list[Job] = []  # that aren't over
        self._remembered: dict[str, Job] = {}  # by their names, oldest first
        self._order = threading.Lock()
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

    def usual_form(self, choices: Choices | None = None) -> dict[str, Any]:
        """What a form shows at first; `choices` are looked for if they aren't given."""
        choices = choices or Choices(self.settings)
        chosen = {"model": choices.started_with, "vae": choices.first_vae}
        return forms.usual_form(self.settings, self.model) | chosen

    def press(
        self, form: Mapping[str, Any], picture: Image.Image | None = None, mask: Image.Image | None = None
    ) -> Job:
        """Writes the form's manifest into a new run folder and lets the run wait for its turn.

        `mask` is white where the picture is to be made anew, of the picture's size.

        Raises:
            RunnerError: a value is wrong; nothing stays behind.
        """
        if len(self._jobs) >= MOST_WAITING:
            raise SettingError(f"{MOST_WAITING} runs wait already; cancel some, or come back when they are made")
        folder = self._new_folder(str(form["prompt"]))
        try:
            request, text = self._prepare(form, folder, folder, picture, mask)
            kind, notes = forms.kind_of(text), list(_worded(_warnings(request)))
            job = Job(request=request, folder=folder, manifest=text, kind=kind, notes=notes)
        except BaseException:
            shutil.rmtree(folder)
            raise
        with self._order:  # as they are listed, so they are made
            self._jobs.append(job)
            self._remember(job)
            self._worker.submit(self._work, job)
        return job

    def check(
        self, form: Mapping[str, Any], picture: Image.Image | None = None, mask: Image.Image | None = None
    ) -> Checked:
        """What a press would do, without doing it; nothing stays behind.

        Raises:
            RunnerError: a value is wrong.
        """
        with tempfile.TemporaryDirectory(prefix="runner-check-") as folder:
            # As if it were a run folder beside the others, by whose records the time is judged.
            request, _ = self._prepare(form, Path(folder), self.folder / ".checked", picture, mask)
            if request.count() > SURVEYED:
                return Checked(pictures=request.count(), seconds=None, warnings=tuple(_worded(_warnings(request))))
            survey = make_survey(request)
        seconds = math.fsum(survey.forecast.seconds.values()) or None
        return Checked(pictures=survey.images, seconds=seconds, warnings=tuple(_worded(survey.warnings)))

    def find(self, name: str) -> Job | None:
        """The job of a name: one of this session, or what its run folder says of it; None if there is neither."""
        return self._remembered.get(name) or history.restore(self.folder, name)

    def native_size(self, model: str) -> int:
        """Pixels along a side of the pictures that a model was made for.

        Raises:
            SettingError: there is none of that name, or it can't be used.
        """
        found = Choices(self.settings).model(model, OWN_VAE)
        return files.find_model(found.path, found.prediction).native_size

    def going_on(self) -> list[Job]:
        """The jobs that aren't over, in their order."""
        return list(self._jobs)

    def ahead(self, job: Job) -> int:
        """How many others have to end before this one begins."""
        jobs = list(self._jobs)
        return jobs.index(job) if job in jobs else 0

    def _remember(self, job: Job) -> None:
        self._remembered[job.name] = job
        for name in [name for name, each in self._remembered.items() if each.over][: -MOST_REMEMBERED or None]:
            del self._remembered[name]

    def _prepare(
        self,
        form: Mapping[str, Any],
        place: Path,
        out: Path,
        picture: Image.Image | None,
        mask: Image.Image | None,
    ) -> tuple[Request, str]:
        """Writes the form's manifest, and what lies beside it, into a folder, and reads it."""
        choices = Choices(self.settings)
        settings = self._settings(form, choices, out)
        fitted = None
        if picture is not None:
            fitted = fit(str(form.get("fit", STRETCH)), picture, mask, _pixels(form, "width"), _pixels(form, "height"))
            form = {**form, "width": fitted.width, "height": fitted.height}
        loras = {name: choices.lora(name).resolve() for name in forms.loras_of(form)}
        settings.allow_outside = settings.allow_outside or bool(loras)
        beside = Beside(
            picture=fitted is not None,
            masked=fitted is not None and fitted.mask is not None,
            crop=fitted.crop if fitted else None,
            loras=loras,
        )
        text = forms.to_manifest(form, settings, name=out.name.strip("."), beside=beside)
        _write(place, text, fitted)
        return read_request(place / MANIFEST, settings), text

    def _settings(self, form: Mapping[str, Any], choices: Choices, out: Path) -> Settings:
        turbo, unet_bs = str(form["turbo"]), str(form["unet_bs"]).strip() or "auto"
        name = str(form.get("model") or choices.started_with)
        return dataclasses.replace(
            self.settings,
            model=choices.model(name, str(form.get("vae") or OWN_VAE)),
            device=form["device"],
            precision=form["precision"],
            turbo={"true": True, "false": False}.get(turbo, turbo),
            unet_bs=int(unet_bs) if unet_bs.isascii() and unet_bs.isdigit() else unet_bs,
            memory=self.settings.memory or "auto",
            out=str(out),
            defaults={},  # the form began with them; what it says now holds
        )

    def _new_folder(self, prompt: str) -> Path:
        words = re.sub(r"[^a-z0-9]+", "-", prompt[: 2 * NAME_LENGTH].lower()).strip("-")[:NAME_LENGTH].strip("-")
        with self._order, writing_to(self.folder):
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
            job.end(BROKEN, fault(error))
        finally:
            self._jobs.remove(job)

    def _render(self, job: Job) -> None:
        assert job.request is not None, "a job that has yet to run was asked for"
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
        wanted = forms.asked_for(request.settings)
        if self._engine is None or wanted != self._made_for:
            if self._engine:  # two models may not fit
                self._engine.close()
                self._engine = None
            self._engine, self._made_for = self._start(request, *request.models), wanted
        return self._engine


def _pixels(form: Mapping[str, Any], key: str) -> int:
    """A side of what is made, as far as a picture can be fitted to it; the manifest's rules say what is wrong."""
    value = form[key]
    return value if type(value) is int and 0 < value < 1 << 20 else 1


def _write(place: Path, text: str, fitted: Fitted | None) -> None:
    with writing_to(place):
        if fitted:
            fitted.picture.save(place / PICTURE)
            if fitted.mask is not None:
                fitted.mask.save(place / MASK_PICTURE)
        atomic_write(place / MANIFEST, text.encode("utf-8", "replace"))


def _warnings(request: Request) -> list[Warned]:
    """What `plan` would warn of, by the first items: a form makes few kinds."""
    linter, kinds, samples = Linter(request), Counter[tuple[Model, Kind]](), dict[tuple[Model, Kind], Item]()
    for item in itertools.islice(request.wanted(), LINTED):
        linter.read(item)
        kinds[item.model, Kind.of(item)] += 1
        samples.setdefault((item.model, Kind.of(item)), item)
    linter.read_kinds(kinds, samples)
    return list(linter.warnings())


def _worded(warnings: Iterable[Warned]) -> Iterator[str]:
    for warned in warnings:
        texts = dict.fromkeys(example.text for example in warned.examples)
        yield f"{'; '.join(texts)}: {warned.check.message}"
