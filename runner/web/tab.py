"""One tab of the page that makes pictures: its form, what its buttons do, and the parts that show a job.

tab = Tab("txt2img", studio, choices, devices, run)
tab.listen()
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from runner.errors import RunnerError, SettingError, fault
from runner.folder.names import MANIFEST
from runner.web.axes import AXES, ROWS, example
from runner.web.choices import Choices
from runner.web.fields import BESIDE, MOST_LORAS, NO_LORA, PAINTED, PICTURE_FIELD, build_form
from runner.web.fitting import OWN
from runner.web.forms import PICTURE
from runner.web.jobs import Job, Picture
from runner.web.reading import Found, read_picture
from runner.web.studio import Studio
from runner.web.text import READING, checked, describe, said, spans, wrong
from runner.web.wrongs import worded, wrong_fields

LOOK_SECONDS = 0.25  # between two looks at a job
MOST_SHOWN = 200  # pictures; all of them are in the run folder's own gallery
QUIETLY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
Updates = dict[Any, Any]
log = logging.getLogger("runner")


@dataclass(slots=True, kw_only=True)
class Results:
    """The parts of a tab that show a job's pictures and what they are made of."""

    gallery: gr.Gallery
    details: gr.Column
    seeds: gr.Textbox
    manifest: gr.Code
    manifest_file: gr.DownloadButton
    picture_file: gr.DownloadButton
    reuse: gr.Button
    to_img2img: gr.Button
    to_inpaint: gr.Button

    def all(self) -> list[Any]:
        """All of them, in a fixed order."""
        return [getattr(self, name) for name in self.__slots__]

    def show(self, job: Job) -> Updates:
        """What they show of a job."""
        picture = job.folder / PICTURE
        return {
            self.gallery: [(str(each.path), each.caption) for each in shown(job)],
            self.details: gr.update(visible=True),
            self.seeds: spans({each.seed for each in job.pictures}),
            self.manifest: job.manifest,
            self.manifest_file: gr.update(value=str(job.folder / MANIFEST)),
            self.picture_file: gr.update(value=str(picture) if picture.exists() else None, visible=picture.exists()),
        }


def shown(job: Job) -> list[Picture]:
    """The pictures of a job that the page shows, newest last."""
    return job.pictures[-MOST_SHOWN:]


class Tab:
    """A tab with a form. `run` is an unseen field that holds the name of the run that the tab shows."""

    def __init__(self, kind: str, studio: Studio, choices: Choices, devices: list[str], run: gr.Textbox) -> None:
        self.kind, self.studio, self.run = kind, studio, run
        self.usual = studio.usual_form(choices)
        self._showing: dict[str | None, str] = {}  # by the session of a browser's tab
        self._marked: dict[str | None, list[str]] = {}
        self.selected, self.native = gr.State(0), gr.State(self.studio.model.native_size)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                self.form = build_form(kind, self.usual, choices, devices)
            with gr.Column(scale=5, min_width=320):
                self.results = _build_results(self.usual)

    def all(self) -> list[Any]:
        """Everything that an event may change."""
        buttons = [self.form.make, self.form.cancel, self.form.told, self.form.state, self.run, self.form.file]
        return [*buttons, *self.form.all(), *self.results.all()]

    @property
    def editor(self) -> Any:
        """What holds the picture to begin with; None where there is none."""
        found = (self.form.fields.get(name) for name in (PICTURE_FIELD, PAINTED, BESIDE))
        return next((each for each in found if each is not None), None)

    # ---- what the buttons do

    async def press(self, request: gr.Request, *values: Any) -> AsyncIterator[Updates]:
        """Begins the run that the form asks for; the change of `run` shows it."""
        form, marked = self.form, self._marked.pop(request.session_hash, [])
        yield {form.told: READING, form.make: gr.update(interactive=False), **form.unmark(marked)}
        try:
            asked = self._asked(values)
            job = await asyncio.to_thread(self.studio.press, asked, *pictures_of(asked))
        except Exception as error:  # whatever it was, the button has to work again
            yield self._refuse(request, error, values)
            return
        yield {form.told: "", form.make: gr.update(interactive=True), self.run: job.name}

    async def check(self, request: gr.Request, *values: Any) -> AsyncIterator[Updates]:
        """Says what the form would make, and what `plan` warns of."""
        form, marked = self.form, self._marked.pop(request.session_hash, [])
        yield {form.told: READING, **form.unmark(marked)}
        try:
            asked = self._asked(values)
            found = await asyncio.to_thread(self.studio.check, asked, *pictures_of(asked))
        except Exception as error:
            yield self._refuse(request, error, values)
            return
        yield {form.told: checked(found)}

    async def count(self, *values: Any) -> Updates:
        """Says how many pictures a matrix has by now, as soon as its axes can be read."""
        asked = self._asked(values)
        with contextlib.suppress(RunnerError):
            return {self.form.told: checked(await asyncio.to_thread(self.studio.check, asked, *pictures_of(asked)))}
        return {}

    def cancel(self, run: str) -> None:
        """Stops the run that the tab shows."""
        if job := self.studio.find(run):
            job.stop.set()

    async def follow(self, request: gr.Request, run: str) -> AsyncIterator[Updates]:
        """Shows a run until it is over, or the tab shows another one."""
        session = request.session_hash
        self._showing[session] = run
        job = await asyncio.to_thread(self.studio.find, run)
        if job is None:
            return
        yield {self.form.cancel: gr.update(interactive=not job.over), **self.results.show(job)}
        try:
            async for update in self._look(job, session):
                yield update
        finally:
            if self._showing.get(session) == run:
                self._showing.pop(session)

    async def _look(self, job: Job, session: str | None) -> AsyncIterator[Updates]:
        made, told = -1, ""
        while self._showing.get(session) == job.name:
            job.look()
            over, now, text = job.over, len(job.pictures), describe(job, self.studio.ahead(job))
            if over or now != made:
                yield {**self.results.show(job), self.form.state: text}
            elif text != told:
                yield {self.form.state: text}
            if over:
                yield {self.form.cancel: gr.update(interactive=False)}
                return
            made, told = now, text
            await asyncio.sleep(LOOK_SECONDS)

    def read(self, file: str | None) -> Updates:
        """Fills the form with what a picture says of how it was made."""
        if not file:
            return {}
        path, choices = Path(file), Choices(self.studio.settings)
        try:
            found = read_picture(path, choices.loras)
        except RunnerError as error:
            return {self.form.told: wrong(str(error)), self.form.file: None}
        return {**self.filled(found.form, choices), self.form.told: _told(found), self.form.file: None}

    def filled(self, form: Mapping[str, Any], choices: Choices) -> Updates:
        """The updates that show a form; models and autoencoders by the names that people choose from."""
        named = {
            "model": choices.model_at(str(form["model.path"])) if "model.path" in form else "",
            "vae": choices.vae_at(str(form["model.vae"])) if "model.vae" in form else "",
        }
        return self.form.fill({**form, **{key: name for key, name in named.items() if name}})

    def chosen(self, run: str, selected: int) -> tuple[Job, Picture] | None:
        """The picture of a run that is selected, the last one where there are fewer; None where there are none."""
        job = self.studio.find(run)
        pictures = shown(job) if job else []
        return (job, pictures[min(selected, len(pictures) - 1)]) if job and pictures else None

    def reuse(self, run: str, selected: int) -> Updates:
        """Takes the seed of the picture that is selected."""
        chosen = self.chosen(run, selected)
        return {self.form.fields["seed"]: str(chosen[1].seed)} if chosen else {}

    def _asked(self, values: tuple[Any, ...]) -> dict[str, Any]:
        return {**self.usual, **self.form.read(values)}

    def _refuse(self, request: gr.Request, error: Exception, values: tuple[Any, ...]) -> Updates:
        if not isinstance(error, RunnerError):
            log.error("the page's form broke", exc_info=error)
            error = RunnerError(fault(error))
        axes = self.form.read(values).get("axes", ())
        named = {key: f"{axis}/values" for axis, (key, _) in zip(AXES, axes, strict=False)}
        found = wrong_fields(error, named)
        self._marked[request.session_hash] = list(found)
        return {
            self.form.told: wrong(worded(error)), self.form.make: gr.update(interactive=True), **self.form.mark(found)
        }  # fmt: skip

    # ---- what happens when

    def listen(self) -> None:
        """Lets the buttons and fields do what they do."""
        form, fields = self.form, list(self.form.fields.values())
        kept: dict[str, Any] = {"concurrency_limit": None, **QUIETLY}
        asking = [form.make.click, form.fields["prompt"].submit]
        shows = f"() => runnerPage.show('{self.kind}')"
        gr.on(asking, self.press, fields, self.all(), trigger_mode="once", **kept).then(js=shows, **QUIETLY)
        form.check.click(self.check, fields, self.all(), trigger_mode="once", **kept).then(js=shows, **QUIETLY)
        form.cancel.click(self.cancel, [self.run], queue=False, **QUIETLY)
        self.run.change(js="run => runnerPage.name(run)", inputs=[self.run], **QUIETLY)
        self.run.change(self.follow, [self.run], self.all(), trigger_mode="multiple", **kept)
        form.file.upload(self.read, [form.file], self.all(), **kept)
        self.results.gallery.select(_index, None, [self.selected], queue=False, **QUIETLY)
        self.run.change(lambda: 0, None, [self.selected], queue=False, **QUIETLY)
        self.results.reuse.click(self.reuse, [self.run, self.selected], [form.fields["seed"]], queue=False, **QUIETLY)
        self._listen_to_fields()

    def resize(self, model: str, native: int, width: float, height: float) -> list[Any]:
        """The size that a model was made for, if the last one's stood there."""
        with contextlib.suppress(RunnerError):
            size = self.studio.native_size(model)
            if (width, height) == (native, native):
                return [size, size, size]
            return [size, gr.skip(), gr.skip()]
        return [gr.skip()] * 3

    def _listen_to_fields(self) -> None:
        fields = self.form.fields
        sized = [self.native, fields["width"], fields["height"]]
        fields["model"].input(self.resize, [fields["model"], *sized], sized, queue=False, **QUIETLY)
        for n in range(MOST_LORAS - 1):
            fields[f"lora/{n}"].change(
                _next_lora, [fields[f"lora/{n}"]], [self.form.groups[n + 1]], queue=False, **QUIETLY
            )
        if "fit" in fields:
            sizes = [fields["width"], fields["height"]]
            fields["fit"].change(
                lambda way: [gr.update(interactive=way != OWN)] * 2, [fields["fit"]], sizes, queue=False, **QUIETLY
            )
        for axis in AXES if f"{ROWS}/key" in fields else ():
            fields[f"{axis}/values"].blur(
                self.count, list(fields.values()), [self.form.told], trigger_mode="always_last", **QUIETLY
            )
            fields[f"{axis}/key"].change(
                lambda key: gr.update(info=example(key)),
                [fields[f"{axis}/key"]], [fields[f"{axis}/values"]], queue=False, **QUIETLY,
            )  # fmt: skip


def _told(found: Found) -> str:
    return said("the form has the picture's settings", found.notes)


def _index(event: gr.SelectData) -> int:
    return int(event.index)


def _next_lora(name: str) -> Any:
    return gr.update(visible=True) if name not in (None, NO_LORA) else gr.skip()


def _build_results(usual: Mapping[str, Any]) -> Results:
    small = max(usual["width"], usual["height"]) <= 128
    gallery = gr.Gallery(
        label="Pictures", columns=4, height=480, object_fit="contain", format="png",
        interactive=False, buttons=["download", "fullscreen"], elem_classes="results small" if small else "results",
    )  # fmt: skip
    with gr.Column(visible=False) as details:
        with gr.Row(elem_classes="files"):
            reuse = gr.Button("Use its seed", size="sm", scale=0, min_width=130)
            to_img2img = gr.Button("Send to img2img", size="sm", scale=0, min_width=150)
            to_inpaint = gr.Button("Send to inpaint", size="sm", scale=0, min_width=150)
        seeds = gr.Textbox(label="Seeds", interactive=False, buttons=["copy"], max_lines=2, elem_classes="seeds")
        manifest = gr.Code(
            label="Manifest", language="yaml", interactive=False, lines=8, max_lines=24, buttons=["copy"],
            wrap_lines=True,
        )  # fmt: skip
        with gr.Row(elem_classes="files"):
            manifest_file = gr.DownloadButton(f"Download {MANIFEST}", size="sm", scale=0, min_width=220)
            picture_file = gr.DownloadButton(f"Download {PICTURE}", size="sm", scale=0, min_width=220, visible=False)
    return Results(
        gallery=gallery, details=details, seeds=seeds, manifest=manifest, manifest_file=manifest_file,
        picture_file=picture_file, reuse=reuse, to_img2img=to_img2img, to_inpaint=to_inpaint,
    )  # fmt: skip


def pictures_of(form: Mapping[str, Any]) -> tuple[Image.Image | None, Image.Image | None]:
    """The picture as it was cropped, and its mask; None for what a form has no place for."""
    if BESIDE in form:
        return form[BESIDE], None
    inpaints = PAINTED in form
    if not inpaints and PICTURE_FIELD not in form:
        return None, None
    edited = form[PAINTED if inpaints else PICTURE_FIELD] or {}
    picture: Image.Image | None = edited.get("background" if inpaints else "composite")
    if picture is None or not picture.getbbox():
        raise SettingError("there is no picture yet: drop one into the frame, or paste it")
    if not inpaints:
        return picture, None
    layers = [layer.getchannel("A") for layer in edited.get("layers") or () if layer.mode == "RGBA"]
    mask = functools.reduce(ImageChops.lighter, layers) if layers else None
    if mask is None or not mask.getbbox():
        raise SettingError("nothing is painted yet: paint over what is to be made anew")
    return picture, mask
