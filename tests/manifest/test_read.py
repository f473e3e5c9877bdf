"""What is read of a manifest: its values, which of them stand above others, its name, and the models that it lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest_texts import read, refusal, texts, values
from PIL import Image

from runner.errors import Location, ManifestError, SettingError
from runner.item import Model
from runner.manifest import items as manifest_items
from runner.manifest.read import load
from runner.manifest.rules import DEFAULTS


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


def test_a_small_init_is_resized_where_a_size_is_given(tmp_path: Path) -> None:
    Image.new("RGB", (48, 48)).save(tmp_path / "small.png")
    job = "jobs: [{prompts: [a], seeds: 1, init: small.png%s}]\n"
    assert "too few" in refusal(tmp_path, "version: 1\n" + job % "").message
    found = read(tmp_path, "version: 1\n" + job % ", width: 64, height: 64")
    [item] = manifest_items.Items(found, {}, {model: model for model in found.models})
    assert (item.width, item.height) == (64, 64)


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
