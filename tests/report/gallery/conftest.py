"""A browser for the gallery."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path

import pytest
from playwright.sync_api import expect


@pytest.fixture
def context(browser):
    """A browser's profile of its own; whatever goes wrong on a page of it fails the test."""
    problems = []
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    context.set_default_timeout(60_000)
    context.on("weberror", lambda it: problems.append(str(it.error)))
    # A picture that isn't there is part of some tests; a policy that is broken never is.
    context.on("console", lambda it: problems.append(it.text) if "Security Policy" in it.text else None)
    yield context
    context.close()
    assert problems == []


@pytest.fixture
def visit(context):
    """Opens a folder's gallery from the disk, with what stands behind the #."""

    def visit(folder: Path, hash: str = ""):
        page = context.new_page()
        page.goto(f"{(folder / 'gallery.html').as_uri()}{hash}")
        loaded(page)
        return page

    return visit


@pytest.fixture
def serve(tmp_path):
    """Serves the test's folder as a static server does; gives the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def loaded(page) -> None:
    expect(page.locator("#counts")).not_to_contain_text("loading")
