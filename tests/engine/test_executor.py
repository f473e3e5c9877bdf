import hashlib
import random
from dataclasses import replace

import numpy as np
import pytest
import single_file
import tiny
import torch
from builders import make_item
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from runner.engine import denoise as engine_denoise
from runner.engine import text as engine_text
from runner.engine.executor import Executor
from runner.errors import SettingError
from runner.events import ItemFailed, MemoryShort, Rendered, StepDone, WaveStarted
from runner.item import Part
from runner.model import files
from runner.model.tokens import SHIPPED
from runner.planning.costs import model_costs
from runner.planning.layouts import Execution
from runner.planning.waves import Wave, group
from runner.sampler_names import SAMPLERS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return files.find_model(str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")))


def make_executor(model, lanes=0, **changes):
    settings = {"dtype": "float32", "turbo": True, "unet_bs": 4} | changes
    return Executor(model, Execution(costs=model_costs(model, "cpu", settings["dtype"], lanes=lanes), **settings))


def make_wave(executor, items):
    layout = executor.execution.layout(items[0].width, items[0].height)
    return Wave(items=tuple(items), layout=replace(layout, wave_rows=100))


def many_items():
    """Every sampler, guided or not, several sizes, step counts and prompts."""
    return [
        make_item(
            number=number,
            seed=number,
            prompt=f"cat {number % 5}",
            sampler=[*SAMPLERS][number % len(SAMPLERS)],
            steps=2 + number % 3,
            scale=(7.5, 1.0, 3.0)[number % 3],
            width=128 if number % 7 == 0 else 64,
        )
        for number in range(26)
    ]


def render(executor, items):
    """SHA-256 of each item's pixels, by the item's number."""
    hashes = {}
    for wave in group(items, executor.execution):
        for event in executor.run(wave):
            assert not isinstance(event, ItemFailed), event.error
            if isinstance(event, Rendered):
                hashes[event.item.number] = hashlib.sha256(event.pixels.tobytes()).hexdigest()
    assert set(hashes) == {item.number for item in items}
    return hashes


@pytest.fixture(scope="module")
def whole(model):
    return render(make_executor(model), many_items())


def test_pictures_are_the_same_bytes_in_any_order(model, whole):
    items = many_items()
    random.Random(5).shuffle(items)
    assert render(make_executor(model), items) == whole


def test_pictures_are_the_same_bytes_alone(model, whole):
    executor = make_executor(model)
    for item in many_items()[::6]:
        assert render(executor, [item]) == {item.number: whole[item.number]}


def test_pictures_are_the_same_bytes_when_the_unet_is_streamed(model, whole):
    executor = make_executor(model, turbo=False)
    assert render(executor, many_items()) == whole
    assert len(set(executor.components["unet"].walk.loads.values())) == 1


@pytest.mark.some(1)
@pytest.mark.parametrize("turbo", [True, False])
def test_pictures_are_the_same_bytes_side_by_side(model, whole, system, turbo):
    """With one thread here, the calls of a wave on two lanes are those that one thread makes."""
    system(torch, get_num_threads=lambda: 2)
    system(torch, set_num_threads=lambda number: None)
    executor = make_executor(model, lanes=5, turbo=turbo)
    assert executor.components["unet"].place.count == 2  # no more than torch has threads
    assert executor.describe().threads == 1
    assert render(executor, many_items()) == whole
    assert render(executor, many_items()[:1]).items() < whole.items()


def test_rows_in_a_call_change_no_more_than_the_rounding(model):
    pixels = {}
    for unet_bs in (1, 4, 7):
        executor = make_executor(model, unet_bs=unet_bs)
        wave = make_wave(executor, [make_item(number=n, seed=n, steps=3) for n in range(4)])
        rendered = [event for event in executor.run(wave) if isinstance(event, Rendered)]
        pixels[unet_bs] = np.stack([event.pixels for event in rendered]).astype(int)
    assert np.abs(pixels[1] - pixels[4]).max() <= 1
    assert np.abs(pixels[7] - pixels[4]).max() <= 1


def test_the_picture_is_that_of_stock_diffusers(model):
    """Equal weights, noise, steps and scale, float32: ours is the stock pipeline's picture to the last bit but one."""
    text, unet, vae = tiny.components()
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=CLIPTokenizer.from_pretrained(str(SHIPPED)), unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(27))
    stock = pipeline(
        "white duck", num_inference_steps=50, guidance_scale=7.5, latents=noise, output_type="np", height=64, width=64,
        negative_prompt="blurry",
    ).images[0]  # fmt: skip
    item = make_item(prompt="white duck", negative="blurry", seed=27, steps=50)
    executor = make_executor(model, unet_bs=2)
    ours = [event for event in executor.run(make_wave(executor, [item])) if isinstance(event, Rendered)]
    assert np.abs(ours[0].pixels - stock * 255).max() <= 0.6


def test_prompts_weights_seeds_and_scales_all_have_their_say(model):
    parts = (Part(text="cat", weight=0.5), Part(text="duck", weight=0.5))
    changed = [
        {}, {"prompt": "dog"}, {"seed": 28}, {"scale": 9.0}, {"scale": 1.0}, {"negative": "blurry"}, {"parts": parts},
        {"sampler": "euler"}, {"steps": 4}, {"eta": 1.0},
    ]  # fmt: skip
    items = [make_item(**({"steps": 3, "number": n} | change)) for n, change in enumerate(changed)]
    assert len(set(render(make_executor(model), items).values())) == len(changed)


def test_a_text_is_encoded_once(model, monkeypatch):
    executor, encoded = make_executor(model), []
    original = engine_text.Texts.encode
    monkeypatch.setattr(
        engine_text.Texts, "encode", lambda self, texts, **k: encoded.extend(texts) or original(self, texts, **k)
    )
    render(executor, [make_item(number=n, seed=n, steps=1, prompt=f"cat {n % 2}") for n in range(20)])
    assert sorted(encoded) == ["", "cat 0", "cat 1"]


def test_events_tell_the_story_of_a_wave(model):
    items = (make_item(number=0, steps=2), make_item(number=1, steps=4))
    executor = make_executor(model)
    events = list(executor.run(make_wave(executor, items)))
    assert isinstance(events[0], WaveStarted)
    assert [(e.step, e.steps) for e in events if isinstance(e, StepDone)] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    rendered = [event for event in events if isinstance(event, Rendered)]
    assert {event.item.number for event in rendered} == {0, 1}
    assert all(set(event.seconds) == {"encode", "denoise", "decode"} for event in rendered)
    assert all(event.peak_bytes > 0 for event in rendered)


def test_a_picture_that_overflows_fails_alone(model, monkeypatch):
    original = engine_denoise.start_trajectory

    def start(items, *rest, **more):
        started = original(items, *rest, **more)
        for index, item in enumerate(items):
            if item.number == 1:
                started.call.latents[index] = float("nan")
        return started

    monkeypatch.setattr(engine_denoise, "start_trajectory", start)
    executor = make_executor(model)
    items = tuple(make_item(number=n, seed=n, steps=3) for n in range(4))
    events = list(executor.run(make_wave(executor, items)))
    failed = [event for event in events if isinstance(event, ItemFailed)]
    assert [event.item.number for event in failed] == [1]
    assert "not finite in float32" in str(failed[0].error)
    monkeypatch.undo()
    good = {e.item.number: hashlib.sha256(e.pixels.tobytes()).hexdigest() for e in events if isinstance(e, Rendered)}
    assert good == {n: h for n, h in render(executor, list(items)).items() if n != 1}


def test_an_error_in_one_picture_does_not_take_its_wave_down(model, no_noise):
    no_noise(2)
    items = tuple(make_item(number=n, seed=n, steps=2) for n in range(4))
    executor = make_executor(model)
    events = list(executor.run(make_wave(executor, items)))
    assert {e.item.number for e in events if isinstance(e, Rendered)} == {0, 1, 3}
    assert [(e.item.number, str(e.error)) for e in events if isinstance(e, ItemFailed)] == [(2, "no noise today")]


def short_of_memory(monkeypatch, executor, fits, error=torch.OutOfMemoryError):
    """Lets memory run out in every wave whose layout is not one that `fits`."""
    original = engine_denoise.denoise

    def denoise(unet, trajectories, unet_bs):
        rows = sum(len(trajectory.conditions) for trajectory in trajectories)
        if not fits(unet.mode, unet_bs, rows):
            raise error("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return original(unet, trajectories, unet_bs)

    monkeypatch.setattr(engine_denoise, "denoise", denoise)


@pytest.mark.some(1)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize("turbo", [None, False])
def test_running_out_of_memory_is_answered_with_less_of_it(model, monkeypatch, error, turbo):
    items = many_items()[1:7]  # of one size
    wanted = render(make_executor(model), items)
    executor = make_executor(model, turbo=turbo)
    short_of_memory(monkeypatch, executor, lambda mode, unet_bs, rows: mode == "walks" and rows <= 4, error)
    events = list(executor.run(make_wave(executor, items)))
    assert any("out of memory" in event.message for event in events if isinstance(event, MemoryShort))
    rendered = [event for event in events if isinstance(event, Rendered)]
    assert {e.item.number: hashlib.sha256(e.pixels.tobytes()).hexdigest() for e in rendered} == wanted
    assert all((event.making.unet_bs, event.making.turbo) == (4, False) for event in rendered)
    again = list(executor.run(make_wave(executor, items)))
    assert not any(isinstance(event, MemoryShort) for event in again)  # it has learned


def test_pictures_that_no_plan_has_memory_for_fail(model, monkeypatch):
    executor = make_executor(model)
    short_of_memory(monkeypatch, executor, lambda *_: False)
    events = list(executor.run(make_wave(executor, many_items()[1:4])))
    assert [event.item.number for event in events if isinstance(event, ItemFailed)] == [1, 2, 3]


def test_a_wave_that_held_more_than_the_ceiling_says_so_and_is_planned_anew(model):
    executor = make_executor(model, turbo=None)
    costs = replace(executor.execution.costs, base=0, measured={})  # as if the libraries took nothing
    executor.execution = replace(executor.execution, costs=costs)
    free = executor.execution.layout(64, 64)
    executor.execution = replace(executor.execution, limit=free.peak)
    items = many_items()[1:3]
    events = list(executor.run(make_wave(executor, items)))
    assert len([event for event in events if isinstance(event, Rendered)]) == 2
    assert ["more than memory=" in event.message for event in events if isinstance(event, MemoryShort)] == [True]


def test_what_is_learned_in_a_run_refuses_the_next_one_only(model):
    executor = make_executor(model, turbo=None)
    waves = list(group(many_items(), executor.execution))
    executor.execution = replace(executor.execution, limit=1 << 20)  # as if so much more than planned was held
    with pytest.raises(SettingError, match="at least"):
        executor.execution.layout(64, 64)
    done = [event for wave in waves for event in executor.run(wave) if isinstance(event, Rendered)]
    assert len(done) == len(many_items())


def test_half_precision_differs_by_rounding_only(model):
    item = make_item(steps=3)
    pictures = []
    for dtype in ("float32", "bfloat16"):
        executor = make_executor(model, dtype=dtype, unet_bs=2)
        events = executor.run(make_wave(executor, [item]))
        pictures += [event.pixels.astype(int) for event in events if isinstance(event, Rendered)]
    assert 0 < np.abs(pictures[0] - pictures[1]).max() < 40


def long_items():
    """Prompts of one, two and three pieces, alone and as parts of one prompt, some chunked and some cut."""
    texts = ["cat", " ".join(["white duck"] * 40), " ".join(["tall tree"] * 90)]
    items = [make_item(number=n, prompt=texts[n % 3], seed=n, steps=2, long_prompts="chunk") for n in range(7)]
    parts = (Part(text=texts[0], weight=0.25), Part(text=texts[2], weight=0.75))
    mixed = make_item(number=7, parts=parts, seed=7, steps=2, long_prompts="chunk", negative=texts[1])
    cut = make_item(number=8, prompt=texts[1], seed=1, steps=2, long_prompts="truncate")
    return [*items, mixed, cut]


def test_long_prompts_are_encoded_in_pieces_without_disturbing_their_neighbours(model):
    executor = make_executor(model)
    together = render(executor, long_items())
    for item in long_items()[::2]:
        assert render(make_executor(model, turbo=False), [item]) == {item.number: together[item.number]}
    assert len(set(together.values())) == 9
    short = make_item(number=0, prompt="cat", seed=0, steps=2, long_prompts="error")
    assert render(executor, [short])[0] == together[0]


@pytest.mark.parametrize(("version", "prediction"), [(1, "auto"), (2, "epsilon"), (2, "v_prediction")])
@pytest.mark.some(1)
def test_a_single_file_gives_the_folders_pictures(tmp_path, version, prediction):
    parts = single_file.small(version)
    told = "epsilon" if prediction == "auto" else prediction
    folder = single_file.save_folder(tmp_path / "folder", parts, prediction_type=told)
    if version == 2:
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer/tokenizer_config.json").write_text('{"pad_token": "!"}')
    torch.save({"state_dict": single_file.to_compvis(parts)}, tmp_path / "x.ckpt")
    items = many_items()[:4]
    wanted = render(make_executor(files.find_model(str(folder))), items)
    single = files.find_model(str(tmp_path / "x.ckpt"), prediction)
    for turbo in (True, False):
        executor = make_executor(single, turbo=turbo)
        assert executor.describe().prediction == told
        assert render(executor, items) == wanted


@pytest.mark.parametrize("turbo", [True, False])
def test_what_a_model_of_version_2_predicts_is_found_out(tmp_path, turbo):
    torch.save(single_file.to_compvis(single_file.small(2)), tmp_path / "x.ckpt")
    executor = make_executor(files.find_model(str(tmp_path / "x.ckpt")), turbo=turbo)
    assert executor.schedule.prediction == "v_prediction"  # nothing that was not trained returns its input


@torch.inference_mode()
def test_version_2_is_the_stock_pipelines(tmp_path):
    """One picture of a model in one file against diffusers' own pipeline, with v-prediction and the other padding."""
    text, unet, vae = parts = single_file.small(2)
    torch.save(single_file.to_compvis(parts), tmp_path / "x.ckpt")
    item = make_item(prompt="a tabby cat", sampler="ddim", steps=4, seed=5)
    stock = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=CLIPTokenizer.from_pretrained(str(SHIPPED), pad_token="!"), unet=unet,
        scheduler=DDIMScheduler.from_config(tiny.SCHEDULER, prediction_type="v_prediction", clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    wanted = stock(item.prompt, width=64, height=64, num_inference_steps=4, guidance_scale=7.5, latents=noise,
                   output_type="np").images[0]  # fmt: skip
    executor = make_executor(files.find_model(str(tmp_path / "x.ckpt"), "v_prediction"))
    [made] = [event.pixels for event in executor.run(make_wave(executor, [item])) if isinstance(event, Rendered)]
    assert np.abs(made.astype(int) - (wanted * 255).round().astype(int)).max() <= 1
