"""Models of the released sizes, with random weights, by the real command: from a `.ckpt`, a `.safetensors`, a folder.

Takes 12 GB of disk, 8 GB of memory and many minutes, so it runs only when asked for: RUNNER_FULL_SIZE=1.
"""

import os
import shutil
import subprocess
import sys
import time
import types
from unittest import mock

import numpy as np
import pytest
import single_file
import tiny_xl
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from runner.bench import random_model
from runner.folder.ledger import iterate_records
from runner.folder.store import LocalStore

pytestmark = pytest.mark.skipif(
    os.environ.get("RUNNER_FULL_SIZE") != "1", reason="full-size models: set RUNNER_FULL_SIZE=1"
)
MANIFEST = """
version: 1
defaults: {width: 256, height: 256, steps: 2}
jobs:
  - {prompt: a cat, seed: 1}
  - {prompt: "a cat:1 a dog:1", seed: 2, init: sketch.png}
"""
LARGE = """
version: 1
jobs: [{prompt: a cat, seed: 1, width: 512, height: 512, steps: 2}]
"""


def fill(part, generator):
    """Random weights that keep a signal's size, so that no layer overflows."""
    part.half().to_empty(device="cpu")
    for name, weight in part.named_parameters():
        if weight.ndim > 1:
            values = torch.empty(weight.shape).normal_(0, weight[0].numel() ** -0.5, generator=generator)
            weight.data.copy_(values if "embedding" not in name else values * 0.3)
        else:
            weight.data.fill_(float(name.endswith("weight")))


CALLBACK = "pytorch_lightning.callbacks.model_checkpoint"


def leftovers(state, callback):
    """What trainers leave in a file: moving averages, optimizers, callbacks whose keys are classes."""
    unet = "model.diffusion_model."
    averages = {
        f"model_ema.diffusion_model{name.removeprefix(unet).replace('.', '')}": torch.zeros_like(tensor)
        for name, tensor in state.items()
        if name.startswith(unet)
    }
    counts = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(470000, dtype=torch.int32)}
    return {
        "epoch": 26,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state | averages | counts,
        "callbacks": {callback: {"monitor": None, "best_model_path": "", "best_score": torch.tensor(1)}},
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(5)}}, "param_groups": []}],
        "lr_schedulers": [{"last_epoch": 0, "_step_count": 1}],
    }


@pytest.fixture(scope="module", params=[1, 2])
def forms(request, tmp_path_factory):
    """One model in its three forms, and the folder they are in."""
    place = tmp_path_factory.mktemp(f"v{request.param}")
    parts = single_file.full(request.param)
    generator = torch.Generator().manual_seed(0)
    for part in parts:
        fill(part, generator)
    predicts = {1: "epsilon", 2: "v_prediction"}[request.param]
    single_file.save_folder(place / "folder", parts, torch.float16, prediction_type=predicts)
    state = single_file.to_compvis(parts)
    if request.param == 2:
        state = single_file.with_last_layer(state)
        (place / "folder/tokenizer").mkdir()
        (place / "folder/tokenizer/tokenizer_config.json").write_text('{"pad_token": "!"}')
    state = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    save_file(state, place / "file.safetensors")
    callback = type("ModelCheckpoint", (), {"__module__": CALLBACK})
    modules = ("pytorch_lightning", "pytorch_lightning.callbacks", CALLBACK)
    packages = {name: types.SimpleNamespace(ModelCheckpoint=callback) for name in modules}
    with mock.patch.dict(sys.modules, packages):
        torch.save(leftovers(state, callback), place / "file.ckpt")
    del parts, part, state  # several gigabytes
    (place / "small.yaml").write_text(MANIFEST)
    (place / "large.yaml").write_text(LARGE)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (256, 256, 3), np.uint8)).save(place / "sketch.png")
    yield place
    shutil.rmtree(place)


def command(place, verb, manifest, model, *overrides):
    """What it printed and its exit code; how long it took goes to the test's own output."""
    words = [sys.executable, "-m", "runner", verb, str(place / f"{manifest}.yaml"), f"model.path={place / model}"]
    environment = os.environ | {"XDG_CACHE_HOME": str(place / "cache")}
    begun = time.perf_counter()
    done = subprocess.run([*words, *overrides], capture_output=True, text=True, env=environment)
    print(f"{place.name} {verb} {manifest} {model}: {time.perf_counter() - begun:.1f} s")
    return done.stdout + done.stderr, done.returncode


def render(place, manifest, model, *overrides):
    """The records of a run, by id."""
    out = place / f"out-{manifest}-{model}-{len(list(place.iterdir()))}"
    printed, code = command(place, "run", manifest, model, f"out={out}", "unet_bs=2", "skip_grid=true", *overrides)
    assert code == 0, printed
    records = {record["id"]: record for record in iterate_records(LocalStore(out))}
    assert all(record["status"] == "done" for record in records.values()), printed
    print(f"{max(record['peak_bytes'] for record in records.values()) / 1e9:.2f} GB at most")
    for record in records.values():
        assert np.asarray(Image.open(out / record["image"])).std() > 1  # not a blank picture
    return records


def test_the_three_forms_are_one_model(forms):
    made = {model: render(forms, "small", model) for model in ("file.ckpt", "file.safetensors", "folder")}
    ckpt, *others = made.values()
    assert len(ckpt) == 2
    for other in others:
        assert pictures(other) == pictures(ckpt)


def pictures(records):
    """By id, the hash of the picture's pixels and those of the weights; the file also holds the model's name."""
    return {each: (record["pixels"], record["model"]["fingerprints"]) for each, record in records.items()}


def test_a_large_picture_and_the_other_prediction(forms):
    made = render(forms, "large", "file.ckpt")
    assert len(made) == 1
    for prediction in ("epsilon", "v_prediction"):
        chosen = [render(forms, "small", m, f"model.prediction={prediction}") for m in ("file.ckpt", "folder")]
        assert pictures(chosen[0]) == pictures(chosen[1])


def test_a_plan_of_a_known_model_reads_no_weights(forms):
    for _ in range(2):
        printed, code = command(forms, "plan", "small", "file.ckpt", f"out={forms / 'plan'}")
        assert code == 0, printed
        assert list((forms / "cache").rglob("*.json"))  # the second one reads the fingerprints there


def test_a_hostile_file_is_refused_and_nothing_of_it_runs(forms):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {forms / 'touched'}",)

    file = forms / "hostile.ckpt"
    torch.save({"state_dict": load_file(forms / "file.safetensors"), "callbacks": Hostile()}, file)
    for verb in ("plan", "run"):
        printed, code = command(forms, verb, "small", file.name, f"out={forms / 'hostile'}")
        assert code == 2
        assert "system" in printed and "nothing of it was run" in printed
        assert "Traceback" not in printed
    assert not (forms / "touched").exists()
    file.unlink()


@pytest.mark.parametrize("name", ["file.ckpt", "file.safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.4])
def test_a_file_that_was_cut_off_is_refused(forms, name, share):
    cut = forms / f"cut-{name}"
    with (forms / name).open("rb") as whole, cut.open("wb") as part:
        os.sendfile(part.fileno(), whole.fileno(), 0, int(os.fstat(whole.fileno()).st_size * share))
    printed, code = command(forms, "run", "small", cut.name, f"out={forms / 'cut'}")
    cut.unlink()
    assert code == 2
    assert "cut off" in printed
    assert "Traceback" not in printed


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """Stable Diffusion XL as a folder and as a single file; 14 GB of disk."""
    place = tmp_path_factory.mktemp("xl")
    random_model.save("sdxl", place / "folder")
    kinds = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
    }
    parts = [kind.from_pretrained(place / "folder" / name, dtype=torch.float16) for name, kind in kinds.items()]
    tiny_xl.save_single_file(place / "file.safetensors", parts)
    (place / "xl.yaml").write_text(
        "version: 1\njobs: [{prompt: a cat, seeds: 1-2, width: 512, height: 512, steps: 1}]\n"
    )
    yield place
    shutil.rmtree(place)


def test_stable_diffusion_xl_keeps_a_small_ceiling_in_both_forms(xl):
    made = {model: render(xl, "xl", model, "memory=1600MB") for model in ("file.safetensors", "folder")}
    assert pictures(made["file.safetensors"]) == pictures(made["folder"])
    assert max(record["peak_bytes"] for records in made.values() for record in records.values()) <= 1600 * 10**6
