"""The UNet as torch's inductor compiles it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from runner.device.component import Component

SHAPES_KEPT = 2  # each holds a copy of the weights on a CPU


class Inductor:
    """The UNet as torch's inductor compiles it. Its weights stay; on a CPU the compiled code holds another copy."""

    def __init__(self, unet: Component) -> None:
        self._unet = unet
        # A graph in one piece is never left for uncompiled code in silence, which would round otherwise.
        self._module = torch.compile(unet.module, fullgraph=True, dynamic=False)
        self._shapes: set[tuple[torch.Size, torch.Size]] = set()

    def renew(self) -> None:
        """Compiles again where the weights are in the compiled code, since they are others now."""
        if self._unet.device.type == "cpu":
            torch.compiler.reset()
            self._shapes.clear()

    def __call__(self, latents: Tensor, times: Tensor, encoder_hidden_states: Tensor, **options: Any) -> Any:
        """What the UNet returns."""
        self._shapes.add((latents.shape, encoder_hidden_states.shape))
        if len(self._shapes) > SHAPES_KEPT:
            torch.compiler.reset()
            self._shapes = {(latents.shape, encoder_hidden_states.shape)}
        frozen = self._unet.device.type == "cpu"
        # On a GPU kernels are chosen by timing them, which may choose others the next time.
        chosen: dict[str, Any] = {"freezing": frozen} | ({} if frozen else {"deterministic": True})
        with self._unet.visit(), torch._inductor.config.patch(**chosen):
            return self._module(latents, times, encoder_hidden_states=encoder_hidden_states, **options)
