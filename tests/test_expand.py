"""Items: their order, their numbers, that they cost nothing until asked for, and that JSON lines give them back."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import expand
from runner.errors import Location, ManifestError
from runner.expand import Items, jobs_without_seed, read_item, read_items
from runner.manifest import load
from runner.prompts import combine
from runner.spec import FORMATS, SAMPLERS, Item, Part, item_id
from runner.values import DEFAULTS, LARGEST_SEED, OWN_SIZE

HERE = Location(Path("items.jsonl"), 3, 1)


def items(folder: Path, text: str, drawn: dict[int, int] | None = None) -> Items:
    path = folder / "m.yaml"
    path.write_text(f"version: 1\njobs:\n{text}", encoding="utf-8")
    return Items(load(path, overrides={}, allow_outside=False), drawn or {})


SWEEP = """\
- prompts: [a, {parts: [b, c], weights: [[1, 1], [1, 3]], negative: n}]
  seeds: 7-8
  negative: m
  matrix: {sampler: [ddim, plms], eta: [0, 0.5], scale: {start: 1, stop: 2}}
- {prompt: z, seed: 9}
"""


def test_the_order_is_jobs_prompts_matrix_seeds(tmp_path: Path) -> None:
    found = items(tmp_path, SWEEP)
    combinations = itertools.product(
        [("a", "m"), ("b:1 c:1", "n"), ("b:1 c:3", "n")], ["ddim", "plms"], [0, 0.5], [1, 2], [7, 8]
    )
    wanted: list[tuple[object, ...]] = [
        (prompt, negative, sampler, eta if sampler == "ddim" else 0, scale, seed)
        for (prompt, negative), sampler, eta, scale, seed in combinations
    ]
    wanted += [("z", "", "ddim", 0, 7.5, 9)]
    assert [(i.prompt, i.negative, i.sampler, i.eta, i.scale, i.seed) for i in found] == wanted
    assert [item.number for item in found] == list(range(49))
    assert len(found) == 49


@pytest.mark.parametrize(
    "others",
    [
        "",
        "  seeds: 7-8\n  fixed_code: true\n  exclude: [{prompt: a}]\n",
        "  seed: 3\n  negative: m\n  sampler: euler\n  eta: 0.5\n  scale: 1\n",
        "  seed: 3\n  matrix: {steps: [5, 6]}\n",
        "  zip: {seed: [1, 2, 3, 4], steps: [5, 6, 7, 8]}\n",
    ],
)
def test_a_list_too_long_to_be_kept_makes_the_same_items(tmp_path: Path, monkeypatch: Any, others: str) -> None:
    prompts = "- prompts: [a, {parts: [b, c], weights: [[1, 1], [1, 3]], negative: n}, 'd:2 e:1']\n"
    kept = list(items(tmp_path, prompts + others, {0: 5}))
    monkeypatch.setattr(expand, "LONGEST_CYCLE", 1)
    found = items(tmp_path, prompts + others, {0: 5})
    assert list(found) == kept
    assert [found[place] for place in range(len(found))] == kept
    assert list(map(type, kept[0])) == list(map(type, found[0]))


def test_axes_name_what_varies(tmp_path: Path) -> None:
    found = items(tmp_path, SWEEP)
    assert found[47].axes == (
        ("prompt", "b:1 c:3"),
        ("sampler", "plms"),
        ("eta", 0.5),
        ("scale", 2.0),
        ("seed", 8),
    )
    assert found[48].axes == ()


def test_a_matrix_of_prompts_and_seeds_varies_in_its_own_order(tmp_path: Path) -> None:
    found = items(tmp_path, "- matrix: {seed: 1-2, prompt: [{text: a, id: x}, b], W: [64]}\n")
    assert [(item.seed, item.prompt) for item in found] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert found[2].axes == (("seed", 2), ("prompt", "x"), ("width", 64))


def test_places_from_the_end_slices_and_beyond(tmp_path: Path) -> None:
    found = items(tmp_path, SWEEP)
    assert found[-1] == found[48]
    assert found[46:] == [found[46], found[47], found[48]]
    for place in (49, -50):
        with pytest.raises(IndexError):
            found[place]


def test_a_thousand_million_items_cost_nothing(tmp_path: Path) -> None:
    began = time.perf_counter()
    found = items(tmp_path, "- {prompts: [a, b], seeds: 0-99999999, matrix: {steps: [1, 2, 3, 4, 5]}}\n")
    assert len(found) == 10**9
    last = found[999_999_999]
    assert (last.prompt, last.steps, last.seed, last.number) == ("b", 5, 99_999_999, 999_999_999)
    assert time.perf_counter() - began < 1


def test_jobs_without_seeds_count_up_from_a_drawn_one(tmp_path: Path) -> None:
    text = (
        "- {prompt: a, seed: 1}\n- {prompts: [b, c], n_samples: 2}\n- {prompt: d}\n- matrix: {seed: [1], prompt: [a]}\n"
    )
    found = items(tmp_path, text, {1: 50, 2: LARGEST_SEED})
    assert jobs_without_seed(load(tmp_path / "m.yaml", overrides={}, allow_outside=False)) == (1, 2)
    assert [(item.prompt, item.seed) for item in found][1:-1] == [
        ("b", 50),
        ("b", 51),
        ("c", 50),
        ("c", 51),
        ("d", LARGEST_SEED),
    ]
    assert found[2].axes == (("prompt", "b"), ("seed", 51))
    with pytest.raises(KeyError):
        items(tmp_path, text, {1: 50})
    with pytest.raises(ValueError, match="leave the range"):
        items(tmp_path, text, {1: LARGEST_SEED, 2: 0})


texts = st.text(max_size=20).map(str.strip).filter(lambda text: "\x00" not in text)


@st.composite
def any_parts(draw: st.DrawFn) -> tuple[Part, ...]:
    texts_ = draw(st.lists(texts.filter(bool), min_size=1, max_size=3))
    return combine(texts_, [1.0, *(draw(st.floats(0, 100)) for _ in texts_[1:])])


@st.composite
def any_item(draw: st.DrawFn) -> Item:
    sampler = draw(st.sampled_from(SAMPLERS))
    axes = draw(
        st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(0, 2**63) | st.text() | st.floats(-9, 9))
    )
    return Item(
        number=3,
        prompt=draw(texts),
        parts=draw(any_parts()),
        negative=draw(texts),
        seed=draw(st.integers(0, LARGEST_SEED)),
        width=64 * draw(st.integers(1, 64)),
        height=64 * draw(st.integers(1, 64)),
        steps=draw(st.integers(1, 500)),
        scale=draw(st.floats(0, 100)) + 0.0,
        sampler=sampler,
        eta=draw(st.floats(0, 1)) + 0.0 if sampler == "ddim" else 0.0,
        format=draw(st.sampled_from(FORMATS)),
        long_prompts=draw(st.sampled_from(["error", "truncate"])),
        axes=tuple(axes.items()),
    )


@given(any_item())
def test_a_record_gives_its_item_back(item: Item) -> None:
    again = read_item(orjson.loads(orjson.dumps(item.to_dict())), number=3, location=HERE)
    assert again == item
    assert item_id(again) == item_id(item)


def test_items_of_a_manifest_come_back_from_records(tmp_path: Path) -> None:
    found = items(tmp_path, SWEEP)
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"item": item.to_dict(), "id": "x"}) + b"\n" for item in found))
    again = read_items(path)
    assert list(again) == list(found)
    assert again[-1] == found[48]


def test_what_is_missing_takes_the_built_in_value() -> None:
    item = read_item({"prompt": "cat:1 dog:3", "seed": 5, "W": 64, "ddim_steps": 3}, number=7, location=HERE)
    assert item.parts == (Part(text="cat", weight=0.25), Part(text="dog", weight=0.75))
    assert (item.width, item.steps, item.number, item.axes) == (64, 3, 7, ())
    others = set(DEFAULTS) - {"width", "height", "steps", "strength", "fixed_code"}
    assert {key: getattr(item, key) for key in others} == {key: DEFAULTS[key] for key in others}
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


def test_a_long_cycle_and_a_short_one_make_the_same_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        SWEEP + "- {prompts: [y, z], seeds: 1-3, matrix: {steps: [1, 2]}, exclude: [{steps: 1, seed: 2, prompt: y}]}\n"
    )
    found = list(items(tmp_path, text))
    assert found == [items(tmp_path, text)[number] for number in range(len(found))]
    monkeypatch.setattr(expand, "LONGEST_CYCLE", 1)
    assert list(items(tmp_path, text)) == found
    assert [(item.prompt, item.steps, item.seed) for item in found[49:52]] == [("y", 1, 1), ("y", 1, 3), ("y", 2, 1)]


def test_endless_lines_and_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(ManifestError, match="can't read"):
            read_items(path)
    monkeypatch.setattr(expand, "LONGEST_LINE", 40)
    with pytest.raises(ManifestError, match=r"items\.jsonl:2:1: a line of more than"):
        read_items(lines(tmp_path, b'{"prompt": "a", "seed": 1}\n' + b"x" * 50))


def test_lines_appended_later_are_not_seen(tmp_path: Path) -> None:
    path = lines(tmp_path, b'{"prompt": "a", "seed": 1}\n')
    found = read_items(path)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "b", "seed": 2}) + "\n")
    assert [item.prompt for item in found] == ["a"]
    assert len(found) == 1


def test_items_are_plain_values(tmp_path: Path) -> None:
    def kinds(item: Item) -> dict[str, Any]:
        return {key: type(value) for key, value in item._asdict().items()}

    found = items(tmp_path, "- {prompt: a, seed: 1, scale: 7, eta: 1, steps: 5.0}\n")[0]
    assert kinds(found) == kinds(read_item(found.to_dict(), number=0, location=HERE))
    assert (kinds(found)["scale"], kinds(found)["steps"], kinds(found)["eta"]) == (float, int, float)


def test_fixed_code_is_the_noise_of_the_first_iteration(tmp_path: Path) -> None:
    text = "version: 1\njobs: [{prompts: [a, b], seed: 7, n_samples: 2, n_iter: 2, fixed_code: true}]\n"
    (tmp_path / "m.yaml").write_text(text)
    items = list(Items(load(tmp_path / "m.yaml", overrides={}, allow_outside=False), {}))
    assert [(item.seed, item.fixed_code) for item in items] == [(7, None), (8, None), (9, 7), (10, 8)] * 2
    again = read_item(items[2].to_dict(), number=2, location=HERE)
    assert again == items[2]
    with pytest.raises(ManifestError, match="seed"):
        read_item({"prompt": "a", "seed": 1, "fixed_code": True}, number=0, location=HERE)
