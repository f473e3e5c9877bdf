"""Says what a refused file seems to be, by its first bytes or by the names in it: for messages alone.

seems_to_be(["lora_unet_down_blocks_0...lora_up.weight"])  # "a LoRA"
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from runner.model.safetensors import StoredTensor

# The first that fits counts; beginnings of names but for the first two, which may stand anywhere.
ANYWHERE: Mapping[str, str] = {
    r"lora_(up|down|A|B)\b|\.lora\.|hada_w1|lokr_w1|oft_blocks|dora_scale": "a LoRA (low-rank changes to a model)",
    r"^(emb_params|string_to_param|string_to_token|clip_[lg]|\*)$": "an embedding (textual inversion)",
}
BEGINNINGS: Mapping[tuple[str, ...], str] = {
    ("conditioner.embedders.1.",): "a Stable Diffusion XL model",
    ("model.diffusion_model.joint_blocks.", "joint_blocks."): "a Stable Diffusion 3 model",
    ("double_blocks.", "model.diffusion_model.double_blocks."): "a Flux model",
    ("control_model.", "controlnet_", "zero_convs.", "input_hint_block."): "a ControlNet",
    ("motion_modules.", "down_blocks.0.motion_modules."): "a motion module of AnimateDiff",
    ("encoder.conv_in.", "decoder.conv_in.", "encoder.down."): "an autoencoder (VAE) alone",
    ("first_stage_model.",): "an autoencoder (VAE) alone",
    ("text_model.", "transformer.text_model.", "cond_stage_model."): "a text encoder alone",
    ("conv_in.", "down_blocks.", "model.diffusion_model.", "diffusion_model."): "a UNet alone",
}
FIRST_BYTES: Mapping[bytes, str] = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`",
    b"<": "a web page, as a download that failed or needs a login leaves it; download the file again",
    b"{": "a text in JSON, as a download that failed leaves it; download the file again",
    b"GGUF": "a GGUF file, which is quantized; take the model as safetensors",
    b"\x1f\x8b": "packed by gzip; unpack it first",
    b"7z": "packed by 7-Zip; unpack it first",
    b"Rar!": "packed by RAR; unpack it first",
    b"\x89PNG": "a PNG picture",
}


def seems_to_be(names: Collection[str]) -> str:
    """What tensors of these names are part of; nothing where that isn't known."""
    for pattern, meaning in ANYWHERE.items():
        if any(re.search(pattern, name) for name in names):
            return meaning
    for beginnings, meaning in BEGINNINGS.items():
        if any(name.startswith(beginnings) for name in names):
            return meaning
    return ""


def kind_of_bytes(begin: bytes) -> str:
    """What a file that begins like this is; nothing where that isn't known."""
    stripped = begin.lstrip()
    return next((meaning for first, meaning in FIRST_BYTES.items() if stripped.startswith(first)), "")


# The first that fits counts: parts of names that only LoRAs of one family have.
LORA_NAMES: Mapping[str, str] = {
    r"double_blocks|single_transformer_blocks|lora_transformer_": "Flux",
    r"joint_blocks|^transformer\.transformer_blocks": "Stable Diffusion 3",
    r"^lora_te2_|^text_encoder_2\.|(input|output)_blocks_\d_1_transformer_blocks_[1-9]": "Stable Diffusion XL",
    r"down_blocks.[12].attentions.[01].transformer_blocks.[1-9]|label_emb|add_embedding": "Stable Diffusion XL",
}
LORA_WIDTHS = {768: "Stable Diffusion v1", 1024: "Stable Diffusion v2", 2048: "Stable Diffusion XL"}


def lora_of(tensors: Mapping[str, StoredTensor]) -> str:
    """The family of models that a LoRA was made for, by its names and the width of its texts; nothing if unknown."""
    for pattern, family in LORA_NAMES.items():
        if any(re.search(pattern, name) for name in tensors):
            return family
    told = (each.shape[1] for name, each in tensors.items() if re.search(r"attn2.+to_k.+(down|lora_A)", name))
    return next((LORA_WIDTHS[width] for width in told if width in LORA_WIDTHS), "")
