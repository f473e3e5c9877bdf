"""Finds a model's weights and says what they are: configurations, tensors by one set of names, fingerprints.

Reads files only and never imports torch, so that `plan` knows every item's id. A model is a diffusers folder of
safetensors files; what is in them is checked here, before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import ModelError

BUILTIN = "builtin:"
COMPONENTS = {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
FRAGMENTS = ("text_encoder", "unet_encode", "unet_decode", "vae")
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
HEADER_LIMIT = 100_000_000  # bytes, the limit of the safetensors format
HASH_CHUNK = 1 << 22
CACHED_SIZE = 1 << 28  # bytes; hashing less than this is quicker than it is worth remembering

# Names that older versions of transformers and diffusers wrote, and those that they write now.
OLD_NAMES = (
    (re.compile(r"^text_model\."), ""),
    (re.compile(r"(\.attentions\.\d+)\.query\."), r"\1.to_q."),
    (re.compile(r"(\.attentions\.\d+)\.key\."), r"\1.to_k."),
    (re.compile(r"(\.attentions\.\d+)\.value\."), r"\1.to_v."),
    (re.compile(r"(\.attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
)
LEFTOVERS = ("embeddings.position_ids",)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor's bytes are: `[start, end)` in `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model that was found and looks whole: per component its configuration and its tensors."""

    name: str
    folder: Path
    configs: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, StoredTensor]]

    @property
    def latent_factor(self) -> int:
        """Pixels for each latent, along one side."""
        return int(2 ** (len(self.configs["vae"]["block_out_channels"]) - 1))

    def parameters(self, component: str) -> int:
        """How many numbers a component has."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors[component].values())


def find_model(path: str) -> ModelFiles:
    """The model at `path`, a diffusers folder or `builtin:NAME`.

    Raises:
        ModelError: nothing is there, or it isn't a model, or a file of it is damaged.
    """
    if path.startswith(BUILTIN):
        folder = Path(__file__).parent / "models" / path.removeprefix(BUILTIN)
    else:
        folder = Path(path).expanduser()
    if not folder.exists():
        raise ModelError(f"model.path={path}: there is nothing at {folder}; give a diffusers folder of a model")
    if not folder.is_dir() or not (folder / "unet").is_dir():
        raise ModelError(
            f"model.path={path}: is not a diffusers folder; it should hold model_index.json and the folders "
            f"{', '.join(COMPONENTS)}, tokenizer and scheduler"
        )
    configs = {name: _read_config(folder / name, cls) for name, cls in COMPONENTS.items()}
    configs["scheduler"] = _read_json(folder / "scheduler" / "scheduler_config.json")
    tensors = {name: _component_tensors(folder / name) for name in COMPONENTS}
    return ModelFiles(name=folder.resolve().name, folder=folder, configs=configs, tensors=tensors)


def fingerprints(model: ModelFiles) -> dict[str, str]:
    """SHA-256 of each fragment's weights: names, types, shapes and bytes, whatever files they stand in.

    Those of large models are remembered in the user's cache folder, by the files' paths, sizes and times.
    """
    files = sorted({tensor.file for table in model.tensors.values() for tensor in table.values()})
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    if sum(size for _, size, _ in states) < CACHED_SIZE:
        return _hash_fragments(model)
    key = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    cached = cache_folder() / "fingerprints" / f"{key}.json"
    if cached.exists():
        return dict(json.loads(cached.read_text()))
    hashes = _hash_fragments(model)
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(hashes))
    partial.replace(cached)
    return hashes


def cache_folder() -> Path:
    """Where what can be computed again is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runner"


def fragment_of(component: str, tensor: str) -> str:
    """Which of the four fragments a tensor belongs to; the UNet is cut where the original cut it, after the middle."""
    if component != "unet":
        return component
    decodes = tensor.startswith(("up_blocks.", "conv_norm_out.", "conv_out."))
    return "unet_decode" if decodes else "unet_encode"


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
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{file}: its table of tensors is damaged ({error})") from error


def _stored_tensor(file: Path, entry: Mapping[str, Any], base: int, size: int) -> StoredTensor:
    dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
    start, end = (base + int(offset) for offset in entry["data_offsets"])
    if not base <= start <= end <= size or min(shape, default=0) < 0:
        raise ValueError("a tensor lies outside the file: was it cut off?")
    if dtype in ITEM_BYTES and end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError("a tensor's size and shape don't agree")
    return StoredTensor(file=file, dtype=dtype, shape=shape, start=start, end=end)


def _component_tensors(folder: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        for name, tensor in read_header(file).items():
            name = current_name(name)
            if name in LEFTOVERS:
                continue
            if tensor.dtype not in ITEM_BYTES:
                raise ModelError(f"{file}: {name} is of type {tensor.dtype}; known are: {', '.join(ITEM_BYTES)}")
            tensors[name] = tensor
    return tensors


def current_name(name: str) -> str:
    """The name that a tensor has in today's diffusers and transformers."""
    for pattern, replacement in OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _weight_files(folder: Path) -> list[Path]:
    """The component's weights: full precision before half, shards by their index."""
    found = [path for path in sorted(folder.glob("*.safetensors")) if path.is_file()]
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        shards = _read_json(indexes[0]).get("weight_map", {})
        return [folder / Path(str(name)).name for name in sorted(set(shards.values()))]
    for name in ("diffusion_pytorch_model", "model"):
        for variant in ("", ".fp16", ".bf16"):
            if (file := folder / f"{name}{variant}.safetensors") in found:
                return [file]
    if list(folder.glob("*.bin")):
        raise ModelError(f"{folder}: has only .bin files, which are pickles; save it with safe_serialization=True")
    raise ModelError(f"{folder}: has no .safetensors file")


def _read_config(folder: Path, wanted_class: str) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    found = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if found != wanted_class:
        raise ModelError(f"{folder}: is a {found}; Stable Diffusion v1 has a {wanted_class} there")
    return config


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file}: is missing, so this is not a whole diffusers folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: can't be read ({error})") from error
    if not isinstance(document, dict):
        raise ModelError(f"{file}: should hold a JSON object")
    return document


def _hash_fragments(model: ModelFiles) -> dict[str, str]:
    hashes = {fragment: hashlib.sha256() for fragment in FRAGMENTS}
    for component, table in model.tensors.items():
        for name in sorted(table):
            target, tensor = hashes[fragment_of(component, name)], table[name]
            target.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
            for chunk in _read_chunks(tensor):
                target.update(chunk)
    return {fragment: target.hexdigest() for fragment, target in hashes.items()}


def _read_chunks(tensor: StoredTensor) -> Iterator[bytes]:
    with tensor.file.open("rb", buffering=0) as stream:
        stream.seek(tensor.start)
        for offset in range(tensor.start, tensor.end, HASH_CHUNK):
            yield stream.read(min(HASH_CHUNK, tensor.end - offset))
