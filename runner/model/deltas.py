"""Multiplies out what LoRAs change of a tensor, and adds it while the tensor is read.

A weight is read in float32, some rows at a time, all changes are added to it, and only the sum is rounded. So a picture
doesn't depend on where its weights wait, and no second copy of a large weight is ever in memory. The forms are those of
LyCORIS (Yeh et al. 2024); `model.loras` has checked that they fit.

    read_changed(stored, target)  # base + weight * scale * (up @ down) + ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from runner.model.safetensors import Change, StoredTensor

AT_ONCE = 1 << 20  # numbers of a weight that are held in float32
Rows = Callable[[int, int], Tensor]  # the rows from one to before another, float32 [n, columns]
Read = Callable[[StoredTensor], Tensor]


def read_changed(stored: StoredTensor, target: Tensor, read: Read) -> None:
    """Reads a tensor with all its changes into memory that is there; `read` reads one without any, in float32."""
    base = _stored_rows(replace(stored, changes=()), read)
    changes = [(_rows_of(change, base, stored.shape, read), change.weight) for change in stored.changes]
    flat = target.view(stored.shape[0], -1)
    for start, stop in _pieces(stored.shape):
        total = base(start, stop)
        for rows, weight in changes:
            total += weight * rows(start, stop)
        flat[start:stop] = total


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where pieces of a tensor's rows begin and end."""
    step = max(1, AT_ONCE // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def _stored_rows(stored: StoredTensor, read: Read) -> Rows:
    """A tensor's rows, read when they are wanted; those of a transposed one lie all over its bytes."""
    if stored.transposed:
        whole = read(stored)
        return lambda start, stop: whole[start:stop].clone()
    size = (stored.end - stored.start) // stored.shape[0]

    def rows(start: int, stop: int) -> Tensor:
        begin, end = stored.start + start * size, stored.start + stop * size
        return read(replace(stored, shape=(stop - start, *stored.shape[1:]), start=begin, end=end)).flatten(1)

    return rows if len(stored.shape) > 1 else lambda start, stop: read(stored)[start:stop, None]


def _rows_of(change: Change, base: Rows, shape: tuple[int, ...], read: Read) -> Rows:
    parts = {name: read(tensor) for name, tensor in change.parts.items() if name != "diff"}
    # A change of its own size is as large as the weight, and is read as that is.
    made = _stored_rows(change.parts["diff"], read) if "diff" in change.parts else _product(parts, shape[2:])

    def scaled(start: int, stop: int) -> Tensor:
        return change.scale * made(start, stop).reshape(stop - start, -1)

    if "magnitude" in parts:  # peft has one for each row
        return _decomposed(scaled, base, parts["magnitude"].reshape(-1, 1))
    if "dora_scale" not in parts:
        return scaled
    lengths = parts["dora_scale"]
    if lengths.shape[0] == shape[0]:
        return _decomposed(scaled, base, lengths.reshape(-1, 1))
    return _decomposed_by_columns(scaled, base, lengths.reshape(-1), shape)


def _product(parts: Mapping[str, Tensor], kernel: tuple[int, ...]) -> Rows:
    """What the parts multiply out to."""
    if "down" in parts:
        up, right = parts["up"].flatten(1), parts["down"].flatten(1)
        if "mid" in parts:
            right = torch.einsum("rs...,si->ri...", parts["mid"], right).flatten(1)
        return lambda start, stop: up[start:stop] @ right
    if "hada_w1_a" in parts:
        first, second = (_hada(parts, half) for half in ("1", "2"))
        return lambda start, stop: (first[0][start:stop] @ first[1]) * (second[0][start:stop] @ second[1])
    return _kronecker(*_halves(parts))


def _hada(parts: Mapping[str, Tensor], half: str) -> tuple[Tensor, Tensor]:
    """The two matrices of one half of a LoHa."""
    left, right, core = parts[f"hada_w{half}_a"], parts[f"hada_w{half}_b"], parts.get(f"hada_t{half}")
    return (left, right.flatten(1)) if core is None else _tucker(core, left, right)


def _tucker(core: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices from a core [r, s, k, k] and what is multiplied to its sides, [r, rows] and [s, columns]."""
    return left.T, torch.einsum("rs...,si->ri...", core, right).flatten(1)


def _halves(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Both factors of a LoKr, [a, b] and [c, d * k * k]."""
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_w2" in parts:
        return first.flatten(1), parts["lokr_w2"].flatten(1)
    left, right = parts["lokr_w2_a"], parts["lokr_w2_b"]
    if "lokr_t2" in parts:
        left, right = _tucker(parts["lokr_t2"], left, right)
    return first.flatten(1), left @ right.flatten(1)


def _kronecker(first: Tensor, second: Tensor) -> Rows:
    def rows(start: int, stop: int) -> Tensor:
        numbers = torch.arange(start, stop)
        outer, inner = first[numbers // len(second)], second[numbers % len(second)]
        return (outer[:, :, None] * inner[:, None, :]).flatten(1)

    return rows


def _decomposed(change: Rows, base: Rows, lengths: Tensor) -> Rows:
    """The change to a weight whose rows then get new lengths, [rows, 1]."""

    def rows(start: int, stop: int) -> Tensor:
        before = base(start, stop)
        after = before + change(start, stop)
        return after * (lengths[start:stop] / _length(after.square().sum(1, keepdim=True))) - before

    return rows


def _decomposed_by_columns(change: Rows, base: Rows, lengths: Tensor, shape: tuple[int, ...]) -> Rows:
    """The same with new lengths of the columns of each input channel, [inputs], as LyCORIS did it at first."""
    kernel, squares = math.prod(shape[2:]), torch.zeros(shape[1])
    for start, stop in _pieces(shape):
        after = base(start, stop) + change(start, stop)
        squares += after.square().unflatten(1, (-1, kernel)).sum((0, 2))
    factors = (lengths / _length(squares)).repeat_interleave(kernel)

    def rows(start: int, stop: int) -> Tensor:
        before = base(start, stop)
        return (before + change(start, stop)) * factors - before

    return rows


def _length(squares: Tensor) -> Tensor:
    return squares.sqrt() + torch.finfo(torch.float32).eps
