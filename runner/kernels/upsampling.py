"""Twice the rows and columns and the convolution after it, as one convolution with less than half of the products.

Where each pixel is repeated twice in both directions, the nine weights of a 3x3 convolution meet only four different
pixels. So it is four 2x2 convolutions of the pixels as they were, one for each place among the four copies, whose
weights are sums of the nine (sub-pixel convolution, Shi et al. 2016). The result is the same up to rounding.

    merge_upsampling(decoder)
"""

from __future__ import annotations

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional

from runner.kernels.packed import PackedConv2d
from runner.machine.heap import process_heap

PLACES = 4  # of the copies of a pixel
CHANNELS_AT_ONCE = 16
MOST_LEVELS = 3  # the smallest size, 8 latents along one side, is halved no more often without becoming odd


def merge_upsampling(module: nn.Module) -> None:
    """Lets the upsamplers of a UNet or a decoder convolve without repeating pixels first."""
    upsamplers = [part for part in module.modules() if isinstance(part, Upsample2D)]
    if len(upsamplers) <= MOST_LEVELS and all(_is_plain(part) for part in upsamplers):
        for part in upsamplers:
            part.interpolate = False
            part.conv.__class__ = UpsamplingConv2d


class UpsamplingConv2d(nn.Conv2d):
    """A 3x3 convolution with a border of zeros that is told the pixels before they are repeated."""

    def forward(self, input: Tensor) -> Tensor:
        """From [n, C, h, w] [n, C', 2h, 2w]."""
        return interleave(functional.conv2d(input, sum_weights(self.weight), repeat_bias(self.bias), padding=1))


class PackedUpsamplingConv2d(PackedConv2d):
    """An `UpsamplingConv2d` whose weight is packed, as the four convolutions that it is."""

    def forward(self, input: Tensor) -> Tensor:
        """The same as that of `UpsamplingConv2d`; what comes out has the channels last."""
        return interleave(self._convolve(input, repeat_bias(self.bias)))

    def _plain_weight(self) -> Tensor:
        process_heap().check(4 * self.weight.nbytes)  # the sums and a copy of them
        return sum_weights_sparingly(self.weight)


def repeat_bias(bias: Tensor | None) -> Tensor | None:
    """The four convolutions' bias, [4 C']."""
    return None if bias is None else bias.repeat(PLACES)


def sum_weights(weight: Tensor) -> Tensor:
    """The weights of the four 2x2 convolutions, [4 C', C, 2, 2], from [C', C, 3, 3]; sums are made in float32."""
    return torch.cat([part for rows in _pairs(weight.float(), 2) for part in _pairs(rows, 3)]).to(weight.dtype)


def sum_weights_sparingly(weight: Tensor) -> Tensor:
    """The same, on a CPU a few channels at a time: a ceiling may have no room for a large weight in float32."""
    if weight.device.type != "cpu":
        return sum_weights(weight)
    sums = weight.new_empty(PLACES, *weight.shape[:2], 2, 2)
    for some, place in zip(weight.split(CHANNELS_AT_ONCE), sums.split(CHANNELS_AT_ONCE, 1), strict=True):
        place.copy_(sum_weights(some).unflatten(0, (PLACES, -1)))
    return sums.flatten(0, 1)


def _pairs(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The two weights along one side for a pixel's first copy, and for its second one."""
    before, here, after = weight.unbind(dim)
    return torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)


def interleave(convolved: Tensor) -> Tensor:
    """[n, C, 2h, 2w], with the channels last, from the four convolutions' [n, 4 C, h + 1, w + 1]."""
    height, width = (side - 1 for side in convolved.shape[2:])
    by_place = convolved.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))  # [n, h + 1, w + 1, 2, 2, C]
    lines = [
        torch.stack([by_place[:, down : down + height, right : right + width, down, right] for right in (0, 1)], 3)
        for down in (0, 1)
    ]  # [n, h, w, 2, C] each
    pixels = torch.stack([line.flatten(2, 3) for line in lines], 2).flatten(1, 2)  # [n, 2 h, 2 w, C]
    return pixels.permute(0, 3, 1, 2)


def _is_plain(upsampler: Upsample2D) -> bool:
    conv = getattr(upsampler, "conv", None)
    return (
        upsampler.interpolate
        and upsampler.norm is None
        and type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
    )
