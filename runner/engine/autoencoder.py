"""Pictures become latents, and latents pictures; large ones in strips."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.device.component import Component
from runner.engine import strips
from runner.planning.costs import decode_rows, decoded_pixels

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Hidden = np.ndarray[Any, np.dtype[np.bool_]]


def encode_picture(encoder: Component, pixels: Pixels, hidden: Hidden | None = None) -> Tensor:
    """A picture's latents [4, H/8, W/8], float32, from uint8 [H, W, 3]: the most likely ones, without noise.

    Pixels that are `hidden` [H, W] are grey, half-way between black and white.
    """
    levels = torch.from_numpy(pixels.copy()).to(encoder.device).permute(2, 0, 1)[None]
    parts = ("encoder", "quant_conv") if encoder.config.get("use_quant_conv", True) else ("encoder",)
    with encoder.visit(*parts) as module:
        signed = levels.float() / 127.5 - 1
        if hidden is not None:
            signed = signed.masked_fill(torch.from_numpy(hidden).to(signed.device), 0)
        sent = signed.to(encoder.dtype)
        [moments] = encoder.place.run([lambda: strips.encode(module, sent)])
    return moments[0].chunk(2)[0].float() * float(encoder.config["scaling_factor"])


def decode(decoder: Component, latents: Tensor) -> Iterator[tuple[Pixels, list[bool]]]:
    """Pictures of finished latents [n, 4, h, w], uint8 [k, H, W, 3] at a time, and whether each came out finite.

    As many calls are made at a time as the decoder's place has room for. Bytes are rounded, not cut off.
    """
    factor = 2 ** (len(decoder.config["block_out_channels"]) - 1)
    width, height = latents.shape[-1] * factor, latents.shape[-2] * factor
    scaled = (latents / decoder.config["scaling_factor"]).to(decoder.dtype)
    parts = ("decoder", "post_quant_conv") if decoder.config.get("use_post_quant_conv", True) else ("decoder",)
    in_strips = width * height > decoded_pixels(decoder.device.type)
    rows = 1 if in_strips else decode_rows(width, height, decoder.device.type)
    batches, place = padded_batches(scaled, rows), decoder.place
    with decoder.visit(*parts) as module:
        decode_batch = partial(_decode_in_strips if in_strips else _decode_whole, module)
        for start in range(0, len(batches), place.width):
            made = place.run([partial(decode_batch, batch) for batch in batches[start : start + place.width]])
            wanted = min(len(made) * rows, len(scaled) - start * rows)
            pictures = torch.cat([pictures for pictures, _ in made])[:wanted]
            yield pictures.cpu().numpy(), [good for _, finite in made for good in finite][:wanted]


def _decode_whole(vae: Any, latents: Tensor) -> tuple[Tensor, list[bool]]:
    return _to_bytes(vae.decode(latents).sample)


def _decode_in_strips(vae: Any, latents: Tensor) -> tuple[Tensor, list[bool]]:
    made = [_to_bytes(strip) for strip in strips.decode(vae, latents)]
    return torch.cat([strip for strip, _ in made], 1), [all(good for _, [good] in made)]


def _to_bytes(decoded: Tensor) -> tuple[Tensor, list[bool]]:
    """From [rows, 3, H, W] uint8 [rows, H, W, 3], and whether each row was finite."""
    levels = (decoded.float().nan_to_num() / 2 + 0.5).clamp(0, 1) * 255
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous(), is_finite(decoded)


def padded_batches(tensor: Tensor, rows: int) -> list[Tensor]:
    """Slices of exactly `rows` rows; the last one is filled up with its own last row."""
    batches = list(torch.split(tensor, rows))
    short = rows - len(batches[-1])
    if short:
        batches[-1] = torch.cat([batches[-1], batches[-1][-1:].expand(short, *tensor.shape[1:])])
    return batches


def is_finite(numbers: Tensor) -> list[bool]:
    """For each image of [n, C, H, W] whether it is free of NaN and infinity."""
    finite: list[bool] = numbers.isfinite().flatten(1).all(1).tolist()
    return finite


def is_one_colour(picture: Pixels) -> bool:
    """Whether all pixels of [H, W, 3] are equal."""
    return bool((picture == picture[0, 0]).all())
