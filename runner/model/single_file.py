"""The names and configurations of Stable Diffusion in one file, as CompVis and Stability released it: v1, v2 and XL.

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
from runner.model.architecture import V1, V2, XL, Family, Text
from runner.model.configs import SCHEDULER
from runner.model.guess import seems_to_be
from runner.model.safetensors import StoredTensor
from runner.text import name_some

Table = Mapping[str, StoredTensor]

TEXT_V1, TEXT_V2 = "cond_stage_model.transformer.", "cond_stage_model.model."
TEXT_XL, TEXT_XL_2 = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
TEXT_V2_SGM, REFINER_WIDTH = "conditioner.embedders.0.model.", 1280
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXTS: Mapping[str, Mapping[str, str]] = {  # the beginnings of the text encoders' names
    V1.name: {"text_encoder": TEXT_V1},
    V2.name: {"text_encoder": TEXT_V2},
    XL.name: {"text_encoder": TEXT_XL, "text_encoder_2": TEXT_XL_2},
}
LEFTOVERS = re.compile(
    r"model_ema\.|embedding_manager\.|denoiser\.|first_stage_model\.loss\."
    r"|(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_\w+|posterior_\w+|lvlb_weights|logvar)$"
    r"|cond_stage_model\.(transformer\.(text_model\.)?embeddings\.position_ids|logit_scale|text_projection)$"
    r"|cond_stage_model\.model\.(visual\.|(logit_scale|text_projection|attn_mask)$)"
    r"|conditioner\.embedders\.0\.(transformer\.(text_model\.embeddings\.position_ids|text_projection.*)|logit_scale)$"
    r"|conditioner\.embedders\.1\.model\.(visual\.|(logit_scale|attn_mask)$)"
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
TEXT_HEAD = 64  # channels
SIZES = 6  # that a UNet is told: height and width of the original, the crop's top and left, height and width wanted
REFUSED_MARKERS = {"edm_vpred.": "CosXL", "edm_mean": "Playground 2.5"}  # whose noise isn't by betas

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
    (re.compile(r"^label_emb\.0\.0\."), "add_embedding.linear_1."),
    (re.compile(r"^label_emb\.0\.2\."), "add_embedding.linear_2."),
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
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
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
        ModelError: they are not those of Stable Diffusion; the message lists what is unexpected or missing.
    """
    told = [values for name, values in MARKERS.items() if name in found]
    table: Table = {name: tensor for name, tensor in found.items() if not LEFTOVERS.match(name) and name not in MARKERS}
    for beginning, kind in REFUSED_MARKERS.items():
        if any(name.startswith(beginning) for name in table):
            raise ModelError(f"{file}: is a model of the kind of {kind} (it has {beginning}*), which is not known")
    table = _from_sgm(file, table)
    family = _family(table)
    _check_parts(file, table, family)
    try:
        made = _make_model(file, table, family)
    except KeyError as error:
        raise ModelError(f"{file}: missing: {error.args[0]}") from error
    except (ValueError, IndexError) as error:
        raise ModelError(f"{file}: a weight has a shape that it can't have ({error})") from error
    scheduler = dict(made.configs["scheduler"])
    for values in told:
        scheduler |= values
    return replace(made, configs={**made.configs, "scheduler": scheduler})


def read_autoencoder(file: Path, found: Table, family: Family) -> tuple[Mapping[str, Any], Table]:
    """The configuration and the tensors of an autoencoder alone in a file, by any of its names.

    Raises:
        ModelError: they are not those of one.
    """
    named = _part(found, VAE) or found
    part = {name: tensor for name, tensor in named.items() if name.startswith(VAE_PARTS)}
    try:
        tensors = _collect(file, _vae(part)) if any(".mid." in name for name in part) else dict(part)
        return _vae_config(tensors, family), tensors
    except KeyError as error:
        seems = seems_to_be(found)
        raise ModelError(
            f"{file}: is not an autoencoder, it has no {error.args[0]}{f'; it seems to be {seems}' if seems else ''}"
        ) from error
    except (ValueError, IndexError) as error:
        raise ModelError(f"{file}: a weight has a shape that it can't have ({error})") from error


def _from_sgm(file: Path, table: Table) -> Table:
    """The same, with the names that CompVis gave to version 2, where Stability's later code saved it."""
    norm = table.get(f"{TEXT_V2_SGM}ln_final.weight")
    if norm is None:
        return table
    if norm.shape == (REFINER_WIDTH,):
        raise ModelError(f"{file}: is a refiner of Stable Diffusion XL, which is not known; take the base model")
    return {
        f"{TEXT_V2}{name.removeprefix(TEXT_V2_SGM)}" if name.startswith(TEXT_V2_SGM) else name: tensor
        for name, tensor in table.items()
        if not re.match(rf"{re.escape(TEXT_V2_SGM)}(logit_scale|text_projection|attn_mask)$", name)
    }


def _family(table: Table) -> Family:
    if any(name.startswith((TEXT_XL, TEXT_XL_2)) for name in table):
        return XL
    return V2 if any(name.startswith(TEXT_V2) for name in table) else V1


def _make_model(file: Path, table: Table, family: Family) -> SingleFile:
    texts = {
        TEXT_V1: _clip, TEXT_V2: _open_clip, TEXT_XL: _clip, TEXT_XL_2: _projecting_open_clip,
    }  # fmt: skip
    tensors = {
        component: _collect(file, texts[prefix](_part(table, prefix)))
        for component, prefix in TEXTS[family.name].items()
    }
    tensors |= {"unet": _collect(file, _unet(_part(table, UNET))), "vae": _collect(file, _vae(_part(table, VAE)))}
    configs = {component: _text_config(tensors[component], text) for component, text in family.texts.items()}
    configs |= {
        "unet": _unet_config(tensors["unet"], family, configs),
        "vae": _vae_config(tensors["vae"], family),
        "scheduler": NOISE | {"prediction_type": family.prediction},
    }
    return SingleFile(configs=configs, tensors=tensors, family=family)


def _check_parts(file: Path, table: Table, family: Family) -> None:
    titles = zip(TEXTS[family.name].values(), ("text encoder", "second text encoder"), strict=False)
    parts = {**dict(titles), UNET: "UNet", VAE: "autoencoder"}
    missing = [f"{part} ({prefix}*)" for prefix, part in parts.items() if not any(n.startswith(prefix) for n in table)]
    if missing:
        seems = seems_to_be(table)
        seems = f"; it seems to be {seems}" if seems else ""
        raise ModelError(f"{file}: is not a whole model of {family.name}, it has no {' and no '.join(missing)}{seems}")
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


def _projecting_open_clip(part: Table) -> Iterator[tuple[str, StoredTensor]]:
    """All of it, with the projection, which open_clip multiplies from the other side."""
    for name, tensor in _open_clip(part, layers=None):
        if name != "text_projection":
            yield f"text_model.{name}", tensor
        elif len(tensor.shape) == 2:
            yield "text_projection.weight", replace(tensor, shape=tensor.shape[::-1], transposed=True)
        else:
            raise ValueError("text_projection should have two dimensions")


def _open_clip(part: Table, layers: int | None = OPEN_CLIP_LAYERS) -> Iterator[tuple[str, StoredTensor]]:
    for name, tensor in part.items():
        layer = re.match(r"transformer\.resblocks\.(\d{1,4})\.", name)
        if layer and layers is not None and int(layer[1]) >= layers:
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


def _text_config(table: Table, text: Text) -> dict[str, Any]:
    within = "text_model." if text.pooled else ""
    vocabulary, width = table[f"{within}embeddings.token_embedding.weight"].shape
    projected = {"projection_dim": table["text_projection.weight"].shape[0]} if text.pooled else {}
    return projected | {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": table[f"{within}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(table, rf"{re.escape(within)}encoder\.layers\.\d+\."),
        "num_attention_heads": max(1, width // TEXT_HEAD),
        "max_position_embeddings": table[f"{within}embeddings.position_embedding.weight"].shape[0],
        "hidden_act": text.activation,
    }


def _unet_config(table: Table, family: Family, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    levels = range(_count(table, r"down_blocks\.\d+\."))
    channels = [table[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels]
    attends = [f"down_blocks.{level}.attentions.0.norm.weight" in table for level in levels]
    middle = "mid_block.attentions.0"
    found = (match[0] for name in table if (match := re.match(r".*\.attentions\.\d+", name)))
    block = middle if f"{middle}.norm.weight" in table else next(found, middle)
    guidance = table.get("time_embedding.cond_proj.weight")
    return (
        _transformer_depths(table, len(levels))
        | _sizes_config(table, family, configs)
        | {
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
    )


def _sizes_config(table: Table, family: Family, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of what the UNet is told beside texts: whole prompts, and sizes."""
    if not family.sizes:
        return {}
    takes = table["add_embedding.linear_1.weight"].shape[1]
    pooled = sum(configs[name]["projection_dim"] for name, text in family.texts.items() if text.pooled)
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (takes - pooled) // SIZES,
        "projection_class_embeddings_input_dim": takes,
    }


def _transformer_depths(table: Table, levels: int) -> dict[str, Any]:
    """How deep the UNet's transformers are, level by level, or layer by layer where a model was made smaller."""
    down, up = ([_depths(table, side, level) for level in range(levels)] for side in ("down", "up"))
    middle = _depth(table, "mid_block.attentions.0")
    if not any(name.startswith("mid_block.resnets.1.") for name in table):
        kind = "UNetMidBlock2D" if "mid_block.resnets.0.conv1.weight" in table else None
        return {
            "mid_block_type": kind,
            "transformer_layers_per_block": down,
            "reverse_transformer_layers_per_block": up,
        }
    if all(len({*ours, *theirs}) == 1 for ours, theirs in zip(down, reversed(up), strict=True)):
        found = [ours[0] for ours in down]
        found[-1] = max(found[-1], middle)  # one number for both
        return {"transformer_layers_per_block": found if len(set(found)) > 1 else found[0]}
    return {"transformer_layers_per_block": down, "reverse_transformer_layers_per_block": up}


def _depths(table: Table, side: str, level: int) -> list[int]:
    layers = _count(table, rf"{side}_blocks\.{level}\.resnets\.\d+\.")
    return [_depth(table, f"{side}_blocks.{level}.attentions.{layer}") for layer in range(layers)]


def _depth(table: Table, attention: str) -> int:
    """How many layers a transformer has; 1 stands for one that isn't there."""
    return max(1, _count(table, rf"{re.escape(attention)}\.transformer_blocks\.\d+\."))


def _vae_config(table: Table, family: Family) -> dict[str, Any]:
    levels = range(_count(table, r"encoder\.down_blocks\.\d+\."))
    return {
        "in_channels": table["encoder.conv_in.weight"].shape[1],
        "out_channels": table["decoder.conv_out.weight"].shape[0],
        "latent_channels": table["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [table[f"encoder.down_blocks.{n}.resnets.0.conv1.weight"].shape[0] for n in levels],
        "layers_per_block": _count(table, r"encoder\.down_blocks\.0\.resnets\.\d+\."),
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "scaling_factor": family.scaling,
    }
