"""What serves small models alone: pictures of few pixels, and heads of few channels.

Torch's own kernels are made for large models, and lose most of their time here. Large models never come this way but in
float32, in their innermost block.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

FEW_PIXELS = 64  # up to which torch's group normalization is slow
NARROW = 16  # channels of a head, which are less than a vector of AVX-512 then
Part = tuple[slice, slice]  # heads, and tokens


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


def attend_to_narrow_heads(queries: Tensor, keys: Tensor, values: Tensor, parts: Iterable[Part]) -> Tensor:
    """softmax(query key^T / sqrt(C)) value, all [heads, tokens, C], from products with a column for each token.

    `parts` are the heads and tokens whose scores are made at once.
    """
    output, nothing = queries.new_empty(queries.mT.shape), queries.new_empty(1, 1, 1)
    for heads, tokens in parts:
        columns = queries[heads, tokens].mT
        scores = torch.baddbmm(nothing, keys[heads], columns, beta=0, alpha=queries.shape[2] ** -0.5)
        torch.softmax(scores, 1, out=scores)
        torch.bmm(values[heads].mT, scores, out=output[heads, :, tokens])
    return output.mT
