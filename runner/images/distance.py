"""How far two pictures are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from runner.images.codec import Pixels

WHITE = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far two pictures are apart: PSNR in dB, None where they are equal; the greatest difference in levels, 0 to
    255; the share of pixels that differ, 0 to 1."""

    psnr: float | None
    greatest: int
    share: float


def measure(one: Pixels, other: Pixels) -> Distance:
    """How far two pictures of one size, uint8 [H, W, 3], are apart."""
    levels = np.abs(one.astype(np.int16) - other)
    return Distance(
        psnr=psnr(float(np.square(levels.astype(np.float32)).mean(dtype=np.float64))),
        greatest=int(levels.max()),
        share=float(levels.any(axis=2).mean()),
    )


def psnr(mean_square: float) -> float | None:
    """The peak signal-to-noise ratio in dB for a mean squared difference of levels; None where that is 0."""
    return 10 * math.log10(WHITE**2 / mean_square) if mean_square else None
