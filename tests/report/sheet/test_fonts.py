"""Which font has a character, and which characters belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
from font_files import write_font

from runner.report.sheet.fonts import Face, Fonts, clusters, system_fonts

CAT, MOUNTAIN = "猫", "\U0001f3d4"


def test_a_font_of_one_size_is_used_at_any(tmp_path: Path) -> None:
    face = Face(write_font(tmp_path / "cjk.bdf", CAT))
    font, factor = face.at(16)
    assert face.in_one_size and (font.size, factor) == (32, 0.5)
    assert face.at(32)[1] == 1
    assert face.has(CAT) and not face.has("犬") and not face.has(CAT + "犬")


def test_plain_letters_are_those_of_pillow_whatever_there_is(tmp_path: Path) -> None:
    fonts = Fonts([write_font(tmp_path / "all.bdf", "abc" + CAT)])
    assert fonts.face_of("a cat, (oil on canvas:1.2) & more") is fonts.own
    assert fonts.face_of(CAT) not in (None, fonts.own)
    assert fonts.face_of("犬") is None


def test_the_first_font_with_all_of_a_text_has_it(tmp_path: Path) -> None:
    one, both = write_font(tmp_path / "one.bdf", CAT), write_font(tmp_path / "two.bdf", CAT + "犬")
    fonts = Fonts([one, both])
    assert fonts.face_of(CAT) is not fonts.face_of(CAT + "犬") is fonts.face_of("犬")


def test_emoji_fonts_are_for_emoji(tmp_path: Path) -> None:
    emoji = write_font(tmp_path / "emoji.bdf", f"{MOUNTAIN}{CAT}✂☃")
    text = write_font(tmp_path / "text.bdf", f"{MOUNTAIN}{CAT}✂")
    fonts = Fonts([emoji, text])
    pictograms = fonts.face_of(MOUNTAIN)
    assert pictograms is fonts.face_of("✂\ufe0f") is fonts.face_of("☃")
    assert fonts.face_of(CAT) is fonts.face_of("✂") is not pictograms


def test_fonts_that_draw_nothing_or_are_none_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    files = [tmp_path / "gone.ttf", tmp_path / "broken.ttf", write_font(tmp_path / "blank.bdf", CAT, blank=True)]
    assert Fonts(files).face_of(CAT) is None
    good = Fonts([*files, write_font(tmp_path / "good.bdf", CAT)])
    assert good.face_of(CAT) is not None


def test_fonts_of_a_system_are_found_the_plain_ones_first(tmp_path: Path) -> None:
    names = [
        "deep/er/DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "NotoColorEmoji.ttf", "NotoSansCJK-Regular.ttc",
        "LastResort.otf", "readme.txt", "Zapf.otf",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [path.name for path in system_fonts([tmp_path, tmp_path / "none"])]
    assert found == [
        "NotoColorEmoji.ttf", "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Zapf.otf", "DejaVuSans-Bold.ttf",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ab", 2), ("e\u0301x", 2), ("👩\u200d👩\u200d👧", 1), ("👍🏽", 1),
        ("🇩🇪🇫🇷", 2), ("❤\ufe0f", 1), ("", 0), ("\u0301", 1),
    ],
)  # fmt: skip
def test_what_belongs_together_stays_together(text: str, parts: int) -> None:
    assert len(clusters(text)) == parts and "".join(clusters(text)) == text
