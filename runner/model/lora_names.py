"""What the tools that train LoRAs call a model's layers: kohya, LyCORIS, peft and diffusers, old and new.

Their names can't be read backwards, since `_` stands for a point in some and for itself in all. So every name that a
layer may have is made from the model's own, and a file's names are looked up.

    names = layer_names(model)
    names["lora_unet_mid_block_attentions_0_proj_in"]  # Layer("unet", "mid_block.attentions.0.proj_in")
    split("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")  # the layer's name, "down"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from runner.model.files import ModelFiles

# Beginnings in front of the whole name with `_` for its points, and in front of the name as it is.
UNET = "unet"
FLAT = {UNET: ("lora_unet_", "lycoris_"), "text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
POINTED = {
    UNET: ("", "unet.", "base_model.model.", "unet.base_model.model.", "lora_unet."),
    "text_encoder": (
        "text_encoder.", "clip_l.", "base_model.model.", "text_encoder.base_model.model.",
        "text_encoders.clip_l.transformer.",
    ),
    "text_encoder_2": (
        "text_encoder_2.", "clip_g.", "text_encoder_2.base_model.model.", "text_encoders.clip_g.transformer.",
    ),
}  # fmt: skip
ORIGINAL = ("diffusion_model.", "model.diffusion_model.")  # in front of the original's names
TEXT_MODEL = "text_model."

# What a tensor is to its layer, by how its name ends.
ENDINGS = {
    "down": r"[._]lora[._]down\.weight|\.lora_linear_layer\.down\.weight|\.lora_A(\.\w+)?\.weight|\.lora_A",
    "up": r"[._]lora[._]up\.weight|\.lora_linear_layer\.up\.weight|\.lora_B(\.\w+)?\.weight|\.lora_B",
    "up_bias": r"\.lora_B(\.\w+)?\.bias",
    "mid": r"\.lora_mid\.weight",
    "magnitude": r"\.lora_magnitude_vector(\.\w+)?",
    "dora_scale": r"\.dora_scale",
    "alpha": r"([._]lora)?\.alpha",
    "diff": r"\.diff|\.w_norm",
    "diff_b": r"\.diff_b|\.b_norm",
    **{name: rf"\.{name}" for name in (
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    )},
}  # fmt: skip
PATTERNS = {part: re.compile(f"(?:{pattern})(?:\\.weight)?$" if part == "magnitude" else f"(?:{pattern})$")
            for part, pattern in ENDINGS.items()}  # fmt: skip

_TO_ORIGINAL = (
    (re.compile(r"^time_embedding\.linear_1$"), "time_embed.0"),
    (re.compile(r"^time_embedding\.linear_2$"), "time_embed.2"),
    (re.compile(r"^time_embedding\.cond_proj$"), "time_embed.cond_proj"),
    (re.compile(r"^add_embedding\.linear_1$"), "label_emb.0.0"),
    (re.compile(r"^add_embedding\.linear_2$"), "label_emb.0.2"),
    (re.compile(r"^conv_in$"), "input_blocks.0.0"),
    (re.compile(r"^conv_norm_out$"), "out.0"),
    (re.compile(r"^conv_out$"), "out.2"),
    (re.compile(r"^mid_block\.resnets\.0\."), "middle_block.0."),
    (re.compile(r"^mid_block\.attentions\.0\."), "middle_block.1."),
    (re.compile(r"^mid_block\.resnets\.1\."), "middle_block.2."),
)
_OF_RESNETS = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


class Layer(NamedTuple):
    """A layer of a model: its component, and its name there, without `.weight`."""

    component: str
    name: str


def split(key: str) -> tuple[str, str]:
    """The name of the layer that a LoRA's tensor belongs to, and what it is to it; nothing where that isn't known."""
    for part, pattern in PATTERNS.items():
        if match := pattern.search(key):
            return key[: match.start()], part
    return key, ""


def layer_names(model: ModelFiles) -> dict[str, Layer]:
    """The layers of a model by every name that a tool has for them."""
    found: dict[str, Layer] = {}
    for component, table in model.tensors.items():
        if component not in FLAT:
            continue
        layers = dict.fromkeys(name.rpartition(".")[0] for name in table)
        attending = {match[2] for name in layers if (match := _BLOCK.match(name)) and _attends_upwards(match)}
        layers_per_block = 1 + max((int(match[4]) for name in layers if (match := _first_level(name))), default=0)
        for name in layers:
            layer = Layer(component, name)
            known = _original_name(name, layers_per_block, attending) if component == UNET else ""
            for spelled in _spelled(layer, known):
                found.setdefault(spelled, layer)
    return found


def _spelled(layer: Layer, original: str) -> Iterator[str]:
    """Every name that a layer may have."""
    component, name = layer
    if component == UNET:
        own = [name]
    else:  # transformers writes the names of the text encoder with and without its own in front
        bare = name.removeprefix(TEXT_MODEL)
        own = [f"{TEXT_MODEL}{bare}", bare] if not bare.startswith("text_projection") else [bare]
    older = [each.removesuffix(".0") for each in own if each.endswith(".to_out.0")]
    for each in own:
        older += [_older_text_name(each)] if "self_attn." in each else []
        older += [re.sub(r"\.(attn[12])\.", r".\1.processor.", each)] if ".attn" in each else []
    older += [each.removesuffix(".0") for each in older if each.endswith(".to_out.0")]
    for each in [*own, *older]:
        yield from (f"{beginning}{each}" for beginning in POINTED[component])
        yield from (f"{beginning}{each.replace('.', '_')}" for beginning in FLAT[component])
    if original:
        yield from (f"{beginning}{original}" for beginning in ORIGINAL)
        yield from (f"{beginning}{original.replace('.', '_')}" for beginning in FLAT[UNET])


def _older_text_name(name: str) -> str:
    """As diffusers called it before it used peft."""
    name = re.sub(r"\.([qkv])_proj$", r".to_\1", name)
    return re.sub(r"\.out_proj$", ".to_out", name)


def _first_level(name: str) -> re.Match[str] | None:
    match = _BLOCK.match(name)
    return match if match and match[1] == "down" and match[2] == "0" and match[3] == "resnets" else None


def _attends_upwards(match: re.Match[str]) -> bool:
    return match[1] == "up" and match[3] == "attentions"


def _original_name(name: str, layers: int, attending: set[str]) -> str:
    """The original's name of a UNet's layer, in whose levels there are so many residual layers on the way down."""
    for pattern, replacement in _TO_ORIGINAL:
        name = pattern.sub(replacement, name)
    if name.startswith("middle_block."):
        return _of_resnet(name) if not name.startswith("middle_block.1.") else name
    if not (match := _BLOCK.match(name)):
        return name
    side, level, kind, layer, rest = match.groups()
    number = int(level) * (layers + 1) + int(layer) + (side == "down")
    if kind == "downsamplers":
        return f"input_blocks.{number + layers}.0.op"
    if kind == "upsamplers":  # behind the attention of the level's last layer, where there is one
        return f"output_blocks.{number + layers}.{2 if level in attending else 1}.{rest}"
    place = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}"
    return _of_resnet(f"{place}.{rest}") if kind == "resnets" else f"{place}.{rest}"


def _of_resnet(name: str) -> str:
    owner, _, last = name.rpartition(".")
    return f"{owner}.{_OF_RESNETS.get(last, last)}"
