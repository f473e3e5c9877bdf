"""Whatever a model's configuration says is in its pictures: they are stock diffusers', made from the same folder."""

from __future__ import annotations

import json
import shutil

import diffusers
import numpy as np
import pytest
import tiny
import torch
from builders import make_item
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from runner.engine.executor import Executor
from runner.errors import ModelError
from runner.events import Rendered
from runner.model import files
from runner.model.tokens import SHIPPED
from runner.planning import choices, waves
from runner.settings import compose

WORD, NUMBER = "<cat-toy>", tiny.VOCABULARY


@pytest.fixture
def folder(tmp_path):
    return tiny.save_model(tmp_path / "tiny")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def stock_picture(folder, scheduler="DDIMScheduler", prompt="white duck", steps=5, **how):
    tokenizer = folder / "tokenizer" if (folder / "tokenizer").is_dir() else SHIPPED
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(str(tokenizer)),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=getattr(diffusers, scheduler).from_pretrained(folder / "scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(27))
    usual = {"num_inference_steps": steps, "guidance_scale": 7.5, "height": 64, "width": 64}
    made = pipeline(prompt, latents=noise, output_type="np", **usual, **how)
    return made.images[0] * 255


def our_picture(folder, sampler="ddim", prompt="white duck", steps=5):
    model = files.find_model(str(folder))
    execution = choices.decide(compose(["precision=full", "unet_bs=2", "turbo=true"]), model, "cpu", None)
    executor = Executor(model, execution)
    item = make_item(prompt=prompt, seed=27, steps=steps, sampler=sampler)
    [wave] = waves.group([item], executor.execution)
    [made] = [event.pixels for event in executor.run(wave) if isinstance(event, Rendered)]
    return made


def check_same(folder, plain, **changes):
    ours, stock = our_picture(folder, **changes), None
    scheduler = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler", "plms": "PNDMScheduler"}
    stock = stock_picture(folder, scheduler[changes.pop("sampler", "ddim")], **changes)
    assert np.abs(ours - stock).max() <= 0.6
    assert np.abs(ours.astype(int) - plain).max() > 2, "the value changes nothing, so this test shows nothing"


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
BETAS = torch.linspace(0.0005, 0.02, 1000, dtype=torch.float64).tolist()


@pytest.mark.some(3)
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize(
    "said",
    [ZERO_SNR, {"trained_betas": BETAS}, {"beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"},
     {"prediction_type": "v_prediction"}, {"beta_end": 0.02}, {"timestep_spacing": "trailing"}],
    ids=lambda said: "+".join(said),
)  # fmt: skip
def test_the_noise_is_the_configurations(folder, said, sampler):
    plain = our_picture(folder, sampler)
    change(
        folder / "scheduler/scheduler_config.json", **({} if sampler == "ddim" else {"timestep_spacing": "linspace"})
    )
    change(folder / "scheduler/scheduler_config.json", clip_sample=False, **said)
    check_same(folder, plain, sampler=sampler)


def test_the_last_step_ends_where_the_configuration_says(folder):
    plain = our_picture(folder, steps=3)
    change(folder / "scheduler/scheduler_config.json", set_alpha_to_one=True, clip_sample=False)
    ours, stock = our_picture(folder, steps=3), stock_picture(folder, steps=3)
    assert np.abs(ours - stock).max() <= 0.6
    assert (ours != plain).any()


@pytest.mark.some(3)
@pytest.mark.parametrize("sampler", ["plms", "heun", "lms", "dpm2", "dpmpp_sde", "dpmpp_2m_karras", "unipc", "euler_a"])
def test_zero_snr_is_in_the_pictures_of_every_sampler(folder, sampler):
    change(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    plain = our_picture(folder, sampler, steps=6)
    change(folder / "scheduler/scheduler_config.json", **ZERO_SNR)
    made = our_picture(folder, sampler, steps=6)
    assert np.abs(made.astype(int) - plain).max() > 2


def test_a_unet_that_is_told_the_scale_is_told_it(folder):
    torch.manual_seed(1)
    config = dict(UNet2DConditionModel.load_config(folder / "unet")) | {"time_cond_proj_dim": 16}
    unet = UNet2DConditionModel.from_config(config)
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight)
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")
    change(folder / "scheduler/scheduler_config.json", clip_sample=False)
    ours, stock = our_picture(folder), stock_picture(folder)
    assert np.abs(ours - stock).max() <= 0.6
    change(folder / "unet/config.json", time_cond_proj_dim=None)
    with pytest.raises(ModelError, match="unexpected"):
        our_picture(folder)


def learn_a_word(folder):
    """A row more for the text encoder, as textual inversion leaves it."""
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    torch.manual_seed(2)
    encoder.resize_token_embeddings(NUMBER + 1)
    encoder.save_pretrained(folder / "text_encoder")
    change(folder / "scheduler/scheduler_config.json", clip_sample=False)


def as_transformers_saves_it(place):
    tokenizer = CLIPTokenizer.from_pretrained(str(SHIPPED))
    tokenizer.add_tokens([WORD])
    tokenizer.save_pretrained(place)


def as_a_list(place):
    shutil.copytree(SHIPPED, place)
    (place / "added_tokens.json").write_text(json.dumps({WORD: NUMBER}))


def as_a_decoder(place):
    shutil.copytree(SHIPPED, place)
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    token = {"content": WORD, "normalized": True, "special": False, **flags}
    change(place / "tokenizer_config.json", added_tokens_decoder={str(NUMBER): token})


@pytest.mark.parametrize("save", [as_transformers_saves_it, as_a_list, as_a_decoder])
@pytest.mark.some(1)
def test_a_word_that_was_learnt_is_one_token(folder, save):
    learn_a_word(folder)
    prompt = f"a {WORD} on a mat"
    plain = our_picture(folder, prompt=prompt)
    save(folder / "tokenizer")
    check_same(folder, plain, prompt=prompt)


def test_a_word_that_the_text_encoder_does_not_know_is_refused(folder):
    as_a_list(folder / "tokenizer")
    with pytest.raises(ModelError, match=f"number {NUMBER}, and the text encoder knows {NUMBER}"):
        our_picture(folder)


@torch.inference_mode()
def said_by_layer(folder, texts, layer):
    """What a layer says of texts, normalized as the last one is."""
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(str(SHIPPED))
    ids = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    return encoder.final_layer_norm(encoder(ids, output_hidden_states=True).hidden_states[-layer])


@pytest.mark.parametrize("turbo", ["true", "false"])
def test_another_layer_of_the_text_encoder(folder, turbo):
    """Pictures of both layers share a wave. The stock pipeline's own `clip_skip` doesn't go with transformers 5."""
    change(folder / "scheduler/scheduler_config.json", clip_sample=False)
    model = files.find_model(str(folder))
    execution = choices.decide(compose(["precision=full", "unet_bs=2", f"turbo={turbo}"]), model, "cpu", None)
    executor = Executor(model, execution)
    items = [
        make_item(number=n, prompt="white duck", seed=27, steps=5, extra=extra)
        for n, extra in enumerate([(("clip_skip", 2),), (), (("clip_skip", 1),)])
    ]
    found = {
        event.item.number: event.pixels
        for wave in waves.group(items, executor.execution)
        for event in executor.run(wave)
        if isinstance(event, Rendered)
    }
    wanted, unwanted = said_by_layer(folder, ["white duck", ""], 2)
    stock = stock_picture(folder, prompt=None, prompt_embeds=wanted[None], negative_prompt_embeds=unwanted[None])
    assert np.abs(found[0] - stock).max() <= 0.6
    assert np.array_equal(found[1], found[2]) and not np.array_equal(found[0], found[1])
