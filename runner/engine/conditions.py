"""What conditions a row of the UNet's batch beside its latents and its time, and the UNet's call itself.

Everything that calls a UNet builds its call here: the denoising steps, the compilers, the probes. A family of models
with more conditions than a prompt (pooled texts, sizes, residuals) gets its fields here, and nowhere else.

    call = unet_call(latents, times, stack(rows))
    [predicted] = unet.call_all([call])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runner.model.tokens import LENGTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The conditions of one row, or of a call's rows together.

    `context` are the prompt's embeddings: of a row [tokens, C], of a call [rows, tokens, C]. `guidance` is the scale as
    latent consistency models are told it, of a row [G], of a call [rows, G]; other models have none.
    """

    context: Tensor
    guidance: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows go into one call if this is equal."""
        return tuple(self.context.shape)

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditions:
        """The same on a device, in a number type."""
        guidance = None if self.guidance is None else self.guidance.to(device, dtype)
        return Conditions(context=self.context.to(device, dtype), guidance=guidance)


def stack(rows: Sequence[Conditions]) -> Conditions:
    """The conditions of a call, from those of its rows, which have one shape."""
    told = [row.guidance for row in rows if row.guidance is not None]
    return Conditions(context=torch.stack([row.context for row in rows]), guidance=torch.stack(told) if told else None)


def empty(config: Mapping[str, Any], rows: int) -> Conditions:
    """Conditions of `rows` rows that say nothing, for a UNet with this configuration; float32, on the CPU."""
    width = config.get("time_cond_proj_dim")
    return Conditions(
        context=torch.zeros(rows, LENGTH, int(config["cross_attention_dim"])),
        guidance=torch.zeros(rows, int(width)) if width else None,
    )


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
    told = {} if conditions.guidance is None else {"timestep_cond": conditions.guidance}
    return lambda unet: unet(latents, times, encoder_hidden_states=conditions.context, return_dict=False, **told)[0]
