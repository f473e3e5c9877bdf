"""Inpainting: stock diffusers' pictures at equal noise in float32, and what is kept stays byte by byte."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import single_file
import tiny
import tiny_xl
import torch
from builders import make_item
from diffusers import (
    AutoencoderKL,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from fake_cuda import fake_cuda
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from runner.bench import bench
from runner.device.component import Component
from runner.engine import denoise, samplers
from runner.engine import text as engine_text
from runner.engine.executor import Executor
from runner.engine.pictures import Given
from runner.errors import ModelError
from runner.events import ItemFailed, Rendered
from runner.images import inits, masks
from runner.model import files
from runner.model.architecture import V1
from runner.model.modules import build_module
from runner.model.tokens import SHIPPED, ClipTokenizer
from runner.planning import costs, waves
from runner.planning.layouts import Execution
from runner.record import NONE, OPENVINO
from runner.sampler_names import SAMPLERS
from runner.settings import compose
from runner.verbs.doctor.probes import probe_model

SIZE, STEPS, LEAST = 128, 5, 60.0
WHITE = np.s_[32:96, 16:80]  # along the edges of latents
# With so much of the first training step's noise (0.03) these end, whatever is predicted.
ENDING_NOISY, LAST_NOISE = ("tcd", "dpm2", "dpm2_a"), 0.15
OF_V = {"prediction_type": "v_prediction"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An init picture and two masks, as what an item says of them."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "init.png")
    for name, white in (("mask.png", WHITE), ("other.png", np.s_[:40, 64:])):
        levels = np.zeros((SIZE, SIZE), np.uint8)
        levels[white] = 255
        Image.fromarray(levels).save(folder / name)
    return folder


def given(pictures, mask="mask.png", strength=0.6, blur=0, **more):
    """What makes an item one of inpainting."""
    extra = (("mask", str(pictures / mask)), ("mask_sha256", masks.examine(pictures / mask).sha256)) if mask else ()
    return {
        "init": str(pictures / "init.png"),
        "init_sha256": inits.examine(pictures / "init.png").sha256,
        "strength": strength,
        "extra": (*extra, ("mask_blur", blur)) if mask else (),
        **more,
    }


def for_inpainting(folder):
    """The model in a folder with a UNet of nine channels."""
    torch.manual_seed(3)
    config = dict(UNet2DConditionModel.load_config(folder / "unet")) | {"in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return folder


def change(folder, **said):
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tiny.save_model(tmp_path_factory.mktemp("models") / "plain")
    return change(folder, clip_sample=False, timestep_spacing="leading", set_alpha_to_one=True)


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    folder = for_inpainting(tiny.save_model(tmp_path_factory.mktemp("models") / "nine"))
    return change(folder, clip_sample=False, timestep_spacing="leading")


@pytest.fixture(scope="module")
def nine_xl(tmp_path_factory):
    folder = for_inpainting(tiny_xl.save_folder(tmp_path_factory.mktemp("models") / "xl"))
    return change(folder, clip_sample=False, timestep_spacing="leading")


def executor_of(path, turbo=True, compiler=NONE, device="cpu"):
    model = files.find_model(str(path))
    made = costs.model_costs(model, device, "float32", compiler=compiler)
    return Executor(model, Execution(dtype="float32", costs=made, unet_bs=4, turbo=turbo))


def wish(number=0, **changes):
    usual = {"prompt": "white duck", "seed": 27, "steps": STEPS, "width": SIZE, "height": SIZE}
    return make_item(number=number, **usual | changes)


def render(executor, items):
    """Each item's pixels by its number."""
    found = {}
    for wave in waves.group(items, executor.execution):
        for event in executor.run(wave):
            assert not isinstance(event, ItemFailed), event.error.trace
            if isinstance(event, Rendered):
                found[event.item.number] = event.pixels
    return found


def ours(path, **changes):
    return render(executor_of(path), [wish(**changes)])[0]


class Likeliest(AutoencoderKL):
    """Stock pipelines draw latents around those that the encoder finds likeliest; here they are these."""

    def encode(self, x, return_dict=True):
        return SimpleNamespace(latents=super().encode(x).latent_dist.mode())


def stock(folder, pictures, strength, scheduler="DDIMScheduler", kind=StableDiffusionInpaintPipeline):
    parts = {
        "vae": Likeliest.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(str(SHIPPED)),
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
        "scheduler": getattr(diffusers, scheduler).from_pretrained(folder / "scheduler"),
    }
    if kind is StableDiffusionInpaintPipeline:
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        tokenizer = CLIPTokenizer.from_pretrained(str(SHIPPED), pad_token="!")
        more = {"text_encoder_2": second, "tokenizer_2": tokenizer, "add_watermarker": False}
    pipeline = kind(**parts, **more)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        "white duck", image=Image.open(pictures / "init.png"), mask_image=Image.open(pictures / "mask.png"),
        strength=strength, num_inference_steps=STEPS, guidance_scale=7.5, height=SIZE, width=SIZE,
        generator=torch.Generator().manual_seed(27), output_type="np",
    )  # fmt: skip
    return made.images[0] * 255


def psnr(one, other):
    error = np.square(one.astype(np.float64) - other).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def check_same(found, wanted, pictures):
    """What is made anew is the stock picture's, and the rest is the init picture's."""
    init = np.asarray(Image.open(pictures / "init.png"))
    kept = np.ones((SIZE, SIZE), bool)
    kept[WHITE] = False
    assert np.array_equal(found[kept], init[kept])
    assert psnr(found[WHITE], wanted[WHITE].round()) >= LEAST
    assert psnr(found[WHITE], init[WHITE]) < 30


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_model_for_inpainting_gives_the_stock_picture(nine, pictures, strength):
    check_same(ours(nine, **given(pictures, strength=strength)), stock(nine, pictures, strength), pictures)


@pytest.mark.some(1)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_one_of_stable_diffusion_xl_gives_the_stock_picture(nine_xl, pictures, strength):
    wanted = stock(nine_xl, pictures, strength, kind=StableDiffusionXLInpaintPipeline)
    check_same(ours(nine_xl, **given(pictures, strength=strength)), wanted, pictures)


def test_any_other_model_gives_the_stock_picture(plain, pictures):
    """The stock pipeline replaces the latents after each step, which is the same with DDIM."""
    check_same(ours(plain, **given(pictures)), stock(plain, pictures, 0.6), pictures)


def test_with_a_prediction_of_v_as_well(tmp_path, pictures):
    folder = tiny.save_model(tmp_path / "v")
    change(folder, clip_sample=False, timestep_spacing="leading", set_alpha_to_one=True, **OF_V)
    check_same(ours(folder, **given(pictures)), stock(folder, pictures, 0.6), pictures)


def test_the_mask_has_a_say_in_the_picture(nine, plain, pictures):
    for folder in (nine, plain):
        one, other = (ours(folder, **given(pictures, mask=mask)) for mask in ("mask.png", None))
        assert psnr(one[WHITE], other[WHITE]) < LEAST


def with_nine(parts):
    unet = UNet2DConditionModel.from_config({**parts[-2].config, "in_channels": 9})
    return (*parts[:-2], unet.eval(), parts[-1])


def test_a_single_file_gives_the_folders_picture(tmp_path, pictures):
    parts = with_nine(single_file.small(1))
    folder = single_file.save_folder(tmp_path / "folder", parts)
    table = {name: tensor.contiguous() for name, tensor in single_file.to_compvis(parts).items()}
    save_file(table, tmp_path / "x.safetensors")
    one, other = (ours(path, **given(pictures)) for path in (folder, tmp_path / "x.safetensors"))
    assert np.array_equal(one, other)


def test_a_single_file_of_stable_diffusion_xl_gives_the_folders_picture(tmp_path, pictures):
    parts = with_nine(tiny_xl.components())
    folder = tiny_xl.save_folder(tmp_path / "folder", parts)
    file = tiny_xl.save_single_file(tmp_path / "x.safetensors", parts)
    one, other = (ours(path, **given(pictures)) for path in (folder, file))
    assert np.array_equal(one, other)


def test_what_a_model_of_version_2_predicts_is_found_out(tmp_path, pictures):
    parts = with_nine(single_file.small(2))
    table = {name: tensor.contiguous() for name, tensor in single_file.to_compvis(parts).items()}
    save_file(table, tmp_path / "x.safetensors")
    executor = executor_of(tmp_path / "x.safetensors")
    assert executor.schedule.prediction in ("epsilon", "v_prediction")
    assert render(executor, [wish(**given(pictures))])[0].shape == (SIZE, SIZE, 3)


def test_a_blurred_edge_fades_from_one_to_the_other(plain, pictures):
    sharp, soft = (ours(plain, **given(pictures, blur=blur)) for blur in (0, 4))
    init = np.asarray(Image.open(pictures / "init.png"))
    assert np.array_equal(soft[:16], init[:16]) and np.array_equal(soft[56:72, 40:56], sharp[56:72, 40:56])
    assert not np.array_equal(soft, sharp)


def many(pictures):
    """Every sampler, from noise, from a picture, and with two masks."""
    ways = [given(pictures), given(pictures, "other.png"), given(pictures, None), {}, given(pictures, strength=1.0)]
    names, scales = [*SAMPLERS], (7.5, 1.0, 3.0)
    return [
        wish(n, seed=n, sampler=names[n % len(names)], steps=3 + n % 2, scale=scales[n % 3], **ways[n % len(ways)])
        for n in range(2 * len(names))
    ]


@pytest.mark.some(1)
@pytest.mark.parametrize("kind", ["plain", "nine"])
def test_a_picture_is_the_same_bytes_alone_streamed_and_among_others(kind, pictures, request):
    folder, items = request.getfixturevalue(kind), many(pictures)
    together = render(executor_of(folder), items)
    streamed = render(executor_of(folder, turbo=False), items[::-1])
    assert together.keys() == streamed.keys() == {item.number for item in items}
    assert all(np.array_equal(pixels, streamed[number]) for number, pixels in together.items())
    executor = executor_of(folder)
    for item in items[::5] + items[1::7]:
        assert np.array_equal(render(executor, [item])[item.number], together[item.number])


def test_another_picture_of_the_wave_with_or_without_a_mask_changes_no_byte(plain, pictures):
    executor = executor_of(plain)
    masked, free = wish(1, **given(pictures)), wish(2, seed=5, **given(pictures, None))
    both = render(executor, [masked, free])
    assert np.array_equal(both[1], render(executor, [masked])[1])
    assert np.array_equal(both[2], render(executor, [free])[2])


def test_the_device_path_gives_the_same_bytes_in_both_modes_without_a_race(nine, pictures):
    found, items = [], [wish(1, **given(pictures)), wish(2, sampler="euler", **given(pictures, "other.png")), wish(3)]
    for turbo in (True, False):
        with fake_cuda() as device:
            found.append(render(executor_of(nine, turbo=turbo, device="cuda:0"), items))
        assert not device.violations
    assert all(np.array_equal(found[0][number], found[1][number]) for number in (1, 2, 3))


@pytest.mark.some(0)
def test_openvino_draws_the_same(nine, pictures, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    items = [wish(1, **given(pictures)), wish(2)]
    wanted, found = (render(executor_of(nine, compiler=compiler), items) for compiler in (NONE, OPENVINO))
    for number, pixels in wanted.items():
        assert np.abs(pixels.astype(int) - found[number]).max() <= 2


def test_a_masked_picture_is_encoded_once(nine, pictures):
    executor, encoded = executor_of(nine), []
    hook = executor.components["vae"].module.encoder.conv_in.register_forward_pre_hook(lambda *_: encoded.append(1))
    strengths = [wish(n, **given(pictures, strength=strength)) for n, strength in enumerate((0.4, 0.6, 1.0))]
    render(executor, [*strengths, wish(8), wish(9, seed=3)])
    hook.remove()
    before = len(encoded)
    again = render(executor, strengths)
    assert len(again) == 3 and len(encoded) == before


def test_doctor_calls_such_a_unet_and_bench_refuses_it(nine):
    found = {(probe.fragment, probe.dtype): probe for probe in probe_model(files.find_model(str(nine)), "cpu", None)}
    assert found["unet", "float32"].finite and not found["unet", "float32"].problem
    with pytest.raises(ModelError, match="is for inpainting, and bench compares"):
        bench.with_model(compose([f"model.path={nine}"]), print, lambda job, log: [])


@pytest.fixture(scope="module")
def components(plain):
    model = files.find_model(str(plain))
    how = {"device": torch.device("cpu"), "dtype": torch.float32, "mode": "stays"}
    return {name: Component(build_module(model, name), model.tensors[name], **how) for name in model.tensors}


@torch.inference_mode()
@pytest.mark.some(24)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_arrives_at_what_is_kept(components, sampler, strength, prediction):
    texts = engine_text.Texts(V1.texts, components, {"text_encoder": ClipTokenizer(SHIPPED)}).encode(["cat", ""])
    latents = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(1))
    kept = torch.zeros((1, 8, 8), dtype=torch.bool)
    kept[:, :5] = True
    item = make_item(prompt="cat", sampler=sampler, steps=8, strength=strength, init="x")
    schedule = samplers.NoiseSchedule(prediction=prediction, ends_clean=True)
    what = [Given(latents=latents, kept=kept), Given(latents=latents)]
    started = denoise.start_trajectory([item] * 2, schedule, texts, what, components["unet"], 8)
    list(denoise.denoise(components["unet"], [started], 4))
    assert started.latents is not None and started.latents.isfinite().all()
    distance = (started.latents - latents).abs()
    mixes = sampler == "plms" and prediction == "v_prediction"  # predictions of v from several times
    assert distance[0, :, :5].max() < (LAST_NOISE if sampler in ENDING_NOISY or mixes else 1e-5)
    assert distance[0, :, 5:].max() > 0.1 and distance[1, :, :5].max() > 0.1
