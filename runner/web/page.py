"""The verb `web`: a page for txt2img, img2img, inpainting and a matrix on this machine, drawn with Gradio.

It shows forms and jobs; `studio` does what a press of the button asks for. It listens on 127.0.0.1 only, serves the
files of its own run folders and of this session's uploads, and takes fonts and scripts from nowhere else.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from runner.device.memory import available_devices
from runner.errors import SettingError
from runner.images.inits import MOST_PIXELS
from runner.settings import Settings
from runner.web import forms, history
from runner.web.axes import of_cell
from runner.web.choices import Choices
from runner.web.files import RunFiles
from runner.web.forms import IMG2IMG, INPAINT, KINDS, PICTURE
from runner.web.guard import PORTS, OwnPageOnly, given_port
from runner.web.studio import Studio
from runner.web.tab import QUIETLY, Tab, Updates
from runner.web.text import list_runs

HOST = "127.0.0.1"
LARGEST_UPLOAD = "64mb"
UPLOADS_KEPT = 3600  # seconds
RUNS, RUNS_SHOWN = "runs", 24
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO_FONTS = ["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
CSS, SCRIPT = Path(__file__).with_suffix(".css"), Path(__file__).with_suffix(".js")


def serve(settings: Settings) -> None:
    """Shows the page until a signal comes."""
    with open_page(settings) as address:
        print(f"runner: the page is at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


@contextlib.contextmanager
def open_page(settings: Settings) -> Iterator[str]:
    """A page that is served within the block, at the address that is given."""
    with (
        Studio(settings) as studio,
        tempfile.TemporaryDirectory(prefix="runner-web-") as uploads,
        _bounded_pictures(),
        _kept_in(uploads),
    ):
        page = build_page(studio)
        try:
            yield _launch(page, studio, Path(uploads))
        finally:
            page.close(verbose=False)


@contextlib.contextmanager
def _kept_in(folder: str) -> Iterator[None]:
    """Gradio keeps in a folder what it is given and what it serves, as long as the block is open."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["GRADIO_TEMP_DIR"]
        os.environ |= {} if before is None else {"GRADIO_TEMP_DIR": before}


@contextlib.contextmanager
def _bounded_pictures() -> Iterator[None]:
    """Gradio decodes what is uploaded before anyone can look at its size: Pillow refuses twice its own bound."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS // 2
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _launch(page: gr.Blocks, studio: Studio, uploads: Path) -> str:
    gr.set_static_paths([studio.folder])  # pictures are sent from where they are, not copied among the uploads
    _, address, _ = page.launch(
        server_name=HOST,
        server_port=choose_port(),
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        allowed_paths=[str(studio.folder)],  # of which RunFiles lets the run folders' own files through
        blocked_paths=[],
        max_file_size=LARGEST_UPLOAD,
        footer_links=["settings"],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        css_paths=CSS,
        head=f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
        theme=gr.themes.Base(primary_hue="indigo", neutral_hue="zinc", font=FONTS, font_mono=MONO_FONTS),
        # A page elsewhere that makes its own name point here is not answered.
        app_kwargs={
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
                Middleware(OwnPageOnly),
                Middleware(RunFiles, folder=studio.folder, uploads=uploads),
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
    devices, choices = available_devices(), Choices(studio.settings)
    page = gr.Blocks(
        title="runner", analytics_enabled=False, fill_width=True, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)
    )
    with page:
        gr.HTML(f'<div class="title"><h1>runner</h1><span>{html.escape(studio.model.name)}</span></div>')
        # Outside of the tabs, whose parts aren't there before they are looked at.
        runs = {kind: gr.Textbox("", container=False, elem_classes="unseen") for kind in KINDS}
        asked = gr.Textbox("", container=False, elem_classes="unseen")
        tabs = {}
        with gr.Tabs() as bar:
            for kind in KINDS:
                with gr.Tab(kind, id=kind, elem_id=kind):
                    tabs[kind] = Tab(kind, studio, choices, devices, runs[kind])
            with gr.Tab(RUNS, id=RUNS, elem_id=RUNS) as last:
                _Runs(studio).listen(page, last)
        for tab in tabs.values():
            tab.listen()
        _Page(studio, bar, tabs, asked).listen(page)
    return page


class _Page:
    """What goes over from one tab to another, and from one visit to the next."""

    def __init__(self, studio: Studio, bar: gr.Tabs, tabs: dict[str, Tab], asked: gr.Textbox) -> None:
        self.studio, self.bar, self.tabs, self.asked = studio, bar, tabs, asked
        self._changes = itertools.count()
        self.files = {kind: gr.Textbox("", container=False, elem_classes="unseen") for kind in (IMG2IMG, INPAINT)}

    def listen(self, page: gr.Blocks) -> None:
        """Lets a visit show the run that its address names, and pictures be sent from tab to tab."""
        everything = [
            self.bar,
            self.asked,
            *self.files.values(),
            *(each for tab in self.tabs.values() for each in tab.all()),
        ]
        page.load(self.open, [self.asked], everything, js="() => runnerPage.asked()", **QUIETLY)
        for kind, file in self.files.items():
            # An editor has to be drawn before it is given a picture.
            file.change(js=f"file => runnerPage.drawn('{kind}', file)", inputs=[file], outputs=[file], **QUIETLY).then(
                self.give, [file], [self.tabs[kind].editor], **QUIETLY
            )
        for tab in self.tabs.values():
            for kind, button in ((IMG2IMG, tab.results.to_img2img), (INPAINT, tab.results.to_inpaint)):
                target = [self.bar, self.files[kind], *self.tabs[kind].form.all()]
                button.click(self._sender(tab, kind), [tab.run, tab.selected], target, **QUIETLY)

    def open(self, asked: str) -> Updates:
        """Shows the run that is asked for, or else the one that is going on, and what there is to choose from."""
        choices = Choices(self.studio.settings)
        updates: Updates = {}
        for tab in self.tabs.values():
            updates |= tab.form.choose_from(choices) | {tab.form.make: gr.update(interactive=True)}
        going_on = self.studio.going_on()
        job = self.studio.find(asked) or (going_on[0] if going_on else None)
        if job is None:
            return updates
        tab = self.tabs[job.kind]
        filled = tab.filled(forms.from_manifest(job.manifest), choices)
        updates = _merged(updates, filled) | {self.bar: gr.update(selected=job.kind), tab.run: job.name}
        if job.kind in self.files and (job.folder / PICTURE).exists():
            updates[self.files[job.kind]] = self._anew(job.folder / PICTURE)
        return updates

    def _sender(self, tab: Tab, kind: str) -> Any:
        def send(run: str, selected: int) -> Updates:
            if (chosen := tab.chosen(run, selected)) is None:
                return {}
            job, picture = chosen
            form = of_cell(forms.from_manifest(job.manifest), picture.axes) | {"seed": str(picture.seed)}
            filled = self.tabs[kind].filled(form, Choices(self.studio.settings))
            return {self.bar: gr.update(selected=kind), self.files[kind]: self._anew(picture.path), **filled}

        return send

    def _anew(self, path: Path) -> str:
        """A file of a run folder, in words that are new each time: their change is what brings it into an editor."""
        return f"{path.relative_to(self.studio.folder).as_posix()}#{next(self._changes)}"

    def give(self, file: str) -> Any:
        """The picture of a run folder for an editor."""
        file = file.rpartition("#")[0]
        name, _, inner = file.partition("/")
        if not history.NAME.fullmatch(name) or not history.is_within(self.studio.folder / name, inner):
            return gr.skip()
        path = str(self.studio.folder / file)
        return {"background": path, "layers": [], "composite": path}


def _merged(one: Updates, other: Updates) -> Updates:
    """Both updates; those of one component together."""
    return {**one, **{key: {**one[key], **value} if key in one else value for key, value in other.items()}}


class _Runs:
    """The list of runs, newest first, so many at a time."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.first = studio, gr.State(0)
        self.list = gr.HTML("", padding=False)
        with gr.Row(elem_classes="files"):
            self.newer = gr.Button("Newer", size="sm", scale=0, min_width=110, interactive=False)
            self.older = gr.Button("Older", size="sm", scale=0, min_width=110, interactive=False)

    def listen(self, page: gr.Blocks, tab: gr.Tab) -> None:
        """Looks again whenever the tab is looked at."""
        outputs = [self.first, self.list, self.newer, self.older]
        gr.on([page.load, tab.select], self.show, [self.first], outputs, **QUIETLY)
        self.newer.click(lambda first: self.show(first - RUNS_SHOWN), [self.first], outputs, **QUIETLY)
        self.older.click(lambda first: self.show(first + RUNS_SHOWN), [self.first], outputs, **QUIETLY)

    def show(self, first: int) -> list[Any]:
        """The runs from the `first` one on."""
        first, names = max(0, first), history.names(self.studio.folder)
        runs = history.list_runs(self.studio.folder, names[first : first + RUNS_SHOWN])
        more = gr.update(interactive=first + RUNS_SHOWN < len(names))
        listed = list_runs(self.studio.folder, runs, self.studio.going_on())
        return [first, listed, gr.update(interactive=first > 0), more]
