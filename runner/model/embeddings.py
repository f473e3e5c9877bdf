"""The vectors that were learnt for a word (textual inversion, Gal et al. 2022), in whichever file they stand.

Like a model, an embedding is a table of byte ranges; nothing in a file is executed, and torch is not needed. Known are
AUTOMATIC1111's `string_to_param`, `emb_params`, diffusers' single key, the pair `clip_l` and `clip_g` of Stable
Diffusion XL, and any of these within the file of a LoRA (`bundle_emb.NAME.`).

    learnt = read_embedding(Path("embeddings/toy.pt"), "toy")
    check_fits(learnt, find_model("weights/sd-v1-4.ckpt"))
    learnt.count, learnt.sha256, learnt.tensors[""].shape
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.errors import ModelError
from runner.item import DIGITS_SHOWN, Embedding
from runner.model.files import ModelFiles, read_tensors
from runner.model.guess import seems_to_be
from runner.model.pickled import Damaged, PickledTensor
from runner.model.safetensors import WEIGHT_TYPES, StoredTensor
from runner.model.tokens import ROOM
from runner.text import name_some, shorten

ONLY, PAIR = ("",), ("clip_l", "clip_g")  # the roles of one text encoder's vectors, and of those of two
PARAMETERS, TOKENS = "string_to_param", "string_to_token"
BUNDLED = re.compile(rf"bundle_emb\.(.+)\.(({PARAMETERS}|{TOKENS})\..*|emb_params|clip_[lg])")
FAMILIES = {
    768: "Stable Diffusion v1",
    1024: "Stable Diffusion v2",
    1280: "the second text encoder of Stable Diffusion XL",
}
NUMBERS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
WIDEST = 1 << 16
PICTURES = (b"\x89PNG", b"RIFF")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearntWord:
    """An embedding that was found and is whole.

    `tensors` are its vectors [n, C] by their roles: "" for a model with one text encoder, `clip_l` and `clip_g` for
    one with two. `keys` are their names in the file. `sha256` is that of roles, types, shapes and bytes, whatever
    file they stand in.
    """

    file: Path
    tensors: Mapping[str, StoredTensor]
    keys: Mapping[str, str]
    sha256: str

    @property
    def count(self) -> int:
        """How many vectors it has: so many tokens of a prompt are its."""
        return next(iter(self.tensors.values())).shape[0]


Seen = dict[tuple[str, str], LearntWord]  # what was read already, by path and name


def find_embedding(asked: Embedding, seen: Seen | None = None) -> LearntWord:
    """The embedding that is asked for, at its path; it must have the SHA-256 that is asked for, if there is one.

    Raises:
        ModelError: it isn't there, can't be used, or is another one.
    """
    seen, key = {} if seen is None else seen, (asked.path, asked.name)
    if not asked.path:
        raise ModelError(f"no path is recorded; its SHA-256 is {asked.sha256}")
    if key not in seen:
        seen[key] = read_embedding(Path(asked.path), asked.name)
    found = seen[key]
    if asked.sha256 and found.sha256 != asked.sha256:
        raise ModelError(
            f"{found.file}: holds another embedding than the one that is asked for; the SHA-256 of its vectors is "
            f"{found.sha256[:DIGITS_SHOWN]}, and not {asked.sha256[:DIGITS_SHOWN]}"
        )
    return found


def read_embedding(file: Path, name: str) -> LearntWord:
    """The embedding in a file; `name` chooses one where a LoRA brings along several.

    Raises:
        ModelError: the file is no embedding, or one that can't be used.
    """
    keys, table = _roles(file, name)
    tensors = {role: _checked(table[key], key) for role, key in keys.items()}
    counts = [tensor.shape[0] for tensor in tensors.values()]
    if len(set(counts)) > 1:
        raise ModelError(
            f"{file}: has {' and '.join(map(str, counts))} vectors as {' and '.join(tensors)}; as many are needed"
        )
    hashed = hashlib.sha256()
    for role in sorted(tensors):
        data = _bytes(tensors[role])
        _check_numbers(tensors[role], keys[role], data)
        hashed.update(json.dumps([role, tensors[role].dtype, tensors[role].shape]).encode())
        hashed.update(data)
    return LearntWord(file=file, tensors=tensors, keys=keys, sha256=hashed.hexdigest())


def check_fits(learnt: LearntWord, model: ModelFiles) -> None:
    """Whether a model's text encoders can use it: one vector is as wide as a token's in the model.

    Raises:
        ModelError: they can't.
    """
    widths = [int(model.configs[component]["hidden_size"]) for component in model.family.texts]
    roles = roles_of(len(widths))
    if learnt.tensors.keys() != set(roles):
        made = [f"{tensor.shape[1]} ({learnt.keys[role]})" for role, tensor in learnt.tensors.items()]
        raise ModelError(
            f"{learnt.file}: is for {_encoders(len(made))}, of widths {', '.join(made)}{_family(learnt)}; the model "
            f"{model.name} has {_encoders(len(widths))}, of widths {', '.join(map(str, widths))}"
        )
    for role, width in zip(roles, widths, strict=True):
        if (own := learnt.tensors[role].shape[1]) != width:
            of = f", as {FAMILIES[own]} has" if own in FAMILIES else ""
            vectors = f"{learnt.keys[role]} has vectors of {own} numbers{of}"
            raise ModelError(f"{learnt.file}: {vectors}; the model {model.name} has {width}")


def roles_of(encoders: int) -> tuple[str, ...]:
    """The role of each text encoder's vectors."""
    return ONLY if encoders == 1 else PAIR


def _encoders(count: int) -> str:
    return "one text encoder" if count == 1 else f"{count} text encoders"


def _family(learnt: LearntWord) -> str:
    if len(learnt.tensors) > 1:
        return " (Stable Diffusion XL)"
    family = FAMILIES.get(learnt.tensors[""].shape[1])
    return f" ({family})" if family else ""


# ---- the forms of files


def _roles(file: Path, name: str) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """The key of each role, and the file's table."""
    table = _read(file)
    keys = _choose_bundled(file, name, table) or {key: key for key in table}
    keys = {key: full for key, full in keys.items() if not key.startswith(f"{TOKENS}.")}
    pair = {role: keys[role] for role in PAIR if role in keys}
    if pair and len(pair) < len(PAIR):
        [there] = pair
        raise ModelError(f"{file}: has {there} and no {next(role for role in PAIR if role != there)}; both are needed")
    if pair and len(keys) == len(PAIR):
        return pair, table
    if len(keys) == 1:
        return {"": next(iter(keys.values()))}, table
    guess = seems_to_be([key for key in keys if key not in PAIR])
    if not keys or (guess and not any(map(_is_own, keys))):
        raise ModelError(f"{file}: holds no embedding{f'; it seems to be {guess}' if guess else ''}")
    shown = name_some(sorted(shorten(key, 60) for key in keys.values()))
    raise ModelError(f"{file}: should hold the vectors of one word, and has {len(keys)} tensors: {shown}")


def _is_own(key: str) -> bool:
    return key in (*PAIR, "emb_params") or key.startswith(f"{PARAMETERS}.")


def _choose_bundled(file: Path, name: str, table: Mapping[str, StoredTensor]) -> dict[str, str]:
    """The keys of the embedding of this name that a LoRA brings along, or of its only one; none if it has none."""
    bundles: dict[str, dict[str, str]] = {}
    for key in table:
        if match := BUNDLED.fullmatch(key):
            bundles.setdefault(match[1], {})[match[2]] = key
    if not bundles:
        return {}
    if name not in bundles and len(bundles) > 1:
        raise ModelError(
            f"{file}: brings along the embeddings {name_some(sorted(bundles))}; call it by one of these names"
        )
    return bundles[name if name in bundles else next(iter(bundles))]


def _read(file: Path) -> dict[str, StoredTensor]:
    try:
        if not file.exists():
            raise ModelError(f"{file}: there is nothing; give a .safetensors, .pt or .bin")
        begin = b""
        if file.is_file():  # opening a pipe would never return
            with file.open("rb") as stream:
                begin = stream.read(4)
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        raise ModelError(f"{shorten(str(file), 200)}: can't be read ({error})") from None
    if begin in PICTURES:
        raise ModelError(
            f"{file}: is a picture; an embedding inside one, as AUTOMATIC1111 writes them, can't be read. Take its .pt "
            "or .safetensors"
        )
    return read_tensors(file, _find_tensors)


def _find_tensors(document: object) -> dict[str, PickledTensor]:
    """Those of what torch saved: the dictionary's own, and those of AUTOMATIC1111's inner one."""
    if not isinstance(document, dict):
        raise Damaged("holds no dictionary, and so no embedding")
    inner = document.get(PARAMETERS)
    pairs = [(str(key), value) for key, value in document.items()]
    pairs += [(f"{PARAMETERS}.{key}", value) for key, value in inner.items()] if isinstance(inner, dict) else []
    found = {key: value for key, value in pairs if isinstance(value, PickledTensor)}
    if not found:
        raise Damaged("holds no tensors, and so no embedding")
    return found


# ---- what is in them


def _checked(tensor: StoredTensor, key: str) -> StoredTensor:
    """The tensor as vectors [n, C]."""
    place = f"{tensor.file}: {shorten(key, 60)}"
    if tensor.dtype not in WEIGHT_TYPES:
        raise ModelError(f"{place} is of type {tensor.dtype}; known are: {', '.join(WEIGHT_TYPES)}")
    shape = tensor.shape if len(tensor.shape) != 1 else (1, *tensor.shape)
    if len(shape) != 2 or not 0 < shape[1] <= WIDEST:
        raise ModelError(f"{place} has the shape {list(tensor.shape)}; vectors have [number, width] or [width]")
    if not 1 <= shape[0] <= ROOM:
        raise ModelError(f"{place} has {shape[0]} vectors; a prompt has room for 1 to {ROOM}")
    return replace(tensor, shape=shape)


def _bytes(tensor: StoredTensor) -> bytes:
    try:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            data = stream.read(tensor.end - tensor.start)
    except OSError as error:
        raise ModelError(f"{tensor.file}: can't be read ({error})") from error
    if len(data) < tensor.end - tensor.start:
        raise ModelError(f"{tensor.file}: ends too early; was it changed while it was in use?")
    return data


def _check_numbers(tensor: StoredTensor, key: str, data: bytes) -> None:
    numbers = np.frombuffer(data, NUMBERS[tensor.dtype])
    if not np.isfinite(_float32(numbers) if tensor.dtype == "BF16" else numbers).all():
        raise ModelError(f"{tensor.file}: {shorten(key, 60)} holds numbers that are not finite (NaN or infinity)")


def _float32(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 as float32, of which it is the upper half."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
