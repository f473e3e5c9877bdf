"""Stable Diffusion XL: its pictures are stock diffusers', made from the same folder at equal noise in float32."""

from __future__ import annotations

import json
import math

import diffusers
import numpy as np
import pytest
import tiny_xl
import torch
from builders import make_item
from diffusers import AutoencoderKL, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from runner.engine.executor import Executor
from runner.errors import ModelError
from runner.events import ItemFailed, Rendered
from runner.images import inits
from runner.item import Part
from runner.model import files
from runner.model.fingerprints import fingerprints
from runner.model.tokens import SHIPPED, tokenizers
from runner.planning import choices, costs, waves
from runner.planning.layouts import Execution
from runner.settings import compose

SIZE, STEPS, LEAST = 128, 5, 60.0
FRAGMENTS = "text_encoder", "text_encoder_2", "unet_in", "unet_out", "vae"
SCHEDULERS = {
    "ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler", "euler_a": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_xl.save_folder(tmp_path_factory.mktemp("models") / "xl")


def pipeline_of(folder, kind=StableDiffusionXLPipeline, scheduler="DDIMScheduler", **said):
    noise = json.loads((folder / "scheduler/scheduler_config.json").read_text()) | said
    made = kind(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(str(SHIPPED)),
        tokenizer_2=CLIPTokenizer.from_pretrained(str(SHIPPED), pad_token="!"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=getattr(diffusers, scheduler).from_config(noise),
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def stock(folder, sampler="ddim", said=None, prompt="white duck", seed=27, **how):
    usual = {"timestep_spacing": "leading" if sampler == "ddim" else "linspace", "clip_sample": False}
    pipeline = pipeline_of(folder, scheduler=SCHEDULERS[sampler], **usual | (said or {}))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((1, 4, SIZE // 8, SIZE // 8), generator=generator)
    usual = {"num_inference_steps": STEPS, "guidance_scale": 7.5, "height": SIZE, "width": SIZE}
    return pipeline(prompt, latents=noise, generator=generator, output_type="np", **usual | how).images[0] * 255


def ours(folder, overrides=(), prompt="white duck", vae="", **how):
    model = files.find_model(str(folder), vae=vae)
    execution = choices.decide(compose(["precision=full", "unet_bs=2", *overrides]), model, "cpu", None)
    executor = Executor(model, execution)
    usual = {"prompt": prompt, "seed": 27, "steps": STEPS, "width": SIZE, "height": SIZE, "scale": 7.5}
    [wave] = waves.group([make_item(**usual | how)], executor.execution)
    events = list(executor.run(wave))
    for event in events:
        assert not isinstance(event, ItemFailed), event.error.trace
    [made] = [event.pixels for event in events if isinstance(event, Rendered)]
    return made


def psnr(one, other):
    error = np.square(one.astype(np.float64) - other).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def close(found, wanted, plain=None):
    """Whether a picture is the stock one, and isn't the one that would be made otherwise."""
    # Ours are whole levels, which alone is 58.9 dB away from what isn't rounded.
    return psnr(found, wanted.round()) >= LEAST and (plain is None or psnr(found, plain) < LEAST)


@pytest.mark.some(3)
@pytest.mark.parametrize("sampler", list(SCHEDULERS))
def test_every_scheduler_gives_the_stock_pictures(folder, sampler):
    assert close(ours(folder, sampler=sampler), stock(folder, sampler))


@pytest.mark.some(1)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_the_spacing_is_the_pictures(folder, sampler, spacing):
    found = ours(folder, sampler=sampler, extra=(("spacing", spacing),))
    assert close(found, stock(folder, sampler, {"timestep_spacing": spacing}))


def test_a_negative_prompt_is_encoded_and_none_is_zeros(folder):
    plain = ours(folder)
    assert close(ours(folder, negative="red"), stock(folder, negative_prompt="red"), plain)
    assert close(plain, stock(folder))


def test_no_negative_prompt_is_encoded_where_the_pipelines_file_says_so(tmp_path):
    index = {"force_zeros_for_empty_prompt": False}
    model = tiny_xl.save_folder(tmp_path / "xl", index=index)
    assert close(ours(model), stock(model, negative_prompt=""), stock(model))


def test_sizes_are_told(folder):
    extra = ("original_size", (1023, 517)), ("target_size", (640, 320)), ("crop_origin", (11, 7))
    how = {"original_size": (517, 1023), "target_size": (320, 640), "crops_coords_top_left": (7, 11)}
    assert close(ours(folder, extra=extra), stock(folder, **how), ours(folder))


def test_another_layer_of_the_text_encoders(folder):
    """The stock pipeline counts layers from the one before the last."""
    plain = ours(folder)
    assert close(ours(folder, extra=(("clip_skip", 3),)), stock(folder, clip_skip=1), plain)
    assert close(ours(folder, extra=(("clip_skip", 2),)), stock(folder))


def test_rescaled_guidance(folder):
    assert close(ours(folder, extra=(("rescale", 0.7),)), stock(folder, guidance_rescale=0.7), ours(folder))


@pytest.mark.some(1)
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_v_prediction_of_zero_snr(tmp_path, sampler):
    said = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    model = tiny_xl.save_folder(tmp_path / "xl", **said)
    found = ours(model, sampler=sampler, extra=(("rescale", 0.7),))
    assert close(found, stock(model, sampler, said, guidance_rescale=0.7))


def test_without_guidance(folder):
    assert close(ours(folder, scale=1.0), stock(folder, guidance_scale=1.0))


def test_weighted_prompts_add_up(folder):
    """Embeddings and pooled vectors by weight, as the pipeline takes them."""
    pipeline = pipeline_of(folder)
    cat, _, pooled_cat, _ = pipeline.encode_prompt("cat", do_classifier_free_guidance=False)
    dog, _, pooled_dog, _ = pipeline.encode_prompt("dog", do_classifier_free_guidance=False)
    how = {
        "prompt_embeds": cat * 0.75 + dog * 0.25,
        "pooled_prompt_embeds": pooled_cat * 0.75 + pooled_dog * 0.25,
        "negative_prompt_embeds": torch.zeros_like(cat),
        "negative_pooled_prompt_embeds": torch.zeros_like(pooled_cat),
    }
    parts = Part(text="cat", weight=0.75), Part(text="dog", weight=0.25)
    assert close(ours(folder, parts=parts), stock(folder, prompt=None, **how), ours(folder, prompt="cat"))


def test_long_prompts_in_pieces_on_both_encoders_alike(folder):
    long = " ".join(f"word{n}" for n in range(60))
    model = files.find_model(str(folder))
    pipeline = pipeline_of(folder)
    pieces = {name: reader.encode_chunks(long) for name, reader in tokenizers(model).items()}
    encoders = {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
    with torch.inference_mode():
        said = {n: encoders[n](torch.tensor(pieces[n]), output_hidden_states=True) for n in encoders}
    context = torch.cat([each.hidden_states[-2].flatten(0, 1) for each in said.values()], -1)[None]
    pooled = said["text_encoder_2"].text_embeds[:1]
    assert context.shape[1] > 77
    how = {
        "prompt_embeds": context, "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": torch.zeros_like(context), "negative_pooled_prompt_embeds": torch.zeros_like(pooled),
    }  # fmt: skip
    found = ours(folder, prompt=long, long_prompts="chunk", scale=1.0)
    assert close(found, stock(folder, prompt=None, guidance_scale=1.0, **how))


@pytest.mark.some(2)
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
def test_img2img(folder, tmp_path, strength):
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 255, (SIZE, SIZE, 3), np.uint8).repeat(1, 0))
    picture = picture.resize((8, 8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "init.png")
    found = ours(
        folder,
        init=str(tmp_path / "init.png"),
        init_sha256=inits.examine(tmp_path / "init.png").sha256,
        strength=strength,
        steps=8,
    )
    pipeline = pipeline_of(folder, StableDiffusionXLImg2ImgPipeline, timestep_spacing="leading", clip_sample=False)
    with torch.inference_mode():
        latents = pipeline.vae.encode(pipeline.image_processor.preprocess(picture)).latent_dist.mode() * 0.13025
    made = math.floor(8 * strength) if strength < 1 else 8
    pipeline.scheduler.set_timesteps(8)
    times = pipeline.scheduler.timesteps[8 - made :]
    noise = torch.randn((1, 4, SIZE // 8, SIZE // 8), generator=torch.Generator().manual_seed(27))
    noisy = noise if strength == 1 else pipeline.scheduler.add_noise(latents, noise, times[:1])
    stock_picture = _img2img(pipeline, noisy, times)
    assert close(found, stock_picture)


def _img2img(pipeline, latents, times):
    """The rest of the pipeline from latents on: by its own parts, since it draws noise by itself."""
    embeds = pipeline.encode_prompt("white duck", do_classifier_free_guidance=True)
    context, nothing, pooled, no_pooled = embeds
    ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32)
    with torch.inference_mode():
        for time in times:
            told = {"text_embeds": torch.cat([no_pooled, pooled]), "time_ids": torch.cat([ids, ids])}
            both = torch.cat([nothing, context])
            found = pipeline.unet(torch.cat([latents] * 2), time, both, added_cond_kwargs=told).sample
            unwanted, wanted = found.chunk(2)
            latents = pipeline.scheduler.step(unwanted + 7.5 * (wanted - unwanted), time, latents).prev_sample
        made = pipeline.vae.decode(latents / 0.13025).sample
    return ((made[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).numpy()


def test_streamed_and_resident_give_the_same_bytes(folder):
    assert np.array_equal(ours(folder, ["turbo=true"]), ours(folder, ["turbo=false"]))


@pytest.mark.some(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_single_file_gives_the_folders_pictures(tmp_path, dtype):
    parts = tiny_xl.components()
    model = tiny_xl.save_folder(tmp_path / "xl", parts, dtype=dtype)
    single = tiny_xl.save_single_file(tmp_path / "xl.safetensors", parts)
    assert np.array_equal(ours(single), ours(model))
    assert fingerprints(files.find_model(str(single))) == fingerprints(files.find_model(str(model)))
    assert list(fingerprints(files.find_model(str(single)))) == list(FRAGMENTS)


def test_what_a_file_says_of_its_prediction(tmp_path):
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    single = tiny_xl.save_single_file(tmp_path / "v.safetensors", **marks)
    said = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    model = tiny_xl.save_folder(tmp_path / "v", **said)
    assert np.array_equal(ours(single), ours(model))
    assert not np.array_equal(ours(single), ours(tiny_xl.save_single_file(tmp_path / "e.safetensors")))


@pytest.mark.some(1)
@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_few_steps_by_trajectory_consistency(folder, eta):
    pipeline = pipeline_of(folder, scheduler="TCDScheduler", clip_sample=False, set_alpha_to_one=True, steps_offset=0)
    generator = torch.Generator().manual_seed(27)
    noise = torch.randn((1, 4, SIZE // 8, SIZE // 8), generator=generator)
    how = {"num_inference_steps": 4, "guidance_scale": 1.0, "height": SIZE, "width": SIZE, "eta": eta}
    wanted = pipeline("white duck", latents=noise, generator=generator, output_type="np", **how).images[0] * 255
    assert close(ours(folder, sampler="tcd", steps=4, scale=1.0, eta=eta), wanted)


@pytest.mark.some(1)
@pytest.mark.parametrize("form", ["folder", "model", "file", "part"])
def test_another_autoencoder(folder, tmp_path, form):
    """As a diffusers folder, within a model's, and in a file, by ldm's names or diffusers'."""
    other = tiny_xl.components(seed=5)
    donor = tiny_xl.save_folder(tmp_path / "other", other)
    table = {
        name.removeprefix("first_stage_model."): t for name, t in tiny_xl.to_sgm(other).items() if "first_" in name
    }
    places = {
        "folder": donor / "vae",
        "model": donor,
        "file": tmp_path / "vae.safetensors",
        "part": tmp_path / "p.safetensors",
    }
    save_file({name: tensor.contiguous() for name, tensor in table.items()}, places["file"])
    save_file(other[3].state_dict(), places["part"])
    mixed = tiny_xl.save_folder(tmp_path / "mixed", (*tiny_xl.components()[:3], other[3]))
    found = ours(folder, vae=str(places[form]))
    assert np.array_equal(found, ours(mixed)) and not np.array_equal(found, ours(folder))
    ids = [fingerprints(files.find_model(str(folder), vae=vae)) for vae in ("", str(places[form]))]
    assert {key for key in FRAGMENTS if ids[0][key] != ids[1][key]} == {"vae"}


def test_an_autoencoder_that_overflows_is_in_float32(folder):
    model = files.find_model(str(folder))
    assert model.upcast and costs.upcasts(model, "float16") and not costs.upcasts(model, "bfloat16")
    made = costs.model_costs(model, "cuda:0", "float16")
    assert made.weights["vae"] == 4 * model.parameters("vae") and made.weights["unet"] == 2 * model.parameters("unet")
    assert made.in_dtype("float32").weights["vae"] == made.weights["vae"]
    executor = Executor(model, Execution(dtype="float16", costs=costs.model_costs(model, "cpu", "float16")))
    assert dict(executor.describe().dtypes) == dict.fromkeys(FRAGMENTS[:4], "float16") | {"vae": "float32"}
    assert executor.components["vae"].dtype == torch.float32


def test_smaller_models_say_their_depths_by_their_shapes(tmp_path):
    """As SSD-1B: other depths layer by layer, and a middle without a transformer."""
    depths = {
        "transformer_layers_per_block": [1, [1, 1], [2, 1]],
        "reverse_transformer_layers_per_block": [[2, 1, 1], [1, 1, 1], 1],
        "mid_block_type": "UNetMidBlock2D",
    }
    parts = tiny_xl.components(**depths)
    model = tiny_xl.save_folder(tmp_path / "small", parts)
    single = tiny_xl.save_single_file(tmp_path / "small.safetensors", parts)
    found = ours(single)
    assert np.array_equal(found, ours(model))
    assert close(found, stock(model))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table | {"edm_mean": torch.zeros(4)}, "Playground 2.5"),
        (lambda table: table | {"edm_vpred.sigma_max": torch.zeros(1)}, "CosXL"),
        (
            lambda table: {n: t for n, t in table.items() if "embedders.1" not in n},
            "no second text encoder",
        ),
        (
            lambda table: {n: t for n, t in table.items() if "embedders.0" not in n},
            "no text encoder",
        ),
        (
            lambda table: {
                n.replace("embedders.1.model", "embedders.0.model"): t
                for n, t in table.items() if "embedders.0" not in n
            } | {"conditioner.embedders.0.model.ln_final.weight": torch.zeros(1280)},
            "is a refiner of Stable Diffusion XL",
        ),
        (
            lambda table: table | {
                "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 7, 3, 3)
            },
            "models for depth, upscaling",
        ),
        (
            lambda table: table | {"conditioner.embedders.1.model.text_projection": torch.zeros(3)},
            "text_projection should have two dimensions",
        ),
        (
            lambda table: table | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(128, 99)},
            "takes 99 numbers beside the texts",
        ),
    ],
)  # fmt: skip
def test_what_is_no_model_of_this_family_is_named(tmp_path, change, said):
    table = change({name: tensor.contiguous() for name, tensor in tiny_xl.to_sgm(tiny_xl.components()).items()})
    save_file(table, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match=said):
        files.find_model(str(tmp_path / "odd.safetensors"))


def test_a_layer_that_a_text_encoder_lacks(folder):
    with pytest.raises(AssertionError, match="clip_skip=9: a text encoder of this model has 3 layers"):
        ours(folder, extra=(("clip_skip", 9),))
