"""Stable Diffusion XL from the command line: its records, its warnings, and what can't be done with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_xl

from runner import cli

JOBS = """version: 1
name: large
models:
  own: {path: xl}
  other: {path: xl.safetensors, vae: other/vae}
defaults: {width: 64, height: 64, steps: 2}
jobs:
- prompts: [cat, "cat:1 dog:3"]
  seeds: 1-2
  model: own
- {prompt: cat, seed: 1, model: other, clip_skip: 1, rescale: 0.5, spacing: trailing, original_size: [1000, 500]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_xl.save_folder(tmp_path / "xl")
    tiny_xl.save_single_file(tmp_path / "xl.safetensors")
    tiny_xl.save_folder(tmp_path / "other", tiny_xl.components(seed=4))
    Path("large.yaml").write_text(JOBS)
    return tmp_path


def records():
    return [json.loads(line) for line in Path("outputs/large/records.jsonl").read_text().splitlines()]


def test_records_say_the_family_and_make_the_pictures_again(folder, capsys):
    assert cli.main(["run", "large.yaml"]) == 0
    found = records()
    assert len(found) == 5 and {each["model"]["family"] for each in found} == {"Stable Diffusion XL"}
    assert set(found[0]["model"]["fingerprints"]) == {"text_encoder", "text_encoder_2", "unet_in", "unet_out", "vae"}
    [other] = [each for each in found if each["model"]["name"] == "other"]
    assert Path(other["model"]["vae"]) == (folder / "other/vae").resolve()
    assert "vae" not in found[0]["model"]
    assert (other["item"]["clip_skip"], other["item"]["original_size"]) == (1, [1000, 500])
    assert cli.main(["run", "outputs/large/records.jsonl", "out=again"]) == 0
    again = [json.loads(line) for line in Path("again/records.jsonl").read_text().splitlines()]
    assert {each["id"]: each["pixels"] for each in again} == {each["id"]: each["pixels"] for each in found}
    assert cli.main(["verify", "outputs/large"]) == 0
    capsys.readouterr()


def test_plan_says_what_such_a_model_has_no_use_for(folder, capsys):
    (folder / "xl").rename(folder / "sdxl-turbo")
    Path("plan.yaml").write_text(
        "version: 1\njobs:\n- {prompt: cat, seed: 1, width: 64, height: 128, steps: 20, scale: 1}\n"
        "- {prompt: cat, seed: 1, width: 128, height: 128, steps: 4}\n"
    )
    assert cli.main(["plan", "plan.yaml", "model.path=sdxl-turbo", "json=true"]) == 0
    warned = {each["kind"]: each for each in json.loads(capsys.readouterr().out)["warnings"]}
    assert warned["unlike_distilled"]["count"] == 2
    assert "20 steps of sdxl-turbo" in json.dumps(warned) and "guidance with sdxl-turbo" in json.dumps(warned)
    Path("v1.yaml").write_text("version: 1\njobs: [{prompt: cat, seed: 1, width: 64, height: 64, crop_origin: [3, 4]}]")
    assert cli.main(["plan", "v1.yaml", "json=true"]) == 0
    assert "unused_sizes" in capsys.readouterr().out


def test_what_is_made_for_1024_says_so_of_a_quarter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_xl.save_folder(tmp_path / "xl", tiny_xl.components(sample_size=128))
    Path("small.yaml").write_text("version: 1\njobs: [{prompt: cat, seed: 1}]")
    assert cli.main(["plan", "small.yaml", "model.path=xl"]) == 0
    assert "512x512; xl was made for 1024x1024" in capsys.readouterr().out


def test_openvino_is_not_told_sizes(folder, capsys, installed):
    installed("openvino")
    assert cli.main(["run", "large.yaml", "compile=openvino", "device=cpu"]) == 2
    assert "has a UNet that is told sizes; set compile=false" in capsys.readouterr().err
