import asyncio
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from runner.web import files
from runner.web.files import RunFiles, is_served, write_zip


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs/0001-a"
    for name in ("manifest.yaml", "records.jsonl", "gallery.html", "gallery/1.js", "thumbs/images/a/x.png.webp",
                 "images/a/x.png", "inits/y.png", "images/.half", ".lock", "notes.txt"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "images/link.png").symlink_to("/etc/hostname")
    return folder


def ask(folder, path, method="GET"):
    """The status and the body that `path` is answered with; what goes on to the page behind is a 299."""
    sent = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 299, "headers": []})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.disconnect"}

    app = RunFiles(page, folder.parent, folder.parent.parent / "uploads")
    scope = {"type": "http", "path": path, "method": method, "headers": [], "asgi": {"spec_version": "2.4"}}
    with ThreadPoolExecutor(1) as thread:  # another test's browser may have a loop in this one
        thread.submit(asyncio.run, app(scope, receive, send)).result()
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:])


@pytest.mark.parametrize(
    "name", ["gallery.html", "gallery/1.js", "thumbs/images/a/x.png.webp", "images/a/x.png", "records.jsonl"]
)
def test_what_a_gallery_needs_is_served(run, name):
    assert ask(run, f"/runs/0001-a/{name}") == (200, name.encode())
    assert ask(run, f"/gradio_api/file={run}/{name}")[0] == 299


@pytest.mark.parametrize(
    "name", [".lock", "notes.txt", "images/.half", "images/link.png", "images", "images/../notes.txt", "none"]
)
def test_nothing_else_is_served(run, name):
    assert not is_served(run, name)
    assert ask(run, f"/runs/0001-a/{name}")[0] == 404
    assert ask(run, f"/gradio_api/file={run}/{name}")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://example.com/x.png", "/gradio_api/file=/etc/passwd", "/file=/etc/passwd",
        "/gradio_api/file//etc/passwd", "/gradio_api/proxy=http://example.com/", "/gradio_api/file=a\0b",
        "/gradio_api/file=",
    ],
)  # fmt: skip
def test_gradio_serves_no_other_files_and_fetches_none(run, path):
    assert ask(run, path)[0] == 403


def test_uploads_are_left_to_gradio(run):
    uploads = run.parent.parent / "uploads"
    uploads.mkdir()
    (uploads / "x.png").touch()
    assert ask(run, f"/gradio_api/file={uploads}/x.png")[0] == 299
    assert ask(run, "/config")[0] == 299


def test_uploads_have_a_bound(run, limit):
    uploads = run.parent.parent / "uploads/inner"
    uploads.mkdir(parents=True)
    (uploads / "x.png").write_bytes(b"x" * 100)
    (uploads.parent / "zip-1.zip").write_bytes(b"x" * 500)  # under way, which isn't uploaded
    limit(files, MOST_UPLOADED=100)
    assert ask(run, "/gradio_api/upload", "POST")[0] == 299
    limit(files, MOST_UPLOADED=99)
    assert ask(run, "/gradio_api/upload", "POST")[0] == 413
    assert ask(run, "/config")[0] == 299


def test_only_runs_are_asked_for_and_only_to_read(run):
    assert ask(run, "/runs/0001-a/gallery.html", "POST")[0] == 405
    assert ask(run, "/runs/0002-none/gallery.html")[0] == 404
    assert ask(run, "/runs/0002-none.zip")[0] == 404
    assert ask(run, "/runs/../outside.zip")[0] == 299


def test_a_zip_holds_pictures_and_records(run, tmp_path):
    write_zip(run, tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as packed:
        assert sorted(packed.namelist()) == [
            f"0001-a/{name}" for name in ("images/a/x.png", "inits/y.png", "manifest.yaml", "records.jsonl")
        ]


def test_the_zips_file_is_removed(run, tmp_path):
    (tmp_path / "uploads").mkdir()
    status, body = ask(run, "/runs/0001-a.zip")
    assert (status, body[:2]) == (200, b"PK")
    assert list((tmp_path / "uploads").iterdir()) == []
