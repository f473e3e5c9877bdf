"""The report shows every item, whatever its prompt says and whatever has happened to its picture."""

from __future__ import annotations

import errno
import json
import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from builders import failure, make_item, matrix, record, run_folder
from PIL import Image

from runner.errors import FolderUnwritable, NoRunFolder
from runner.folder.names import image_path
from runner.folder.store import LocalStore
from runner.report.gallery import build

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <img src=x onerror=alert(1)> ]]>",
    "\" onload='x' & &amp; `$title` $(x) ${y}",
    "50% of #1? 家 🏔️ a+b;c",
    "nul \0 and \x1b escape\nand a line",
    "",
    "\u202eright to left",
]


class Built:
    """The report of a folder, as it was built, with the paths of its files."""

    def __init__(self, folder: Path) -> None:
        made = build(LocalStore(folder))
        self.items, self.failed = made.items, made.failed
        self.html, self.grid = folder / "gallery.html", folder / "grid.png"


class Page(HTMLParser):
    """Every tag of a page with its attributes, and the text that stands outside of style and script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def width_of(path: Path) -> int:
    with Image.open(path) as image:
        image.load()
        return image.width


def test_the_page_has_every_picture_whatever_the_prompts_are(tmp_path: Path) -> None:
    items = [make_item(number=number, prompt=prompt) for number, prompt in enumerate(HOSTILE)]
    made = Built(run_folder(tmp_path, items))
    page = Page(made.html)
    shown = [unquote(str(image["src"])) for image in page.all("img")]
    assert shown == [str(image_path(item)) for item in items]
    assert all((tmp_path / path).is_file() for path in shown)
    assert len(page.all("script")) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.open == []
    assert [json.loads(str(card["data-item"]))["prompt"] for card in page.all("figure")] == HOSTILE
    assert "\0" not in made.html.read_text("utf-8") and "\x1b" not in made.html.read_text("utf-8")


def test_addresses_are_quoted(tmp_path: Path) -> None:
    Built(run_folder(tmp_path, [make_item(prompt="50% of #1 家")]))
    (image,) = Page(tmp_path / "gallery.html").all("img")
    assert image["src"] == "images/50%25_of_%231_%E5%AE%B6/seed_27_00000.png"


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    Built(run_folder(tmp_path, matrix(1, 2)))
    text = (tmp_path / "gallery.html").read_text("utf-8")
    assert "http:" not in text and "https:" not in text and "<link" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_pictures_are_grouped_by_prompt_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    items = matrix(2, 2)
    page = Page(Built(run_folder(tmp_path, [items[3], items[0], items[2], items[1]])).html)
    assert [section["data-prompt"] for section in page.all("section")] == ["prompt 0", "prompt 1"]
    assert [json.loads(str(card["data-item"]))["number"] for card in page.all("figure")] == [0, 1, 2, 3]


def test_a_card_tells_what_differs_and_the_head_what_does_not(tmp_path: Path) -> None:
    items = [make_item(number=0, scale=5.0, negative="blurry"), make_item(number=1, scale=7.5, negative="blurry")]
    page = Page(Built(run_folder(tmp_path, items)).html)
    assert page.text.count("negative blurry") == 1 and page.text.count("steps 20") == 1
    assert page.text.count("scale 5") == 1 and page.text.count("scale 7.5") == 1
    facts = dict(json.loads(str(page.all("figure")[1]["data-facts"])))
    assert (facts["scale"], facts["size"], facts["seed"], facts["model"]) == ("7.5", "64x64", "27", "emoji")


def test_a_sweep_of_models_tells_whose_each_picture_is(tmp_path: Path) -> None:
    one, two = (make_item(number=number, prompt="prompt 0") for number in range(2))
    run_folder(tmp_path, [one, two])
    other = record(two, model={"name": "other", "fingerprints": {}})
    page = Page(Built(run_folder(tmp_path, [one], other)).html)
    assert page.text.count("model emoji") == 1 and page.text.count("model other") == 1
    facts = [dict(json.loads(str(card["data-facts"]))) for card in page.all("figure")]
    assert [each["model"] for each in facts] == ["emoji", "other"]


def test_a_seed_beyond_the_numbers_of_a_browser_stays_exact(tmp_path: Path) -> None:
    (card,) = Page(Built(run_folder(tmp_path, [make_item(seed=2**63 - 1)])).html).all("figure")
    assert str(2**63 - 1) in str(card["data-item"])
    assert ["seed", str(2**63 - 1)] in json.loads(str(card["data-facts"]))


def test_small_pictures_are_shown_in_whole_multiples(tmp_path: Path) -> None:
    items = [make_item(number=0), make_item(number=1, width=128), make_item(number=2, width=512, height=768)]
    page = Page(Built(run_folder(tmp_path, items)).html)
    assert [str(card["style"]).split(";")[0] for card in page.all("figure")] == ["--w:192px", "--w:256px", "--w:149px"]
    assert [image.get("class") for image in page.all("img")] == ["pixels", "pixels", None]
    assert all(image["loading"] == "lazy" for image in page.all("img"))


def test_failed_and_missing_items_are_shown_as_such(tmp_path: Path) -> None:
    items = matrix(1, 4)
    run_folder(tmp_path, items, failure(items[1]))
    (tmp_path / image_path(items[2])).unlink()
    (tmp_path / image_path(items[3])).write_bytes(b"no picture")
    made = Built(tmp_path)
    page = Page(made.html)
    assert (made.items, made.failed) == (4, 1)
    assert len(page.all("figure")) == 4 and len(page.all("img")) == 2
    assert "BlackPicture: came out <black>" in page.text
    assert f"missing: {image_path(items[2])}" in page.text
    assert width_of(made.grid) >= 480


def test_records_that_lack_nearly_everything_are_shown(tmp_path: Path) -> None:
    bare = [{"id": "a", "status": "failed"}, {"id": "b", "status": "done", "image": "x", "bytes": 1, "item": "odd"}]
    made = Built(run_folder(tmp_path, [], *bare))
    assert len(Page(made.html).all("figure")) == 2
    assert made.failed == 1


def test_an_empty_run_has_an_empty_report(tmp_path: Path) -> None:
    made = Built(run_folder(tmp_path, []))
    assert "0 items" in Page(made.html).text
    assert width_of(made.grid) >= 480


def test_no_run_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoRunFolder):
        Built(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_report(tmp_path: Path, system) -> None:
    before = Built(run_folder(tmp_path, [make_item()])).html.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    system(os, write=full)
    with pytest.raises(FolderUnwritable):
        Built(tmp_path)
    assert (tmp_path / "gallery.html").read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))


def test_building_again_gives_the_same_bytes(tmp_path: Path) -> None:
    first = Built(run_folder(tmp_path, matrix(2, 2)))
    before = first.html.read_bytes(), first.grid.read_bytes()
    again = Built(tmp_path)
    assert (again.html.read_bytes(), again.grid.read_bytes()) == before
