"""Items become a manifest that makes the same items, in few lines."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import pytest
from builders import make_item
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from runner.item import Item, Part, item_id
from runner.manifest import items as manifest_items
from runner.manifest import read as manifest_read
from runner.manifest import weighted
from runner.manifest.write import to_yaml
from runner.sampler_names import SAMPLERS

SPECIAL = (
    *("cat", "cat:2", "tabby cat:0.25 white duck:0.75 hybrid", "portrait: oil", "a\\:2", "cat:-1", "http://x", ""),
    *("12:30", "NO", "1e3", "null", "~", "- x", "a # b", "#", "'", '"', "{x}", "[1]", "&a", "*a", "!t", "%", "@", "`"),
    *("a:", ": a", "? b", "| x", "> y", "two\nlines", " \n", "é 家 🏔️", "\x07", "\u2028", "\x85", "\ufeff"),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    SPECIAL
)


def read_back(text: str, folder: Path) -> list[Item]:
    (folder / "m.yaml").write_text(text, encoding="utf-8")
    read = manifest_read.load(folder / "m.yaml", overrides={}, allow_outside=False)
    return list(manifest_items.Items(read, dict.fromkeys(manifest_items.jobs_without_seed(read), 1)))


def bare(item: Item) -> Item:
    return item._replace(axes=(), number=0)


def numbered(items: list[Item]) -> list[Item]:
    return [item._replace(number=number) for number, item in enumerate(items)]


@st.composite
def wishes(draw: st.DrawFn) -> Item:
    """An item as `expand` makes them, of any kind but img2img and `fixed_code`."""
    text = draw(TEXTS).strip()
    parts = (Part(text=text, weight=1.0),)
    if draw(st.booleans()):
        with contextlib.suppress(ValueError):
            parts = weighted.parse(text)
    sampler = draw(st.sampled_from(tuple(SAMPLERS)))
    return make_item(
        prompt=text,
        parts=parts,
        negative=draw(TEXTS).strip(),
        seed=draw(st.integers(0, 5) | st.integers(0, 2**63 - 1)),
        width=draw(st.sampled_from([64, 4096])),
        steps=draw(st.sampled_from([1, 20, 500])),
        scale=draw(st.sampled_from([0.0, 1.0, 7.5]) | st.floats(0, 100)) + 0.0,
        sampler=sampler,
        eta=draw(st.sampled_from([0.0, 0.3, 1.0])) if sampler == "ddim" else 0.0,
        format=draw(st.sampled_from(["png", "jpg"])),
        long_prompts=draw(st.sampled_from(["error", "truncate", "chunk"])),
    )


@given(st.lists(wishes(), min_size=1, max_size=6))
def test_any_items_come_back_in_their_order(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> None:
    found = read_back(to_yaml(items), tmp_path_factory.getbasetemp())
    assert [bare(item) for item in found] == [bare(item) for item in items]
    assert [item_id(item) for item in found] == [item_id(item) for item in items]


@given(
    st.lists(st.sampled_from(["prompt", "negative", "seed", "sampler", "scale", "steps"]), unique=True),
    st.integers(0, 2**32),
    st.data(),
)
def test_any_part_of_any_product_comes_back(
    tmp_path_factory: pytest.TempPathFactory, axes: list[str], first: int, data: st.DataObject
) -> None:
    values: dict[str, list[Any]] = {
        "prompt": ["cat", "dog:1 gnu:2"],
        "negative": ["", "blurry"],
        "seed": [first, first + 1, first + 5],
        "sampler": ["ddim", "euler_a"],
        "scale": [1.0, 7.5],
        "steps": [4, 5, 6],
    }
    items = []
    for chosen in itertools.product(*(values[key] for key in axes)):
        changes = dict(zip(axes, chosen, strict=True))
        parts = weighted.parse(changes.get("prompt", "cat"))
        items.append(make_item(**{"prompt": "cat", **changes, "parts": parts}))
    assert to_yaml(items).count("\n- ") == 1, "a product is one job"
    some = data.draw(st.lists(st.sampled_from(items), min_size=1, unique=True))
    found = read_back(to_yaml(some), tmp_path_factory.getbasetemp())
    assert [bare(item) for item in found] == [bare(item) for item in some]


WHOLE = [
    "{prompts: [cat, dog], seeds: 1-40}",
    "{prompt: cat, seeds: [5, 1, 7-9, 20]}",
    "{prompts: [cat, {text: 'a:2', weighted: false}, {text: dog, negative: bad}], seeds: 3, matrix: {scale: [1, 2]}}",
    "{matrix: {seed: 1-3, sampler: [ddim, lms], prompt: [a, b]}}",
    "{prompt: cat, matrix: {negative: [a, b], width: [64, 128], format: [png, jpg]}, seeds: [9, 7, 5, 3]}",
    "{prompts: [cat, dog], seed: 7, n_samples: 3, n_iter: 2, fixed_code: true}",
    "{prompts: [cat, dog], seeds: [7, 3, 9], fixed_code: true, matrix: {scale: [1, 2]}}",
    "{prompt: cat, matrix: {seed: 7-9, scale: [1, 2]}, fixed_code: true}",
    "{prompts: [{parts: [a, b], weights: [[1, 2], [0.1, 0.2]]}], seeds: 1-2, long_prompts: chunk}",
    "{prompts: [cat, dog], init: init.png, matrix: {strength: [0.3, 1], crop: [[0, 0, 64, 64], [9, 9, 99, 80]]}}",
]


@pytest.mark.parametrize("job", WHOLE)
def test_the_items_of_a_job_are_one_job_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (100, 90)).save("init.png")
    items = read_back(f"version: 1\ndefaults: {{width: 64, height: 64}}\njobs: [{job}]\n", Path())
    text = to_yaml(items)
    found = read_back(text, Path())
    assert found == [item._replace(axes=new.axes) for item, new in zip(items, found, strict=True)]
    assert text.count("\n- ") == 1
    assert to_yaml(found) == text


def test_the_manifest_is_short() -> None:
    items = [make_item(prompt=prompt, seed=seed) for prompt in ("cat", "NO: dog") for seed in range(1, 21)]
    assert to_yaml(items) == (
        "version: 1\ndefaults:\n  width: 64\n  height: 64\n  steps: 20\n  scale: 7.5\n  sampler: ddim\n"
        "jobs:\n- prompts:\n  - cat\n  - 'NO: dog'\n  seeds: 1-20\n"
    )
    assert to_yaml([make_item(prompt="cat", seed=3, scale=7.0)]).endswith(
        "scale: 7\n  sampler: ddim\njobs:\n- {prompt: cat, seed: 3}\n"
    )


@pytest.mark.parametrize(
    ("pairs", "added"),
    [
        ([(8, 7)], [7]),
        ([(7, None), (9, 7)], []),
        ([(9, 7), (7, None)], []),
        ([(7, None), (8, None), (9, 7), (11, 7), (10, 8)], []),
        ([(1, None), (2, None), (3, 1), (4, 5)], [5]),
    ],
)
def test_a_noise_that_is_lent_brings_its_owner(
    tmp_path: Path, pairs: list[tuple[int, int | None]], added: list[int]
) -> None:
    items = [make_item(seed=seed, fixed_code=code) for seed, code in pairs]
    found = {bare(item) for item in read_back(to_yaml(items), tmp_path)}
    assert found == {bare(item) for item in [*items, *(make_item(seed=seed) for seed in added)]}


def test_of_img2img_and_noise_alone_each_has_its_own_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (100, 90)).save("init.png")
    jobs = "[{prompt: cat, seed: 1}, {prompt: cat, seed: 1, init: init.png}]"
    items = read_back(f"version: 1\ndefaults: {{width: 64, height: 64}}\njobs: {jobs}\n", Path())
    assert read_back(to_yaml(items), Path()) == items
