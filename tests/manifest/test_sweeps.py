"""What the items of a job are: its seeds, its matrix and its zip, without what is excluded, with what is included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from manifest_texts import job, read, refusal, texts, values
from PIL import Image

from runner.keys import LARGEST_SEED
from runner.manifest import items as manifest_items


@pytest.mark.parametrize(
    ("written", "seeds"), [("'1,5,9-12'", [1, 5, 9, 10, 11, 12]), ("{start: 0, count: 3}", [0, 1, 2])]
)
def test_seeds_stand_in_the_job_or_in_its_matrix(tmp_path: Path, written: str, seeds: list[int]) -> None:
    assert values(job(tmp_path, f"{{prompt: a, seeds: {written}}}"), "seed") == seeds
    assert values(job(tmp_path, f"{{prompt: a, matrix: {{seed: {written}}}}}"), "seed") == seeds


def test_seeds_stay_ranges(tmp_path: Path) -> None:
    assert job(tmp_path, "{prompt: a, seeds: 0-999999999}").columns["seed"] == range(10**9)


def test_seed_n_samples_and_n_iter_count_up(tmp_path: Path) -> None:
    assert values(job(tmp_path, "{prompt: a, seed: 1234, n_samples: 3, n_iter: 2}"), "seed") == list(range(1234, 1240))
    assert job(tmp_path, "{prompt: a, n_samples: 3, n_iter: 2}").drawn == 6
    last = f"{{prompt: a, seed: {LARGEST_SEED - 1}, n_samples: 2}}"
    assert values(job(tmp_path, last), "seed")[-1] == LARGEST_SEED


@pytest.mark.parametrize("seed", ["seed: -1", "seeds: -1", "seed: random", "seeds: [1, -1]", "matrix: {seed: [-1]}"])
def test_a_random_seed_is_left_out(tmp_path: Path, seed: str) -> None:
    assert "leave the seed out" in refusal(tmp_path, f"version: 1\njobs: [{{prompts: [a], {seed}}}]\n").message


def test_the_matrix_makes_an_axis_of_each_key(tmp_path: Path) -> None:
    found = job(tmp_path, "{prompt: a, seed: 1, matrix: {W: [256, 320], scale: {start: 0, stop: 1, step: 0.5}}}")
    assert [{key: list(values) for key, values in axis.columns.items()} for axis in found.axes[1:3]] == [
        {"width": [256, 320]},
        {"scale": [0, 0.5, 1]},
    ]


def test_a_range_may_say_how_many_values_lie_between_two(tmp_path: Path) -> None:
    job = "prompts: [a], seeds: {start: 1, stop: 9, count: 5}, matrix: {scale: {start: 3, stop: 7, count: 12}}"
    [job] = read(tmp_path, f"version: 1\njobs: [{{{job}}}]\n").jobs
    assert list(job.columns["seed"]) == [1, 3, 5, 7, 9]
    scales = job.columns["scale"]
    assert (len(scales), scales[0], scales[-1]) == (12, 3, 7) and scales[1] == pytest.approx(3 + 4 / 11)
    assert (
        "evenly"
        in refusal(tmp_path, "version: 1\njobs: [{prompts: [a], seeds: {start: 1, stop: 4, count: 3}}]\n").message
    )


# ---- zip, exclude, include, lists


def items(folder: Path, text: str, *keys: str) -> list[tuple[Any, ...]]:
    """These values of each item of a job that is written as a block."""
    body = "\n  ".join(text.splitlines())
    found = manifest_items.Items(read(folder, f"version: 1\njobs:\n- prompt: a\n  {body}\n"), {0: 100})
    assert [item.number for item in found] == list(range(len(found)))
    return [tuple(getattr(item, key) for key in keys) for item in found]


def test_lists_in_a_zip_are_walked_together_before_the_matrix(tmp_path: Path) -> None:
    text = "zip: {W: [64, 128], height: {start: 128, stop: 64, step: -64}}\nmatrix: {steps: [1, 2]}\nseeds: 5-6"
    found = items(tmp_path, text, "width", "height", "steps", "seed")
    assert found == [(w, h, n, s) for w, h in ((64, 128), (128, 64)) for n in (1, 2) for s in (5, 6)]
    assert items(tmp_path, text, "axes")[-1][0] == (("width", 128), ("height", 64), ("steps", 2), ("seed", 6))


def test_a_zip_of_prompts_and_seeds(tmp_path: Path) -> None:
    found = job(tmp_path, "{zip: {prompt: [a, {parts: [b, c], weights: [[1, 1], [1, 3]]}], seed: 7-9}}")
    assert (texts(found), values(found, "seed"), found.size) == (["a", "b:1 c:1", "b:1 c:3"], [7, 8, 9], 3)


def test_init_and_crop_in_a_zip_are_checked_in_pairs(tmp_path: Path) -> None:
    for size in (64, 128):
        Image.new("RGB", (size, size)).save(tmp_path / f"{size}.png")
    zipped = "zip: {init: [64.png, 128.png], crop: [[0, 0, 64, 64], [64, 64, 128, 128]]}"
    assert job(tmp_path, f"{{prompt: a, seed: 1, {zipped}}}").size == 2
    crossed = refusal(tmp_path, f"version: 1\njobs: [{{prompt: a, {zipped.replace('zip', 'matrix')}}}]")
    assert "isn't within the picture's 64x64 pixels" in crossed.message


SWEEP = "seeds: 1-2\nmatrix: {sampler: [ddim, plms, lms], scale: [5, 10]}\n"


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("[{sampler: plms, scale: 10}]", "d5 d5 d10 d10 p5 p5 l5 l5 l10 l10"),
        ("[{sampler: plms, scale: 10.0, steps: 50, W: 512}]", "d5 d5 d10 d10 p5 p5 l5 l5 l10 l10"),
        ("[{sampler: plms}, {scale: 1e1}]", "d5 d5 l5 l5"),
        ("[{seed: 2}, {scale: 10}]", "d5 p5 l5"),
        ("[{sampler: ddim, seed: 1}]", "d5 d10 p5 p5 p10 p10 l5 l5 l10 l10"),
        ("[{prompt: a, scale: 5}]", "d10 d10 p10 p10 l10 l10"),
    ],
)
def test_every_item_that_matches_all_of_an_exclusion_is_left_out(tmp_path: Path, exclude: str, left: str) -> None:
    found = items(tmp_path, f"{SWEEP}exclude: {exclude}", "sampler", "scale")
    assert [f"{sampler[0]}{scale:g}" for sampler, scale in found] == left.split()


def test_prompts_are_excluded_by_text_label_or_id(tmp_path: Path) -> None:
    prompts = "{prompts: [x y, {text: z, id: zett}, {id: h, parts: [b, c], weights: [[1, 1], [1, 3]]}], seed: 1, "

    def left(*excluded: str) -> list[str]:
        exclude = ", ".join(f"{{prompt: '{prompt}'}}" for prompt in excluded)
        made = manifest_items.Items(read(tmp_path, f"version: 1\njobs: [{prompts} exclude: [{exclude}]}}]"), {})
        return [item.prompt for item in made]

    assert left("x y") == ["z", "b:1 c:1", "b:1 c:3"]
    assert left("zett", "h (1, 3)") == ["x y", "b:1 c:1"]
    assert left("z", "h") == ["x y"]


def test_exclusion_within_a_zip(tmp_path: Path) -> None:
    text = "zip: {W: [64, 64, 128], H: [64, 128, 128]}\nseed: 1\nexclude: [{W: 64, H: 128}]"
    assert items(tmp_path, text, "width", "height") == [(64, 64), (128, 128)]


def test_exclusions_cost_nothing_where_they_do_not_reach(tmp_path: Path) -> None:
    text = (
        "{prompts: [a, b], seeds: 0-99999999, matrix: {steps: [1, 2, 3]}, exclude: [{steps: 2}, {prompt: a, steps: 3}]}"
    )
    found = manifest_items.Items(read(tmp_path, f"version: 1\njobs: [{text}]"), {})
    assert len(found) == 3 * 10**8
    assert [(item.prompt, item.steps, item.seed) for item in (found[10**8 - 1], found[10**8], found[-1])] == [
        ("a", 1, 10**8 - 1),
        ("b", 1, 0),
        ("b", 3, 10**8 - 1),
    ]


@pytest.mark.parametrize(
    ("exclude", "parts"),
    [
        ("[{sampler: plms, sclae: 10}]", ["unknown key 'sclae', did you mean 'scale'?"]),
        ("[{sampler: euler}]", ["no item of the job has the sampler 'euler'; known are: ddim, lms, plms"]),
        ("[{sampler: plsm}]", ["sampler: 'plsm' is not known, did you mean 'plms'?"]),
        ("[{scale: 11}]", ["no item of the job has the scale '11'; known are: 10, 5"]),
        ("[{steps: 40}]", ["no item of the job has the steps '40'; known are: 50"]),
        ("[{width: 64}]", ["has the width '64'; known are: 512"]),
        ("[{seed: 3}]", ["has the seed '3'; known are: 1, 2"]),
        ("[{prompt: b}]", ["has the prompt 'b'; known are: a"]),
        ("[{scale: 5}, {scale: 10}]", ["nothing of the job is left"]),
        ("[{prompt: a}]", ["nothing of the job is left"]),
        ("[{}]", ["give it at least one key"]),
        ("[]", ["at least one entry"]),
        ("{scale: 5}", ["expected a list"]),
        ("[{scale: [5, 10]}]", ["scale: a list is not a number"]),
        ("[{matrix: {scale: 5}}]", ["unknown key 'matrix'"]),
    ],
)
def test_wrong_exclusions(tmp_path: Path, exclude: str, parts: list[str]) -> None:
    body = "\n  ".join(f"{SWEEP}exclude: {exclude}".splitlines())
    error = refusal(tmp_path, f"version: 1\njobs:\n- prompt: a\n  {body}\n")
    assert all(part in error.message for part in parts), error.message
    assert error.location.line == 6


def test_exclusions_that_can_not_be_met(tmp_path: Path) -> None:
    head = "version: 1\njobs:\n- "
    drawn = refusal(tmp_path, head + "{prompt: a, exclude: [{seed: 1}]}")
    assert "the job's seed is drawn when it runs" in drawn.message
    together = refusal(tmp_path, head + "{prompt: a, zip: {W: [64, 128], H: [64, 128]}, exclude: [{W: 64, H: 128}]}")
    assert "no item of the job has all of these" in together.message
    large = refusal(tmp_path, head + "{prompts: [a, b], seeds: [0-9999999, 7], exclude: [{prompt: a, seed: 5}]}")
    assert "20000002 combinations would have to be looked at; the most is 10000000" in large.message


def test_includes_are_appended_to_their_job(tmp_path: Path) -> None:
    text = """\
version: 1
defaults: {steps: 9, scale: 3}
jobs:
  - prompts: [a, b]
    seeds: 1-2
    scale: 4
    zip: {steps: [5]}
    include:
      - {prompt: c, seed: 7, scale: 2}
      - {prompt: {parts: [d, e], weights: [1, 3]}, seeds: 8-9, steps: 6}
  - {prompt: f, seed: 3}
"""
    found = list(manifest_items.Items(read(tmp_path, text), {}))
    assert [(item.prompt, item.seed, item.steps, item.scale) for item in found[4:]] == [
        ("c", 7, 9, 2),
        ("d:1 e:3", 8, 6, 4),
        ("d:1 e:3", 9, 6, 4),
        ("f", 3, 9, 3),
    ]
    assert [item.number for item in found] == list(range(8))


def test_an_include_takes_the_only_prompt_and_seed_of_its_job(tmp_path: Path) -> None:
    body = "{matrix: {prompt: [x], steps: [1, 2]}, seeds: 7-7, include: [{steps: 3}, {prompt: y, seed: 8}]}"
    made = manifest_items.Items(read(tmp_path, f"version: 1\ndefaults: {{prompt: z, seed: 1}}\njobs: [{body}]"), {})
    assert [(item.prompt, item.seed, item.steps) for item in made][2:] == [("x", 7, 3), ("y", 8, 50)]


def test_an_include_shares_its_jobs_drawn_seed(tmp_path: Path) -> None:
    text = "version: 1\njobs: [{prompt: x, seed: 1}, {prompt: y, include: [{steps: 3}]}, {prompt: z}]"
    found = read(tmp_path, text)
    assert manifest_items.jobs_without_seed(found) == (1, 2)
    assert [(item.prompt, item.seed) for item in manifest_items.Items(found, {1: 50, 2: 60})] == [
        ("x", 1),
        ("y", 50),
        ("y", 50),
        ("z", 60),
    ]


@pytest.mark.parametrize(
    ("include", "parts"),
    [
        ("[{matrix: {steps: [1]}}]", ["'matrix' can't stand in an include, which is a single item"]),
        ("[{n_samples: 2}]", ["'n_samples' can't stand in an include"]),
        ("[{include: []}]", ["'include' can't stand"]),
        ("[{seed: 1}]", ["an include needs a 'prompt' of its own, since its job has 2"]),
        ("[{prompt: c}]", ["an include needs a 'seed' of its own, since its job has 3"]),
        ("[{prompt: c, seed: 1, seeds: 1}]", ["'seed' and 'seeds' can't stand together"]),
        ("[{prompt: c, seed: 1, steps: 0}]", ["steps: '0'"]),
        ("[{prompt: c, seed: 1, stesp: 1}]", ["did you mean 'steps'?"]),
        ("[{prompt: c, seed: 1, crop: [0, 0, 64, 64]}]", ["'crop' needs an 'init'"]),
        ("[c]", ["expected a mapping"]),
    ],
)
def test_wrong_includes(tmp_path: Path, include: str, parts: list[str]) -> None:
    error = refusal(tmp_path, f"version: 1\njobs:\n- prompts: [a, b]\n  n_samples: 3\n  include: {include}\n")
    assert all(part in error.message for part in parts), error.message
    assert error.location.line == 5


def test_lists_are_named_by_anchors(tmp_path: Path) -> None:
    text = """\
version: 1
lists:
  animals: &animals [a cat, {text: "dog:2", weighted: false}]
  sizes: &sizes {width: [64, 128], height: [128, 64]}
jobs:
  - {prompts: *animals, seed: 1, zip: *sizes}
  - {prompts: *animals, seed: 2}
"""
    first, second = read(tmp_path, text).jobs
    assert (texts(first), first.size) == (["a cat", "dog:2"], 4)
    assert texts(second) == texts(first)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ("[a]", "lists: expected a mapping of names to lists, not a list"),
        ("{a: &a cat}", "lists: expected a list with an anchor (name: &name [...]), not 'cat'"),
        ("{a: }", "not nothing"),
    ],
)
def test_wrong_lists(tmp_path: Path, lists: str, message: str) -> None:
    error = refusal(tmp_path, f"version: 1\nlists: {lists}\njobs: [prompt: a]")
    assert message in error.message
    assert error.location.line == 2
