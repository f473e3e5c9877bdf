"""The autoencoder for large pictures, in strips: a third of the memory and less, and no seams.

A picture is a list of strips, and each layer takes strips in and gives strips out; a strip is dropped as soon as the
next layer has read it. A convolution sees one row of its neighbours above and below, and a group normalization uses
the mean and variance of the whole picture, so the result is that of the whole picture up to rounding. (Tiles, each
with statistics of its own, would change it.) The sizes of strips follow from the picture's size alone.

    for strip in decode(vae, latents):  # [1, 4, h, w] -> [1, 3, rows, W], from top to bottom
        ...
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runner.kernels.upsampling import interleave, repeat_bias, sum_weights_sparingly
from runner.machine.heap import process_heap
from runner.planning.costs import strip_elements

LEAST_ROWS = 4

Strips = list[Tensor]  # [1, C, rows, W] each, from top to bottom


def decode(vae: Any, latents: Tensor) -> Iterator[Tensor]:
    """The strips [1, 3, rows, W], float32, of the picture of `latents` [1, 4, h, w], which are not scaled any more."""
    decoder = vae.decoder
    if vae.post_quant_conv is not None:
        latents = vae.post_quant_conv(latents)
    whole = decoder.mid_block(decoder.conv_in(latents))  # [1, C, h, w]
    strips = list(_split(_channels_last(whole), whole.shape[1], whole.shape[3]))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            strips = _resnet(resnet, strips)
        for upsampler in block.upsamplers or ():
            strips = list(_upsample(upsampler.conv, strips))
    norm = _Norm(decoder.conv_norm_out, strips)
    yield from _convolve(decoder.conv_out, (norm(strip) for strip in _drain(strips)), torch.float32)


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """The moments [1, 8, h, w] of the latents of a picture [1, 3, H, W]: mean and logarithm of the variance."""
    encoder = vae.encoder
    pieces = _split(_channels_last(pixels), encoder.conv_in.out_channels, pixels.shape[3])
    strips = list(_convolve(encoder.conv_in, pieces))
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            strips = _resnet(resnet, strips)
        for downsampler in block.downsamplers or ():
            smaller = torch.cat(list(_downsample(downsampler.conv, strips)), 2)
            strips = list(_split(smaller, smaller.shape[1], smaller.shape[3]))  # halved, their rows could be odd
    whole = encoder.mid_block(torch.cat(strips, 2))
    moments: Tensor = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(whole)))
    return vae.quant_conv(moments) if vae.quant_conv is not None else moments


def _resnet(block: Any, strips: Strips) -> Strips:
    """A residual block: normalize, convolve, twice, and add what came in."""
    norm1, shortcuts = _Norm(block.norm1, strips), Strips()

    def normalized() -> Iterator[Tensor]:
        for strip in _drain(strips):
            shortcuts.append(block.conv_shortcut(strip) if block.conv_shortcut is not None else strip)
            yield norm1(strip)

    hidden = list(_convolve(block.conv1, normalized()))
    norm2 = _Norm(block.norm2, hidden)
    convolved = _convolve(block.conv2, (norm2(strip) for strip in _drain(hidden)))
    return [strip.add_(shortcut) for strip, shortcut in zip(convolved, _drain(shortcuts), strict=True)]


class _Norm:
    """A group normalization (Wu & He 2018) by the statistics of a whole picture, with the SiLU that follows it."""

    def __init__(self, norm: nn.GroupNorm, strips: Strips) -> None:
        sums, squares = zip(*(_sums(strip) for strip in strips), strict=True)
        count = sum(strip[0, 0].numel() for strip in strips) * norm.num_channels // norm.num_groups
        mean = _by_group(torch.stack(sums).sum(0), norm) / count
        square = _by_group(torch.stack(squares).sum(0), norm) / count
        scale = (square - mean**2 + norm.eps) ** -0.5
        scale, mean = (values.repeat_interleave(norm.num_channels // norm.num_groups) for values in (scale, mean))
        weight, bias = _double(norm.weight), _double(norm.bias)
        self._scale = (weight * scale).float().to(norm.weight.device).view(1, -1, 1, 1)
        self._shift = (bias - mean * weight * scale).float().to(norm.weight.device).view(1, -1, 1, 1)

    def __call__(self, strip: Tensor) -> Tensor:
        shifted = torch.addcmul(self._shift, strip.float(), self._scale)
        return functional.silu(shifted, inplace=True).to(strip.dtype)


def _sums(strip: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of each channel's numbers and of their squares, float64 [C]."""
    process_heap().check()
    numbers = strip.permute(0, 2, 3, 1).flatten(0, 2).float()  # [rows * W, C]
    return _double(numbers.sum(0)), _double(numbers.square().sum(0))


def _double(numbers: Tensor) -> Tensor:
    """A few numbers in float64, which MPS lacks."""
    return (numbers.cpu() if numbers.device.type == "mps" else numbers).double()


def _by_group(channels: Tensor, norm: nn.GroupNorm) -> Tensor:
    return channels.view(norm.num_groups, -1).sum(1)


def _convolve(conv: nn.Conv2d, strips: Iterable[Tensor], dtype: torch.dtype | None = None) -> Iterator[Tensor]:
    """A 3x3 convolution with a border of zeros; in `dtype`, where that is another one."""
    weight, bias = _channels_last(conv.weight.to(dtype or conv.weight.dtype)), conv.bias
    assert bias is not None, "the autoencoder's convolutions have biases"
    for slab in _slabs(strips):
        yield functional.conv2d(slab.to(weight.dtype), weight, bias.to(weight.dtype), padding=(0, 1))


def _upsample(conv: nn.Conv2d, strips: Strips) -> Iterator[Tensor]:
    """Twice the rows and columns, by repeating each, and the convolution after it, in one: see `upsampling`."""
    weight, bias = _channels_last(sum_weights_sparingly(conv.weight)), repeat_bias(conv.bias)
    for slab in _slabs(_pieces(strips, 4 * conv.out_channels)):
        yield interleave(functional.conv2d(slab, weight, bias, padding=(0, 1)))


def _downsample(conv: nn.Conv2d, strips: Strips) -> Iterator[Tensor]:
    """Half the rows and columns, by a convolution with stride 2 whose border is below and to the right."""
    weight = _channels_last(conv.weight)
    for slab in _slabs(_drain(strips)):
        yield functional.conv2d(functional.pad(slab[:, :, 1:], (0, 1)), weight, conv.bias, stride=2)


def _slabs(strips: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each strip with the row above it and the row below it, which are zeros at the picture's edges."""
    source = iter(strips)
    here = next(source)
    above = torch.zeros_like(here[:, :, :1])
    for after in itertools.chain(source, [None]):
        process_heap().check()
        below = torch.zeros_like(here[:, :, :1]) if after is None else after[:, :, :1]
        slab = torch.cat([above, here, below], 2)
        if after is not None:
            above, here = here[:, :, -1:].clone(), after
        yield slab


def _channels_last(tensor: Tensor) -> Tensor:
    """In the order in which convolutions are fastest on a CPU, and rows of a picture lie one after the other."""
    return tensor.contiguous(memory_format=torch.channels_last)


def _drain(strips: Strips) -> Iterator[Tensor]:
    """The strips, each taken out of the list."""
    while strips:
        yield strips.pop(0)


def _pieces(strips: Strips, channels: int) -> Iterator[Tensor]:
    for strip in _drain(strips):
        yield from _split(strip, channels, strip.shape[3])


def _split(whole: Tensor, channels: int, width: int) -> Iterator[Tensor]:
    """Cuts rows into strips that have an even number of rows and whose size fits, at this number of channels."""
    rows = max(LEAST_ROWS, strip_elements(whole.device.type) // (channels * width) // 2 * 2)
    yield from torch.split(whole, rows, 2)
