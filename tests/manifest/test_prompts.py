"""The prompts of a manifest: their forms, the files that hold some, and what is refused of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from manifest_texts import job, read, refusal, texts

from runner.errors import Location
from runner.manifest import prompts as manifest_prompts
from runner.manifest.read import load

PROMPTS = """\
version: 1
jobs:
  - seeds: 1
    prompts:
      - Austrian alps, oil on canvas
      - tabby cat:0.25 white duck:0.75 hybrid
      - 1984
      - NO
      - {prompt: "portrait: oil", negative: blurry}
      - {text: "cat:0.5 dog:0", weighted: false, id: odd}
      - id: hybrid
        parts: [tabby cat, white duck]
        weights: [[0.25, 0.75], [1, 1]]
      - {parts: [a, b], weights: [3, 1]}
      - file: animals.txt
        negative: ugly
"""


def test_the_forms_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "animals.txt").write_bytes(b"\xef\xbb\xbfa hen # with a hash\r\n\r\n \n\xc3\xa9:1 b:3")
    prompts = read(tmp_path, PROMPTS).jobs[0].columns["prompt"]
    assert [(prompt.text, prompt.label, prompt.negative) for prompt in prompts] == [
        ("Austrian alps, oil on canvas",) * 2 + (None,),
        ("tabby cat:0.25 white duck:0.75 hybrid",) * 2 + (None,),
        ("1984", "1984", None),
        ("NO", "NO", None),
        ("portrait: oil", "portrait: oil", "blurry"),
        ("cat:0.5 dog:0", "odd", None),
        ("tabby cat:0.25 white duck:0.75", "hybrid (0.25, 0.75)", None),
        ("tabby cat:1 white duck:1", "hybrid (1, 1)", None),
        ("a:3 b:1", "a:3 b:1", None),
        ("a hen # with a hash", "a hen # with a hash", "ugly"),
        ("é:1 b:3", "é:1 b:3", "ugly"),
    ]
    assert [part.text for part in prompts[5].parts()] == ["cat:0.5 dog:0"]
    assert [part.weight for part in prompts[8].parts()] == [0.75, 0.25]
    assert prompts[-1].location == Location(tmp_path / "animals.txt", 4, 1)


def test_matrix_prompts_take_every_form(tmp_path: Path) -> None:
    found = job(tmp_path, "{seed: 1, matrix: {steps: [1, 2], prompt: [a, {text: b, id: c, negative: d}]}}")
    assert list(found.columns) == ["steps", "prompt", "seed"]
    assert [(prompt.label, prompt.negative) for prompt in found.columns["prompt"]] == [("a", None), ("c", "d")]


@pytest.mark.parametrize(
    ("prompt", "column", "parts"),
    [
        ("a cat # black", 5, ["cuts this text to 'a cat'", "quote", "two spaces"]),
        ("portrait: oil", 5, ["unknown key 'portrait'", "needs quotes"]),
        ("", None, ["expected a text, not nothing"]),
        ("[a, b]", 5, ["expected a text, not a list"]),
        ("cat:1 dog:-1", 5, ["add up to 0", "weighted: false"]),
        ("'cat:1 :2'", 5, ["no words before ':2'"]),
        ("{id: x}", 5, ["exactly one of text, parts"]),
        ("{text: a, prompt: b}", 5, ["exactly one of text, parts"]),
        ("{text: a, weights: [1]}", 24, ["'weights' can't stand beside 'text'"]),
        ("{file: a.txt, id: x}", 23, ["'id' can't stand beside 'file'"]),
        ("{text: a, weighted: no}", 25, ["expected true or false, not 'no'"]),
        ("{text: a, wieghted: false}", 15, ["did you mean 'weighted'?"]),
        ("{parts: [a, b]}", 13, ["'weights' is missing; 2 parts need 2 weights"]),
        ("{parts: [a, b], weights: [1]}", 30, ["2 parts but 1 weights"]),
        ("{parts: [a, b], weights: [[1, 1], [1]]}", 39, ["2 parts but 1 weights"]),
        ("{parts: [a, b], weights: [[1, 1], 1]}", 39, ["expected a list, not '1'"]),
        ("{parts: [a, b], weights: [1, -1]}", 30, ["greater than zero"]),
        ("{parts: [a, b], weights: [1, .nan]}", 34, ["'.nan' is not a number"]),
        ("{parts: [a, ''], weights: [1, 1]}", 31, ["without words"]),
        ("{file: none.txt}", 12, ["No such file"]),
        ("{file: .}", 12, ["is not a file"]),
        ("{file: ../secret.txt}", 12, ["leaves the manifest's folder", "allow_outside=true"]),
        ("{file: /etc/passwd}", 12, ["leaves the manifest's folder"]),
        ("{file: link.txt}", 12, ["leaves the manifest's folder"]),
        ("{file: up/secret.txt}", 12, ["leaves the manifest's folder"]),
        ("{file: loop.txt}", 12, ["link to itself"]),
        ('{file: "a\\0b"}', 12, ["can't be written"]),
        (f"{{file: {'x' * 300}}}", 12, ["name too long"]),
        ("{file: blank.txt}", 12, ["holds no prompts"]),
    ],
)
def test_wrong_prompts(tmp_path: Path, prompt: str, column: int | None, parts: list[str]) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "blank.txt").write_text("\n  \n")
    error = refusal(folder, f"version: 1\njobs:\n- prompts:\n  - {prompt}\n")
    assert all(part.lower() in error.message.lower() for part in parts), error.message
    assert column is None or (error.location.line, error.location.column) == (4, column)


def test_files_outside_where_that_is_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "cats.txt").write_text("a cat\n")
    (folder / "link.txt").symlink_to("../cats.txt")
    text = "version: 1\njobs:\n- prompts: [file: ../cats.txt, file: link.txt]\n"
    assert texts(read(folder, text, outside=True).jobs[0]) == ["a cat", "a cat"]


def test_links_within_the_folder_and_a_linked_folder_are_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    (folder / "cats.txt").write_text("a cat\n")
    (folder / "link.txt").symlink_to("cats.txt")
    (tmp_path / "linked").symlink_to("real")
    text = "version: 1\njobs:\n- prompts: [file: link.txt]\n"
    assert texts(read(tmp_path / "linked", text).jobs[0]) == ["a cat"]
    monkeypatch.chdir(folder)
    assert texts(load(Path("m.yaml"), overrides={}, allow_outside=False).jobs[0]) == ["a cat"]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_prompt_file_may_have_comments_any_line_end_and_invisible_lines(tmp_path: Path, end: str) -> None:
    lines = ["\ufeff# animals", "a cat", "\u200b", "  ", "\ufeff", "# more", "a dog # brown"]
    (tmp_path / "p.txt").write_text(end.join(lines), encoding="utf-8", newline="")
    text = "version: 1\njobs:\n- prompts: [{file: p.txt, comments: '#'}]\n  seeds: 1\n"
    manifest = read(tmp_path, text)
    assert [prompt.text for prompt in manifest.jobs[0].columns["prompt"]] == ["a cat", "a dog # brown"]
    manifest = read(tmp_path, text.replace(", comments: '#'", ""))
    assert len(manifest.jobs[0].columns["prompt"]) == 4


@pytest.mark.parametrize(
    ("data", "line", "part"),
    [(b"a\n\nb:1 c:-1\n", 3, "add up to 0"), (b"a\n\xff\n", 2, "byte 0xff"), (b"a\nb\x00c\n", 2, "character 0x00")],
)
def test_bad_lines_of_a_prompt_file_are_named(tmp_path: Path, data: bytes, line: int, part: str) -> None:
    (tmp_path / "p.txt").write_bytes(data)
    error = refusal(tmp_path, "version: 1\njobs:\n- prompts: [file: p.txt]\n")
    assert (error.location.path, error.location.line) == (tmp_path / "p.txt", line)
    assert part in error.message


def test_prompt_files_can_not_explode(tmp_path: Path, limit: Any) -> None:
    limit(manifest_prompts, MOST_PROMPTS=5)
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    error = refusal(tmp_path, "version: 1\njobs:\n- prompts: [&f {file: p.txt}, *f, *f]\n")
    assert "more than 5 prompts" in error.message
