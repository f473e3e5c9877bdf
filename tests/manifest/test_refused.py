"""Wrong manifests are refused: each error names the place, the value and the remedy, and all are told at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_texts import read, refusal

from runner.errors import ERRORS_SHOWN, ManifestError, SettingError
from runner.keys import LARGEST_SEED
from runner.manifest import items as manifest_items
from runner.manifest import prompts as manifest_prompts
from runner.manifest import read as module
from runner.manifest.rules import ALIASES


@pytest.mark.parametrize(
    ("text", "line", "column", "parts"),
    [
        ("- 1", 1, 1, ["expected a mapping", "a list"]),
        ("jobs: [{prompt: a}]", 1, 1, ["'version' is missing", "version: 1"]),
        ("version: 1", 1, 1, ["'jobs' is missing"]),
        ("version: 2\njobs: []", 1, 10, ["'2'", "version: 1"]),
        ("version: 1\njobs: []", 2, 7, ["at least one entry"]),
        ("version: 1\njobs:", 2, 6, ["expected a list, not nothing"]),
        ("version: 1\njob: []", 2, 1, ["unknown key 'job'", "did you mean 'jobs'?"]),
        ("version: 1\nname: ../x\njobs: [prompt: a]", 2, 7, ["'../x'", "can't name a folder"]),
        ("version: 1\nname: .x\njobs: [prompt: a]", 2, 7, ["'.x'"]),
        ("version: 1\nname: 'x '\njobs: [prompt: a]", 2, 7, ["'x '"]),
        (f"version: 1\nname: {'é' * 101}\njobs: [prompt: a]", 2, 7, ["can't name a folder"]),
        ("version: 1\ndefaults: {prompts: [a]}\njobs: [{}]", 2, 12, ["unknown key 'prompts'", "'prompt'"]),
        ("version: 1\ndefaults: {steps: [1]}\njobs: [{}]", 2, 19, ["steps: a list is not a whole number"]),
    ],
)
def test_wrong_heads(tmp_path: Path, text: str, line: int, column: int, parts: list[str]) -> None:
    error = refusal(tmp_path, text)
    assert (error.location.line, error.location.column) == (line, column)
    assert all(part in error.message for part in parts), error.message


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("width: 500", ["width: '500' is not a multiple of 64; 448 and 512 are"]),
        ("n_samples: 0", ["n_samples: '0'"]),
        ("stesp: 5", ["unknown key 'stesp', did you mean 'steps'?"]),
        ("zip: {}", ["zip: expected at least one key with its list"]),
        ("zip: {width: [64, 128], steps: [1, 2, 3]}", ["the same length; width has 2, steps has 3"]),
        ("zip: {width: [64], step: [1]}", ["unknown key 'step', did you mean 'steps'?"]),
        ("zip: {W: [64], width: [64]}", ["'W' is another name of 'width'"]),
        ("zip: {sampler: ddim}", ["sampler: expected a list or a range"]),
        ("seeds: 27-", ["'27-' are not seeds", "27-46"]),
        ("seeds: {start: 0, stop: 3.5}", ["stop: '3.5' is not a whole number"]),
        ("matrix: []", ["expected a mapping"]),
        ("matrix: {sampler: ddim}", ["sampler: expected a list or a range {start, stop, step}, not 'ddim'"]),
        ("matrix: {width: {start: 64, stop: 200, step: 50}}", ["width: '114' is not a multiple of 64"]),
        ("matrix: {W: [64], width: [64]}", ["'W' is another name of 'width'"]),
        ("matrix: {seeds: [1]}", ["unknown key 'seeds', did you mean 'seed'?"]),
    ],
)
def test_wrong_values_in_a_job(tmp_path: Path, body: str, parts: list[str]) -> None:
    error = refusal(tmp_path, f"version: 1\njobs:\n- prompt: a\n  {body}\n")
    assert error.location.line == 4
    assert error.location.column >= 3
    assert all(part in error.message for part in parts), error.message


@pytest.mark.parametrize(
    ("body", "one", "other"),
    [
        ("prompts: [a]\n  prompt: a", "prompts", "prompt"),
        ("prompts: [a]\n  matrix: {prompt: [a]}", "prompts", "matrix.prompt"),
        ("prompt: a\n  matrix: {prompt: [a]}", "prompt", "matrix.prompt"),
        ("prompt: a\n  seeds: 1\n  seed: 1", "seeds", "seed"),
        ("prompt: a\n  seeds: 1\n  n_samples: 2", "seeds", "n_samples"),
        ("prompt: a\n  seeds: 1\n  n_iter: 2", "seeds", "n_iter"),
        ("prompt: a\n  seeds: 1\n  matrix: {seed: [1]}", "seeds", "matrix.seed"),
        ("prompt: a\n  seed: 1\n  matrix: {seed: [1]}", "seed", "matrix.seed"),
        ("prompt: a\n  n_iter: 1\n  matrix: {seed: [1]}", "n_iter", "matrix.seed"),
        ("prompt: a\n  W: 64\n  matrix: {width: [64]}", "width", "matrix.width"),
        ("prompts: [a]\n  zip: {prompt: [a]}", "prompts", "zip.prompt"),
        ("prompt: a\n  n_samples: 2\n  zip: {seed: [1]}", "n_samples", "zip.seed"),
        ("prompt: a\n  steps: 2\n  zip: {ddim_steps: [1]}", "steps", "zip.steps"),
        ("prompt: a\n  zip: {W: [64]}\n  matrix: {width: [64]}", "zip.width", "matrix.width"),
    ],
)
def test_keys_that_can_not_stand_together(tmp_path: Path, body: str, one: str, other: str) -> None:
    error = refusal(tmp_path, f"version: 1\njobs:\n- {body}\n")
    assert error.message == f"'{one}' and '{other}' can't stand together in one job"


def test_more_that_can_not_stand_together(tmp_path: Path) -> None:
    head = "version: 1\njobs:\n- "
    assert "'W' is another name of 'width'" in refusal(tmp_path, head + "{prompt: a, W: 64, width: 64}").message
    both = refusal(tmp_path, head + "{prompts: [{text: a, negative: b}], matrix: {negative: [c]}}")
    assert "'negative' of a prompt ('a')" in both.message
    beyond = refusal(tmp_path, head + f"{{prompt: a, seed: {LARGEST_SEED}, n_samples: 2}}")
    assert "go beyond the largest seed" in beyond.message
    assert "a job needs prompts" in refusal(tmp_path, head + "seeds: 1").message
    many = refusal(tmp_path, head + "{prompts: [a, b], seeds: 0-999999999}")
    assert "make 2000000000 items; the most is 1000000000" in many.message


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"stesp": 4}, ["defaults.stesp:", "did you mean 'steps'?"]),
        ({"steps": 0}, ["defaults.steps: '0' is not a whole number from 1 to 500"]),
        ({"steps": None}, ["defaults.steps: nothing"]),
        ({"steps": [1, 2]}, ["defaults.steps: a list"]),
        ({"scale": float("nan")}, ["defaults.scale: 'nan' is not a number"]),
        ({"sampler": "k_lms"}, ["defaults.sampler:", "did you mean 'lms'?"]),
        ({"W": 64, "width": 64}, ["defaults.width: 'width' is set twice"]),
        ({"W": 65}, ["defaults.W:", "'65' is not a multiple of 64"]),
        ({"init": "x.png"}, ["defaults.init:", "there is no such file"]),
        ({"prompt": "a:1 b:-1"}, ["defaults.prompt:", "add up to 0"]),
        ({"negative": object()}, ["defaults.negative:", "not a value"]),
    ],
)
def test_wrong_overrides_are_wrong_settings(tmp_path: Path, overrides: Mapping[str, Any], parts: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        read(tmp_path, "version: 1\njobs: [prompt: a]\n", **overrides)
    assert caught.value.exit_code == 2
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("\u0455teps: 5", "unknown key '\u0455teps', did you mean 'steps'?"),  # a Cyrillic letter
        ("steps: \uff15", "steps: '\uff15' is not a whole number"),  # a wide digit
        ("seeds: \uff11-\uff13", "are not seeds"),
        ("seeds: 1\u20133", "are not seeds"),  # a dash
        ("steps:\u00a05", "expected a mapping"),  # a space that doesn't break is no space
        ("sampler: dd\u0131m", "did you mean 'ddim'?"),
        ("matrix: {steps: {start: 1, count: 999999999}}", "999999999 values; the most is 100000"),
        ("matrix: {scale: {start: 0, stop: 1e9, step: 1e-9}}", "values; the most is 100000"),
        ("zip: {seed: 0-999999999, steps: [1]}", "seed has 1000000000, steps has 1"),
        ("exclude: [*none]", "no anchor"),
        ("zip: &z {steps: *z}", "within what it repeats"),
    ],
)
def test_look_alikes_and_giants(tmp_path: Path, body: str, part: str) -> None:
    block = f"version: 1\njobs:\n- {body}\n" if "\u00a0" in body else f"version: 1\njobs:\n- prompt: a\n  {body}\n"
    assert part in refusal(tmp_path, block).message


# ---- several errors


def refusals(folder: Path, text: str) -> list[str]:
    """The places of the errors of a manifest."""
    with pytest.raises(ManifestError) as caught:
        read(folder, text)
    return [str(error.location).partition(f"{folder}/")[2] for error in caught.value.errors]


WRONG = """\
version: 1
name: ../alps
lists: {a: &a 1}
defaults: {steps: 0, sclae: 3}
jobs:
  - promts: [a]
    width: 500
    matrix: {sampler: [dmid, ddim, plsm], eta: [2]}
  - prompts:
      - a cat # black
      - {parts: [a, b], weights: [[1, 1], [1, -1], [1, x]]}
      - {file: none.txt}
      - {file: p.txt}
    seeds: [1, x-y, 5-3]
    steps: 7
    exclude: [{scale: -1}, {foo: 1}]
    include: [{seed: -1}, {zip: 1}]
    zip: {W: [64], steps: [1]}
  - prompt: fine
    seed: 1
"""


def test_all_errors_of_a_manifest_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb:0\nc:-1\n")
    places = (
        "2:7 3:12 4:19 4:22 6:5 7:12 8:24 8:36 8:49 10:9 11:43 11:56 12:16 14:16 14:21 16:23 16:29 17:22 17:28 18:27"
    )
    assert refusals(tmp_path, WRONG) == [f"m.yaml:{place}" for place in places.split()]
    fewer = WRONG.replace("name: ../alps\n", "\n").replace("{a: &a 1}", "{a: &a []}")
    assert refusals(tmp_path, fewer)[-2:] == ["p.txt:2:1", "p.txt:3:1"]


def test_what_follows_from_an_error_is_not_reported(tmp_path: Path) -> None:
    defaults = "version: 1\ndefaults: {promt: a}\njobs: [{seed: 1}, {seed: -1}]"
    assert refusals(tmp_path, defaults) == ["m.yaml:2:12", "m.yaml:3:26"]
    assert refusals(tmp_path, "version: 1\njob: []") == ["m.yaml:2:1"]
    assert refusals(tmp_path, "version: 1\njobs: [{promts: [a]}, {seed: 1}]") == ["m.yaml:2:9", "m.yaml:2:23"]
    assert refusals(tmp_path, "version: 2\nworlds: []") == ["m.yaml:1:10"]


def test_what_an_alias_repeats_is_reported_once(tmp_path: Path) -> None:
    text = "version: 1\nlists: {a: &a [x, 'b:0']}\njobs: [{prompts: *a}, {prompts: *a}, {prompts: *a, steps: 0}]"
    assert len(refusals(tmp_path, text)) == 2


def test_a_great_many_errors_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, f"version: 1\njobs: [{{prompt: a, matrix: {{steps: [{'0, ' * 999} 0]}}}}]")
    lines = str(caught.value).splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("1000 errors", "and 980 more", ERRORS_SHOWN + 2)


leaves = st.sampled_from(
    [None, True, 0, 1, -1, 64, 2**64 - 1, 0.5, 1e300, "", "a", "a:1", "a:0", "1-3", "x.txt", "ddim"]
)
keys = st.sampled_from(
    [*module.JOB_KEYS, *ALIASES, *manifest_prompts.PROMPT_KEYS, "weights", "weighted", "id", "start"]
)
keys |= st.sampled_from(["stop", "step", "count"])
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(keys, trees, max_size=5), defaults=st.dictionaries(keys, trees, max_size=2))
def test_any_manifest_is_read_or_refused(tmp_path: Path, body: dict[str, object], defaults: dict[str, object]) -> None:
    document = {"version": 1, "defaults": defaults, "jobs": [{"prompt": "a"}, body]}
    try:
        found = read(tmp_path, orjson.dumps(document).decode())  # JSON is YAML
    except ManifestError as error:
        assert error.location.line == 1
    else:
        assert all(job.size >= 1 for job in found.jobs)


FORMS = {
    "prompt": ["a", "NO", "16:9", "1984", {"text": "a:2", "weighted": False}, {"parts": ["a", "b"], "weights": [1, 3]}],
    "prompts": [
        ["a"],
        [1984, None, {"text": "b", "id": 5, "negative": "c"}],
        [{"parts": ["a"], "weights": [[1], [2]]}],
    ],
    "seed": [0, 5.0, LARGEST_SEED],
    "seeds": [7, "27-46", "1, 5,9-12", [1, [2, "3-4"]], {"start": 27, "count": 2}, {"start": 4, "stop": 0, "step": -2}],
    "width": [64, 4096.0],
    "H": [128],
    "scale": [1, 7.5],
    "sampler": ["ddim"],
    "format": ["jpg"],
    "fixed_code": [True],
    "n_samples": [2],
    "n_iter": [3],
    "matrix": [
        {"scale": {"start": 1, "stop": 2, "step": 0.5}},
        {"steps": [1, 2], "seed": "1-2"},
        {},
        {"negative": [1]},
    ],
    "zip": [{"W": [64, 128], "eta": {"start": 0, "count": 2}}, {"prompt": ["a", {"text": "b"}], "seed": "1-2"}],
    "exclude": [[{"scale": 7.5, "steps": 2}], [{"prompt": "a", "W": 64}], [{"scale": 1}, {"steps": 1}]],
    "include": [[{"prompt": "c", "seeds": "1-3"}, {"seed": 1}], [{"prompt": {"text": "c"}, "seed": 1, "ddim_eta": 1}]],
}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.fixed_dictionaries({}, optional={key: st.sampled_from(forms) for key, forms in FORMS.items()}))
def test_any_manifest_of_known_forms_agrees_with_the_schema(tmp_path: Path, body: dict[str, Any]) -> None:
    try:
        found = read(tmp_path, orjson.dumps({"version": 1, "defaults": {"prompt": "a"}, "jobs": [body]}).decode())
    except ManifestError as error:
        assert error.location.line == 1
    else:
        made = manifest_items.Items(found, {0: 1})
        assert [item.number for item in (made[0], made[-1])] == [0, len(made) - 1]
