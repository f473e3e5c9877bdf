import pytest
import yaml

from runner import settings
from runner.manifest.rules import DEFAULTS
from runner.web import forms
from runner.web.forms import Beside, from_manifest, kind_of, loras_of, to_manifest

USUAL = settings.compose([])
FORM = forms.GOOD | DEFAULTS | {"prompt": "a red apple", "width": 64, "height": 64, "seed": "7"}


def job_of(form, **beside):
    return yaml.safe_load(to_manifest(FORM | form, USUAL, name="x", beside=Beside(**beside)))["jobs"][0]


@pytest.mark.parametrize("text", ["", "  ", "-1", "random", "Random", None])
def test_no_seed_is_drawn(text):
    drawn = {job_of({"seed": text})["seed"] for _ in range(3)}
    assert len(drawn) == 3 and all(0 <= seed < 2**32 for seed in drawn)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("27-46, 99", ["27-46", 99]),
        ("1, 5,9", [1, 5, 9]),
        ("27 - 46", ["27-46"]),
        ("{start: 0, count: 20, step: 5}", {"start": 0, "count": 20, "step": 5}),
        ("[1, 2]", [1, 2]),
    ],
)
def test_the_text_of_the_seeds_box_is_understood(text, seeds):
    job = job_of({"seed": text})
    assert job["seeds"] == seeds
    assert not {"seed", "n_samples", "n_iter"} & job.keys()


@pytest.mark.parametrize("text", ["twelve", "[1,", "1;2", "-2"])
def test_what_is_no_seed_is_left_for_the_manifests_rules(text):
    assert job_of({"seed": text})["seed"] == text


def test_text_that_is_no_yaml_is_left_for_the_manifests_rules():
    assert job_of({"original_size": "[1, "})["original_size"] == "[1, "


def test_loras_are_named_with_their_files(tmp_path):
    form = FORM | {"loras": {"ink": 0.8}, "prompt": "x <lora:sharp:1>", "prompt_syntax": "a1111"}
    assert loras_of(form) == ["ink", "sharp"]
    files = {name: tmp_path / f"{name}.safetensors" for name in ("ink", "sharp")}
    text = to_manifest(form, USUAL, name="x", beside=Beside(loras=files))
    assert text.splitlines()[0].endswith(" allow_outside=true")
    document = yaml.safe_load(text)
    assert document["loras"] == {name: str(path) for name, path in files.items()}
    assert document["jobs"][0]["loras"] == {"ink": 0.8}
    assert loras_of(FORM | {"prompt": "x <lora:", "prompt_syntax": "a1111"}) == []


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"prompt": "cat: 7 & <b>", "negative": "NO", "scale": 3.5, "sampler": "ddim", "eta": 0.5, "format": "jpg"},
        {"seed": "27-46, 99", "original_size": "[128, 64]", "clip_skip": "2", "prompt_syntax": "a1111"},
        {"seed": "5-6", "n_samples": 3, "loras": {"ink": 0.5}},
        {"axes": [("scale", "1, 3"), ("prompt", "a cat\na dog, here")]},
    ],
)
def test_a_form_is_read_again_from_its_manifest(changed):
    form = FORM | changed
    text = to_manifest(form, USUAL, name="x")
    again = from_manifest(text)
    assert to_manifest(FORM | again, USUAL, name="x") == text
    assert {key: again[key] for key in changed if key not in ("n_samples", "prompt")}.keys() <= form.keys()


def test_settings_are_read_from_the_command(tmp_path):
    given = settings.compose([f"model.path={tmp_path}/my model", "turbo=false", "unet_bs=4"])
    again = from_manifest(to_manifest(FORM, given, name="x"))
    assert (again["model.path"], again["turbo"], again["unet_bs"]) == (f"{tmp_path}/my model", "false", "4")
    assert "turbo" not in from_manifest("# runner run 'x\njobs: [{steps: 2}]")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "7",
        "jobs: []",
        "jobs: 7",
        "jobs: [7]",
        "defaults: 7\njobs: [{}]",
        "a: " + "[" * 2000,
        "\x00",
        "&a [*a]",
    ],
)
def test_what_is_no_manifest_has_no_values(text):
    assert from_manifest(text) == {}
    assert kind_of(text) == forms.TXT2IMG


def test_values_that_no_field_can_show_are_left_out():
    text = (
        "jobs: [{prompt: {text: 'a:5', weighted: false}, steps: many, scale: .nan, width: 100, seed: [[1]], loras: 7}]"
    )
    found = from_manifest(text)
    assert not {"steps", "scale", "width", "loras"} & found.keys()
    assert found["prompt"] == "a\\:5"


@pytest.mark.parametrize(
    ("beside", "changed", "kind"),
    [
        ({}, {"negative": "x\n  mask: y"}, forms.TXT2IMG),
        ({"picture": True}, {}, forms.IMG2IMG),
        ({"picture": True, "masked": True}, {}, forms.INPAINT),
        ({"picture": True}, {"axes": [("scale", "1")]}, forms.MATRIX),
    ],
)
def test_a_manifest_tells_what_form_it_was(beside, changed, kind):
    assert kind_of(to_manifest(FORM | changed, USUAL, name="x", beside=Beside(**beside))) == kind
