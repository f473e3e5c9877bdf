"""`gallery.html`: the markup, the style and the scripts of `page/` in one file, which loads the data beside it.

Nothing of a record is in it. Its policy lets it load scripts and pictures from beside itself and nothing from anywhere
else, and execute no other script within it, whatever a record says.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader

from runner.images.codec import THUMBNAIL

PARTS = ("data", "words", "marks", "state", "layout", "cells", "canvas", "copy", "compare", "large", "bars", "main")
# HTML allows no other control characters than tabs and line ends.
CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\t"), ord("\n")}, "\ufffd")


def render_page(title: str) -> bytes:
    """The whole page as UTF-8; it is the same for all folders but for its title."""
    style, script = _source("gallery.css"), _script()
    environment = Environment(
        loader=PackageLoader("runner.report.gallery", "page"), autoescape=True, keep_trailing_newline=True
    )
    page = environment.get_template("gallery.html.j2").render(
        title=title.translate(CONTROLS), policy=_policy(style, script), style=style, script=script, thumbnail=THUMBNAIL
    )
    return page.encode("utf-8", "replace")


def _policy(style: str, script: str) -> str:
    # A page that was opened from a file has no origin of its own in every browser, hence `file:`.
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self' file: {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src 'self' file:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@functools.cache
def _script() -> str:
    parts = "\n".join(_source(f"{name}.js") for name in PARTS)
    return f'\n"use strict";\n(() => {{\n{parts}\n}})();\n'


@functools.cache
def _source(name: str) -> str:
    return files("runner.report.gallery").joinpath("page", name).read_text("utf-8")
