"""What conditions a row of the UNet's batch beside its latents and its time, and the UNet's call itself.

Everything that calls a UNet builds its call here: the denoising steps, the compilers, the probes. A family of models
with more conditions than a prompt (pooled texts, sizes, residuals) gets its fields here, and nowhere else.

    call = unet_call(latents, times, stack(rows))
    [predicted] = unet.call_all([call])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runner.item import Item
from runner.model.single_file import SIZES
from runner.model.tokens import LENGTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The conditions of one row, or of a call's rows together.

    `context` are the prompt's embeddings: of a row [tokens, C], of a call [rows, tokens, C]. The others are of a row
    [n], of a call [rows, n], and None where a model isn't told them: `guidance` is the scale as latent consistency
    models are told it; `pooled` is the whole prompt's embedding, and `sizes` are six numbers in float32. `channels` are
    what stands beside the latents of a model for inpainting, of a row [5, h, w]: the mask (1 is made anew), and the
    latents of the picture without what is made anew.
    """

    context: Tensor
    guidance: Tensor | None = None
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    channels: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows go into one call if this is equal."""
        return tuple(self.context.shape)

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditions:
        """The same on a device, in a number type."""
        return Conditions(
            context=self.context.to(device, dtype),
            guidance=None if self.guidance is None else self.guidance.to(device, dtype),
            pooled=None if self.pooled is None else self.pooled.to(device, dtype),
            sizes=None if self.sizes is None else self.sizes.to(device),  # half precision has no 1023
            channels=None if self.channels is None else self.channels.to(device, dtype),
        )


def stack(rows: Sequence[Conditions]) -> Conditions:
    """The conditions of a call, from those of its rows, which have one shape."""
    names = [field.name for field in fields(Conditions) if getattr(rows[0], field.name) is not None]
    return Conditions(**{name: torch.stack([getattr(row, name) for row in rows]) for name in names})


def told_sizes(item: Item) -> Tensor:
    """What Stable Diffusion XL is told of sizes, float32 [6]: height and width of the original, top and left of what
    was cut out of it, height and width that are wanted (Podell et al. 2023, section 2.2).
    """
    own = item.width, item.height
    (width, height), (left, top) = item.value("original_size") or own, item.value("crop_origin") or (0, 0)
    wanted_width, wanted_height = item.value("target_size") or own
    return torch.tensor([height, width, top, left, wanted_height, wanted_width], dtype=torch.float32)


def latent_channels(config: Mapping[str, Any]) -> int:
    """Channels of the latents that a UNet with this configuration denoises; it may take more."""
    return int(config.get("out_channels", config["in_channels"]))


def empty(config: Mapping[str, Any], rows: int, side: int) -> Conditions:
    """Conditions of `rows` rows that say nothing, for a UNet with this configuration; float32, on the CPU.

    `side` is the number of latents along one side. Everything is made anew, in a picture of zeros.
    """
    width, told = config.get("time_cond_proj_dim"), config.get("addition_embed_type")
    pooled = (
        int(config["projection_class_embeddings_input_dim"]) - SIZES * int(config["addition_time_embed_dim"])
        if told
        else 0
    )
    more = int(config["in_channels"]) - latent_channels(config)
    return Conditions(
        context=torch.zeros(rows, LENGTH, int(config["cross_attention_dim"])),
        guidance=torch.zeros(rows, int(width)) if width else None,
        pooled=torch.zeros(rows, pooled) if told else None,
        sizes=torch.zeros(rows, SIZES) if told else None,
        channels=beside(torch.ones(rows, 1, side, side), torch.zeros(rows, more - 1, side, side)) if more else None,
    )


def beside(mask: Tensor, picture: Tensor) -> Tensor:
    """What stands beside the latents [..., 5, h, w], from a mask [..., 1, h, w] and latents [..., 4, h, w]."""
    return torch.cat([mask, picture], -3)


def embed_guidance(scale: float, width: int) -> Tensor:
    """The scale as a UNet with `time_cond_proj_dim` is told it, float32 [width] (Luo et al. 2023, Meng et al. 2023).

    As diffusers' `get_guidance_scale_embedding`: sines and cosines of 1,000 (scale - 1) by falling frequencies.
    """
    half = width // 2
    steps = torch.log(torch.tensor(10000.0)) / (half - 1)
    angles = (scale - 1.0) * 1000.0 * torch.exp(torch.arange(half, dtype=torch.float32) * -steps)
    return functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))


def unet_call(latents: Tensor, times: Tensor, conditions: Conditions) -> Callable[[nn.Module], Tensor]:
    """A call of a UNet, or of what stands in for it, with latents [rows, channels, h, w] and times [rows]."""
    told: dict[str, Any] = {} if conditions.guidance is None else {"timestep_cond": conditions.guidance}
    if conditions.pooled is not None:
        told["added_cond_kwargs"] = {"text_embeds": conditions.pooled, "time_ids": conditions.sizes}
    if conditions.channels is not None:
        whole = torch.cat([latents, conditions.channels], 1)
        latents = whole.contiguous(memory_format=torch.channels_last)
    return lambda unet: unet(latents, times, encoder_hidden_states=conditions.context, return_dict=False, **told)[0]
