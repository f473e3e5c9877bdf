"""Attention on a CPU by matrix products, where they are quicker than torch's flash kernel.

Torch's flash kernel multiplies for each head by itself, in small pieces. Products of many heads at once are quicker
where pictures are small, and in bfloat16 without AMX, where oneDNN multiplies at three times the kernel's speed.

    put_into_place(layer, most_scores(torch.bfloat16))
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional

from runner.kernels import small
from runner.machine import describe

SCORES = 1 << 21  # made at once: what caches hold
FEW_SCORES = 1 << 16  # of a head; from here on flash is as quick in float32


class AttentionByProducts(Attention):  # type: ignore[misc]
    """An attention layer (Vaswani et al. 2017) of queries, keys, values and an output, without masks and norms."""

    _most_scores: float = 0  # of a head; from there on they are flash's

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """The layer's output [rows, tokens, C], from the image's tokens and those of the prompts, if it sees them."""
        assert attention_mask is None, "every token is seen"
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = self.to_q(hidden_states), self.to_k(source), self.to_v(source)
        by_products = query.shape[1] * key.shape[1] < self._most_scores
        attend = attend_by_products if by_products else functional.scaled_dot_product_attention
        seen = attend(*map(self._by_head, (query, key, value)))
        output: Tensor = self.to_out[0](seen.transpose(1, 2).flatten(2))
        return output

    def _by_head(self, numbers: Tensor) -> Tensor:
        """[rows, tokens, C] by heads, [rows, heads, tokens, C / heads]; side by side they are read more quickly."""
        by_head: Tensor = numbers.unflatten(2, (self.heads, -1)).transpose(1, 2).contiguous()
        return by_head


def put_into_place(layer: Attention, most: float) -> None:
    """Makes a layer an `AttentionByProducts`, if it is plain; less than `most` scores are made by products."""
    if _is_plain(layer):
        layer.__class__ = AttentionByProducts
        layer._most_scores = most


def most_scores(dtype: torch.dtype) -> float:
    """From how many scores of a head on, a query's with a key each, products are no quicker than flash."""
    if dtype == torch.float32:
        return FEW_SCORES
    sets = describe.instruction_sets()
    return math.inf if dtype == torch.bfloat16 and "avx512_bf16" in sets and "amx_bf16" not in sets else 0


def attend_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(C)) value, all [rows, heads, tokens, C], from large matrix products.

    Scores have the inputs' number type, where a flash kernel's are float32 (Dao 2023). In bfloat16 that is less exact
    by itself; in the output of a UNet, whose every layer rounds to it, no difference was found.
    """
    queries, keys, values = (numbers.flatten(0, 1) for numbers in (query, key, value))  # [rows * heads, tokens, C]
    if query.shape[3] < small.NARROW:
        return small.attend_to_narrow_heads(queries, keys, values, parts(queries, keys, SCORES)).view(query.shape)
    output, nothing, scale = torch.empty_like(queries), query.new_empty(1, 1, 1), query.shape[3] ** -0.5
    for heads, tokens in parts(queries, keys, SCORES):
        scores = torch.baddbmm(nothing, queries[heads, tokens], keys[heads].mT, beta=0, alpha=scale)
        torch.softmax(scores, 2, out=scores)
        torch.bmm(scores, values[heads], out=output[heads, tokens])
    return output.view(query.shape)


def parts(queries: Tensor, keys: Tensor, scores: int) -> Iterator[small.Part]:
    """Heads and tokens whose scores, `scores` numbers at most, are made at once."""
    heads, tokens, seen = len(queries), queries.shape[1], keys.shape[1]
    heads_at_once, tokens_at_once = max(1, scores // (tokens * seen)), max(1, scores // seen)
    for head in range(0, heads, heads_at_once):
        for token in range(0, tokens, tokens_at_once):
            yield slice(head, head + heads_at_once), slice(token, token + tokens_at_once)


def _is_plain(layer: Any) -> bool:
    """Whether a layer is only queries, keys, values and an output, as in Stable Diffusion's UNets."""
    others = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj", "to_add_out")
    changes = layer.residual_connection or layer.rescale_output_factor != 1
    return not changes and all(getattr(layer, name, None) is None for name in others) and layer.to_out is not None
