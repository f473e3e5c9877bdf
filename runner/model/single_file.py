"""The names and configurations of Stable Diffusion in one file, as CompVis and Stability released it, v1 and v2.

Their tensors are diffusers' under other names: a table of the one becomes a table of the other, over the same bytes.
The sizes are read from the tensors' shapes; what shapes don't say is the same in all models of a version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.errors import ModelError
from runner.model.architecture import V1, V2, Family
from runner.model.configs import SCHEDULER
from runner.model.guess import seems_to_be
from runner.model.safetensors import StoredTensor
from runner.text import name_some

Table = Mapping[str, StoredTensor]

TEXT_V1, TEXT_V2 = "cond_stage_model.transformer.", "cond_stage_model.model."
UNET, VAE = "model.diffusion_model.", "first_stage_model."
LEFTOVERS = re.compile(
    r"model_ema\.|embedding_manager\.|first_stage_model\.loss\."
    r"|(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_\w+|posterior_\w+|lvlb_weights|logvar)$"
    r"|cond_stage_model\.(transformer\.(text_model\.)?embeddings\.position_ids|logit_scale|text_projection)$"
    r"|cond_stage_model\.model\.(visual\.|(logit_scale|text_projection|attn_mask)$)"
)
OPEN_CLIP_LAYERS = 23  # of 24: what the last one makes of a text is not used

NOISE = {key: rule.default for key, rule in SCHEDULER.items()} | {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
}  # fmt: skip
# Empty tensors by whose names ComfyUI knows what a model was trained for.
MARKERS: Mapping[str, Mapping[str, Any]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}

OPEN_CLIP_NAMES = (
    (re.compile(r"^positional_embedding$"), "embeddings.position_embedding.weight"),
    (re.compile(r"^token_embedding\."), "embeddings.token_embedding."),
    (re.compile(r"^ln_final\."), "final_layer_norm."),
    (re.compile(r"^transformer\.resblocks\."), "encoder.layers."),
    (re.compile(r"\.ln_([12])\."), r".layer_norm\1."),
    (re.compile(r"\.mlp\.c_fc\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.c_proj\."), ".mlp.fc2."),
    (re.compile(r"\.attn\."), ".self_attn."),
)
UNET_NAMES = (
    (re.compile(r"^time_embed\.0\."), "time_embedding.linear_1."),
    (re.compile(r"^time_embed\.2\."), "time_embedding.linear_2."),
    (re.compile(r"^time_embed\.cond_proj\."), "time_embedding.cond_proj."),
    (re.compile(r"^input_blocks\.0\.0\."), "conv_in."),
    (re.compile(r"^out\.0\."), "conv_norm_out."),
    (re.compile(r"^out\.2\."), "conv_out."),
    (re.compile(r"^middle_block\.0\."), "mid_block.resnets.0."),
    (re.compile(r"^middle_block\.1\."), "mid_block.attentions.0."),
    (re.compile(r"^middle_block\.2\."), "mid_block.resnets.1."),
    (re.compile(r"\.in_layers\.0\."), ".norm1."),
    (re.compile(r"\.in_layers\.2\."), ".conv1."),
    (re.compile(r"\.out_layers\.0\."), ".norm2."),
    (re.compile(r"\.out_layers\.3\."), ".conv2."),
    (re.compile(r"\.emb_layers\.1\."), ".time_emb_proj."),
    (re.compile(r"\.skip_connection\."), ".conv_shortcut."),
)
UNET_BLOCK = re.compile(r"^(input|output)_blocks\.(\d{1,4})\.([012])\.(.+)$")
VAE_NAMES = (
    (re.compile(r"\.norm_out\."), ".conv_norm_out."),
    (re.compile(r"\.mid\.block_1\."), ".mid_block.resnets.0."),
    (re.compile(r"\.mid\.block_2\."), ".mid_block.resnets.1."),
    (re.compile(r"\.mid\.attn_1\.norm\."), ".mid_block.attentions.0.group_norm."),
    (re.compile(r"\.mid\.attn_1\.([qkv])\."), r".mid_block.attentions.0.to_\1."),
    (re.compile(r"\.mid\.attn_1\.proj_out\."), ".mid_block.attentions.0.to_out.0."),
    (re.compile(r"\.down\.(\d+)\.block\."), r".down_blocks.\1.resnets."),
    (re.compile(r"\.up\.(\d+)\.block\."), r".up_blocks.\1.resnets."),
    (re.compile(r"\.down\.(\d+)\.downsample\."), r".down_blocks.\1.downsamplers.0."),
    (re.compile(r"\.up\.(\d+)\.upsample\."), r".up_blocks.\1.upsamplers.0."),
    (re.compile(r"\.nin_shortcut\."), ".conv_shortcut."),
)
VAE_UP_BLOCK = re.compile(r"^decoder\.up_blocks\.(\d{1,4})\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleFile:
    """A model by diffusers' names."""

    configs: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Table]
    family: Family


def read_single_file(file: Path, found: Table) -> SingleFile:
    """The model in the tensors of a file.

    Raises:
        ModelError: they are not those of Stable Diffusion v1 or v2; the message lists what is unexpected or missing.
    """
    told = [values for name, values in MARKERS.items() if name in found]
    table = {name: tensor for name, tensor in found.items() if not LEFTOVERS.match(name) and name not in MARKERS}
    text = TEXT_V2 if any(name.startswith(TEXT_V2) for name in table) else TEXT_V1
    _check_parts(file, table, text)
    try:
        made = _make_model(file, table, text)
    except KeyError as error:
        raise ModelError(f"{file}: missing: {error.args[0]}") from error
    except (ValueError, IndexError) as error:
        raise ModelError(f"{file}: a weight has a shape that it can't have ({error})") from error
    scheduler = dict(made.configs["scheduler"])
    for values in told:
        scheduler |= values
    return replace(made, configs={**made.configs, "scheduler": scheduler})


def _make_model(file: Path, table: Table, text: str) -> SingleFile:
    family = V2 if text == TEXT_V2 else V1
    text_part, unet_part, vae_part = (_part(table, prefix) for prefix in (text, UNET, VAE))
    tensors = {
        "text_encoder": _collect(file, _open_clip(text_part) if family is V2 else _clip(text_part)),
        "unet": _collect(file, _unet(unet_part)),
        "vae": _collect(file, _vae(vae_part)),
    }
    configs = {
        "text_encoder": _text_config(tensors["text_encoder"], family),
        "unet": _unet_config(tensors["unet"], family),
        "vae": _vae_config(tensors["vae"]),
        "scheduler": NOISE | {"prediction_type": family.prediction},
    }
    return SingleFile(configs=configs, tensors=tensors, family=family)


def _check_parts(file: Path, table: Table, text: str) -> None:
    parts = {text: "text encoder", UNET: "UNet", VAE: "autoencoder"}
    missing = [f"{part} ({prefix}*)" for prefix, part in parts.items() if not any(n.startswith(prefix) for n in table)]
    if missing:
        seems = seems_to_be(table)
        seems = f"; it seems to be {seems}" if seems else ""
        raise ModelError(
            f"{file}: is not a whole model of Stable Diffusion v1 or v2, it has no {' and no '.join(missing)}{seems}"
        )
    unexpected = sorted(name for name in table if not name.startswith(tuple(parts)))
    if unexpected:
        raise ModelError(f"{file}: has weights that Stable Diffusion hasn't; unexpected: {name_some(unexpected)}")


def _part(table: Table, prefix: str) -> dict[str, StoredTensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in table.items() if name.startswith(prefix)}


def _collect(file: Path, renamed: Iterator[tuple[str, StoredTensor]]) -> dict[str, StoredTensor]:
    table: dict[str, StoredTensor] = {}
    for name, tensor in renamed:
        if name in table:
            raise ModelError(f"{file}: has the weight {name} twice, under two names")
        table[name] = tensor
    return table


def _substitute(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name


def _clip(part: Table) -> Iterator[tuple[str, StoredTensor]]:
    for name, tensor in part.items():
        yield name.removeprefix("text_model."), tensor


def _open_clip(part: Table) -> Iterator[tuple[str, StoredTensor]]:
    for name, tensor in part.items():
        layer = re.match(r"transformer\.resblocks\.(\d{1,4})\.", name)
        if layer and int(layer[1]) >= OPEN_CLIP_LAYERS:
            continue
        renamed = _substitute(name, OPEN_CLIP_NAMES)
        owner, _, kind = renamed.rpartition(".in_proj_")
        if owner:
            yield from (
                (f"{owner}.{key}_proj.{kind}", third) for key, third in zip("qkv", _thirds(tensor), strict=True)
            )
        else:
            yield renamed, tensor


def _thirds(tensor: StoredTensor) -> Iterator[StoredTensor]:
    """The three parts of a tensor [3C, ...], which lie one behind the other."""
    rows, left = divmod(tensor.shape[0], 3)
    if left:
        raise ValueError("in_proj should have three equal parts")
    size = (tensor.end - tensor.start) // 3
    for start in (tensor.start + part * size for part in range(3)):
        yield replace(tensor, shape=(rows, *tensor.shape[1:]), start=start, end=start + size)


def _unet(part: Table) -> Iterator[tuple[str, StoredTensor]]:
    blocks = 1 + max((int(m[2]) for m in map(UNET_BLOCK.match, part) if m and m[1] == "input"), default=0)
    # A level of the UNet is its residual layers and then a downsampler, which the last level doesn't have.
    a_level = next((n for n in range(1, blocks) if f"input_blocks.{n}.0.op.weight" in part), blocks)
    for name, tensor in part.items():
        renamed = _substitute(name, UNET_NAMES)
        if match := UNET_BLOCK.match(renamed):
            renamed = _block_name(match, a_level)
        yield renamed, tensor


def _block_name(match: re.Match[str], a_level: int) -> str:
    side, number, place, rest = match.groups()
    block, layer = divmod(int(number) - (side == "input"), a_level)
    if rest.startswith("op."):
        return f"down_blocks.{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"up_blocks.{block}.upsamplers.0.{rest}"
    kind = "resnets" if place == "0" else "attentions"
    return f"{'down' if side == 'input' else 'up'}_blocks.{block}.{kind}.{layer}.{rest}"


def _vae(part: Table) -> Iterator[tuple[str, StoredTensor]]:
    renamed = {_substitute(name, VAE_NAMES): tensor for name, tensor in part.items()}
    last = max((int(match[1]) for match in map(VAE_UP_BLOCK.match, renamed) if match), default=0)
    for name, tensor in renamed.items():
        # CompVis numbers the decoder's levels by their size, diffusers by their order.
        name = VAE_UP_BLOCK.sub(lambda match: f"decoder.up_blocks.{last - int(match[1])}.", name)
        if ".attentions." in name and tensor.shape[2:] == (1, 1):
            tensor = replace(tensor, shape=tensor.shape[:2])  # a convolution of one pixel is a linear layer
        yield name, tensor


def _count(table: Table, pattern: str) -> int:
    """How many numbers, from 0 on, make `pattern` the beginning of a name."""
    return len({match[0] for name in table if (match := re.match(pattern, name))})


def _text_config(table: Table, family: Family) -> dict[str, Any]:
    vocabulary, width = table["embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": table["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(table, r"encoder\.layers\.\d+\."),
        "num_attention_heads": max(1, width // family.head_size),
        "max_position_embeddings": table["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": family.text.activation,
    }


def _unet_config(table: Table, family: Family) -> dict[str, Any]:
    levels = range(_count(table, r"down_blocks\.\d+\."))
    channels = [table[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels]
    attends = [f"down_blocks.{level}.attentions.0.norm.weight" in table for level in levels]
    block = "mid_block.attentions.0"
    guidance = table.get("time_embedding.cond_proj.weight")
    return {
        "in_channels": table["conv_in.weight"].shape[1],
        "time_cond_proj_dim": guidance.shape[1] if guidance else None,
        "out_channels": table["conv_out.weight"].shape[0],
        "block_out_channels": channels,
        "layers_per_block": _count(table, r"down_blocks\.0\.resnets\.\d+\."),
        "down_block_types": ["CrossAttnDownBlock2D" if attended else "DownBlock2D" for attended in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attended else "UpBlock2D" for attended in attends[::-1]],
        "cross_attention_dim": table[f"{block}.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        # diffusers means the number of heads, whatever it calls them
        "attention_head_dim": family.heads or [max(1, width // family.head_size) for width in channels],
        "use_linear_projection": len(table[f"{block}.proj_in.weight"].shape) == 2,
    }


def _vae_config(table: Table) -> dict[str, Any]:
    levels = range(_count(table, r"encoder\.down_blocks\.\d+\."))
    return {
        "in_channels": table["encoder.conv_in.weight"].shape[1],
        "out_channels": table["decoder.conv_out.weight"].shape[0],
        "latent_channels": table["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [table[f"encoder.down_blocks.{n}.resnets.0.conv1.weight"].shape[0] for n in levels],
        "layers_per_block": _count(table, r"encoder\.down_blocks\.0\.resnets\.\d+\."),
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "scaling_factor": 0.18215,
    }
