"""Manifests: what is read, what is refused, and that every refusal names the place, the value and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemas import complaints

from runner.errors import ERRORS_SHOWN, Location, ManifestError, SettingError
from runner.item import Model
from runner.keys import LARGEST_SEED
from runner.manifest import items as manifest_items
from runner.manifest import prompts as manifest_prompts
from runner.manifest import read as module
from runner.manifest.job import Job
from runner.manifest.read import Manifest, load
from runner.manifest.rules import ALIASES, DEFAULTS


def read(folder: Path, text: str, *, outside: bool = False, **overrides: Any) -> Manifest:
    """The manifest of a text; the JSON schema has to accept what is read."""
    path = folder / "m.yaml"
    path.write_text(text, encoding="utf-8")
    found = load(path, overrides=overrides, allow_outside=outside)
    assert complaints(text) == []
    return found


def job(folder: Path, body: str, **overrides: Any) -> Job:
    """The only job of a manifest, written as a flow mapping."""
    return read(folder, f"version: 1\njobs:\n  - {body}\n", **overrides).jobs[0]


def values(job: Job, key: str) -> list[Any]:
    return list(job.columns[key])


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


MODELS = """\
version: 1
models:
  sd14: {path: weights/sd14.ckpt}
  other: {path: weights/other, prediction: v_prediction}
  absent: {path: weights/absent}
defaults: {model: other}
jobs:
  - {prompt: a, seed: 1, matrix: {model: [emoji, sd14]}, exclude: [{model: sd14}], include: [{model: sd14, seed: 2}]}
  - {prompt: a, seed: 1}
"""


def with_weights(folder: Path) -> Path:
    (folder / "weights/other").mkdir(parents=True)
    (folder / "weights/sd14.ckpt").touch()
    return folder


def test_models_have_names(tmp_path: Path) -> None:
    found = read(with_weights(tmp_path), MODELS)
    emoji, other = Model(name="emoji", path="builtin:emoji"), found.jobs[2].values["model"]
    assert (other.name, other.path, other.prediction) == ("other", f"{tmp_path}/weights/other", "v_prediction")
    assert {model.name: place.line for model, place in found.models.items()} == {"emoji": 8, "sd14": 3, "other": 4}
    made = list(manifest_items.Items(found, {}))
    assert [item.model.name for item in made] == ["emoji", "sd14", "other"]
    assert [item.axes for item in made] == [(("model", "emoji"),), (), ()]
    assert made[0].model == emoji
    again = manifest_items.Items(found, {}, {emoji: Model(name="emoji", fingerprints=(("vae", "f"),))})
    assert again[0].model.fingerprints == (("vae", "f"),)
    assert read(tmp_path, MODELS, model="sd14").jobs[2].values["model"].name == "sd14"


def test_a_job_that_names_no_model_has_the_one_of_the_settings(tmp_path: Path) -> None:
    assert read(tmp_path, "version: 1\njobs: [prompt: a]\n").models == {Model(): Location(tmp_path / "m.yaml", 1, 1)}


def test_all_that_is_wrong_with_models_is_told_with_its_place(tmp_path: Path) -> None:
    text = MODELS.replace("[emoji, sd14]", "[emojis, absent, sd144]").replace("seed: 1}\n", "seed: 1, model: [a]}\n")
    with pytest.raises(ManifestError) as caught:
        read(with_weights(tmp_path), text)
    assert [(each.location.line, each.location.column, each.message) for each in caught.value.errors] == [
        (5, 18, f"the model 'absent': there is nothing at {tmp_path}/weights/absent"),
        (8, 43, "model: 'emojis' is not known, did you mean 'emoji'?"),
        (8, 59, "model: 'sd144' is not known, did you mean 'sd14'?"),
        (9, 33, "model: expected a text, not a list"),
    ]
    with pytest.raises(SettingError, match=r"^defaults.model: 'emojo' is not known, did you mean 'emoji'\?$"):
        read(tmp_path, MODELS, model="emojo")


@pytest.mark.parametrize(
    ("listed", "column", "message"),
    [
        ("[sd14]", 9, "models: expected a mapping of names to models (name: {path: ...}), not a list"),
        ("{sd14: weights/x.ckpt}", 16, "expected a mapping (key: value), not 'weights/x.ckpt'"),
        ("{sd14: {prediction: auto}}", 16, "the model 'sd14' needs a name and a 'path': a diffusers folder, "),
        ("{sd14: {paht: x}}", 17, "unknown key 'paht', did you mean 'path'?"),
        ("{sd14: {path: x, prediction: v}}", 38, "'v' is not known, known are: auto, epsilon, v_prediction"),
        ("{sd14: {path: ../x}}", 23, "'../x' leaves the manifest's folder; allow_outside=true permits it"),
    ],
)
def test_wrong_lists_of_models(tmp_path: Path, listed: str, column: int, message: str) -> None:
    error = refusal(tmp_path, f"version: 1\nmodels: {listed}\njobs: [{{prompt: a, model: sd14}}]\n")
    assert error.message.startswith(message)
    assert (error.location.line, error.location.column, error.errors) == (2, column, (error,))


def test_seeds_stay_ranges(tmp_path: Path) -> None:
    assert job(tmp_path, "{prompt: a, seeds: 0-999999999}").columns["seed"] == range(10**9)


def test_seed_n_samples_and_n_iter_count_up(tmp_path: Path) -> None:
    assert values(job(tmp_path, "{prompt: a, seed: 1234, n_samples: 3, n_iter: 2}"), "seed") == list(range(1234, 1240))
    assert job(tmp_path, "{prompt: a, n_samples: 3, n_iter: 2}").drawn == 6
    last = f"{{prompt: a, seed: {LARGEST_SEED - 1}, n_samples: 2}}"
    assert values(job(tmp_path, last), "seed")[-1] == LARGEST_SEED


def test_the_matrix_makes_an_axis_of_each_key(tmp_path: Path) -> None:
    found = job(tmp_path, "{prompt: a, seed: 1, matrix: {W: [256, 320], scale: {start: 0, stop: 1, step: 0.5}}}")
    assert [{key: list(values) for key, values in axis.columns.items()} for axis in found.axes[1:3]] == [
        {"width": [256, 320]},
        {"scale": [0, 0.5, 1]},
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


def test_prompt_files_can_not_explode(tmp_path: Path, limit: Any) -> None:
    limit(manifest_prompts, MOST_PROMPTS=5)
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
    assert list(found.columns) == ["steps", "prompt", "seed"]
    assert [(prompt.label, prompt.negative) for prompt in found.columns["prompt"]] == [("a", None), ("c", "d")]


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


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_prompt_file_may_have_comments_any_line_end_and_invisible_lines(tmp_path: Path, end: str) -> None:
    lines = ["\ufeff# animals", "a cat", "\u200b", "  ", "\ufeff", "# more", "a dog # brown"]
    (tmp_path / "p.txt").write_text(end.join(lines), encoding="utf-8", newline="")
    text = "version: 1\njobs:\n- prompts: [{file: p.txt, comments: '#'}]\n  seeds: 1\n"
    manifest = read(tmp_path, text)
    assert [prompt.text for prompt in manifest.jobs[0].columns["prompt"]] == ["a cat", "a dog # brown"]
    manifest = read(tmp_path, text.replace(", comments: '#'", ""))
    assert len(manifest.jobs[0].columns["prompt"]) == 4


@pytest.mark.parametrize("seed", ["seed: -1", "seeds: -1", "seed: random", "seeds: [1, -1]", "matrix: {seed: [-1]}"])
def test_a_random_seed_is_left_out(tmp_path: Path, seed: str) -> None:
    assert "leave the seed out" in refusal(tmp_path, f"version: 1\njobs: [{{prompts: [a], {seed}}}]\n").message


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


def test_a_small_init_is_resized_where_a_size_is_given(tmp_path: Path) -> None:
    Image.new("RGB", (48, 48)).save(tmp_path / "small.png")
    job = "jobs: [{prompts: [a], seeds: 1, init: small.png%s}]\n"
    assert "too few" in refusal(tmp_path, "version: 1\n" + job % "").message
    found = read(tmp_path, "version: 1\n" + job % ", width: 64, height: 64")
    [item] = manifest_items.Items(found, {}, {model: model for model in found.models})
    assert (item.width, item.height) == (64, 64)
