"""LoRAs in a manifest: the files that it lists by name, and how strong a job wants them, one by one or as a set.

list_loras(node, frame)             # loras: {ink: {path: loras/ink.safetensors}, sharp: loras/sharp.safetensors}
read_set(frame, node)               # loras: {ink: 0.8, sharp: {unet: 0.5, text: 0}}
read_one(frame, "loras.ink", node)  # loras.ink: 0.8
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from runner.errors import ManifestError, ModelError, did_you_mean, every
from runner.item import Lora
from runner.keys import read_strength
from runner.manifest import places
from runner.manifest.nodes import Node
from runner.manifest.places import Frame, ListedFile, read_listed
from runner.manifest.rules import check, read_axis
from runner.model.loras import read_lora

ONE = "loras."  # in front of a name: the weight of one LoRA as a key of its own
NAME = re.compile(r"[^\s<>:,{}\[\]]+")


def list_loras(node: Node | None, frame: Frame) -> dict[str, ListedFile]:
    """The LoRAs that the manifest lists, by their names; their files needn't be there unless a job asks for them."""
    if node is None:
        return {}
    if not isinstance(node.value, dict):
        raise node.error(f"loras: expected a mapping of names to files (ink: loras/ink.safetensors), not {node}")
    return dict(every(lambda entry: _list_lora(*entry, frame), node.value.items()))


def _list_lora(key: Node, node: Node, frame: Frame) -> tuple[str, ListedFile]:
    if not NAME.fullmatch(key.text()):
        raise key.error(f"loras: {key} can't name a LoRA; leave out white space and any of < > : , {{ }} [ ]")
    return key.text(), read_listed("LoRA", key, node, frame)


def with_ones(frame: Frame, known: Sequence[str], node: Node) -> tuple[str, ...]:
    """The `known` keys and those of single LoRAs; where their list itself is wrong, any that a mapping has."""
    if frame.loras is not None:
        return *known, *(f"{ONE}{name}" for name in frame.loras)
    given = [key.written for key in node.value] if isinstance(node.value, dict) else []
    return *known, *(key for key in given if key.startswith(ONE))


def read_value(frame: Frame, key: str, node: Node) -> Any:
    """The value of an item key, whatever it is of."""
    if key == "loras":
        return read_set(frame, node)
    return read_one(frame, key, node) if key.startswith(ONE) else places.read_value(frame, key, node)


def read_set(frame: Frame, node: Node) -> tuple[Lora, ...]:
    """The value of the key `loras`."""
    return tuple(every(lambda entry: _read(frame, entry[0], entry[0].text(), entry[1]), check("loras", node)))


def read_one(frame: Frame, key: str, node: Node) -> Lora:
    """The value of a key such as `loras.ink`."""
    return _read(frame, node, key.removeprefix(ONE), node)


def read_ones(frame: Frame, key: str, node: Node) -> Sequence[Lora]:
    """The values of such a key on an axis: a list of them, or a range of numbers."""
    return read_axis(key, node, partial(read_one, frame, key))


def _read(frame: Frame, place: Node, name: str, node: Node) -> Lora:
    listed = frame.loras
    if listed is not None and name not in listed:
        known = did_you_mean(name, listed) if listed else f"and it lists none; write 'loras: {{{name}: FILE}}'"
        raise place.error(f"loras: the manifest lists no LoRA '{name}', {known}")
    try:
        unet, text = read_strength(node)
    except ManifestError as error:
        raise error.within(f"{ONE}{name}") from None
    return find_lora(frame, name, None if listed is None else listed[name], unet, text)


def find_lora(frame: Frame, name: str, listed: ListedFile | None, unet: float, text: float) -> Lora:
    """A LoRA with its fingerprint; its file is looked at as a whole, the first time that it is asked for."""
    if listed is None:
        return Lora(name, "", "", "", unet, text)  # what is wrong about the list is said already
    path = str(listed.path.resolve())
    if path not in frame.lora_places:
        frame.lora_places[path] = listed.node.location
        frame.examined[path] = ("", "")  # so that it is said once if something is wrong about it
        try:
            found = read_lora(listed.path)
        except ModelError as error:
            raise listed.node.error(f"the LoRA '{name}': {error}") from None
        if listed.sha256 not in ("", found.sha256):
            raise listed.node.error(
                f"the LoRA '{name}': {path} has other tensors than the ones that were asked for: their SHA-256 is "
                f"{found.sha256}"
            )
        frame.examined[path] = found.sha256, found.file_hash
    return Lora(name, path, *frame.examined[path], unet, text)


def fold(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a job with those of single LoRAs among its `loras`."""
    ones = [value for key, value in values.items() if key.startswith(ONE)]
    folded = {key: value for key, value in values.items() if not key.startswith(ONE)}
    return folded | {"loras": (*values.get("loras", ()), *ones)} if ones else folded


def refuse_twice(entries: Mapping[str, Node]) -> None:
    """A job can't sweep one LoRA's weight and have it in a set too; `entries` are its own, and `matrix.KEY`, `zip.KEY`.

    Raises:
        ManifestError: it does.
    """
    sets = {name: node for name, node in entries.items() if name.rpartition(".")[2] == "loras"}
    named = {key.written for node in sets.values() for key in _names_in(node)}
    seen: dict[str, str] = {}
    for place, node in entries.items():
        _, found, name = place.partition(ONE)
        if not found:
            continue
        if name in named or name in seen:
            raise node.error(f"'{place}' can't stand together with another weight of '{name}' in one job")
        seen[name] = place


def _names_in(node: Node) -> Iterable[Node]:
    """The names in a set, or in a list of sets."""
    each = node.value if isinstance(node.value, list) else [node]
    return (key for one in each if isinstance(one.value, dict) for key in one.value)


def combine(loras: Iterable[Lora]) -> tuple[Lora, ...]:
    """The LoRAs that a picture has: of each name the last one, without those whose weight is 0."""
    last: dict[str, Lora] = {lora.name: lora for lora in loras}
    return tuple(lora for lora in last.values() if lora.unet or lora.text)


def show_strength(lora: Lora) -> Any:
    """How strong a LoRA is, as an axis names it."""
    return lora.unet if lora.unet == lora.text else f"unet {lora.unet:g}, text {lora.text:g}"


def show_set(loras: Iterable[Lora]) -> str:
    """A set, as an axis names it."""
    shown = ((lora.name, show_strength(lora)) for lora in combine(loras))
    return ", ".join(f"{name} {each if isinstance(each, str) else f'{each:g}'}" for name, each in shown) or "none"
