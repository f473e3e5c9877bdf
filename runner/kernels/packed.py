"""Convolutions and linear layers whose weights are packed: kept in the order in which oneDNN multiplies by them.

Torch's layers reorder their weights in each call. These layers do it once, in the first call: the best order depends
on the input's shape. The output has the same bits, except for linear layers in float32, which torch leaves to another
library. `replace` puts them into the place of torch's.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from runner.machine.heap import process_heap

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


def packed_in(module: nn.Module) -> dict[str, Packed]:
    """The packed weights that a module's layers hold, by their parameters' names."""
    layers = ((name, part) for name, part in module.named_modules() if isinstance(part, PackedConv2d | PackedLinear))
    return {f"{name}.weight".lstrip("."): layer.packed for name, layer in layers if layer.packed}


def _let_go(layer: PackedConv2d | PackedLinear) -> None:
    """Drops the weight as it came; the bias lay in one piece of memory with it."""
    layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="meta"), requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.clone(), requires_grad=False)
