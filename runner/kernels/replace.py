"""Puts this package's layers into the place of torch's and diffusers', where this CPU can make use of them.

replace_layers(unet, torch.bfloat16)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from runner.kernels import attention, packed, small, upsampling

# oneDNN refuses to pack weights of a number type that the CPU lacks.
SUPPORTED: dict[torch.dtype, Callable[[], bool]] = {
    torch.float32: lambda: True,
    torch.bfloat16: lambda: bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    torch.float16: lambda: bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()),
}
REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: packed.PackedConv2d,
    upsampling.UpsamplingConv2d: upsampling.PackedUpsamplingConv2d,
    nn.Linear: packed.PackedLinear,
}


def replace_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Puts this module's layers into the place of torch's and diffusers' plain ones, where this CPU can do that."""
    packs = torch.backends.mkldnn.is_available() and SUPPORTED[dtype]()
    most = attention.most_scores(dtype)
    for part in module.modules():
        if packs and type(part) in REPLACEMENTS and getattr(part, "padding_mode", "zeros") == "zeros":
            part.__class__ = REPLACEMENTS[type(part)]
        elif type(part) is nn.GroupNorm and part.affine:
            part.__class__ = small.ShortGroupNorm
        elif type(part) is Attention:
            attention.put_into_place(part, most)
