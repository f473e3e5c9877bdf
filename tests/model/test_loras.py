"""LoRAs of every form against merges made by hand, and what is refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import single_file
import tiny
import tiny_xl
import torch
from safetensors.torch import save_file
from torch import Tensor

from runner.errors import ModelError
from runner.model import deltas
from runner.model.files import ModelFiles, find_model
from runner.model.lora_names import layer_names
from runner.model.loras import fit, read_lora
from runner.model.modules import read_tensor

RANK = 4
LINEAR, CONV, CONV_1 = (
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.resnets.0.conv1",
    "mid_block.attentions.0.proj_in",
)
TEXT = "encoder.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A model of version 1."""
    return find_model(str(tiny.save_model(tmp_path_factory.mktemp("v1"))))


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A model of XL."""
    return find_model(str(tiny_xl.save_folder(tmp_path_factory.mktemp("xl"))))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.2


def shape_of(model: ModelFiles, layer: str, component: str = "unet") -> tuple[int, ...]:
    return model.tensors[component][f"{layer}.weight"].shape


def write(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    own = {name: each.clone().contiguous() for name, each in tensors.items()}
    save_file(own, folder / "lora.safetensors", metadata)
    return folder / "lora.safetensors"


def merged(model: ModelFiles, path: Path, tensor: str, component: str = "unet", weight: float = 1.0) -> Tensor:
    """A tensor as it is read with a LoRA."""
    changes = fit(read_lora(path), model)[component]
    return with_changes(model, component, tensor, [(changes[tensor], weight)])


def with_changes(model: ModelFiles, component: str, tensor: str, changes: list[Any]) -> Tensor:
    from dataclasses import replace

    own = tuple(replace(change, weight=weight) for change, weight in changes)
    return read_tensor(replace(model.tensors[component][tensor], changes=own), torch.float32)


def base(model: ModelFiles, tensor: str, component: str = "unet") -> Tensor:
    return read_tensor(model.tensors[component][tensor], torch.float32)


def low_rank(model: ModelFiles, layer: str, component: str = "unet", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Both matrices, as convolutions where the layer is one."""
    out, inner, *kernel = shape_of(model, layer, component)
    down, up = random(RANK, inner, *kernel, seed=seed), random(out, RANK, *[1] * len(kernel), seed=seed + 1)
    return down, up


def kohya(name: str, down: Tensor, up: Tensor, alpha: float | None = None) -> dict[str, Tensor]:
    more = {} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up} | more


# ---- names


@pytest.mark.parametrize("kind", ["1", "2", "xl"])
def test_layers_are_known_by_the_original_s_names(kind: str, tmp_path: Path) -> None:
    if kind == "xl":
        model = find_model(str(tiny_xl.save_folder(tmp_path / "m")))
    else:
        model = find_model(str(single_file.save_folder(tmp_path / "m", single_file.small(int(kind)))))
    names, layers = layer_names(model), model.configs["unet"]["layers_per_block"]
    told = [name for name in model.tensors["unet"] if not name.startswith("add_embedding")]
    assert len(told) > 100
    for tensor in told:
        original = single_file._unet_name(tensor, layers).rpartition(".")[0]
        if kind == "xl":  # whose uppermost level attends
            original = original.replace("output_blocks.2.1.conv", "output_blocks.2.2.conv")
        wanted = ("unet", tensor.rpartition(".")[0])
        assert names[f"diffusion_model.{original}"] == wanted
        assert names[f"lora_unet_{original.replace('.', '_')}"] == wanted


def test_every_layer_has_its_own_flat_name(xl: ModelFiles) -> None:
    names = layer_names(xl)
    for component in ("unet", "text_encoder", "text_encoder_2"):
        layers = {name.rpartition(".")[0] for name in xl.tensors[component]}
        assert layers <= {layer.name for layer in names.values() if layer.component == component}
    assert names["lora_unet_label_emb_0_2"].name == "add_embedding.linear_2"
    assert names["lora_te1_text_model_encoder_layers_0_mlp_fc1"] == ("text_encoder", "encoder.layers.0.mlp.fc1")
    assert names["lora_te2_text_projection"] == ("text_encoder_2", "text_projection")


P = "mid_block.attentions.0.transformer_blocks.0.attn1"
T = "text_model.encoder.layers.1.self_attn"
SPELLINGS = [
    ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", ".lora_down.weight", ".lora_up.weight"),
    ("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q", ".lora_down.weight", ".lora_up.weight"),
    ("lycoris_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", ".lora_down.weight", ".lora_up.weight"),
    (f"unet.{P}.to_q", ".lora_A.weight", ".lora_B.weight"),
    (f"unet.{P}.to_q", ".lora_A.default.weight", ".lora_B.default.weight"),
    (f"unet.{P}.to_q", ".lora.down.weight", ".lora.up.weight"),
    (f"unet.{P}.processor.to_q", "_lora.down.weight", "_lora.up.weight"),
    (f"{P}.processor.to_q", "_lora.down.weight", "_lora.up.weight"),
    (f"{P}.to_q", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (f"base_model.model.{P}.to_q", ".lora_A.weight", ".lora_B.weight"),
    ("diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q", ".lora_A.weight", ".lora_B.weight"),
]


@pytest.mark.parametrize(("name", "down", "up"), SPELLINGS)
def test_a_layer_by_any_tool_s_name(model: ModelFiles, tmp_path: Path, name: str, down: str, up: str) -> None:
    first, second = low_rank(model, f"{P}.to_q")
    path = write(tmp_path, {f"{name}{down}": first, f"{name}{up}": second})
    wanted = base(model, f"{P}.to_q.weight") + second @ first
    torch.testing.assert_close(merged(model, path, f"{P}.to_q.weight"), wanted, rtol=1e-6, atol=1e-6)


def test_the_last_layer_of_an_attention_by_its_older_names(model: ModelFiles, tmp_path: Path) -> None:
    first, second = low_rank(model, f"{P}.to_out.0")
    for owner in (f"unet.{P}.processor.to_out_lora", f"{P}.to_out_lora", f"unet.{P}.to_out.0.lora"):
        path = write(tmp_path, {f"{owner}.down.weight": first, f"{owner}.up.weight": second})
        assert list(fit(read_lora(path), model)["unet"]) == [f"{P}.to_out.0.weight"]


@pytest.mark.parametrize(
    "name",
    [
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_down.weight",
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_A.weight",
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_linear_layer.down.weight",
        "text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora.down.weight",
        "text_encoder.encoder.layers.1.self_attn.q_proj.lora_A.weight",
    ],
)
def test_a_layer_of_the_text_encoder(model: ModelFiles, tmp_path: Path, name: str) -> None:
    first, second = low_rank(model, TEXT, "text_encoder")
    up = name.replace("down", "up").replace("lora_A", "lora_B")
    path = write(tmp_path, {name: first, up: second})
    wanted = base(model, f"{TEXT}.weight", "text_encoder") + 0.5 * (second @ first)
    found = merged(model, path, f"{TEXT}.weight", "text_encoder", 0.5)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


# ---- forms


@pytest.mark.parametrize("layer", [LINEAR, CONV, CONV_1])
@pytest.mark.parametrize("alpha", [None, 1.0, 0.0, 2.5])
def test_two_matrices(model: ModelFiles, tmp_path: Path, layer: str, alpha: float | None) -> None:
    down, up = low_rank(model, layer)
    path = write(tmp_path, kohya(f"lora_unet_{layer.replace('.', '_')}", down, up, alpha))
    scale = alpha / RANK if alpha else 1.0
    wanted = base(model, f"{layer}.weight") + 0.7 * scale * (up.flatten(1) @ down.flatten(1)).reshape(
        shape_of(model, layer)
    )
    torch.testing.assert_close(merged(model, path, f"{layer}.weight", weight=0.7), wanted, rtol=1e-6, atol=1e-6)


def test_a_convolution_of_one_pixel_where_the_layer_is_linear(xl: ModelFiles, tmp_path: Path) -> None:
    down, up = low_rank(xl, CONV_1)
    assert down.dim() == 2
    path = write(tmp_path, kohya("lora_unet_middle_block_1_proj_in", down[..., None, None], up[..., None, None]))
    wanted = base(xl, f"{CONV_1}.weight") + up @ down
    torch.testing.assert_close(merged(xl, path, f"{CONV_1}.weight"), wanted, rtol=1e-6, atol=1e-6)


def test_locon_with_a_middle(model: ModelFiles, tmp_path: Path) -> None:
    out, inner, high, wide = shape_of(model, CONV)
    down, up = random(RANK, inner, 1, 1), random(out, RANK, 1, 1)
    mid = random(RANK, RANK, high, wide)
    name = f"lora_unet_{CONV.replace('.', '_')}"
    path = write(tmp_path, kohya(name, down, up, 2.0) | {f"{name}.lora_mid.weight": mid})
    change = torch.einsum("or,rskl,si->oikl", up[..., 0, 0], mid, down[..., 0, 0])
    wanted = base(model, f"{CONV}.weight") + 2 / RANK * change
    torch.testing.assert_close(merged(model, path, f"{CONV}.weight"), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [LINEAR, CONV, CONV_1])
def test_loha(model: ModelFiles, tmp_path: Path, layer: str) -> None:
    out, inner, *kernel = shape_of(model, layer)
    columns = inner * math.prod(kernel)
    parts = {f"hada_w{n}_a": random(out, RANK, seed=n) for n in (1, 2)}
    parts |= {f"hada_w{n}_b": random(RANK, columns, seed=n + 2) for n in (1, 2)}
    name = f"lora_unet_{layer.replace('.', '_')}"
    path = write(
        tmp_path, {f"{name}.{part}": each for part, each in parts.items()} | {f"{name}.alpha": torch.tensor(1)}
    )
    change = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    wanted = base(model, f"{layer}.weight") + change.reshape(shape_of(model, layer)) / RANK
    torch.testing.assert_close(merged(model, path, f"{layer}.weight"), wanted, rtol=1e-6, atol=1e-6)


def test_loha_with_cores(model: ModelFiles, tmp_path: Path) -> None:
    out, inner, *kernel = shape_of(model, CONV)
    name, parts, halves = f"lora_unet_{CONV.replace('.', '_')}", {}, []
    for n in (1, 2):
        core, left, right = (
            random(RANK, RANK, *kernel, seed=n), random(RANK, out, seed=n + 2), random(RANK, inner, seed=n + 4)
        )  # fmt: skip
        parts |= {f"{name}.hada_t{n}": core, f"{name}.hada_w{n}_a": left, f"{name}.hada_w{n}_b": right}
        halves.append(torch.einsum("ijkl,jr,ip->prkl", core, right, left))
    wanted = base(model, f"{CONV}.weight") + halves[0] * halves[1]
    torch.testing.assert_close(merged(model, write(tmp_path, parts), f"{CONV}.weight"), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", ["whole", "product"])
@pytest.mark.parametrize("second", ["whole", "product", "core"])
@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_lokr(model: ModelFiles, tmp_path: Path, first: str, second: str, layer: str) -> None:
    out, inner, *kernel = shape_of(model, layer)
    if second == "core" and not kernel:
        pytest.skip("only convolutions have cores")
    name, parts = f"lora_unet_{layer.replace('.', '_')}", dict[str, Tensor]()
    if first == "whole":
        one = parts["lokr_w1"] = random(4, 2)
    else:
        parts |= {"lokr_w1_a": random(4, RANK), "lokr_w1_b": random(RANK, 2)}
        one = parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    rows, columns = out // 4, inner // 2
    if second == "whole":
        two = parts["lokr_w2"] = random(rows, columns, *kernel)
    elif second == "product":
        parts |= {"lokr_w2_a": random(rows, RANK), "lokr_w2_b": random(RANK, columns * math.prod(kernel))}
        two = (parts["lokr_w2_a"] @ parts["lokr_w2_b"]).reshape(rows, columns, *kernel)
    else:
        parts |= {
            "lokr_t2": random(RANK, RANK, *kernel), "lokr_w2_a": random(RANK, rows), "lokr_w2_b": random(RANK, columns)
        }  # fmt: skip
        two = torch.einsum("ijkl,ip,jr->prkl", parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
    change = torch.kron(one.reshape(*one.shape, *[1] * len(kernel)), two.contiguous())
    scale = 1.0 if first == second == "whole" else 3 / RANK
    path = write(
        tmp_path, {f"{name}.{part}": each for part, each in parts.items()} | {f"{name}.alpha": torch.tensor(3.0)}
    )
    wanted = base(model, f"{layer}.weight") + scale * change
    torch.testing.assert_close(merged(model, path, f"{layer}.weight"), wanted, rtol=1e-5, atol=1e-6)


def test_the_change_itself_and_those_of_norms_and_biases(model: ModelFiles, tmp_path: Path) -> None:
    norm = "down_blocks.0.resnets.0.norm1"
    diff, bias, scale = random(*shape_of(model, CONV)), random(shape_of(model, CONV)[0]), random(*shape_of(model, norm))
    flat, flat_norm = (f"lora_unet_{name.replace('.', '_')}" for name in (CONV, norm))
    tensors = {
        f"{flat}.diff": diff,
        f"{flat}.diff_b": bias,
        f"{flat_norm}.w_norm": scale,
        f"{flat_norm}.b_norm": -scale,
    }
    path = write(tmp_path, tensors)
    for tensor, change in (
        (f"{CONV}.weight", diff), (f"{CONV}.bias", bias), (f"{norm}.weight", scale), (f"{norm}.bias", -scale)
    ):  # fmt: skip
        wanted = base(model, tensor) + 0.5 * change
        torch.testing.assert_close(merged(model, path, tensor, weight=0.5), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", [LINEAR, CONV])
@pytest.mark.parametrize("by", ["rows", "columns", "peft"])
@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_dora(model: ModelFiles, tmp_path: Path, layer: str, by: str, weight: float) -> None:
    own, kernel = base(model, f"{layer}.weight"), shape_of(model, layer)[2:]
    (down, up), name = low_rank(model, layer), f"lora_unet_{layer.replace('.', '_')}"
    after = own + 2 / RANK * (up.flatten(1) @ down.flatten(1)).reshape(own.shape)
    if by == "columns":
        lengths = random(1, own.shape[1], *[1] * len(kernel)).abs() + 1
        norm = after.transpose(0, 1).flatten(1).norm(dim=1).reshape(lengths.shape)
    else:
        lengths = random(own.shape[0], *[1] * (own.dim() - 1)).abs() + 1
        norm = after.flatten(1).norm(dim=1).reshape(lengths.shape)
    wanted = own + weight * (after * (lengths / norm) - own)
    if by == "peft":
        stored = lengths.flatten() if not kernel else lengths.transpose(0, 1)
        tensors = {f"unet.{layer}.lora_magnitude_vector": stored, f"unet.{layer}.lora_A.weight": down,
                   f"unet.{layer}.lora_B.weight": up, f"unet.{layer}.alpha": torch.tensor(2.0)}  # fmt: skip
    else:
        tensors = kohya(name, down, up, 2.0) | {f"{name}.dora_scale": lengths}
    found = merged(model, write(tmp_path, tensors), f"{layer}.weight", weight=weight)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stabilized", [False, True])
def test_what_peft_says_of_its_scale(model: ModelFiles, tmp_path: Path, stabilized: bool) -> None:
    down, up = low_rank(model, LINEAR)
    other, other_up = low_rank(model, CONV_1)
    said = {"unet.lora_alpha": 6, "unet.r": RANK, "unet.use_rslora": stabilized, "unet.alpha_pattern": {"proj_in": 3}}
    tensors = {f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": up,
               f"unet.{CONV_1}.lora_A.weight": other, f"unet.{CONV_1}.lora_B.weight": other_up}  # fmt: skip
    path = write(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(said)})
    over = math.sqrt(RANK) if stabilized else RANK
    changes = fit(read_lora(path), model)["unet"]
    assert changes[f"{LINEAR}.weight"].scale == pytest.approx(6 / over)
    assert changes[f"{CONV_1}.weight"].scale == pytest.approx(3 / over)


def test_a_folder_as_peft_writes_it(model: ModelFiles, tmp_path: Path) -> None:
    down, up = low_rank(model, LINEAR)
    name = f"base_model.model.{LINEAR}"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": RANK, "use_rslora": False}))
    wanted = base(model, f"{LINEAR}.weight") + 8 / RANK * up @ down
    torch.testing.assert_close(merged(model, tmp_path, f"{LINEAR}.weight"), wanted, rtol=1e-6, atol=1e-6)


def test_several_are_added_up_and_rounded_once(model: ModelFiles, tmp_path: Path) -> None:
    total, changes = base(model, f"{LINEAR}.weight"), []
    for n in range(3):
        down, up = low_rank(model, LINEAR, seed=10 * n)
        path = write(tmp_path / str(n), kohya(f"lora_unet_{LINEAR.replace('.', '_')}", down, up))
        changes.append((fit(read_lora(path), model)["unet"][f"{LINEAR}.weight"], 0.3 * n))
        total = total + 0.3 * n * (up @ down)
    found = with_changes(model, "unet", f"{LINEAR}.weight", changes)
    torch.testing.assert_close(found, total, rtol=1e-6, atol=1e-6)


def test_half_precision_is_rounded_at_the_end_alone(model: ModelFiles, tmp_path: Path) -> None:
    from dataclasses import replace

    down, up = low_rank(model, LINEAR)
    path = write(tmp_path, kohya(f"lora_unet_{LINEAR.replace('.', '_')}", down, up))
    change = fit(read_lora(path), model)["unet"][f"{LINEAR}.weight"]
    stored = replace(model.tensors["unet"][f"{LINEAR}.weight"], changes=(change,))
    exact = read_tensor(stored, torch.float32)
    assert torch.equal(read_tensor(stored, torch.bfloat16), exact.bfloat16())


def test_a_large_tensor_is_made_in_pieces(model: ModelFiles, tmp_path: Path, limit) -> None:
    down, up = low_rank(model, CONV)
    name = f"lora_unet_{CONV.replace('.', '_')}"
    path = write(
        tmp_path, kohya(name, down, up) | {f"{name}.dora_scale": random(1, shape_of(model, CONV)[1], 1, 1).abs()}
    )
    whole = merged(model, path, f"{CONV}.weight")
    limit(deltas, AT_ONCE=600)
    torch.testing.assert_close(merged(model, path, f"{CONV}.weight"), whole, rtol=1e-6, atol=1e-6)


def test_the_projection_of_a_single_file_of_xl_lies_transposed(tmp_path: Path) -> None:
    parts = tiny_xl.components()
    folder = find_model(str(tiny_xl.save_folder(tmp_path / "m", parts)))
    file = find_model(str(tiny_xl.save_single_file(tmp_path / "m.safetensors", parts)))
    out, inner = shape_of(folder, "text_projection", "text_encoder_2")
    path = write(tmp_path / "l", kohya("lora_te2_text_projection", random(RANK, inner), random(out, RANK)))
    first, second = (merged(each, path, "text_projection.weight", "text_encoder_2") for each in (folder, file))
    assert torch.equal(first, second)


# ---- what a file is


def test_the_fingerprint_is_of_the_tensors(model: ModelFiles, tmp_path: Path) -> None:
    down, up = low_rank(model, LINEAR)
    tensors = kohya(f"lora_unet_{LINEAR.replace('.', '_')}", down, up)
    one = read_lora(write(tmp_path / "a", tensors))
    other = read_lora(write(tmp_path / "b", tensors, {"ss_output_name": "ink"}))
    torch.save(tensors, tmp_path / "c.pt")
    assert one.sha256 == other.sha256 == read_lora(tmp_path / "c.pt").sha256
    assert one.file_hash == other.file_hash
    tensors = {name: each + 1e-3 for name, each in tensors.items()}
    assert read_lora(write(tmp_path / "d", tensors)).sha256 != one.sha256


@pytest.mark.parametrize(
    "said",
    [{"lora_alpha": "x"}, {"lora_alpha": 1e999}, {"alpha_pattern": {"(a+)+(b+)+$": 1}}, {"alpha_pattern": {"[": 1}},
     {"alpha_pattern": [1]}, {"lora_alpha": 10**400}],
)  # fmt: skip
def test_what_peft_says_may_be_hostile(model: ModelFiles, tmp_path: Path, said: dict[str, Any]) -> None:
    down, up = low_rank(model, LINEAR)
    tensors = {f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": up}
    path = write(tmp_path, tensors, {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in said.items()})})
    assert "can't be read" in (message := refused(model, path)) or "not a finite number" in message


def refused(model: ModelFiles, path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        fit(read_lora(path), model)
    message = str(caught.value)
    assert "\n" not in message and str(path.parent) in message
    return message


def test_what_is_refused(model: ModelFiles, tmp_path: Path) -> None:
    down, up = low_rank(model, LINEAR)
    name = f"lora_unet_{LINEAR.replace('.', '_')}"
    good = kohya(name, down, up)
    for tensors, said in (
        ({f"{name}.oft_blocks": down}, "no form|isn't known|is no LoRA"),
        (good | {f"{name}.something": down}, "something"),
        ({f"{name}.lora_down.weight": down}, "down, which is no form"),
        (good | {f"{name}.lora_up.weight": up[:, :2]}, "don't make a change"),
        (good | {f"{name}.lora_down.weight": down[:, :7]}, "don't make a change"),
        (good | {f"{name}.lora_up.weight": up.clone().fill_(math.nan)}, "lora_up.weight holds numbers that are not f"),
        (good | {f"{name}.lora_up.weight": up.to(torch.float8_e4m3fn)}, "F8_E4M3"),
        (kohya("lora_unet_down_blocks_9_attentions_0_proj_in", down, up), "no layer of the model"),
        (good | {f"{name}.dora_scale": random(3, 1)}, "dora_scale has 3"),
        (good | {f"unet.{LINEAR}.lora_A.weight": down}, "the same part"),
        (kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1", down, up), "a LoRA of Stable Diffusion XL"),
        (kohya("lora_unet_double_blocks_0_img_attn_proj", down, up), "a LoRA of Flux"),
        ({"model.diffusion_model.input_blocks.0.0.weight": down}, "a UNet alone"),
        ({"emb_params": down}, "an embedding"),
    ):  # fmt: skip
        assert re.search(said, refused(model, write(tmp_path, tensors)))


def test_files_that_are_no_lora(model: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<html>")
    assert "a web page" in refused(model, tmp_path / "page.safetensors")
    assert "no such file" in refused(model, tmp_path / "nothing.safetensors")
    (tmp_path / "folder").mkdir()
    assert "is a folder without" in refused(model, tmp_path / "folder")
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "empty" in refused(model, tmp_path / "empty.pt")


def test_embeddings_in_its_file_are_left_to_those_who_ask_for_them(model: ModelFiles, tmp_path: Path) -> None:
    down, up = low_rank(model, LINEAR)
    tensors = kohya(f"lora_unet_{LINEAR.replace('.', '_')}", down, up)
    both = tensors | {"bundle_emb.ink.string_to_param.*": random(2, 16)}
    alone, bundled = read_lora(write(tmp_path / "a", tensors)), read_lora(write(tmp_path / "b", both))
    assert alone.sha256 == bundled.sha256
    assert list(fit(bundled, model)) == ["unet"]
