"""What images are given beside their prompts: init pictures, masks, and what a model for inpainting is told of them.

A model that knows of no masks is led to the init picture where that is kept (`denoise.Trajectory.guide`); one for
inpainting sees the mask and what is around it. In either way what is kept is put into the finished picture byte by
byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.device.component import Component
from runner.engine import autoencoder
from runner.engine.conditions import beside
from runner.engine.remembered import Remembered
from runner.images import inits, masks
from runner.images.inits import Pixels
from runner.images.masks import Levels
from runner.item import MASK, MASK_BLUR, MASK_SHA256, Item

BYTES_KEPT = 16 << 20  # in the host's memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What one image is given, on the CPU: its init picture's latents [4, h, w], and which of them are `kept` [1, h, w]
    while it is denoised; `channels` [5, h, w] stand beside the latents of a model for inpainting. Each may be None.
    """

    latents: Tensor | None = None
    kept: Tensor | None = None
    channels: Tensor | None = None


class Pictures:
    """Reads and encodes the pictures of items, each once as long as it is remembered.

    `inpaints` says whether the model is one for inpainting; `factor` is pixels for each latent along one side.
    """

    def __init__(self, encoder: Component, *, inpaints: bool, factor: int) -> None:
        self._encoder, self._inpaints, self._factor = encoder, inpaints, factor
        self._encoded: Remembered[tuple[Any, ...]] = Remembered(BYTES_KEPT)

    def given(self, items: Sequence[Item]) -> list[Given]:
        """What each item's image is given; nothing for items that begin with noise alone.

        Raises:
            InitError: a file can't be read any more, or has changed.
        """
        return [self._given(item) for item in items] if self._inpaints or items[0].init is not None else []

    def finish(self, item: Item, made: Pixels) -> Pixels:
        """The finished picture, uint8 [H, W, 3]: what was made, within the init picture where there is a mask.

        Raises:
            InitError: as `given`.
        """
        mask = _load_mask(item)
        return made if mask is None else masks.paste(made, _load_init(item), mask, item.value(MASK_BLUR))

    def _given(self, item: Item) -> Given:
        mask = _load_mask(item)
        latents = None if item.init is None else self._encode(item)
        if not self._inpaints:
            new = None if mask is None else self._cells(mask)
            return Given(latents=latents, kept=None if new is None else ~new)
        hidden = np.full((item.height, item.width), 255, np.uint8) if mask is None else mask
        # Without a mask nothing is told of the picture, as if all of it were to be made anew.
        return Given(latents=latents, channels=beside(self._cells(hidden).float(), self._encode(item, hidden)))

    def _cells(self, mask: Levels) -> Tensor:
        """Which latents are made anew, bool [1, h, w]."""
        return torch.from_numpy(masks.cells(mask, self._factor))[None]

    def _encode(self, item: Item, hidden: Levels | None = None) -> Tensor:
        """The latents [4, h, w] of an item's init picture; with a mask `hidden` of what isn't made anew."""
        told = None if hidden is None else item.value(MASK_SHA256) or ""
        of_nothing = told == ""
        source = (None, None) if of_nothing else (item.init_sha256, item.crop)
        key = (*source, item.width, item.height, told)
        if key not in self._encoded:
            pixels = np.zeros((item.height, item.width, 3), np.uint8) if of_nothing else _load_init(item)
            more = [] if hidden is None else [hidden >= masks.HALF]
            self._encoded.keep(key, (autoencoder.encode_picture(self._encoder, pixels, *more),))
        [latents] = self._encoded[key]
        assert latents is not None
        return latents


def _load_init(item: Item) -> Pixels:
    assert item.init and item.init_sha256
    return inits.load(Path(item.init), item.init_sha256, item.crop, item.width, item.height)


def _load_mask(item: Item) -> Levels | None:
    """The mask of an item, uint8 [H, W]; None where it has none."""
    if not (path := item.value(MASK)):
        return None
    return masks.load(Path(path), item.value(MASK_SHA256), item.crop, item.width, item.height)
