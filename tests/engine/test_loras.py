"""LoRAs on a model that is loaded: in every way that weights can wait, the picture is that of a merged model."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import tiny
import tiny_xl
import torch
import transformers
from builders import make_item
from fake_cuda import fake_cuda
from safetensors.torch import load_file, save_file

from runner.device.component import Component
from runner.engine.conditions import empty, unet_call
from runner.engine.executor import Executor
from runner.events import ItemFailed, Rendered
from runner.item import Lora
from runner.model.files import ModelFiles, find_model
from runner.model.loras import fit, read_lora
from runner.model.modules import build_module
from runner.model.tokens import SHIPPED
from runner.planning import waves
from runner.planning.costs import STAYS, WALKS, model_costs
from runner.planning.layouts import Execution
from runner.record import INDUCTOR, OPENVINO

RANK = 4
builds = pytest.mark.skipif("RUNNER_FULL_SIZE" not in os.environ, reason="RUNNER_FULL_SIZE=1; takes a minute")
UNET_LAYERS = (
    "conv_in", "conv_out", "down_blocks.0.resnets.0.conv1", "up_blocks.1.upsamplers.0.conv",
    "down_blocks.1.attentions.0.proj_in", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    "up_blocks.2.attentions.1.transformer_blocks.0.ff.net.2",
)  # fmt: skip
TEXT_LAYERS = ("encoder.layers.0.mlp.fc1", "encoder.layers.1.self_attn.v_proj")
KINDS = {"down": ".lora_down.weight", "up": ".lora_up.weight"}


def make_lora(folder: Path, name: str, seed: int, unet=UNET_LAYERS, text=TEXT_LAYERS) -> Path:
    """A LoRA by kohya's names, for a model in a folder."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for component, layers, first in (("unet", unet, "lora_unet_"), ("text_encoder", text, "lora_te_text_model_")):
        [file] = (folder / component).glob("*.safetensors")
        weights = {key.removeprefix("text_model."): each for key, each in load_file(file).items()}
        for layer in layers:
            out, inner, *kernel = weights[f"{layer}.weight"].shape
            for kind, shape in (("down", (RANK, inner, *kernel)), ("up", (out, RANK, *[1] * len(kernel)))):
                made = torch.randn(shape, generator=generator) * (0.2 if kind == "down" else 0.1)
                found[f"{first}{layer.replace('.', '_')}{KINDS[kind]}"] = made
    save_file(found, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def merge(folder: Path, target: Path, *loras: tuple[Path, float, float]) -> ModelFiles:
    """The model with LoRAs added to its weights, each with a weight for the UNet and one for the text encoder."""
    shutil.copytree(folder, target)
    for component, first, place in (("unet", "lora_unet_", 1), ("text_encoder", "lora_te_text_model_", 2)):
        [file] = (target / component).glob("*.safetensors")
        weights = load_file(file)
        for lora in sorted(loras, key=lambda each: read_lora(each[0]).sha256):
            parts = load_file(lora[0])
            for key in weights:
                flat = key.removeprefix("text_model.").removesuffix(".weight").replace(".", "_")
                if f"{first}{flat}.lora_up.weight" in parts and key.endswith(".weight"):
                    up, down = (parts[f"{first}{flat}.lora_{kind}.weight"].flatten(1) for kind in ("up", "down"))
                    weights[key] = weights[key] + float(lora[place]) * (up @ down).reshape(weights[key].shape)
        save_file(weights, file)
    return find_model(str(target))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def ink(folder: Path) -> Path:
    return make_lora(folder, "ink", 1)


@pytest.fixture(scope="module")
def sharp(folder: Path) -> Path:
    return make_lora(folder, "sharp", 2, unet=UNET_LAYERS[2:7], text=())


def lora(path: Path, unet: float = 1.0, text: float | None = None) -> Lora:
    return Lora(path.stem, str(path), read_lora(path).sha256, "", unet, unet if text is None else text)


def make_executor(model: ModelFiles, dtype: str = "float32", compiler: str = "none", **changes) -> Executor:
    costs = model_costs(model, changes.pop("device", "cpu"), dtype, compiler=compiler)
    settings = {"turbo": None if compiler == OPENVINO else True, "unet_bs": 4} | changes
    return Executor(model, Execution(dtype=dtype, costs=costs, **settings))


def items_with(loras=(), count: int = 2, first: int = 0):
    return [
        make_item(number=first + n, seed=n, prompt=f"cat {n}", steps=3, sampler="euler", loras=tuple(loras))
        for n in range(count)
    ]


def render(executor: Executor, items) -> dict[int, np.ndarray]:
    """Each item's pixels, by its number."""
    found = {}
    for wave in waves.group(items, executor.execution):
        for event in executor.run(wave):
            assert not isinstance(event, ItemFailed), event.error.trace
            if isinstance(event, Rendered):
                found[event.item.number] = event.pixels.copy()
    assert found.keys() == {item.number for item in items}
    return found


def are_same(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a, b) for a, b in zip(one.values(), other.values(), strict=True)
    )


def are_close(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> bool:
    """Within a level, of which rounding the weights otherwise is no more."""
    pairs = zip(one.values(), other.values(), strict=True)
    return all(np.abs(a.astype(int) - b).max() <= 1 for a, b in pairs)


def test_a_picture_is_that_of_the_merged_model(folder: Path, ink: Path, sharp: Path, tmp_path: Path) -> None:
    plain = find_model(str(folder))
    both = [lora(ink, 0.8, 0.4), lora(sharp, -0.5)]
    merged = merge(folder, tmp_path / "merged", (ink, 0.8, 0.4), (sharp, -0.5, -0.5))
    found = render(make_executor(plain), items_with(both))
    assert are_close(found, render(make_executor(merged), items_with()))
    assert not are_close(found, render(make_executor(plain), items_with()))
    assert not are_close(found, render(make_executor(plain), items_with([lora(ink, 0.8), both[1]])))
    assert are_same(found, render(make_executor(plain), items_with(both[::-1])))


@pytest.mark.some(1)
@pytest.mark.parametrize("changes", [{"turbo": False}, {"turbo": False, "dtype": "bfloat16"}, {"dtype": "bfloat16"}])
def test_sets_change_and_each_picture_is_that_of_a_run_alone(folder: Path, ink: Path, sharp: Path, changes) -> None:
    model = find_model(str(folder))
    sets = [(), (lora(ink, 0.8),), (lora(ink, 0.8), lora(sharp, 0.5)), (lora(sharp, 0.5),), (lora(sharp, 1.0),), ()]
    items = [item for n, each in enumerate(sets) for item in items_with(each, first=10 * n)]
    together = render(make_executor(model, **changes), items)
    resident = {key: value for key, value in changes.items() if key != "turbo"}
    for n, each in enumerate(sets):
        alone = render(make_executor(model, **resident), items_with(each))
        assert are_same({k: v for k, v in together.items() if k // 10 == n}, alone)
    assert are_same({0: together[0]}, {0: together[50]}) and not are_same({0: together[0]}, {0: together[10]})


def test_units_that_stay_while_others_walk_are_changed_too(folder: Path, ink: Path, sharp: Path) -> None:
    model, dtype = find_model(str(folder)), torch.float32
    own, found = model.tensors["unet"], []
    changes = [fit(read_lora(path), model)["unet"] for path in (ink, sharp)]
    told = empty(model.configs["unet"], 1, 8)
    call = unet_call(torch.ones(1, 4, 8, 8), torch.ones(1), told)
    walking, resident = (
        Component(build_module(model, "unet"), own, device=torch.device("cpu"), dtype=dtype, mode=mode)
        for mode in (WALKS, STAYS)
    )
    walking.change(WALKS, kept=400_000)
    for each in ({}, changes[0], changes[1]):
        names = changes[0].keys() | changes[1].keys()
        tensors = dict(own) | {name: replace(own[name], changes=(change,)) for name, change in each.items()}
        for component in (walking, resident):
            component.replace(tensors, names)
        for _ in range(2):  # the first walk finds out which ones stay
            [made] = walking.call_all([call])
        assert walking.kept > 0
        [wanted] = resident.call_all([call])
        assert torch.equal(made, wanted)
        assert not any(torch.equal(made, other) for other in found)
        found.append(made)


def weights_of(executor: Executor) -> dict[str, int]:
    """The weights that are there, by the names of their layers; each is the same object as long as it isn't read."""
    layers = executor.components["unet"].module.named_modules()
    return {name: id(getattr(part, "packed", None) or part.weight) for name, part in layers if hasattr(part, "weight")}


def test_only_what_differs_is_read_again(folder: Path, sharp: Path) -> None:
    executor = make_executor(find_model(str(folder)))
    render(executor, items_with())
    before = weights_of(executor)
    held = [part for _, part in executor.components["unet"].module.named_parameters()]  # so that no id is used again
    render(executor, items_with([lora(sharp)]))
    after = weights_of(executor)
    assert {name for name in before if before[name] != after[name]} == set(UNET_LAYERS[2:7]) and held
    render(executor, items_with([lora(sharp)]))
    assert weights_of(executor) == after


def test_a_large_part_of_a_set_stays_where_the_rest_changes(folder: Path, ink: Path, sharp: Path) -> None:
    executor = make_executor(find_model(str(folder)))
    render(executor, items_with([lora(ink, 0.5), lora(sharp)]))
    before = executor.components["unet"].module.conv_in.packed
    render(executor, items_with([lora(ink, 0.5), lora(sharp, 0.1)]))
    assert executor.components["unet"].module.conv_in.packed is before


def test_a_file_that_changes_during_the_run_fails_its_pictures_alone(folder: Path, ink: Path, tmp_path: Path) -> None:
    model, copy = find_model(str(folder)), tmp_path / "copy.safetensors"
    shutil.copy(ink, copy)
    asked = lora(copy)
    save_file({key: each * 2 for key, each in load_file(ink).items()}, copy)
    os.utime(copy, (1, 1))  # clocks of file systems are coarse
    executor = make_executor(model)
    [wave] = waves.group(items_with([asked]), executor.execution)
    events = list(executor.run(wave))
    assert [str(e.error) for e in events if isinstance(e, ItemFailed)] == [
        f"{copy}: was changed since the run began"
    ] * 2
    assert are_same(render(executor, items_with()), render(make_executor(model), items_with()))


@pytest.mark.some(0)
@pytest.mark.parametrize("compiler", [OPENVINO, pytest.param(INDUCTOR, marks=builds)])
def test_a_compiled_unet_has_them_too(folder: Path, ink: Path, tmp_path: Path, monkeypatch, compiler: str) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, before = find_model(str(folder)), None
    executor = make_executor(model, compiler=compiler)
    for loras in ((lora(ink),), ()):
        found = render(executor, items_with(loras, count=1))
        assert are_close(found, render(make_executor(model), items_with(loras, count=1)))
        assert before is None or not are_close(found, before)
        before = found


@pytest.mark.parametrize("turbo", [True, False])
@pytest.mark.some(1)
def test_on_a_card(folder: Path, ink: Path, sharp: Path, turbo: bool) -> None:
    sets = [(lora(ink),), (lora(sharp, 0.5),), ()]
    items = [item for n, each in enumerate(sets) for item in items_with(each, count=1, first=10 * n)]
    with fake_cuda() as device:
        found = render(make_executor(find_model(str(folder)), device="cuda:0", turbo=turbo), items)
        alone = [
            render(make_executor(find_model(str(folder)), device="cuda:0"), items_with(each, count=1))
            for each in sets[1:]
        ]
    assert not device.violations
    for n, each in enumerate(alone, 1):
        assert are_same({k: v for k, v in found.items() if k // 10 == n}, each)


# ---- beside diffusers


def stock(folder: Path, path: Path, weight: float) -> np.ndarray:
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=transformers.CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(str(SHIPPED)),
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=diffusers.EulerDiscreteScheduler.from_pretrained(folder / "scheduler", timestep_spacing="linspace"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(path), adapter_name="it")
    pipeline.set_adapters("it", weight)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    return pipeline("cat 0", latents=noise, num_inference_steps=3, guidance_scale=7.5, height=64, width=64,
                    output_type="np").images[0] * 255  # fmt: skip


def by_peft(path: Path, target: Path) -> Path:
    """The same LoRA by the names that diffusers writes today."""
    found = {}
    for key, tensor in load_file(path).items():
        kind = ".lora_A.weight" if "lora_down" in key else ".lora_B.weight"
        flat = key.partition(".")[0]
        [layer] = [each for each in (*UNET_LAYERS, *TEXT_LAYERS) if flat.endswith(each.replace(".", "_"))]
        first = "unet." if flat.startswith("lora_unet_") else "text_encoder.text_model."
        found[f"{first}{layer}{kind}"] = tensor
    save_file(found, target)
    return target


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_the_picture_is_diffusers_own(folder: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip("peft")
    # diffusers can't read kohya's names of the text encoder with the transformers of today.
    path = make_lora(folder, "plain", 3, unet=UNET_LAYERS[4:], text=TEXT_LAYERS[1:] if form == "peft" else ())
    asked = path if form == "kohya" else by_peft(path, tmp_path / "peft.safetensors")
    found = render(make_executor(find_model(str(folder))), items_with([lora(asked, 0.7)], count=1))[0]
    assert np.abs(found - stock(folder, asked, 0.7)).max() <= 1.5
    assert np.abs(found - stock(folder, asked, 0.2)).max() > 1.5


def test_both_text_encoders_of_xl(tmp_path: Path) -> None:
    folder = tiny_xl.save_folder(tmp_path / "xl")
    model, found = find_model(str(folder)), {}
    for component, name, first in (
        ("text_encoder", "encoder.layers.1.mlp.fc1", "lora_te1_text_model_"),
        ("text_encoder_2", "text_model.encoder.layers.1.mlp.fc1", "lora_te2_"),
        ("text_encoder_2", "text_projection", "lora_te2_"),
    ):
        out, inner = model.tensors[component][f"{name}.weight"].shape
        flat = f"{first}{name.replace('.', '_')}"
        found |= {
            f"{flat}.lora_down.weight": torch.randn(RANK, inner),
            f"{flat}.lora_up.weight": torch.randn(out, RANK),
        }
    save_file(found, tmp_path / "te.safetensors")
    asked = lora(tmp_path / "te.safetensors", 0.0, 0.3)
    executor = make_executor(model)
    with_it, without = (render(executor, items_with(each)) for each in ((asked,), ()))
    alone = render(make_executor(model, turbo=False), items_with((asked,)))
    assert are_same(with_it, alone) and not are_close(with_it, without)
