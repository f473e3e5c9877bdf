"""What a model's configuration files may say: every key that changes pictures is used, or refused by name.

A configuration comes from wherever a model came from. Only keys with a rule here reach diffusers and transformers, so
that no file chooses code; what a key may not be is said with the file, the key and its value.

    unet = read_config(folder / "unet/config.json", UNET)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import ModelError
from runner.text import shorten

LARGEST_FILE = 1 << 24  # bytes; those of Stable Diffusion have less than 2,000
SHOWN = 60  # characters of a value
MISSING: Any = object()


@dataclass(frozen=True, slots=True)
class Rule:
    """What a key's value may be, and what it is where the key isn't there; `MISSING` where it must be."""

    words: str
    fits: Callable[[Any], bool]
    default: Any = MISSING

    def or_else(self, default: Any) -> Rule:
        """The same for a key that needn't be there."""
        return Rule(self.words, self.fits, default)


def whole(least: int = 1, most: int = 1 << 16) -> Rule:
    """A whole number."""
    return Rule(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def real(least: float, most: float) -> Rule:
    """A number between two others, which it can't be itself."""

    def fits(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and least < value < most

    return Rule(f"a number between {least:g} and {most:g}", fits)


def some(rule: Rule, most: int = 16) -> Rule:
    """A list."""
    return Rule(
        f"a list of up to {most}, each {rule.words}",
        lambda value: type(value) is list and 0 < len(value) <= most and all(map(rule.fits, value)),
    )


def either(*rules: Rule) -> Rule:
    """What fits one of several rules."""
    return Rule(" or ".join(rule.words for rule in rules), lambda value: any(rule.fits(value) for rule in rules))


def only(*values: Any) -> Rule:
    """One of these values, of which the first one stands for a key that isn't there."""
    words = " or ".join(json.dumps(value) for value in values)
    return Rule(words, lambda value: any(type(value) is type(each) and value == each for each in values), values[0])


FLAG = only(False, True)
NOTHING = only(None)
OFF = either(only(None), only(False)).or_else(None)
SIZE = either(NOTHING, whole(1, 4096), some(whole(1, 4096), 2)).or_else(None)
CHANNELS = some(whole(1, 1 << 14))
DEPTH = whole(1, 32)

TEXT_ENCODER: Mapping[str, Rule] = {
    "vocab_size": whole(3, 1 << 20).or_else(49408),
    "hidden_size": whole().or_else(512),
    "intermediate_size": whole().or_else(2048),
    "num_hidden_layers": whole(1, 128).or_else(12),
    "num_attention_heads": whole(1, 1024).or_else(8),
    "max_position_embeddings": only(77),
    "hidden_act": only("quick_gelu", "gelu"),
    "layer_norm_eps": real(0, 1).or_else(1e-5),
    "quantization_config": NOTHING,
}
PROJECTING_TEXT_ENCODER: Mapping[str, Rule] = {**TEXT_ENCODER, "projection_dim": whole().or_else(512)}
UNET: Mapping[str, Rule] = {
    "in_channels": whole(1, 1024).or_else(4),
    "out_channels": whole(1, 1024).or_else(4),
    "sample_size": SIZE,
    "block_out_channels": CHANNELS.or_else([320, 640, 1280, 1280]),
    "layers_per_block": either(whole(1, 32), some(whole(1, 32))).or_else(2),
    "down_block_types": some(only("CrossAttnDownBlock2D", "DownBlock2D")),
    "up_block_types": some(only("CrossAttnUpBlock2D", "UpBlock2D")),
    "mid_block_type": only("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "mid_block_scale_factor": real(0, 1000).or_else(1),
    "downsample_padding": whole(0, 1).or_else(1),
    "attention_head_dim": either(whole(1, 1024), some(whole(1, 1024))).or_else(8),
    "num_attention_heads": NOTHING,
    "transformer_layers_per_block": either(DEPTH, some(either(DEPTH, some(DEPTH)))).or_else(1),
    "reverse_transformer_layers_per_block": either(NOTHING, some(either(DEPTH, some(DEPTH)))).or_else(None),
    "addition_embed_type": only(None, "text_time"),
    "addition_time_embed_dim": either(NOTHING, whole(2, 1 << 12)).or_else(None),
    "projection_class_embeddings_input_dim": either(NOTHING, whole()).or_else(None),
    "cross_attention_dim": whole().or_else(1280),
    "norm_num_groups": whole(1, 1024).or_else(32),
    "norm_eps": real(0, 1).or_else(1e-5),
    "act_fn": only("silu", "swish"),
    "use_linear_projection": FLAG,
    "upcast_attention": either(FLAG, NOTHING).or_else(False),
    "only_cross_attention": either(FLAG, some(FLAG)).or_else(False),
    "flip_sin_to_cos": only(True, False),
    "freq_shift": whole(0, 1).or_else(0),
    "time_cond_proj_dim": either(NOTHING, whole()).or_else(None),
    "conv_in_kernel": only(3),
    "conv_out_kernel": only(3),
    "center_input_sample": FLAG,
    "resnet_time_scale_shift": only("default", "scale_shift"),
    "resnet_skip_time_act": FLAG,
    "resnet_out_scale_factor": real(0, 1000).or_else(1.0),
    "time_embedding_type": only("positional"),
    "attention_type": only("default"),
    "quantization_config": NOTHING,
    **dict.fromkeys(("dual_cross_attention", "class_embeddings_concat", "mid_block_only_cross_attention"), OFF),
    **dict.fromkeys(
        (
            "class_embed_type", "cross_attention_norm", "encoder_hid_dim",
            "encoder_hid_dim_type", "num_class_embeds",
            "time_embedding_act_fn", "time_embedding_dim", "timestep_post_act",
        ),
        NOTHING,
    ),
}  # fmt: skip
AUTOENCODER: Mapping[str, Rule] = {
    "in_channels": only(3),
    "out_channels": only(3),
    "latent_channels": whole(1, 1024).or_else(4),
    "sample_size": SIZE,
    "block_out_channels": CHANNELS,
    "layers_per_block": whole(1, 32).or_else(1),
    "down_block_types": some(only("DownEncoderBlock2D")),
    "up_block_types": some(only("UpDecoderBlock2D")),
    "norm_num_groups": whole(1, 1024).or_else(32),
    "act_fn": only("silu", "swish"),
    "scaling_factor": real(0, 1000).or_else(0.18215),
    "force_upcast": either(FLAG, NOTHING).or_else(True),
    "use_quant_conv": only(True, False),
    "use_post_quant_conv": only(True, False),
    "mid_block_add_attention": only(True),
    "quantization_config": NOTHING,
    **dict.fromkeys(("latents_mean", "latents_std", "shift_factor"), NOTHING),
}
BETAS: Mapping[str, Rule] = {
    "beta_start": real(0, 1),
    "beta_end": real(0, 1),
    "beta_schedule": either(only("scaled_linear", "linear", "squaredcos_cap_v2")),
}
SCHEDULER: Mapping[str, Rule] = {
    "num_train_timesteps": whole(2, 100_000),
    "trained_betas": either(NOTHING, some(real(0, 1), 100_000)).or_else(None),
    "prediction_type": only("epsilon", "v_prediction"),
    "rescale_betas_zero_snr": either(FLAG, NOTHING).or_else(False),
    "timestep_spacing": only("leading", "linspace", "trailing"),
    "set_alpha_to_one": FLAG,
    # Pictures are neither clipped nor shifted, whatever is said: stock pipelines correct these two as well.
    "clip_sample": either(FLAG, NOTHING).or_else(False),
    "steps_offset": whole(0, 1).or_else(1),
    "thresholding": OFF,
    "use_flow_sigmas": OFF,
    "snr_shift_scale": either(NOTHING, only(1), only(1.0)).or_else(None),
}
OTHER_SCHEDULERS = ("FlowMatch", "EDM", "Karras", "ScoreSde", "VQDiffusion", "Amused", "CosineDPM")  # without betas


def read_config(file: Path, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The keys of a configuration that have rules, those that aren't there by their defaults.

    Raises:
        ModelError: it can't be read, or a value is none that pictures can be made with.
    """
    return check(file, read_json(file), rules)


def read_scheduler(file: Path) -> dict[str, Any]:
    """The noise that a model was trained with, from `scheduler_config.json`; the sampler in it doesn't matter.

    Raises:
        ModelError: as `read_config`.
    """
    found = read_json(file)
    kind = str(found.get("_class_name"))
    if kind.startswith(OTHER_SCHEDULERS):
        raise ModelError(
            f"{file}: _class_name is {_shown(kind)}, which is for another kind of model; known is noise by betas"
        )
    config = check(file, found, SCHEDULER)
    betas = config["trained_betas"]
    if betas is None:
        return config | check(file, found, BETAS)
    if len(betas) != config["num_train_timesteps"]:
        raise ModelError(
            f"{file}: trained_betas has {len(betas)} numbers, and num_train_timesteps is "
            f"{config['num_train_timesteps']}; these must be equal"
        )
    return config


def check(file: Path, config: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The keys that have rules; a key without one changes nothing, or is none that diffusers knows."""
    checked: dict[str, Any] = {}
    for key, rule in rules.items():
        value = config.get(key, rule.default)
        if value is MISSING:
            raise ModelError(f"{file}: {key} is missing; it must be {rule.words}")
        if key in config and not rule.fits(value):
            raise ModelError(f"{file}: {key} is {_shown(value)}; it must be {rule.words} in a model known here")
        checked[key] = value
    return checked


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file of a model.

    Raises:
        ModelError: it is missing, too large, no file, or no JSON object.
    """
    try:
        if file.exists() and not file.is_file():  # opening a pipe would never return
            raise ModelError(f"{file}: is not a file")
        if file.stat().st_size > LARGEST_FILE:
            raise ModelError(f"{file}: is larger than {LARGEST_FILE >> 20} MiB, which no configuration is")
        document = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{file}: is missing, so this is not a whole diffusers folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: can't be read ({shorten(str(error))})") from error
    if not isinstance(document, dict):
        raise ModelError(f"{file}: should hold a JSON object")
    return document


def _shown(value: Any) -> str:
    try:
        return shorten(json.dumps(value), SHOWN)
    except RecursionError:
        return "nested too deeply"
