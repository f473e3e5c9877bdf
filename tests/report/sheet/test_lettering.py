"""Texts stay in their place, in any script, with and without fonts for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from font_files import write_font
from PIL import Image

from runner.report.sheet.fonts import Fonts
from runner.report.sheet.lettering import Lettering

CJK = "猫座垫子上"
HEBREW = "\u05d0\u05d1\u05d2"


def plain() -> Lettering:
    return Lettering(Fonts())


def with_font(folder: Path, characters: str, *, shapes: bool = False) -> Lettering:
    return Lettering(Fonts([write_font(folder / "font.bdf", characters)], shapes=shapes))


def drawn(lettering: Lettering, line: str, size: int = 16) -> Image.Image:
    image = Image.new("RGB", (200, 40), "#ffffff")
    lettering.draw(image, (0, 0), line, size, "#000000")
    return image


@pytest.mark.parametrize(
    "text",
    ["one", "a long line of several words", "x" * 300, "word " * 300, "", "é" * 90, "🙂 家", CJK * 9, HEBREW * 9],
)
@pytest.mark.parametrize("most", [0, 1, 3])
def test_labels_stay_in_their_place(tmp_path: Path, text: str, most: int) -> None:
    for lettering in (plain(), with_font(tmp_path, CJK), with_font(tmp_path, HEBREW, shapes=True)):
        lines = lettering.wrap(text, 12, 80, most)
        assert len(lines) <= most
        assert all(lettering.length(line, 12) <= 80 for line in lines)


def test_a_label_cut_short_says_so() -> None:
    wrap = plain().wrap
    assert wrap("a cat", 12, 80, 2) == ["a cat"]
    assert wrap("a cat that sits on a mat", 12, 80, 9) == ["a cat that sits", "on a mat"]
    assert wrap("a cat that sits on a mat", 12, 80, 1) == ["a cat that sit…"]
    assert wrap("a\ncat\tthat\u202e", 12, 80, 1) == ["a cat that"]


def test_a_word_that_is_longer_than_a_line_is_broken() -> None:
    lines = plain().wrap("https://example.org/abcdefgh", 12, 80, 9)
    assert len(lines) > 1 and "".join(lines) == "https://example.org/abcdefgh"


def test_chinese_is_broken_anywhere_and_latin_is_not(tmp_path: Path) -> None:
    lettering = with_font(tmp_path, CJK)
    assert lettering.wrap(f"{CJK}cat", 16, 3 * 16, 9) == ["猫座垫", "子上", "cat"]


def test_what_no_font_has_is_readable_all_the_same() -> None:
    lettering = plain()
    assert lettering.wrap("Käse", 12, 80, 1) == ["Kase"]
    assert not lettering.lacking
    assert lettering.wrap("a 猫", 12, 200, 1) == ["a U+732B"]
    assert lettering.wrap("🏔\ufe0f", 12, 200, 1) == [":snow capped mountain:"]
    assert lettering.wrap("\u0939\u093f", 12, 200, 1) == ["U+0939 U+093F"]
    assert lettering.lacking == {"猫", "🏔", "\u0939", "\u093f"}


def test_a_font_of_the_machine_is_drawn_in_the_size_of_the_text(tmp_path: Path) -> None:
    lettering = with_font(tmp_path, CJK)
    assert lettering.length("猫", 16) == 16
    image = drawn(lettering, "猫")
    assert image.getpixel((2, 8)) == (0, 0, 0)
    assert image.getpixel((17, 8)) == (255, 255, 255) == image.getpixel((2, 18))


def test_what_runs_from_the_right_does_so_without_raqm(tmp_path: Path) -> None:
    lettering = with_font(tmp_path, HEBREW)
    whole, first = drawn(lettering, HEBREW, 32), drawn(lettering, HEBREW[0], 32)
    assert whole.crop((64, 0, 96, 40)).tobytes() == first.crop((0, 0, 32, 40)).tobytes()
    assert whole.crop((0, 0, 32, 40)).tobytes() != first.crop((0, 0, 32, 40)).tobytes()


def test_words_of_both_directions_begin_where_the_text_begins(tmp_path: Path) -> None:
    lettering = with_font(tmp_path, HEBREW)
    latin_first = drawn(lettering, f"cat {HEBREW}")
    hebrew_first = drawn(lettering, f"{HEBREW} cat")
    cat = drawn(lettering, "cat").crop((0, 0, 20, 24)).tobytes()
    assert latin_first.crop((0, 0, 20, 24)).tobytes() == cat == hebrew_first.crop((0, 0, 20, 24)).tobytes()
