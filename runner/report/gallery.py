"""The report of a run folder: `gallery.html`, which opens without a server, and beside it `grid.png`.

Both are made anew from the records and the pictures, so they can be made at any time, during a run as well. Nothing
here changes a record or a picture; what is missing or has failed is shown as such. The page is made here, the contact
sheet in `contact_sheet`.

    files = build(Path("outputs/alps"))
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from urllib.parse import quote

from runner.files import atomic_write, writing_to
from runner.report.pictures import LARGE_SHOWN, SMALL, Picture, as_text, common_settings, read_pictures
from runner.report.sheet import render_grid, to_png

SMALL_SHOWN = 192  # pixels of a small picture's longer side
# HTML allows no other control characters than tabs and line ends.
CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\t"), ord("\n")}, "\ufffd")


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryFiles:
    """What was made, and of how many items."""

    html: Path
    grid: Path
    items: int
    failed: int


def build(folder: Path, per_row: int | None = None) -> GalleryFiles:
    """Make `gallery.html` and `grid.png` of a run folder; `per_row` is for the latter."""
    pictures = read_pictures(folder)
    page, grid = folder / "gallery.html", folder / "grid.png"
    with writing_to(folder):
        atomic_write(page, render_page(folder.resolve().name, pictures).encode("utf-8", "replace"))
        atomic_write(grid, to_png(render_grid(pictures, per_row)))
    return GalleryFiles(html=page, grid=grid, items=len(pictures), failed=sum(picture.failed for picture in pictures))


def render_page(title: str, pictures: Sequence[Picture]) -> str:
    """The whole page as HTML: the settings that all share once, at each picture those that differ."""
    template = Template(resources.files("runner.report").joinpath("gallery.html.in").read_text("utf-8"))
    common = common_settings(pictures)
    failed = sum(picture.failed for picture in pictures)
    counts = f"{len(pictures):,} items" + (f", {failed:,} failed" if failed else "")
    sections = "\n".join(_section(prompt, group, common) for prompt, group in _by_prompt(pictures))
    shared = " · ".join(f"{key} {value}" for key, value in common.items())
    return template.substitute(title=_safe(title), counts=counts, common=_safe(shared), sections=sections)


def _by_prompt(pictures: Iterable[Picture]) -> Iterator[tuple[str, list[Picture]]]:
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.prompt, []).append(picture)
    return iter(groups.items())


def _section(prompt: str, pictures: Sequence[Picture], common: dict[str, str]) -> str:
    cards = "\n".join(_card(picture, common) for picture in pictures)
    heading = f'<h2>{_safe(prompt)}<span class="count">{len(pictures):,}</span></h2>'
    return f'<section data-prompt="{_safe(prompt)}">{heading}<div class="sheet">\n{cards}\n</div></section>'


def _card(picture: Picture, common: dict[str, str]) -> str:
    seed, settings = as_text(picture.item.get("seed")), picture.settings()
    facts = [("seed", seed), *settings.items(), ("number", as_text(picture.item.get("number"))), ("file", picture.path)]
    facts += [("problem", picture.problem)] if picture.problem else []
    differing = " · ".join(f"{key} {value}" for key, value in settings.items() if common.get(key) != value)
    (width, height), shown = picture.size, _shown_width(*picture.size)
    kind = "" if picture.file else ' class="none"' if picture.failed else ' class="none missing"'
    style = f"--w:{shown}px;--r:{width}/{height}"
    return (
        f'<figure{kind} style="{style}" data-facts="{_safe(json.dumps(facts))}"'
        f' data-item="{_safe(json.dumps(picture.item))}">{_link(picture)}'
        f"<figcaption><span><b>seed {_safe(seed)}</b> {_safe(differing)}</span>"
        f'<button type="button" title="Copy the item as JSON">copy</button></figcaption></figure>'
    )


def _link(picture: Picture) -> str:
    if picture.file is None:
        return f'<a tabindex="0">{_safe(picture.problem)}</a>'
    width, height = picture.size
    address, pixels = quote(picture.path, errors="replace"), ' class="pixels"' if max(width, height) <= SMALL else ""
    return (
        f'<a href="{address}"><img{pixels} src="{address}" width="{width}" height="{height}" loading="lazy"'
        f' alt="{_safe(picture.prompt)}"></a>'
    )


def _shown_width(width: int, height: int) -> int:
    longer = max(width, height)
    if longer <= SMALL:
        return width * math.ceil(SMALL_SHOWN / longer)
    return max(SMALL, round(width * LARGE_SHOWN / longer))


def _safe(text: str) -> str:
    """Text for HTML, attributes included."""
    return html.escape(text.translate(CONTROLS), quote=True)
