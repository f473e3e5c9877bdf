"""A text is read in each syntax that it meets, wherever the syntax is said; what is wrong is found before an item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.errors import Location, ManifestError
from runner.item import Item, Part, item_id
from runner.manifest import items as manifest_items
from runner.manifest.items import Items
from runner.manifest.lines import read_item, read_items
from runner.manifest.read import load
from runner.manifest.write import to_yaml


def items(folder: Path, text: str, **overrides: Any) -> list[Item]:
    (folder / "m.yaml").write_text(f"version: 1\n{text}", encoding="utf-8")
    return list(Items(load(folder / "m.yaml", overrides=overrides, allow_outside=False), {}))


def one(text: str) -> tuple[Part, ...]:
    return (Part(text, 1.0),)


A1111 = {
    "job": "jobs: [{prompt: 'a (cat:1.2) dog:2 b', seed: 1, prompt_syntax: a1111}]",
    "defaults": "defaults: {prompt_syntax: a1111}\njobs: [{prompt: 'a (cat:1.2) dog:2 b', seed: 1}]",
    "matrix": "jobs: [{prompt: 'a (cat:1.2) dog:2 b', seed: 1, matrix: {prompt_syntax: [a1111]}}]",
    "zip": "jobs: [{seed: 1, zip: {prompt: ['a (cat:1.2) dog:2 b'], prompt_syntax: [a1111]}}]",
    "include": "jobs: [{prompt: x, seed: 1, include: [{prompt: 'a (cat:1.2) dog:2 b', prompt_syntax: a1111}]}]",
}


@pytest.mark.parametrize("where", A1111)
def test_the_syntax_may_be_said_anywhere(tmp_path: Path, where: str) -> None:
    item = items(tmp_path, A1111[where])[-1]
    assert item.a1111
    assert (item.prompt, item.parts) == ("a (cat:1.2) dog:2 b", one("a (cat:1.2) dog:2 b"))


def test_the_syntax_may_come_from_the_command_line(tmp_path: Path) -> None:
    [item] = items(tmp_path, "jobs: [{prompt: 'cat:1 :2 b', seed: 1}]", prompt_syntax="a1111")
    assert item.a1111 and item.parts == one("cat:1 :2 b")


def test_a_text_is_read_in_each_syntax_of_an_axis(tmp_path: Path) -> None:
    text = "jobs: [{prompts: ['a:1 b:3 d', c], seed: 1, matrix: {prompt_syntax: [plain, a1111]}}]"
    found = items(tmp_path, text)
    assert [len(item.parts) for item in found] == [3, 1, 1, 1]
    assert [dict(item.axes)["prompt_syntax"] for item in found] == ["plain", "a1111"] * 2
    assert len({item_id(item) for item in found}) == 4


def test_a_long_list_of_prompts_is_read_like_a_short_one(tmp_path: Path, limit: Any) -> None:
    (tmp_path / "p.txt").write_text("(a:1.2)\nb:1 c:2 d\n[e:f:0.5]\n")
    text = "jobs: [{prompts: [{file: p.txt, negative: n}], seed: 1, matrix: {prompt_syntax: [a1111]}, steps: 3}]"
    found = items(tmp_path, text)
    limit(manifest_items, LONGEST_CYCLE=1)
    last = "jobs: [{matrix: {prompt: [{file: p.txt, negative: n}]}, seed: 1, prompt_syntax: a1111, steps: 3}]"
    assert [item._replace(axes=()) for item in items(tmp_path, last)] == [item._replace(axes=()) for item in found]
    assert [item.parts for item in found] == [one("(a:1.2)"), one("b:1 c:2 d"), one("[e:f:0.5]")]


def test_how_long_prompts_are_treated_has_no_say(tmp_path: Path) -> None:
    long = "a cat, " * 200
    sweep = "matrix: {long_prompts: [error, truncate, chunk]}"
    found = items(tmp_path, f"jobs: [{{prompt: '{long}', seed: 1, prompt_syntax: a1111, {sweep}}}]")
    assert len({item_id(item) for item in found}) == 1


def refusals(folder: Path, text: str) -> list[tuple[int, int, str]]:
    with pytest.raises(ManifestError) as caught:
        items(folder, text)
    return [(each.location.line, each.location.column, each.message) for each in caught.value.errors]


@pytest.mark.parametrize(
    ("job", "messages"),
    [
        ("prompts: [a, 'b AND c', '(d:1.2.3)'], prompt_syntax: a1111", ["AND composes", "'1.2.3' is no number"]),
        ("prompt: a <lora:ink:1>, prompt_syntax: a1111",
         ["the manifest lists no LoRA 'ink', and its folder 'loras' holds none (character 3 of the prompt)"]),
        ("prompt: a, negative: 'b <lora:x:1>', prompt_syntax: a1111", ["negative: '<lora:x:1>' can't stand"]),
        ("prompt: {text: a, negative: '(b:..)'}, prompt_syntax: a1111", ["negative: '..' is no number"]),
        ("prompt: {parts: [a, b], weights: [1, 1]}, prompt_syntax: a1111", ["are of prompt_syntax: plain"]),
        ("prompt: a AND b, matrix: {prompt_syntax: [plain, a1111]}", ["AND composes"]),
        ("prompt: 'a:1 b:-1', matrix: {prompt_syntax: [plain, a1111]}",
         ["weights 1, -1 add up to 0", "':-1' at the end"]),
        ("zip: {prompt: [a AND b, c AND d], prompt_syntax: [plain, a1111]}", ["AND composes"]),
        ("prompt: a, matrix: {negative: [b, '(c:..)'], prompt_syntax: [plain, a1111]}", ["negative: '..'"]),
        ("prompt: x, include: [{prompt: a AND b, prompt_syntax: a1111}]", ["AND composes"]),
        ("prompt: a AND b, include: [{seed: 2, prompt_syntax: a1111}]", ["AND composes"]),
        ("prompts: [{file: p.txt}], prompt_syntax: a1111", ["AND composes"]),
        ("prompts: [{file: p.txt, negative: '(c:..)'}], prompt_syntax: a1111", ["AND composes", "negative: '..'"]),
        ("prompt: a, prompt_syntax: a111", ["did you mean 'a1111'?"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found_in_the_manifest(tmp_path: Path, job: str, messages: list[str]) -> None:
    (tmp_path / "p.txt").write_text("a\nb AND c\n")
    found = refusals(tmp_path, f"jobs:\n- {{{job}, seed: 1}}\n")
    assert len(found) == len(messages)
    for message in messages:
        assert any(message in said for _, _, said in found), found


def test_an_error_has_its_place(tmp_path: Path) -> None:
    text = "jobs:\n- prompts:\n  - fine\n  - (a:1.2.3)\n  seed: 1\n  prompt_syntax: a1111\n"
    [(line, column, message)] = refusals(tmp_path, text)
    assert (line, column) == (5, 5)
    assert "(character 3 of the prompt)" in message


def test_pairs_that_never_meet_are_no_error(tmp_path: Path) -> None:
    found = items(tmp_path, "jobs: [{zip: {prompt: ['a AND b', 'a:1 :2 b'], prompt_syntax: [plain, a1111]}, seed: 1}]")
    assert [item.parts for item in found] == [one("a AND b"), one("a:1 :2 b")]


SWEEP = r"""
defaults: {prompt_syntax: a1111, negative: '(bad:1.4), [ugly]'}
jobs:
- prompts: ['a (cat:1.2)', '[a:b:0.5] \(c\)', 'x:1 y:2 z', '<word>, ''quoted'' BREAK "b"', {text: p, negative: '[q|r]'}]
  seeds: 1-2
- {prompt: 'a:1 b:3', prompt_syntax: plain, seed: 3}
"""


def test_items_come_back_from_records_and_from_a_manifest(tmp_path: Path) -> None:
    found = items(tmp_path, SWEEP)
    (tmp_path / "r.jsonl").write_text("".join(json.dumps({"item": item.to_dict()}) + "\n" for item in found))
    assert list(read_items(tmp_path / "r.jsonl")) == found
    (tmp_path / "again.yaml").write_text(to_yaml(found), encoding="utf-8")
    again = Items(load(tmp_path / "again.yaml", overrides={}, allow_outside=False), {})
    assert [item_id(item) for item in again] == [item_id(item) for item in found]
    assert [item.prompt for item in again] == [item.prompt for item in found]


HERE = Location(Path("items.jsonl"), 3, 1)
LINE = {"seed": 1, "prompt_syntax": "a1111"}


def test_a_line_that_was_written_by_hand() -> None:
    item = read_item({**LINE, "prompt": "(a:1.2) b"}, number=0, location=HERE)
    assert item.parts == one("(a:1.2) b")
    assert read_item(item.to_dict(), number=0, location=HERE) == item
    assert read_item({**LINE, "parts": [{"text": "(a)", "weight": 1}]}, number=0, location=HERE).prompt == "(a)"


def test_a_lora_that_the_item_has_is_one_that_is_listed() -> None:
    line = {**LINE, "prompt": "a <lora:ink:1>"}
    with pytest.raises(ManifestError, match="lists no LoRA 'ink'"):
        read_item(line, number=0, location=HERE)
    assert read_item(line, number=0, location=HERE, find_loras=False).parts == one("a")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**LINE, "prompt": "a AND b"}, "AND composes"),
        ({**LINE, "prompt": "a", "negative": "<lora:x:1>"}, "negative: "),
        ({**LINE, "prompt": "a", "parts": [{"text": "b", "weight": 1}]}, "parts: with prompt_syntax a1111"),
        ({**LINE, "prompt": "a", "prompt_syntax": "x"}, "prompt_syntax: 'x' is not known"),
        (LINE, "'prompt' is missing"),
    ],
)
def test_wrong_lines(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_item(record, number=0, location=HERE)
    assert message in caught.value.message
    assert caught.value.location == HERE
