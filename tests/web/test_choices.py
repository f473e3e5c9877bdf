import hashlib
import shlex

import pytest
import tiny
import torch
from safetensors.torch import save_file

from runner import cli, settings
from runner.errors import SettingError
from runner.web.choices import OWN_VAE, Choices
from runner.web.studio import Studio


@pytest.fixture
def given(tmp_path):
    for name in ("models", "loras/style", "vae/folder"):
        (tmp_path / name).mkdir(parents=True)
    return [
        f"web.{name}={tmp_path / folder}"
        for name, folder in (("models", "models"), ("loras", "loras"), ("vaes", "vae"))
    ]


def test_what_lies_in_the_folders_is_listed(tmp_path, given):
    tiny.save_model(tmp_path / "models/small")
    (tmp_path / "models/small/model_index.json").touch()
    for name in ("models/one.safetensors", "loras/ink.safetensors", "loras/ink.pt", "loras/style/a b.safetensors",
                 "loras/notes.txt", "vae/fix.safetensors", "vae/folder/config.json"):  # fmt: skip
        (tmp_path / name).touch()
    choices = Choices(settings.compose(given))
    assert list(choices.models) == ["emoji", "sd15", "one", "small"]
    assert choices.started_with == "emoji"
    assert list(choices.loras) == ["ink", "ink.safetensors", "style/a_b"]
    assert list(choices.vaes) == [OWN_VAE, "fix", "folder"]
    assert choices.model("small", "fix").vae == str(tmp_path / "vae/fix.safetensors")
    assert choices.model_at(str(tmp_path / "models/one.safetensors")) == "one"


def test_equal_names_hide_nothing(tmp_path, given):
    for name in ("models/sd15.safetensors", "models/small.ckpt", "models/small/model_index.json",
                 "vae/folder.safetensors", "vae/folder/config.json"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    models = tmp_path / "models"
    named = [f"sd15 ({models / 'sd15.safetensors'})", "small", f"small ({models / 'small'})"]
    assert list(Choices(settings.compose(given)).models) == ["emoji", "sd15", *named]
    own = f"{tmp_path}/small.ckpt"
    assert Choices(settings.compose([*given, f"model.path={own}"])).started_with == f"small ({own})"
    assert list(Choices(settings.compose(given)).vaes)[1:] == ["folder", f"folder ({tmp_path / 'vae/folder'})"]


def test_the_model_that_the_page_was_started_with_is_one_of_them(tmp_path, given):
    own = settings.compose([*given, f"model.path={tmp_path}/elsewhere/mine.ckpt", "model.prediction=v_prediction"])
    choices = Choices(own)
    assert choices.started_with == "mine"
    assert choices.model("mine", OWN_VAE) == own.model
    assert Choices(settings.compose([*given, "model=sd15"])).started_with == "sd15"


@pytest.mark.parametrize("folder", ["", "nowhere", "~nobody/x", "/dev/null", "a\0b"])
def test_a_folder_that_is_not_there_is_an_empty_one(folder):
    given = settings.compose([])
    given.web.models = given.web.loras = given.web.vaes = folder
    if folder == "":
        given.web.models = "nowhere"
    assert list(Choices(given).models) == ["emoji", "sd15"]


def test_unknown_names_are_refused_with_what_there_is(given):
    choices = Choices(settings.compose(given))
    with pytest.raises(SettingError, match="model: there is no 'emojy', did you mean 'emoji'"):
        choices.model("emojy", OWN_VAE)
    with pytest.raises(SettingError, match="loras: there is no LoRA 'x', put its file into"):
        choices.lora("x")


def test_another_model_and_loras_are_used_and_rendered_again_by_the_command(tmp_path, given, monkeypatch):
    model = tiny.save_model(tmp_path / "models/small")
    (model / "model_index.json").touch()
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    for name in ("ink", "tagged"):
        parts = {f"{layer}.lora_down.weight": torch.randn(4, 64), f"{layer}.lora_up.weight": torch.randn(64, 4)}
        save_file(parts, tmp_path / f"loras/{name}.safetensors")
    with Studio(settings.compose([*given, f"out={tmp_path / 'web'}", "unet_bs=4"])) as studio:
        form = studio.usual_form() | {"prompt": "x", "steps": 1, "n_samples": 1, "seed": "1", "width": 64, "height": 64}
        assert (form["model"], studio.native_size("small")) == ("emoji", 64)
        with pytest.raises(SettingError, match="there is no LoRA 'inc', did you mean 'ink'"):
            studio.press(form | {"loras": {"inc": 1}})
        with_loras = {
            "prompt": "x <lora:tagged:0.5>",
            "prompt_syntax": "a1111",
            "loras": {"ink": 0.8},
            "model": "small",
        }
        job = studio.press(form | with_loras)
        job.wait()
        swept = studio.press(form | {"model": "small", "axes": [("loras.ink", "0, 1"), ("none", "")]})
        swept.wait()
    assert (job.state, swept.state) == ("done", "done"), (job.message, swept.message)
    assert len(job.pictures) == 1 and len(swept.pictures) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifest.yaml").write_text(job.manifest)
    words = shlex.split(job.manifest.splitlines()[0].removeprefix("# runner "))
    assert cli.main([*words, "out=again"]) == 0
    (made,) = (tmp_path / "again/images").rglob("*.png")
    assert hashlib.sha256(made.read_bytes()).digest() == hashlib.sha256(job.pictures[0].path.read_bytes()).digest()
