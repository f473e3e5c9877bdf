"""Serves the files of run folders, and a run's pictures as a zip: an ASGI application before the page's own.

    /runs/0001-a-red-apple/gallery.html
    /runs/0001-a-red-apple.zip

Of a run folder only those files are served that a gallery or its reader needs, and none that a link leads out to. The
page's own way of serving files is kept to the same folders, and fetches nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import unquote

from starlette.responses import FileResponse, PlainTextResponse, Response

from runner.folder.local import LocalStore
from runner.folder.names import GALLERY, GRID, IMAGES, INITS, LOG, MANIFEST, PIECES, RECORDS, RUN, THUMBS
from runner.web.forms import MASK_PICTURE, PICTURE
from runner.web.guard import App, Receive, Scope, Send
from runner.web.history import NAME, is_within

FILES = (GALLERY, LOG, MANIFEST, RECORDS, RUN, PICTURE, MASK_PICTURE)
FOLDERS = (IMAGES, INITS, PIECES, THUMBS)
GRIDS = re.compile(GRID.replace(".", r"(-\d+)?\."))  # a large one has several pages
IN_ZIP = re.compile(
    rf"({IMAGES}|{INITS})/.+|{'|'.join(map(re.escape, (MANIFEST, RECORDS, RUN, PICTURE, MASK_PICTURE)))}"
)
ASKED = re.compile(rf"/runs/({NAME.pattern})(?:(\.zip)|/(.+))")
GRADIO_FILE = re.compile(r"/(?:gradio_api/)?file[=/](.*)", re.DOTALL)
FORBIDDEN = PlainTextResponse("this page serves the files of its runs only", status_code=403)
FULL = PlainTextResponse("too much was uploaded lately; wait an hour, or restart runner web", status_code=413)
MOST_UPLOADED = 2 << 30  # bytes that wait to be removed
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


class RunFiles:
    """An ASGI application before another: answers for the run folders in `folder`, and refuses other files.

    `uploads` is the folder of what the page itself was given, and of what it makes for a moment.
    """

    def __init__(self, app: App, folder: Path, uploads: Path) -> None:
        self._app, self._folder, self._uploads = app, folder, uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif asked := ASKED.fullmatch(path):
            await self._answer(scope, receive, send, *asked.groups())
        elif scope["method"] == "POST" and "/upload" in path and await asyncio.to_thread(self._is_full):
            await FULL(scope, receive, send)
        elif "/proxy=" in path or ((file := GRADIO_FILE.fullmatch(path)) and not self._may_serve(file[1])):
            await FORBIDDEN(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, name: str, zipped: str | None, inner: str | None
    ) -> None:
        folder = self._folder / name
        if scope["method"] not in ("GET", "HEAD"):
            await PlainTextResponse("only GET", status_code=405)(scope, receive, send)
        elif zipped and folder.is_dir():
            await self._send_zip(folder, scope, receive, send)
        elif inner and is_served(folder, inner):
            await FileResponse(folder / inner, headers=HEADERS)(scope, receive, send)
        else:
            await PlainTextResponse("there is no such file", status_code=404)(scope, receive, send)

    async def _send_zip(self, folder: Path, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends a run's pictures and records as a zip, which is made in a temporary file and removed afterwards."""
        descriptor, name = tempfile.mkstemp(dir=self._uploads, prefix="zip-", suffix=".zip")
        os.close(descriptor)
        file = Path(name)
        response: Response = PlainTextResponse("the zip can't be written", status_code=507)
        try:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(write_zip, folder, file)
                response = FileResponse(file, filename=f"{folder.name}.zip", media_type="application/zip")
            await response(scope, receive, send)
        finally:
            file.unlink(missing_ok=True)

    def _is_full(self) -> bool:
        """Whether more was uploaded than there should be at a time; Gradio removes each file after a while."""
        # Gradio makes a folder for each; what lies beside these are the zips under way.
        inner = itertools.islice(os.walk(self._uploads), 1, None)
        files = (os.path.join(place, name) for place, _, names in inner for name in names)
        with contextlib.suppress(OSError):  # one that was just removed
            return sum(map(os.path.getsize, files)) > MOST_UPLOADED
        return False

    def _may_serve(self, path: str) -> bool:
        """Whether Gradio may answer for a path: an upload, or a file of a run folder."""
        try:
            place = Path(unquote(path)).resolve()
        except (OSError, ValueError, RuntimeError):
            return False
        if place.is_relative_to(self._uploads):
            return True
        inner = place.relative_to(self._folder).parts if place.is_relative_to(self._folder) else ()
        return len(inner) > 1 and bool(NAME.fullmatch(inner[0])) and is_served(self._folder / inner[0], *inner[1:])


def is_served(folder: Path, *parts: str) -> bool:
    """Whether a file of a run folder is one that people may look at."""
    name = "/".join(parts)
    inside = name in FILES or GRIDS.fullmatch(name) or name.partition("/")[0] in FOLDERS
    return bool(inside) and "/." not in f"/{name}" and is_within(folder, name)


def write_zip(folder: Path, file: Path) -> None:
    """The pictures, the records and the manifest of a run folder; pictures are stored as they are, being compressed."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        for name in LocalStore(folder).list():
            if IN_ZIP.fullmatch(name) and "/." not in f"/{name}" and is_within(folder, name):
                packed.write(folder / name, f"{folder.name}/{name}")
