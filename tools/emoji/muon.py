"""The optimizer: Muon for matrices and convolutions, AdamW for everything else.

Muon (Jordan et al. 2024) takes the momentum's nearest orthogonal matrix as the step, found by a few Newton-Schulz
iterations. Measured here, it gets as far as AdamW in fewer steps than its extra time costs: see README.md.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

Named = Iterable[tuple[str, torch.nn.Parameter]]


class Muon(torch.optim.Optimizer):
    """One step for both kinds: `group["muon"]` says which. Learning rates are those of AdamW, for both."""

    def __init__(self, named: Named, lr: float, weight_decay: float, muon: bool = True) -> None:
        matrices, others = [], []
        for name, parameter in named:
            (matrices if muon and _is_matrix(name, parameter) else others).append(parameter)
        groups = [
            {"params": matrices, "muon": True, "weight_decay": weight_decay},
            {"params": others, "muon": False, "weight_decay": 0.0 if muon else weight_decay},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "step": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            group["step"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    (self._muon if group["muon"] else self._adam)(parameter, group)

    def _muon(self, parameter: torch.Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 0.05)
        step = orthogonal(parameter.grad.lerp(momentum, 0.95).flatten(1))
        # Scaled to the root mean square of an AdamW step (Liu et al. 2025), so that learning rates carry over.
        scale = 0.2 * max(step.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step.view_as(parameter), alpha=-group["lr"] * scale)

    def _adam(self, parameter: torch.Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        mean, square = state["mean"].lerp_(parameter.grad, 0.1), state["square"].lerp_(parameter.grad**2, 0.01)
        mean, square = mean / (1 - 0.9 ** group["step"]), square / (1 - 0.99 ** group["step"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, square.sqrt() + 1e-8, value=-group["lr"])


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """[m, n], about the nearest matrix with singular values of one, by five Newton-Schulz iterations.

    They run on the small square of the matrix with itself, which takes half as long as on the matrix.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    square, product = wide @ wide.T, torch.eye(len(wide))
    for _ in range(5):
        factor = -4.7750 * square + 2.0315 * square @ square
        factor.diagonal().add_(3.4445)
        product, square = factor @ product, factor @ square @ factor
    result = product @ wide
    return result if matrix.shape[0] <= matrix.shape[1] else result.T


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Not the first and last layers, nor tables of embeddings: Muon is for what lies between."""
    ends = ("conv_in", "conv_out", "embedding", "quant_conv")
    return parameter.ndim >= 2 and not any(end in name for end in ends)
