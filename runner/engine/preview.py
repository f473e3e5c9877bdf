"""What pictures under way are about to become, for next to nothing: a linear map from latents to colours.

The map is fitted for each autoencoder by itself, by least squares over the latents of one small picture that it
encodes: so it suits any model, whatever its latents mean. It is made when it is asked for the first time. One latent is
one pixel.

    previews = Previews(vae)
    previews.of(trajectories)  # uint8 [h, w, 3] for each picture
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from runner.device.component import Component
from runner.engine.autoencoder import encode_picture
from runner.engine.denoise import Trajectory
from runner.images.codec import Pixels

SIDE, CELLS = 16, 8  # latents, and cells of one colour, along a side of the picture that the map is fitted to


class Previews:
    """The previews of the pictures that an autoencoder will decode."""

    def __init__(self, vae: Component) -> None:
        self._vae = vae
        self._map: Tensor | None = None

    @torch.inference_mode()
    def of(self, trajectories: Sequence[Trajectory]) -> list[Pixels]:
        """A small picture of each image on its way, uint8 [h, w, 3]; none before anything is predicted."""
        if self._map is None:
            self._map = fit(self._vae)
        return list(self._pictures(trajectories))

    def _pictures(self, trajectories: Sequence[Trajectory]) -> Iterator[Pixels]:
        assert self._map is not None
        for trajectory in trajectories:
            expected = trajectory.expected()
            if expected is not None:
                levels = (_with_ones(expected.float().nan_to_num()) @ self._map).clamp(0, 1) * 255
                yield from levels.round().to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def fit(vae: Component) -> Tensor:
    """The map [C + 1, 3] from a latent, and 1, to the mean colour of its pixels, from 0 to 1."""
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    picture = coloured_cells(SIDE * factor)
    latents = encode_picture(vae, picture)[None]
    colours = picture.reshape(SIDE, factor, SIDE, factor, 3).mean((1, 3)).reshape(-1, 3) / 255
    # On the CPU: not every device solves, and this is a matrix of a few rows.
    known = _with_ones(latents).flatten(0, 2).cpu()
    found: Tensor = torch.linalg.lstsq(known, torch.from_numpy(colours).to(known.dtype)).solution
    return found.to(vae.device)


def coloured_cells(side: int) -> Pixels:
    """A picture, uint8 [side, side, 3], of cells in any colours, half of them white: it has areas, edges and contrast.

    Smooth colours and random latents were tried as well; they fit finished pictures worse.
    """
    random = np.random.default_rng(0)
    cells = random.integers(256, size=(CELLS, CELLS, 3), dtype=np.uint8)
    cells[random.random((CELLS, CELLS)) < 0.5] = 255
    return np.kron(cells, np.ones((side // CELLS, side // CELLS, 1), np.uint8))


def _with_ones(latents: Tensor) -> Tensor:
    """[n, C, h, w] as [n, h, w, C + 1]."""
    last = latents.permute(0, 2, 3, 1)
    return torch.cat([last, torch.ones_like(last[..., :1])], -1)
