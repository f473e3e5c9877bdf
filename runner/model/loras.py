"""LoRAs: what a file of one changes of a model's tensors. Reads files only, and never imports torch.

A LoRA of any tool becomes, for each tensor that it changes, the parts that its change is multiplied out of
(`model.deltas`): two matrices (LoRA, LoCon), two products of matrices (LoHa, Hyeon-Woo et al. 2022), a Kronecker
product (LoKr, Yeh et al. 2024) or the change itself, each with a new length of its columns where it is decomposed
(DoRA, Liu et al. 2024).

    lora = read_lora(Path("loras/ink.safetensors"))
    changes = fit(lora, model)
    changes["unet"]["mid_block.attentions.0.proj_in.weight"].parts["down"]
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import ModelError
from runner.files import sha256_of
from runner.model.configs import read_json
from runner.model.files import ModelFiles, read_tensors
from runner.model.guess import lora_of, seems_to_be
from runner.model.lora_names import Layer, layer_names, split
from runner.model.safetensors import WEIGHT_TYPES, Change, StoredTensor, read_metadata
from runner.text import name_some, shorten

FILES = ("pytorch_lora_weights", "adapter_model")  # of a folder that diffusers or peft wrote
BUNDLED = "bundle_emb."  # embeddings that lie in a LoRA's file
INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1", "F64": "<f8"}  # that an alpha may be
EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}  # all ones: not finite
CHUNK = 1 << 22
HASH_DIGITS = 12  # that AUTOMATIC1111 writes
MOST_WILD = 3  # signs in a pattern of peft's that may match more than a character
LOW_RANK = ({"down", "up"}, {"down", "up", "mid"})
HADA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
FORMS = (
    *LOW_RANK, HADA, HADA | {"hada_t1", "hada_t2"}, {"diff"}, set[str](),
    *(first | second
      for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
      for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})),
)  # fmt: skip
BESIDE = {"alpha", "dora_scale", "magnitude", "diff_b", "up_bias"}
Changes = Mapping[str, Mapping[str, Change]]  # by component, by tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """A LoRA that can be read: the SHA-256 of its tensors, and the hash that AUTOMATIC1111 has for its file.

    `settings` are what peft says about it where its tensors don't.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    sha256: str
    file_hash: str
    settings: Mapping[str, Any]


def read_lora(path: Path) -> LoraFile:
    """The LoRA in a file, or in a folder as diffusers and peft write it; all its numbers are looked at.

    Raises:
        ModelError: it isn't there, is damaged, or has numbers that are not finite.
    """
    file = _file_in(path)
    try:
        state = file.stat()
    except OSError as error:
        raise ModelError(f"{path}: there is no such file") from error
    if not file.is_file():
        raise ModelError(f"{path}: is no file")
    return _read(file, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(file: Path, size: int, changed: int) -> LoraFile:
    """`size` and `changed` are there so that a file that has been written since is read again."""
    tensors = {name: tensor for name, tensor in read_tensors(file).items() if not name.startswith(BUNDLED)}
    if not tensors:
        raise ModelError(f"{file}: holds no tensors")
    settings = _peft_settings(file)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        _read_all(name, tensor, digest)
    if settings:
        digest.update(json.dumps(settings, sort_keys=True).encode())
    return LoraFile(
        path=file, tensors=tensors, sha256=digest.hexdigest(), file_hash=_file_hash(file), settings=settings
    )


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FILES:
        for file in (path / f"{name}.safetensors", path / f"{name}.bin"):
            if file.exists():
                return file
    raise ModelError(f"{path}: is a folder without {FILES[0]}.safetensors or {FILES[1]}.safetensors")


def _read_all(name: str, tensor: StoredTensor, digest: Any) -> None:
    """Hashes a tensor's bytes, and refuses it where a number isn't finite."""
    kind = EXPONENTS.get(tensor.dtype)
    if kind is None and (tensor.dtype not in INTEGERS or math.prod(tensor.shape) != 1):
        raise ModelError(f"{tensor.file}: {name} is of type {tensor.dtype}; known are: {', '.join(WEIGHT_TYPES)}")
    with tensor.file.open("rb", buffering=0) as stream:
        stream.seek(tensor.start)
        for place in range(tensor.start, tensor.end, CHUNK):
            data = stream.read(min(CHUNK, tensor.end - place))
            digest.update(data)
            if kind and np.any((np.frombuffer(data, kind[0]) & kind[1]) == kind[1]):
                raise ModelError(f"{tensor.file}: {name} holds numbers that are not finite (NaN or infinity)")


def _file_hash(file: Path) -> str:
    """The hash that AUTOMATIC1111 writes: of a safetensors file, SHA-256 of all behind its header."""
    if file.suffix != ".safetensors":
        return sha256_of(file)[:HASH_DIGITS]
    with file.open("rb") as stream:
        stream.seek(int.from_bytes(stream.read(8), "little"), 1)
        return hashlib.file_digest(stream, "sha256").hexdigest()[:HASH_DIGITS]


def _peft_settings(file: Path) -> dict[str, Any]:
    """What peft says about its LoRA, in the file or beside it; nothing where the tensors say all."""
    beside = file.with_name("adapter_config.json")
    found: Any = read_json(beside) if beside.exists() and file.stem == FILES[1] else None
    if found is None and file.suffix == ".safetensors":
        try:
            found = json.loads(read_metadata(file).get("lora_adapter_metadata", "{}"))
        except (ValueError, RecursionError):
            raise ModelError(f"{file}: what it says about itself (lora_adapter_metadata) is no JSON") from None
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise ModelError(f"{file}: what it says about itself is no mapping")
    said = {key: found[key] for key in found if re.search(r"(^|\.)(lora_alpha|alpha_pattern|use_rslora)$", key)}
    return {key: value for key, value in said.items() if value is not None}


# ---- what it changes


def fit(lora: LoraFile, model: ModelFiles) -> Changes:
    """What a LoRA changes of a model, by component and tensor; the weight of each change is 1.

    Raises:
        ModelError: it has a tensor that isn't understood, or that fits no layer of the model.
    """
    names = layer_names(model)
    layers: dict[Layer, dict[str, tuple[str, StoredTensor]]] = {}
    unknown = []
    for key, tensor in lora.tensors.items():
        owner, part = split(key)
        if not part or owner not in names:
            unknown.append(key)
            continue
        parts = layers.setdefault(names[owner], {})
        if part in parts:
            raise ModelError(f"{lora.path}: {key} and {parts[part][0]} are the same part of {names[owner].name}")
        parts[part] = key, tensor
    if unknown:
        raise ModelError(f"{lora.path}: {_about_unknown(sorted(unknown), lora, model)}")
    found: dict[str, dict[str, Change]] = {}
    for layer, parts in layers.items():
        found.setdefault(layer.component, {}).update(_changes_of(lora, layer, parts, model))
    return found


def _about_unknown(unknown: list[str], lora: LoraFile, model: ModelFiles) -> str:
    found = lora_of(lora.tensors)
    if found and found != model.family.name:
        return f"{unknown[0]}: is for no layer of {model.family.name}; it seems to be a LoRA of {found}"
    if any(split(key)[1] for key in lora.tensors):
        return f"for no layer of the model ({model.family.name}), or of a form that isn't known: {name_some(unknown)}"
    seems = seems_to_be(lora.tensors)
    return f"is no LoRA{f'; it seems to be {seems}' if seems else ''}: {name_some(unknown)}"


def _changes_of(
    lora: LoraFile, layer: Layer, parts: Mapping[str, tuple[str, StoredTensor]], model: ModelFiles
) -> dict[str, Change]:
    """What the parts of a layer change of its weight and its bias."""
    tensors = {part: tensor for part, (_, tensor) in parts.items()}
    key = next(iter(parts.values()))[0]
    if not _is_form(tensors.keys()):
        raise ModelError(
            f"{lora.path}: {key}: its layer has {', '.join(sorted(tensors))}, which is no form that is known"
        )
    table, found = model.tensors[layer.component], dict[str, Change]()
    main = {part: tensor for part, tensor in tensors.items() if part not in ("alpha", "diff_b", "up_bias")}
    scale = _scale(lora, layer, tensors)
    for name, own, factor in (
        ("weight", main, scale),
        ("bias", {"diff": tensors["diff_b"]} if "diff_b" in tensors else {}, 1.0),
        ("bias", {"diff": tensors["up_bias"]} if "up_bias" in tensors else {}, scale),
    ):
        if not own:
            continue
        tensor = f"{layer.name}.{name}"
        if tensor not in table:
            raise ModelError(f"{lora.path}: {key}: changes {tensor}, which the model's {layer.component} hasn't")
        _check_shapes(lora, key, own, table[tensor].shape, tensor)
        found[tensor] = Change(parts=own, scale=factor)
    return found


def _is_form(parts: Collection[str]) -> bool:
    main = set(parts) - BESIDE
    decomposed = len({"dora_scale", "magnitude"} & set(parts))
    return main in FORMS and decomposed <= (1 if main else 0) and (bool(main) or bool({"diff_b"} & set(parts)))


def _scale(lora: LoraFile, layer: Layer, parts: Mapping[str, StoredTensor]) -> float:
    """Alpha over the rank; where no alpha is said, it is the rank."""
    rank = _rank(parts)
    if rank is None or ("alpha" not in parts and not lora.settings):
        return 1.0
    alpha = _number(parts["alpha"]) if "alpha" in parts else 0.0
    scale = _peft_scale(lora, layer, rank) if "alpha" not in parts else alpha / rank if alpha else 1.0
    if not math.isfinite(scale):
        raise ModelError(f"{lora.path}: the alpha of {layer.name} is not a finite number")
    return scale


def _peft_scale(lora: LoraFile, layer: Layer, rank: int) -> float:
    """As peft's own settings say: by patterns of names, and stabilized (Kalajdzievski 2023) or not."""
    inside = f"{layer.component}."
    own = {key.removeprefix(inside): value for key, value in lora.settings.items() if key.startswith(inside)}
    said = own or {key: value for key, value in lora.settings.items() if "." not in key}
    alpha, patterns = said.get("lora_alpha", rank), said.get("alpha_pattern") or {}
    try:
        if any(len(re.findall(r"[*+?{(|]", name)) > MOST_WILD for name in patterns):
            raise ValueError("a pattern that may take for ever")
        alpha = next((value for name, value in patterns.items() if re.match(rf"(.*\.)?({name})$", layer.name)), alpha)
        return float(alpha) / (math.sqrt(rank) if said.get("use_rslora") else rank)
    except (TypeError, ValueError, OverflowError, AttributeError, re.error):
        raise ModelError(f"{lora.path}: what peft says about it (lora_alpha, alpha_pattern) can't be read") from None


def _rank(parts: Mapping[str, StoredTensor]) -> int | None:
    """The rank of what is decomposed; None where nothing is."""
    for part, axis in (("down", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if part in parts and parts[part].shape:
            return max(1, parts[part].shape[axis])
    return None


def _number(tensor: StoredTensor) -> float:
    """The one number of a tensor."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        data = stream.read(tensor.end - tensor.start)
    if tensor.dtype == "BF16":
        return float(np.frombuffer(b"\0\0" + data[:2], "<f4")[0])
    kind = {"F32": "<f4", "F16": "<f2"} | INTEGERS
    return float(np.frombuffer(data, kind[tensor.dtype])[0])


# ---- shapes


def _check_shapes(
    lora: LoraFile, key: str, parts: Mapping[str, StoredTensor], wanted: tuple[int, ...], tensor: str
) -> None:
    shapes = {part: each.shape for part, each in parts.items()}
    try:
        rows, columns = _product(shapes, wanted)
    except (ValueError, IndexError):
        rows, columns = 0, 0
    full = wanted[0] if wanted else 1, math.prod(wanted[1:])
    if (rows, columns) != full:
        shown = ", ".join(f"{part} {'x'.join(map(str, shape)) or 'one number'}" for part, shape in shapes.items())
        seems = lora_of(lora.tensors)
        raise ModelError(
            f"{lora.path}: {key}: {shorten(shown, 120)} don't make a change of {tensor}, which is "
            f"{'x'.join(map(str, wanted))}{f'; it seems to be a LoRA of {seems}' if seems else ''}"
        )
    _check_decomposed(lora, key, shapes, wanted)


def _check_decomposed(lora: LoraFile, key: str, shapes: Mapping[str, tuple[int, ...]], wanted: tuple[int, ...]) -> None:
    for part in ("dora_scale", "magnitude"):
        if part in shapes and math.prod(shapes[part]) not in wanted[: 2 if part == "dora_scale" else 1]:
            raise ModelError(
                f"{lora.path}: {key}: its {part} has {math.prod(shapes[part])} numbers; it needs {wanted[0]}"
            )


def _product(shapes: Mapping[str, tuple[int, ...]], wanted: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of what the parts multiply out to; (0, 0) where they don't fit each other."""
    kernel = wanted[2:]
    if "diff" in shapes:
        own = shapes["diff"]
        return (own[0] if own else 1, math.prod(own[1:])) if math.prod(own) == math.prod(wanted) else (0, 0)
    if "down" in shapes:
        return _pair(shapes["up"], shapes["down"], shapes.get("mid"), kernel)
    if "hada_w1_a" in shapes:
        both = {_hada(shapes, half, kernel) for half in ("1", "2")}
        return both.pop() if len(both) == 1 else (0, 0)
    first = shapes.get("lokr_w1") or _pair(shapes["lokr_w1_a"], shapes["lokr_w1_b"], None, ())
    if "lokr_w2" in shapes:
        own = shapes["lokr_w2"]
        second = own[0], math.prod(own[1:])
    elif "lokr_t2" in shapes:
        second = _tucker(shapes["lokr_t2"], shapes["lokr_w2_a"], shapes["lokr_w2_b"], kernel)
    else:
        second = _pair(shapes["lokr_w2_a"], shapes["lokr_w2_b"], None, ())
    return first[0] * second[0], math.prod(first[1:]) * second[1]


def _pair(
    up: tuple[int, ...], down: tuple[int, ...], mid: tuple[int, ...] | None, kernel: tuple[int, ...]
) -> tuple[int, int]:
    inner = math.prod(up[1:])
    if mid is None:
        return (up[0], math.prod(down[1:])) if inner == down[0] else (0, 0)
    fits = mid[:2] == (inner, down[0]) and mid[2:] == kernel
    return (up[0], math.prod(down[1:]) * math.prod(kernel)) if fits else (0, 0)


def _hada(shapes: Mapping[str, tuple[int, ...]], half: str, kernel: tuple[int, ...]) -> tuple[int, int]:
    left, right, core = shapes[f"hada_w{half}_a"], shapes[f"hada_w{half}_b"], shapes.get(f"hada_t{half}")
    return _pair(left, right, None, ()) if core is None else _tucker(core, left, right, kernel)


def _tucker(
    core: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[int, int]:
    """`left` is [rank, rows] here."""
    fits = core[:2] == (left[0], right[0]) and core[2:] == kernel
    return (left[1], right[1] * math.prod(kernel)) if fits else (0, 0)
