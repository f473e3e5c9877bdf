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

from runner.model.tokens import LENGTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The conditions of one row, or of a call's rows together.

    `context` are the prompt's embeddings: of a row [tokens, C], of a call [rows, tokens, C].
    """

    context: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows go into one call if this is equal."""
        return tuple(self.context.shape)

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditions:
        """The same on a device, in a number type."""
        return Conditions(context=self.context.to(device, dtype))


def stack(rows: Sequence[Conditions]) -> Conditions:
    """The conditions of a call, from those of its rows, which have one shape."""
    return Conditions(context=torch.stack([row.context for row in rows]))


def empty(config: Mapping[str, Any], rows: int) -> Conditions:
    """Conditions of `rows` rows that say nothing, for a UNet with this configuration; float32, on the CPU."""
    return Conditions(context=torch.zeros(rows, LENGTH, int(config["cross_attention_dim"])))


def unet_call(latents: Tensor, times: Tensor, conditions: Conditions) -> Callable[[nn.Module], Tensor]:
    """A call of a UNet, or of what stands in for it, with latents [rows, channels, h, w] and times [rows]."""
    return lambda unet: unet(latents, times, encoder_hidden_states=conditions.context, return_dict=False)[0]
