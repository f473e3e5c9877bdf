"""The report of a run folder: `gallery.html`, which opens without a server, and beside it `grid.png`.

Both are made anew from the records and the pictures, so they can be made at any time, also during a run. No record and
no picture is changed; an item without a picture is shown as such. The page is made here, the contact sheet in `sheet`.

    files = build(store_at("outputs/alps"))
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, Template

from runner.folder.names import GALLERY, GRID
from runner.folder.store import Store
from runner.report.pictures import LARGE_SHOWN, SMALL, Picture, as_text, common_settings, read_pictures
from runner.report.sheet import render_grid, to_png

SMALL_SHOWN = 192  # pixels of a small picture's longer side
# HTML allows no other control characters than tabs and line ends.
CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\t"), ord("\n")}, "\ufffd")


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryFiles:
    """What was made, and of how many items."""

    items: int
    failed: int


def build(store: Store, per_row: int | None = None) -> GalleryFiles:
    """Makes `gallery.html` and `grid.png` of a run folder; `per_row` is the number of pictures in a row of the grid."""
    pictures = read_pictures(store)
    store.put(GALLERY, render_page(store.name, pictures).encode("utf-8", "replace"))
    store.put(GRID, to_png(render_grid(pictures, per_row)))
    return GalleryFiles(items=len(pictures), failed=sum(picture.failed for picture in pictures))


def render_page(title: str, pictures: Sequence[Picture]) -> str:
    """The whole page as HTML: the settings that all share once, at each picture those that differ."""
    common, failed = common_settings(pictures), sum(picture.failed for picture in pictures)
    return _template().render(
        title=title,
        counts=f"{len(pictures):,} items" + (f", {failed:,} failed" if failed else ""),
        common=" · ".join(f"{key} {value}" for key, value in common.items()),
        sections=[
            {"prompt": prompt, "count": f"{len(group):,}", "cards": (_card(picture, common) for picture in group)}
            for prompt, group in _by_prompt(pictures)
        ],
    )


@functools.cache
def _template() -> Template:
    # What a record says is text, never HTML: autoescape holds for attributes as well.
    environment = Environment(
        loader=PackageLoader("runner.report", "."),
        autoescape=True,
        finalize=_without_controls,
        keep_trailing_newline=True,
    )
    return environment.get_template("gallery.html.j2")


def _without_controls(value: Any) -> Any:
    return value.translate(CONTROLS) if isinstance(value, str) else value


def _by_prompt(pictures: Iterable[Picture]) -> Iterator[tuple[str, list[Picture]]]:
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.prompt, []).append(picture)
    return iter(groups.items())


def _card(picture: Picture, common: Mapping[str, str]) -> dict[str, Any]:
    """What the page shows of a picture; without an address, why there is none."""
    seed, settings, (width, height) = as_text(picture.item.get("seed")), picture.settings(), picture.size
    facts = [("seed", seed), *settings.items(), ("number", as_text(picture.item.get("number"))), ("file", picture.path)]
    facts += [("problem", picture.problem)] if picture.problem else []
    return {
        "kind": "" if picture.open else "none" if picture.failed else "none missing",
        "shown": _shown_width(width, height),
        "width": width,
        "height": height,
        "facts": json.dumps(facts),
        "item": json.dumps(picture.item),
        "address": quote(picture.path, errors="replace") if picture.open else None,
        "problem": picture.problem,
        "pixels": max(width, height) <= SMALL,
        "seed": seed,
        "differing": " · ".join(f"{key} {value}" for key, value in settings.items() if common.get(key) != value),
    }


def _shown_width(width: int, height: int) -> int:
    longer = max(width, height)
    if longer <= SMALL:
        return width * math.ceil(SMALL_SHOWN / longer)
    return max(SMALL, round(width * LARGE_SHOWN / longer))
