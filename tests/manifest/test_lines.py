"""JSON lines, records or items written by hand: what comes back from them, and what is wrong about them."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from strategies import any_item

from runner.errors import Location, ManifestError
from runner.item import Item, Part, item_id
from runner.manifest import lines as manifest_lines
from runner.manifest.lines import read_item, read_items
from runner.manifest.rules import DEFAULTS, OWN_SIZE

HERE = Location(Path("items.jsonl"), 3, 1)


@given(any_item())
def test_a_record_gives_its_item_back(item: Item) -> None:
    again = read_item(orjson.loads(orjson.dumps(item.to_dict())), number=3, location=HERE)
    assert again == item
    assert item_id(again) == item_id(item)


def test_what_is_missing_takes_the_built_in_value() -> None:
    item = read_item({"prompt": "cat:1 dog:3", "seed": 5, "W": 64, "ddim_steps": 3}, number=7, location=HERE)
    assert item.parts == (Part(text="cat", weight=0.25), Part(text="dog", weight=0.75))
    assert (item.width, item.steps, item.number, item.axes) == (64, 3, 7, ())
    others = set(DEFAULTS) - {"width", "height", "steps", "strength", "fixed_code"}
    assert {key: item.value(key) for key in others} == {key: DEFAULTS[key] for key in others}
    assert (item.height, item.init, item.strength) == (OWN_SIZE, None, None)


def test_parts_alone_make_the_prompt() -> None:
    parts = [{"text": "cat", "weight": 1}, {"text": "dog", "weight": 3}]
    item = read_item({"parts": parts, "seed": 5, "sampler": "plms", "eta": 0.5}, number=0, location=HERE)
    assert (item.prompt, item.parts[1].weight, item.eta) == ("cat:0.25 dog:0.75", 0.75, 0.0)


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"prompt": "a"}, "'seed' is missing"),
        ({"seed": 1}, "'prompt' is missing"),
        ({"prompt": "a", "seed": 1.5}, "seed: '1.5'"),
        ({"prompt": "a", "seed": 2**63}, f"seed: '{2**63}'"),
        ({"prompt": "a", "seed": "1"}, "seed: '1'"),
        ({"prompt": 5, "seed": 1}, "prompt: expected a text, not '5'"),
        ({"prompt": None, "seed": 1}, "prompt: expected a text, not nothing"),
        ({"prompt": "a:0", "seed": 1}, "prompt: the weights 0 add up to 0"),
        ({"prompt": "a", "seed": 1, "width": 500}, "width: '500' is not a multiple of 64"),
        ({"prompt": "a", "seed": 1, "W": 64, "width": 64}, "'W' is another name of 'width'"),
        ({"prompt": "a", "seed": 1, "stesp": 4}, "did you mean 'steps'?"),
        ({"prompt": "a", "seed": 1, "init": "x"}, "there is no such file"),
        ({"prompt": "a", "seed": 1, "long_prompts": "chunks"}, "did you mean 'chunk'?"),
        ({"prompt": "a", "seed": 1, "parts": []}, "at least one entry"),
        ({"prompt": "a", "seed": 1, "parts": [{"text": "a"}]}, "a 'text' and a 'weight'"),
        ({"prompt": "a", "seed": 1, "parts": [{"text": "a", "weight": 0}]}, "greater than zero"),
        ({"prompt": "a", "seed": 1, "parts": ["a"]}, "expected a mapping"),
        ({"prompt": "a", "seed": 1, "axes": [1]}, "axes: expected a mapping"),
        ({"prompt": "a", "seed": 1, "axes": {"a": [1]}}, "axes: expected a mapping"),
        ([], "expected a mapping"),
    ],
)
def test_wrong_records(record: object, part: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_item(record, number=0, location=HERE)
    assert part in caught.value.message
    assert caught.value.location == HERE


def lines(folder: Path, data: bytes) -> Path:
    path = folder / "items.jsonl"
    path.write_bytes(data)
    return path


def test_blank_lines_are_skipped_and_equal_ones_kept(tmp_path: Path) -> None:
    line = b'{"prompt": "\xc3\xa9", "seed": 1}'
    found = read_items(lines(tmp_path, b"\xef\xbb\xbf" + line + b"\r\n\n  \n" + line + b"\n" + line))
    assert [(item.number, item.prompt) for item in found] == [(0, "é"), (1, "é"), (2, "é")]
    assert [found[0], found[1], found[-1]] == list(found)


@pytest.mark.parametrize(
    ("data", "line", "part"),
    [
        (b'{"prompt": "a", "seed": 1}\n\n{"prompt": ', 3, "not valid JSON"),
        (b'{"prompt": "a", "seed": NaN}', 1, "not valid JSON"),
        (b'{"prompt": "\xff", "seed": 1}', 1, "not valid JSON"),
        (b"[1]\n", 1, "one JSON object"),
        (b'{"item": 5}\n', 1, "expected a mapping"),
        (b"[" * 5000, 1, "not valid JSON"),
        (b'\n{"prompt": "a", "seed": -1}\n', 2, "seed: '-1'"),
        (b'{"prompt": "a", "seed": 123456789012345678901234567890}\n', 1, "seed: '1.2"),
        (b'{"prompt": "a", "seed": 1, "axes": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", 1, "axes: expected"),
        (b'{"seed": 1, "parts": ' + b"[" * 500 + b"]" * 500 + b"}", 1, "32 levels"),
        (b'{"prompt": "a", "seed": true}', 1, "seed: 'true'"),
        (b'{"prompt": "a", "seed": 1, "steps": 1}\n{"prompt": "a", "seed": 1, "steps": true}', 2, "steps: 'true'"),
        (b'{"seed": 1, "parts": [{"text": "a", "weight": true}]}', 1, "'true' is not a number"),
        (b"", 0, "no items"),
        (b"\n \n", 0, "no items"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, data: bytes, line: int, part: str) -> None:
    path = lines(tmp_path, data)
    with pytest.raises(ManifestError) as caught:
        read_items(path)
    assert (caught.value.location.path, caught.value.location.line) == (path, line)
    assert part in caught.value.message


def test_all_wrong_lines_are_named_at_once(tmp_path: Path) -> None:
    path = lines(tmp_path, b'{"prompt": "a", "seed": -1}\n{"prompt": "a", "seed": 1}\n{}\n')
    with pytest.raises(ManifestError) as caught:
        read_items(path)
    assert [error.location for error in caught.value.errors] == [Location(path, 1, 1), Location(path, 3, 1)]


def test_endless_lines_and_missing_files(tmp_path: Path, limit) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(ManifestError, match="can't read"):
            read_items(path)
    limit(manifest_lines, LONGEST_LINE=40)
    with pytest.raises(ManifestError, match=r"items\.jsonl:2:1: a line of more than"):
        read_items(lines(tmp_path, b'{"prompt": "a", "seed": 1}\n' + b"x" * 50))


def test_lines_appended_later_are_not_seen(tmp_path: Path) -> None:
    path = lines(tmp_path, b'{"prompt": "a", "seed": 1}\n')
    found = read_items(path)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "b", "seed": 2}) + "\n")
    assert [item.prompt for item in found] == ["a"]
    assert len(found) == 1
