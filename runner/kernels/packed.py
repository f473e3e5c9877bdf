"""Replacements for torch's layers that take less time on a CPU.

oneDNN multiplies by weights in an order of its own, and torch's layers reorder them in each call. These layers do it
once, in the first call: the best order depends on the input's shape. The output has the same bits, except for linear
layers in float32, which torch leaves to another library. `attention` replaces attention layers.

    replace_layers(unet, torch.bfloat16)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from runner.kernels import attention, upsampling
from runner.machine.heap import process_heap

# oneDNN refuses to pack weights of a number type that the CPU lacks.
SUPPORTED: dict[torch.dtype, Callable[[], bool]] = {
    torch.float32: lambda: True,
    torch.bfloat16: lambda: bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    torch.float16: lambda: bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()),
}
FEW_PIXELS = 64  # up to which torch's group normalization is slow
PLAIN: tuple[Any, ...] = ("none", [], "")  # what torch.compile fuses with a layer: nothing
_packing = threading.Lock()  # of several calls side by side the first one packs


class Packed(NamedTuple):
    """A packed weight: for inputs of which shape, if that matters, and the memory that it lies in, if not its own."""

    weight: Tensor
    packed_for: torch.Size | None = None
    memory: Tensor | None = None


class PackedConv2d(nn.Conv2d):
    """A convolution whose weight is packed for the shape of its last input; nothing else of it is kept."""

    packed: Packed | None = None

    def forward(self, input: Tensor) -> Tensor:
        """The same as that of `nn.Conv2d`; what comes out has the channels last."""
        return self._convolve(input, self.bias)

    def _convolve(self, input: Tensor, bias: Tensor | None) -> Tensor:
        packed = self.packed
        if packed is None or packed.packed_for != input.shape:
            packed = self._pack(input.shape)
        convolve: Any = torch.ops.mkldnn._convolution_pointwise
        convolved: Tensor = convolve(input, packed.weight, bias, *self._how(), *PLAIN)
        return convolved

    def _pack(self, shape: torch.Size) -> Packed:
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # what torch.compile calls
        with _packing:
            if self.packed is None or self.packed.packed_for != shape:
                process_heap().check(self.weight.nbytes)
                plain = (self._plain_weight() if self.packed is None else self.packed.weight.to_dense()).to_mkldnn()
                process_heap().check(plain.numel() * plain.element_size())
                self.packed = Packed(pack(plain, *self._how(), shape), shape)
                _let_go(self)
            return self.packed

    def _plain_weight(self) -> Tensor:
        return self.weight

    def _how(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups


class PackedUpsamplingConv2d(PackedConv2d):
    """An `UpsamplingConv2d` whose weight is packed, as the four convolutions that it is."""

    def forward(self, input: Tensor) -> Tensor:
        """The same as that of `UpsamplingConv2d`; what comes out has the channels last."""
        return upsampling.interleave(self._convolve(input, upsampling.repeat_bias(self.bias)))

    def _plain_weight(self) -> Tensor:
        process_heap().check(4 * self.weight.nbytes)  # the sums and a copy of them
        return upsampling.sum_weights_sparingly(self.weight)


class PackedLinear(nn.Linear):
    """A linear layer whose weight is packed in the first call; nothing else of it is kept."""

    packed: Packed | None = None

    def forward(self, input: Tensor) -> Tensor:
        """The same as that of `nn.Linear`."""
        packed = self.packed or self._pack()
        multiply: Any = torch.ops.mkldnn._linear_pointwise
        product: Tensor = multiply(input, packed.weight, self.bias, *PLAIN)
        return product

    def _pack(self) -> Packed:
        pack: Any = torch.ops.mkldnn._reorder_linear_weight
        with _packing:
            if self.packed is None:
                process_heap().check(self.weight.nbytes)
                self.packed = Packed(pack(self.weight))
                _let_go(self)
            return self.packed


REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: PackedConv2d,
    upsampling.UpsamplingConv2d: PackedUpsamplingConv2d,
    nn.Linear: PackedLinear,
}


class ShortGroupNorm(nn.GroupNorm):
    """A group normalization (Wu & He 2018) that is quick for small images in float32 too, with the channels last.

    Torch's reads a group's few channels pixel by pixel; here all channels of a pixel are read together.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The same as that of `nn.GroupNorm`."""
        pixels = input[0, 0].numel()
        channels_last = input.is_contiguous(memory_format=torch.channels_last)
        if input.dtype != torch.float32 or pixels > FEW_PIXELS or not channels_last:
            return super().forward(input)
        share = self.num_groups / (pixels * self.num_channels)
        centred = torch.sub(input, self._sum_by_group(input), alpha=share)
        variance = self._sum_by_group(centred * centred).mul_(share)
        scale = variance.add_(self.eps).rsqrt_().mul_(self.weight.view(-1, 1, 1))
        return torch.addcmul(self.bias.view(-1, 1, 1), centred, scale)

    def _sum_by_group(self, numbers: Tensor) -> Tensor:
        """[rows, C, 1, 1], for each channel the sum of its whole group."""
        by_group = numbers.sum((2, 3)).view(len(numbers), self.num_groups, -1)
        return by_group.sum(2, keepdim=True).expand_as(by_group).reshape(*numbers.shape[:2], 1, 1)


def replace_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Puts this module's layers into the place of torch's and diffusers' plain ones, where this CPU can do that."""
    packs = torch.backends.mkldnn.is_available() and SUPPORTED[dtype]()
    most = attention.most_scores(dtype)
    for part in module.modules():
        if packs and type(part) in REPLACEMENTS and getattr(part, "padding_mode", "zeros") == "zeros":
            part.__class__ = REPLACEMENTS[type(part)]
        elif type(part) is nn.GroupNorm and part.affine:
            part.__class__ = ShortGroupNorm
        elif type(part) is Attention:
            attention.put_into_place(part, most)


def packed_in(module: nn.Module) -> dict[str, Packed]:
    """The packed weights that a module's layers hold, by their parameters' names."""
    layers = ((name, part) for name, part in module.named_modules() if isinstance(part, PackedConv2d | PackedLinear))
    return {f"{name}.weight".lstrip("."): layer.packed for name, layer in layers if layer.packed}


def drop_packed(module: nn.Module) -> None:
    """Lets go of the packed weights."""
    for part in module.modules():
        if isinstance(part, PackedConv2d | PackedLinear):
            part.packed = None


def _let_go(layer: PackedConv2d | PackedLinear) -> None:
    """Drops the weight as it came; the bias lay in one piece of memory with it."""
    layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="meta"), requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.clone(), requires_grad=False)
