"""The verb `web`: a page for txt2img and img2img on this machine, drawn with Gradio.

It shows forms and jobs; `jobs` does what a press of the button asks for.
It listens on 127.0.0.1 only, serves the files of its own run folders and of this session's uploads, and takes fonts
and scripts from nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import html
import os
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from runner.device.memory import available_devices
from runner.errors import ManifestError, RunnerError, SettingError
from runner.folder.names import MANIFEST
from runner.item import EXTRA, MASK, MASK_BLUR
from runner.keys import FORMATS, KEYS, LONG_PROMPTS, MOST_BLUR, SIZE_STEP
from runner.sampler_names import SAMPLERS
from runner.settings import Settings
from runner.web.guard import PORTS, OwnPageOnly, given_port
from runner.web.jobs import PICTURE, Job, Studio
from runner.web.text import NOTHING_YET, READING, describe, spans, wrong

HOST = "127.0.0.1"
LOOK_SECONDS = 0.25  # between two looks at a job
MOST_SHOWN = 200  # pictures; all of them are in the run folder's own gallery
LARGEST_SIZE, LARGEST_SCALE, USUAL_STEPS = 2048, 30, 150
LARGEST_UPLOAD = "64mb"
UPLOADS_KEPT = 3600  # seconds
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO_FONTS = ["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
OF_MASKS = (MASK, MASK_BLUR)  # which have a tab of their own
PICTURE_FIELD, PAINTED = "picture", "painted"  # fields of a form
TABS = ("txt2img", "img2img", "inpaint")
WHITE = "#ffffff"
CSS = Path(__file__).with_suffix(".css")


@dataclass(slots=True, kw_only=True)
class Results:
    """The parts of a tab that show a job."""

    state: gr.HTML
    gallery: gr.Gallery
    details: gr.Column
    seeds: gr.Textbox
    manifest: gr.Code
    manifest_file: gr.DownloadButton
    picture_file: gr.DownloadButton
    make: gr.Button
    cancel: gr.Button

    def all(self) -> list[Any]:
        """All of them, in a fixed order."""
        return [getattr(self, name) for name in self.__slots__]

    def show(self, job: Job) -> dict[Any, Any]:
        """What they show of a job."""
        picture = job.folder / PICTURE
        return {
            self.gallery: [(str(path), f"seed {seed}") for path, seed in job.pictures[-MOST_SHOWN:]],
            self.details: gr.update(visible=True),
            self.seeds: spans(seed for _, seed in job.pictures),
            self.manifest: job.manifest,
            self.manifest_file: gr.update(value=str(job.folder / MANIFEST)),
            self.picture_file: gr.update(value=str(picture) if picture.exists() else None, visible=picture.exists()),
        }

    def buttons(self, *, busy: bool) -> dict[Any, Any]:
        """One of the two buttons can be pressed."""
        return {self.make: gr.update(interactive=not busy), self.cancel: gr.update(interactive=busy)}


def serve(settings: Settings) -> None:
    """Shows the page until a signal comes."""
    with open_page(settings) as address:
        print(f"runner: the page is at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


@contextlib.contextmanager
def open_page(settings: Settings) -> Iterator[str]:
    """A page that is served within the block, at the address that is given."""
    with Studio(settings) as studio, tempfile.TemporaryDirectory(prefix="runner-web-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # where Gradio keeps what it serves; gone with the page
        page = build_page(studio)
        try:
            yield _launch(page, studio)
        finally:
            page.close(verbose=False)
            os.environ.pop("GRADIO_TEMP_DIR", None)


def _launch(page: gr.Blocks, studio: Studio) -> str:
    _, address, _ = page.launch(
        server_name=HOST,
        server_port=choose_port(),
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        allowed_paths=[str(studio.folder)],
        blocked_paths=[],
        max_file_size=LARGEST_UPLOAD,
        footer_links=["settings"],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        css_paths=CSS,
        theme=gr.themes.Base(primary_hue="indigo", neutral_hue="zinc", font=FONTS, font_mono=MONO_FONTS),
        # A page elsewhere that makes its own name point here is not answered.
        app_kwargs={
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
                Middleware(OwnPageOnly),
            ]
        },
    )
    return str(address)


def choose_port() -> int:
    """`GRADIO_SERVER_PORT`, or else the first free port from 7860 on.

    Raises:
        SettingError: it is taken, or no port.
    """
    given = given_port()
    wanted = [given] if given else PORTS
    for port in wanted:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise SettingError(f"the ports {wanted[0]} to {wanted[-1]} are taken; set GRADIO_SERVER_PORT to a free one")


def build_page(studio: Studio) -> gr.Blocks:
    """All tabs."""
    devices = available_devices()
    page = gr.Blocks(
        title="runner", analytics_enabled=False, fill_width=True, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)
    )
    with page:
        gr.HTML(f'<div class="title"><h1>runner</h1><span>{html.escape(studio.model.name)}</span></div>')
        with gr.Tabs():
            for kind in TABS:
                with gr.Tab(kind, elem_id=kind):
                    _build_tab(kind, studio, devices)
    return page


class _Presses:
    """What the buttons of a tab of the page do. One run is under way for each of the browser's tabs."""

    def __init__(self, studio: Studio, usual: Mapping[str, Any], inputs: Mapping[str, Any], results: Results) -> None:
        self.studio, self.usual, self.inputs, self.results = studio, usual, inputs, results
        self.running: dict[str | None, Job] = {}

    async def press(self, request: gr.Request, *values: Any) -> AsyncIterator[dict[Any, Any]]:
        """Runs what the form asks for, and shows it."""
        form, results = {**self.usual, **dict(zip(self.inputs, values, strict=True))}, self.results
        yield {results.state: READING, **results.buttons(busy=True)}
        try:
            job = await asyncio.to_thread(self.studio.press, form, *_pictures(form))
        except RunnerError as error:
            # A manifest that is wrong is gone: it's the form that has to be mended.
            text = error.message if isinstance(error, ManifestError) else str(error)
            yield {results.state: wrong(text), **results.buttons(busy=False)}
            return
        self.running[request.session_hash] = job
        try:
            async for update in follow(self.studio, job, results):
                yield update
        finally:
            job.stop.set()  # the browser's tab was closed
            self.running.pop(request.session_hash, None)

    def stop(self, request: gr.Request) -> None:
        """Cancels the run of the browser's tab."""
        if job := self.running.get(request.session_hash):
            job.stop.set()


def _build_tab(kind: str, studio: Studio, devices: list[str]) -> None:
    usual = studio.usual_form()
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=360):
            inputs, make, cancel = _build_form(kind, usual, devices)
        with gr.Column(scale=5, min_width=480):
            results = _build_results(usual, make, cancel)
    presses = _Presses(studio, usual, inputs, results)
    quietly: Any = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(
        [make.click, inputs["prompt"].submit],
        presses.press,
        list(inputs.values()),
        results.all(),
        concurrency_limit=None,
        trigger_mode="once",
        **quietly,
    )
    cancel.click(presses.stop, queue=False, **quietly)


def _build_form(kind: str, usual: Mapping[str, Any], devices: list[str]) -> tuple[dict[str, Any], gr.Button, gr.Button]:
    """The fields by their names in the form, most used first, and the two buttons."""
    fields: dict[str, Any] = {}
    if kind != "txt2img":
        fields |= _build_editor(kind)
    fields["prompt"] = gr.Textbox(
        usual["prompt"], label="Prompt", lines=3, max_lines=8, autofocus=kind == "txt2img",
        placeholder="a red apple    (or weighted: tabby cat:0.25 white duck:0.75)",
    )  # fmt: skip
    with gr.Row():
        make = gr.Button("Make pictures", variant="primary", scale=2, min_width=160)
        cancel = gr.Button("Cancel", interactive=False, scale=1, min_width=90)
    if kind != "txt2img":
        fields["strength"] = _slider(
            "Strength", 0, 1, usual["strength"], 0.01, info="0 keeps the picture, 1 forgets it"
        )
    if kind == "inpaint":
        fields[MASK_BLUR] = _slider("Soft edge", 0, MOST_BLUR, usual[MASK_BLUR], 1, info="pixels")
    fields |= _build_usual_fields(usual)
    with gr.Accordion("More about the picture", open=False):
        fields |= _build_more_fields(usual)
    with gr.Accordion("How it is made", open=False):
        fields |= _build_settings(usual, devices)
    return fields, make, cancel


def _build_editor(kind: str) -> dict[str, Any]:
    """The picture to begin with; for inpainting it is painted over where it is to be made anew."""
    more: dict[str, Any] = {"label": "Picture"}
    if kind == "inpaint":
        brush = gr.Brush(default_size="auto", colors=[WHITE], default_color=WHITE, color_mode="fixed")
        more = {"label": "Paint the new area", "brush": brush}
    editor = gr.ImageEditor(
        type="pil", sources=["upload", "clipboard"], transforms=["crop"], layers=False, format="png", height=380, **more
    )
    return {PAINTED if kind == "inpaint" else PICTURE_FIELD: editor}


def _build_usual_fields(usual: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    with gr.Row():
        fields["n_samples"] = gr.Number(usual["n_samples"], precision=0, label="Pictures", min_width=90)
        fields["n_iter"] = gr.Number(usual["n_iter"], precision=0, label="Rounds", min_width=90)
        fields["seed"] = gr.Textbox(str(usual["seed"]), label="Seed", placeholder="random", min_width=110)
    with gr.Row():
        fields["steps"] = _slider("Steps", 1, max(USUAL_STEPS, usual["steps"]), usual["steps"], 1)
        fields["scale"] = _slider("Scale", 1, LARGEST_SCALE, usual["scale"], 0.1)
    with gr.Row():
        for key in ("width", "height"):
            fields[key] = _slider(key.capitalize(), SIZE_STEP, LARGEST_SIZE, usual[key], SIZE_STEP)
    fields["sampler"] = gr.Dropdown(list(SAMPLERS), value=usual["sampler"], label="Sampler")
    return fields


def _build_more_fields(usual: Mapping[str, Any]) -> dict[str, Any]:
    """Item keys that few people change; a key without a field of its own kind is a text."""
    fields: dict[str, Any] = {}
    fields["negative"] = gr.Textbox(usual["negative"], label="Negative prompt", lines=2)
    with gr.Row():
        fields["eta"] = _slider("Eta", 0, 1, usual["eta"], 0.05, info="of ddim and tcd only")
        fields["format"] = gr.Radio(list(FORMATS), value=usual["format"], label="Format", min_width=150)
    fields["long_prompts"] = gr.Radio(
        list(LONG_PROMPTS), value=usual["long_prompts"], label="A prompt that is too long"
    )
    for key in (each for each in EXTRA if each not in OF_MASKS):
        shown = "" if usual[key] is None else str(usual[key])
        fields[key] = gr.Textbox(shown, label=key, info=KEYS[key].help)
    return fields


def _build_settings(usual: Mapping[str, Any], devices: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    with gr.Row():
        fields["precision"] = gr.Radio(["autocast", "full"], value=usual["precision"], label="Precision")
        fields["turbo"] = gr.Radio(
            ["auto", "true", "false"], value=usual["turbo"], label="Turbo", info="the UNet stays on the device"
        )
    with gr.Row():
        fields["unet_bs"] = gr.Textbox(
            usual["unet_bs"], label="unet_bs", info="rows in one UNet call, or auto", min_width=150
        )
        if len(devices) > 1:
            choices = ["auto", *devices]
            fields["device"] = gr.Dropdown(choices, value=usual["device"], label="Device", min_width=150)
    return fields


def _slider(label: str, low: float, high: float, value: float, step: float, info: str | None = None) -> gr.Slider:
    return gr.Slider(
        low, high, value, step=step, label=label, info=info, min_width=150, buttons=[], elem_classes="slider"
    )


def _build_results(usual: Mapping[str, Any], make: gr.Button, cancel: gr.Button) -> Results:
    small = max(usual["width"], usual["height"]) <= 128
    state = gr.HTML(NOTHING_YET)
    gallery = gr.Gallery(
        label="Pictures", columns=4, height=480, object_fit="contain", format="png",
        interactive=False, buttons=["download", "fullscreen"], elem_classes="small" if small else "",
    )  # fmt: skip
    with gr.Column(visible=False) as details:
        seeds = gr.Textbox(label="Seeds", interactive=False, buttons=["copy"], max_lines=2, elem_classes="seeds")
        manifest = gr.Code(
            label="Manifest",
            language="yaml",
            interactive=False,
            lines=8,
            max_lines=24,
            buttons=["copy"],
            wrap_lines=True,
        )
        with gr.Row(elem_classes="files"):
            manifest_file = gr.DownloadButton(f"Download {MANIFEST}", size="sm", scale=0, min_width=220)
            picture_file = gr.DownloadButton(f"Download {PICTURE}", size="sm", scale=0, min_width=220, visible=False)
    return Results(
        state=state, gallery=gallery, details=details, seeds=seeds, manifest=manifest, manifest_file=manifest_file,
        picture_file=picture_file, make=make, cancel=cancel,
    )  # fmt: skip


async def follow(studio: Studio, job: Job, results: Results) -> AsyncIterator[dict[Any, Any]]:
    """Shows a job until it is over, each time that something new can be said."""
    shown, said = -1, ""
    while True:
        over, made, state = job.over, len(job.pictures), describe(job, studio.ahead(job))
        if over or made != shown:
            yield results.show(job) | {results.state: state}
        elif state != said:
            yield {results.state: state}
        if over:
            yield results.buttons(busy=False)
            return
        shown, said = made, state
        await asyncio.sleep(LOOK_SECONDS)


def _pictures(form: Mapping[str, Any]) -> tuple[Image.Image | None, Image.Image | None]:
    """The picture as it was cropped, and its mask; None for what a form has no place for."""
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
