"""A model's fingerprints: SHA-256 over the tensors of each fragment, whatever files they stand in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator

import numpy as np

from runner.machine.cache import cache_folder
from runner.model.files import ModelFiles
from runner.model.safetensors import ITEM_BYTES, StoredTensor

HASH_CHUNK = 1 << 22
CACHED_SIZE = 1 << 28  # bytes; hashing less than this is quicker than it is worth remembering


def fingerprints(model: ModelFiles, *, remembered: bool = True) -> dict[str, str]:
    """SHA-256 of each fragment's weights: names, types, shapes and bytes, whatever files they stand in.

    Those of large models are remembered in the user's cache folder, by names and the files' paths, sizes and times;
    `remembered=False` reads every byte again.
    """
    files = sorted({tensor.file for table in model.tensors.values() for tensor in table.values()})
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    if sum(size for _, size, _ in states) < CACHED_SIZE:
        return _hash_fragments(model)
    names = {component: sorted(table) for component, table in model.tensors.items()}
    key = hashlib.sha256(json.dumps([states, names]).encode()).hexdigest()
    cached = cache_folder() / "fingerprints" / f"{key}.json"
    if remembered and cached.exists():
        return dict(json.loads(cached.read_text()))
    hashes = _hash_fragments(model)
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(hashes))
    partial.replace(cached)
    return hashes


def _hash_fragments(model: ModelFiles) -> dict[str, str]:
    hashes = {fragment: hashlib.sha256() for fragment in model.family.fragments}
    for component, table in model.tensors.items():
        for name in sorted(table):
            target, tensor = hashes[model.family.fragment_of(component, name)], table[name]
            target.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
            for chunk in _read_chunks(tensor):
                target.update(chunk)
    return {fragment: target.hexdigest() for fragment, target in hashes.items()}


def _read_chunks(tensor: StoredTensor) -> Iterator[bytes]:
    with tensor.file.open("rb", buffering=0) as stream:
        stream.seek(tensor.start)
        if tensor.transposed:  # as it would lie in a folder, so that a model has the same fingerprints in every form
            numbers = np.frombuffer(stream.read(tensor.end - tensor.start), f"V{ITEM_BYTES[tensor.dtype]}")
            yield numbers.reshape(tensor.shape[::-1]).T.tobytes()
            return
        for offset in range(tensor.start, tensor.end, HASH_CHUNK):
            yield stream.read(min(HASH_CHUNK, tensor.end - offset))
