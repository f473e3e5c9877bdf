"""Manifests: what is read, what is refused, and that every refusal names the place, the value and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner import manifest as module
from runner.errors import Location, ManifestError, SettingError
from runner.manifest import Job, Manifest, load
from runner.values import ALIASES, DEFAULTS, LARGEST_SEED


def read(folder: Path, text: str, *, outside: bool = False, **overrides: Any) -> Manifest:
    path = folder / "m.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, overrides=overrides, allow_outside=outside)


def job(folder: Path, body: str, **overrides: Any) -> Job:
    """The only job of a manifest, written as a flow mapping."""
    return read(folder, f"version: 1\njobs:\n  - {body}\n", **overrides).jobs[0]


def values(job: Job, key: str) -> list[Any]:
    return next(list(axis.values) for axis in job.axes if axis.key == key)


def texts(job: Job) -> list[str]:
    return [prompt.text for prompt in values(job, "prompt")]


def refusal(folder: Path, text: str) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        read(folder, text)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    return caught.value


def test_the_shortest_manifest(tmp_path: Path) -> None:
    found = read(tmp_path, "version: 1\njobs: [prompt: a cat]\n")
    assert found.name == "m"
    assert found.jobs[0].values == DEFAULTS
    assert (found.jobs[0].drawn, found.jobs[0].size) == (1, 1)
    assert found.jobs[0].location == Location(tmp_path / "m.yaml", 2, 8)
    assert texts(found.jobs[0]) == ["a cat"]


def test_defaults_stand_below_overrides_and_these_below_jobs(tmp_path: Path) -> None:
    text = "version: 1\ndefaults: {steps: 10, W: 640, scale: 3}\njobs: [{prompt: a, steps: 20}, {prompt: a}]\n"
    own, plain = read(tmp_path, text, steps=4, scale=5, ddim_eta=0.5).jobs
    assert [own.values[key] for key in ("steps", "width", "scale", "eta")] == [20, 640, 5.0, 0.5]
    assert plain.values["steps"] == 4
    assert isinstance(plain.values["scale"], float)


def test_a_default_prompt_and_seed_serve_the_jobs_without(tmp_path: Path) -> None:
    text = "version: 1\ndefaults: {prompt: a dog, seed: 5}\njobs: [{n_iter: 2}, {prompts: [a cat], seeds: 1-3}]\n"
    first, second = read(tmp_path, text).jobs
    assert (texts(first), values(first, "seed")) == (["a dog"], [5, 6])
    assert (texts(second), values(second, "seed")) == (["a cat"], [1, 2, 3])
    assert texts(read(tmp_path, text, prompt=1984).jobs[0]) == ["1984"]


@pytest.mark.parametrize(
    ("written", "seeds"), [("'1,5,9-12'", [1, 5, 9, 10, 11, 12]), ("{start: 0, count: 3}", [0, 1, 2])]
)
def test_seeds_stand_in_the_job_or_in_its_matrix(tmp_path: Path, written: str, seeds: list[int]) -> None:
    assert values(job(tmp_path, f"{{prompt: a, seeds: {written}}}"), "seed") == seeds
    assert values(job(tmp_path, f"{{prompt: a, matrix: {{seed: {written}}}}}"), "seed") == seeds


def test_seeds_stay_ranges(tmp_path: Path) -> None:
    assert job(tmp_path, "{prompt: a, seeds: 0-999999999}").axes[-1].values == range(10**9)


def test_seed_n_samples_and_n_iter_count_up(tmp_path: Path) -> None:
    assert values(job(tmp_path, "{prompt: a, seed: 1234, n_samples: 3, n_iter: 2}"), "seed") == list(range(1234, 1240))
    assert job(tmp_path, "{prompt: a, n_samples: 3, n_iter: 2}").drawn == 6
    last = f"{{prompt: a, seed: {LARGEST_SEED - 1}, n_samples: 2}}"
    assert values(job(tmp_path, last), "seed")[-1] == LARGEST_SEED


def test_the_matrix_makes_an_axis_of_each_key(tmp_path: Path) -> None:
    found = job(tmp_path, "{prompt: a, seed: 1, matrix: {W: [256, 320], scale: {start: 0, stop: 1, step: 0.5}}}")
    assert [(axis.key, list(axis.values)) for axis in found.axes[1:3]] == [
        ("width", [256, 320]),
        ("scale", [0, 0.5, 1]),
    ]


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
    prompts = read(tmp_path, PROMPTS).jobs[0].axes[0].values
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
        ("version: 1\nmodels: {}", 2, 1, ["'models' comes with a later version"]),
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


@pytest.mark.parametrize("key", ["zip", "exclude", "include", "model"])
def test_what_comes_later_is_refused_as_such(tmp_path: Path, key: str) -> None:
    error = refusal(tmp_path, f"version: 1\njobs:\n- prompt: a\n  {key}: 1\n")
    assert error.message == f"'{key}' comes with a later version of runner"
    assert (error.location.line, error.location.column) == (4, 3)
    assert "later version" in refusal(tmp_path, f"version: 1\njobs:\n- matrix: {{{key}: [1]}}\n").message


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("width: 500", ["width: '500' is not a multiple of 64; 448 and 512 are"]),
        ("n_samples: 0", ["n_samples: '0'"]),
        ("stesp: 5", ["unknown key 'stesp', did you mean 'steps'?"]),
        ("zip: {}", ["later version"]),
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


@pytest.mark.parametrize(
    ("data", "line", "part"),
    [(b"a\n\nb:1 c:-1\n", 3, "add up to 0"), (b"a\n\xff\n", 2, "byte 0xff"), (b"a\nb\x00c\n", 2, "character 0x00")],
)
def test_bad_lines_of_a_prompt_file_are_named(tmp_path: Path, data: bytes, line: int, part: str) -> None:
    (tmp_path / "p.txt").write_bytes(data)
    error = refusal(tmp_path, "version: 1\njobs:\n- prompts: [file: p.txt]\n")
    assert (error.location.path, error.location.line) == (tmp_path / "p.txt", line)
    assert part in error.message


def test_prompt_files_can_not_explode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PROMPTS", 5)
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    error = refusal(tmp_path, "version: 1\njobs:\n- prompts: [&f {file: p.txt}, *f, *f]\n")
    assert "more than 5 prompts" in error.message


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


@pytest.mark.parametrize("stem", ["alps", "Österreich 2", "v1.2", "a-b_c", "_x", "2026"])
def test_the_name_is_that_of_the_file(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.yaml"
    path.write_text("version: 1\njobs: [prompt: a]\n")
    assert load(path, overrides={}, allow_outside=False).name == stem


def test_a_file_whose_name_names_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "..yaml"
    path.write_text("version: 1\njobs: [prompt: a]\n")
    with pytest.raises(ManifestError, match=r"add a line 'name: \.\.\.'") as caught:
        load(path, overrides={}, allow_outside=False)
    assert caught.value.location == Location(path)


def test_matrix_prompts_take_every_form(tmp_path: Path) -> None:
    found = job(tmp_path, "{seed: 1, matrix: {steps: [1, 2], prompt: [a, {text: b, id: c, negative: d}]}}")
    assert [axis.key for axis in found.axes] == ["steps", "prompt", "seed"]
    assert [(prompt.label, prompt.negative) for prompt in found.axes[1].values] == [("a", None), ("c", "d")]


leaves = st.sampled_from(
    [None, True, 0, 1, -1, 64, 2**64 - 1, 0.5, 1e300, "", "a", "a:1", "a:0", "1-3", "x.txt", "ddim"]
)
keys = st.sampled_from([*module.JOB_KEYS, *ALIASES, *module.PROMPT_KEYS, "weights", "weighted", "id", "start"])
keys |= st.sampled_from(["stop", "step", "count", "zip"])
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
