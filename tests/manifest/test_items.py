"""Items: their order, their numbers, that they cost nothing until asked for, and that JSON lines give them back."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from runner.errors import Location, ManifestError
from runner.item import Item
from runner.keys import LARGEST_SEED
from runner.manifest import items as manifest_items
from runner.manifest.items import Items, jobs_without_seed
from runner.manifest.lines import read_item, read_items
from runner.manifest.read import load

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


def test_items_of_a_manifest_come_back_from_records(tmp_path: Path) -> None:
    found = items(tmp_path, SWEEP)
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"item": item.to_dict(), "id": "x"}) + b"\n" for item in found))
    again = read_items(path)
    assert list(again) == list(found)
    assert again[-1] == found[48]


def test_a_long_cycle_and_a_short_one_make_the_same_items(tmp_path: Path, limit: Any) -> None:
    prompts = "prompts: [a, {parts: [b, c], weights: [[1, 1], [1, 3]], negative: n}, 'd:2 e:1']"
    text = SWEEP + (
        "- {prompts: [y, z], seeds: 1-3, matrix: {steps: [1, 2]}, exclude: [{steps: 1, seed: 2, prompt: y}]}\n"
        f"- {{{prompts}, seed: 3, negative: m, sampler: euler, eta: 0.5, scale: 1, exclude: [{{prompt: a}}]}}\n"
        f"- {{{prompts}, seeds: 7-8, fixed_code: true}}\n"
        f"- {{{prompts}, zip: {{seed: [1, 2], steps: [5, 6]}}}}\n"
    )
    found = list(items(tmp_path, text))
    assert found == [items(tmp_path, text)[number] for number in range(len(found))]
    limit(manifest_items, LONGEST_CYCLE=1)
    again = items(tmp_path, text)
    assert list(again) == [again[number] for number in range(len(found))] == found
    assert [(item.prompt, item.steps, item.seed) for item in found[49:52]] == [("y", 1, 1), ("y", 1, 3), ("y", 2, 1)]


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
