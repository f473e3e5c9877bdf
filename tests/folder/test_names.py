"""Pictures go to places that every system takes, and no two prompts meet in one folder."""

from __future__ import annotations

import re
import unicodedata

import pytest
from builders import make_item
from hypothesis import example, given
from hypothesis import strategies as st

from runner.folder.names import folder_name, image_path

WINDOWS_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def test_the_place_of_a_picture_is_the_originals() -> None:
    item = make_item(prompt="Austrian alps, oil on canvas", seed=27, number=12)
    assert str(image_path(item)) == "images/Austrian_alps,_oil_on_canvas/seed_27_00012.png"
    assert image_path(make_item(format="jpg", number=1234567)).name == "seed_27_1234567.jpg"


@pytest.mark.parametrize(
    ("prompt", "folder"),
    [
        ("tabby cat:0.25 white duck:0.75", "tabby_cat_0.25_white_duck_0.75"),
        ("portrait: oil", "portrait__oil"),
        ("", "_"),
        ("..", "_"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("...hidden...", "hidden"),
        ('a/b\\c|d?e*f<g>h"i', "a_b_c_d_e_f_g_h_i"),
        ("line\nbreak\0nul\x7f", "line_break_nul_"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("console", "console"),
        ("e\u0301", "é"),
        ("\u202egnp.exe", "_gnp.exe"),
        ("\ud800 alone", "__alone"),
        ("👩‍🚀 in space", "👩‍🚀_in_space"),
    ],
)
def test_a_folder_is_named_after_its_prompt(prompt: str, folder: str) -> None:
    assert folder_name(prompt) == folder


@given(st.text(max_size=150))
@example("." * 200)
@example("CON." + "x" * 96)
@example("é" * 50)
@example("é" * 50 + "x")
@example("🙂" * 80)
def test_any_prompt_gives_a_folder_that_every_system_takes(prompt: str) -> None:
    name = folder_name(prompt)
    assert 1 <= len(name.encode()) <= 100
    assert not re.search(r'[<>:"/\\|?*\x00-\x1f\x7f]', name)
    assert not name.startswith(".") and not name.endswith((".", " "))
    assert not WINDOWS_RESERVED.match(name)
    assert name == unicodedata.normalize("NFC", name)
    assert len(image_path(make_item(prompt=prompt)).parts) == 3


def test_long_prompts_do_not_meet() -> None:
    prompts = ["🙂" * 30 + end for end in ("a", "b", "a ", "")]
    folders = {folder_name(prompt) for prompt in prompts}
    assert len(folders) == 4
    assert all(re.search(r"-[0-9a-f]{8}$", folder) for folder in folders)
    assert folder_name("x" * 100) == "x" * 100
