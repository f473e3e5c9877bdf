"""Layers that do what torch's own do in less time on a CPU, put in their place in a module.

oneDNN multiplies by weights in an order of its own, and torch's layers put them into it anew in each call. Here that is
done once, in the first call: the best order depends on the input's shape. What a prompt's tokens are turned into by
an attention layer is kept from step to step where the image has no more tokens than the prompt has, since it is a
large part of the work there. Neither changes a bit of what comes out, save for linear layers in float32, which torch
leaves to another library. In bfloat16 without AMX, attention is made of matrix products, which oneDNN does at three
times the speed of torch's flash kernel.

    replace_layers(unet, torch.bfloat16)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from runner import heap, machine, upsampling

# oneDNN refuses to pack weights of a number type that the CPU lacks.
SUPPORTED: dict[torch.dtype, Callable[[], bool]] = {
    torch.float32: lambda: True,
    torch.bfloat16: lambda: bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    torch.float16: lambda: bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()),
}
SCORES = 1 << 21  # of attention, made at once: what caches hold
PLAIN: tuple[Any, ...] = ("none", [], "")  # what torch.compile fuses with a layer: nothing


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
        heap.check(self.weight.nbytes)
        plain = (self._plain_weight() if self.packed is None else self.packed.weight.to_dense()).to_mkldnn()
        heap.check(plain.numel() * plain.element_size())
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
        heap.check(4 * self.weight.nbytes)  # the sums and a copy of them
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
        heap.check(self.weight.nbytes)
        self.packed = Packed(pack(self.weight))
        _let_go(self)
        return self.packed


REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: PackedConv2d,
    upsampling.UpsamplingConv2d: PackedUpsamplingConv2d,
    nn.Linear: PackedLinear,
}


class KeepingAttention:
    """What computes one attention layer (Vaswani et al. 2017) in the place of diffusers' own processor."""

    def __init__(self, *, by_products: bool) -> None:
        self._by_products = by_products
        self._kept = WeakTensorKeyDictionary()  # keys and values by the prompts' tensor, as long as that is there

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The layer's output [rows, tokens, C], from the image's tokens and those of the prompts, if it sees them."""
        assert attention_mask is None, "every token is seen"
        query = _heads(attn, attn.to_q(hidden_states))
        key, value = self._keys_and_values(attn, hidden_states, encoder_hidden_states)
        attend = attend_by_products if self._by_products else functional.scaled_dot_product_attention
        seen = attend(query, key, value)
        output: Tensor = attn.to_out[0](seen.transpose(1, 2).flatten(2))
        return output

    def _keys_and_values(self, attn: Any, image: Tensor, prompts: Tensor | None) -> tuple[Tensor, Tensor]:
        if kept := None if prompts is None else self._kept.get(prompts):
            found: tuple[Tensor, Tensor] = kept
            return found
        source = image if prompts is None else prompts
        made = _heads(attn, attn.to_k(source)), _heads(attn, attn.to_v(source))
        if prompts is not None and image.shape[1] <= prompts.shape[1]:
            self._kept[prompts] = made
        return made


def attend_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(C)) value, all [rows, heads, tokens, C], from large matrix products.

    Scores have the inputs' number type, where a flash kernel's are float32 (Dao 2023). In bfloat16 that is less exact
    by itself; in the output of a UNet, whose every layer rounds to it, no difference was found.
    """
    queries, keys, values = (numbers.flatten(0, 1) for numbers in (query, key, value))  # [rows * heads, tokens, C]
    output, nothing, scale = torch.empty_like(queries), query.new_empty(1, 1, 1), query.shape[-1] ** -0.5
    tokens, seen = queries.shape[1], keys.shape[1]
    heads_at_once, tokens_at_once = max(1, SCORES // (tokens * seen)), max(1, SCORES // seen)
    for head in range(0, len(queries), heads_at_once):
        heads = slice(head, head + heads_at_once)
        for token in range(0, tokens, tokens_at_once):
            part = heads, slice(token, token + tokens_at_once)
            scores = torch.baddbmm(nothing, queries[part], keys[heads].mT, beta=0, alpha=scale)
            torch.softmax(scores, -1, out=scores)
            torch.bmm(scores, values[heads], out=output[part])
    return output.view(query.shape)


def _heads(attn: Any, numbers: Tensor) -> Tensor:
    """[rows, tokens, C] by heads, [rows, heads, tokens, C / heads]; side by side they are read more quickly."""
    by_heads: Tensor = numbers.unflatten(2, (attn.heads, -1)).transpose(1, 2).contiguous()
    return by_heads


def replace_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Puts this module's layers into the place of torch's and diffusers' plain ones, where this CPU can do that."""
    packs = torch.backends.mkldnn.is_available() and SUPPORTED[dtype]()
    by_products = dtype == torch.bfloat16 and _multiplies_without_tiles()
    for part in module.modules():
        if packs and type(part) in REPLACEMENTS and getattr(part, "padding_mode", "zeros") == "zeros":
            part.__class__ = REPLACEMENTS[type(part)]
        elif isinstance(part, Attention) and _is_plain(part):
            part.processor = KeepingAttention(by_products=by_products)


def _multiplies_without_tiles() -> bool:
    """Whether this CPU multiplies bfloat16 by AVX-512, and not by AMX, which torch's flash kernel makes good use of."""
    sets = machine.instruction_sets()
    return "avx512_bf16" in sets and "amx_bf16" not in sets


def _is_plain(attn: Any) -> bool:
    """Whether a layer is only queries, keys, values and an output, as in Stable Diffusion's UNets."""
    others = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj", "to_add_out")
    changes = attn.residual_connection or attn.rescale_output_factor != 1
    return not changes and all(getattr(attn, name, None) is None for name in others) and attn.to_out is not None


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
