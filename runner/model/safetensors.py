"""Where tensors lie in files. A model is tables of these; nothing is read before it is needed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import ModelError

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
WEIGHT_TYPES = ("F32", "F16", "BF16")
HEADER_LIMIT = 100_000_000  # bytes, the limit of the safetensors format


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor's bytes are: `[start, end)` in `file`, contiguous and little-endian.

    One that is `transposed` lies there with its two dimensions the other way round. `changes` are added to it when it
    is read.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    transposed: bool = False
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is added to a tensor: a LoRA's parts for it (`model.loras`), which `model.deltas` multiplies out.

    `scale` is what the product is multiplied by, and `weight` how strong the LoRA is.
    """

    parts: Mapping[str, StoredTensor]
    scale: float
    weight: float = 1.0


def read_metadata(file: Path) -> dict[str, str]:
    """The texts that a safetensors file says about itself; none where it is no such file or says none."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            found = json.loads(stream.read(min(length, HEADER_LIMIT))).get("__metadata__")
        except (ValueError, AttributeError, RecursionError):
            return {}
    return (
        {str(key): value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}
    )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The table of a safetensors file, every entry of it checked against the file's size.

    Raises:
        ModelError: the file is not one, or is damaged.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise ModelError(f"{file}: is not a safetensors file, or was cut off")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            return {name: _stored_tensor(file, entry, 8 + length, size) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ModelError(f"{file}: its table of tensors is damaged ({error})") from error


def _stored_tensor(file: Path, entry: Mapping[str, Any], base: int, size: int) -> StoredTensor:
    dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
    start, end = (base + int(offset) for offset in entry["data_offsets"])
    if not base <= start <= end <= size or min(shape, default=0) < 0:
        raise ValueError("a tensor lies outside the file: was it cut off?")
    if dtype in ITEM_BYTES and end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError("a tensor's size and shape don't agree")
    return StoredTensor(file=file, dtype=dtype, shape=shape, start=start, end=end)
