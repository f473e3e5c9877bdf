"""The files and models that a manifest names, and where they may lie."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runner.errors import Location, did_you_mean, every
from runner.files import is_url
from runner.images import inits, masks
from runner.images.inits import Init
from runner.item import Embedding, Lora, Model
from runner.manifest.nodes import Node
from runner.manifest.rules import check
from runner.settings import PREDICTIONS, group_names, named_model

MODEL_KEYS, FILE_KEYS = ("path", "prediction", "vae"), ("path", "sha256")
SHA256 = re.compile(r"[0-9a-f]{64}")
PICTURES: Mapping[str, Callable[[Path], Init]] = {"init": inits.examine, "mask": masks.examine}  # the keys of files
MAGIC = re.compile(r"[*?[]")  # what makes a path a pattern
Listed = Mapping[str, tuple[Embedding, Location]]  # embeddings by their names, each with its place


class ListedFile(NamedTuple):
    """A file that the manifest lists by a name, the SHA-256 that it should have if that is said, and its place."""

    path: Path
    sha256: str
    node: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a job stands in; there are no defaults where they were wrong, and jobs are only read then, not made.

    `listed` are the manifest's own models by their names, None where these were wrong; `places` says where each model
    that is asked for is named. `loras` are its LoRAs likewise, `lora_places` says where each file of one that is asked
    for is named, and `examined` what was found out about it. In a `plain` one no text is read in another syntax, so
    that each is right or wrong by itself; `tagged` are the LoRAs that prompts' tags name.
    """

    folder: Path
    allow_outside: bool
    listed: Mapping[str, tuple[Model, Node]] | None = None
    defaults: Mapping[str, Any] | None = None
    plain: bool = True
    places: dict[Model, Location] = dataclasses.field(default_factory=dict)
    loras: Mapping[str, ListedFile] | None = None
    lora_places: dict[str, Location] = dataclasses.field(default_factory=dict)
    examined: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    tagged: dict[str, Lora] = dataclasses.field(default_factory=dict)


def read_value(frame: Frame, key: str, node: Node) -> Any:
    """The value of an item key: a picture or a model by its place, anything else by its rule."""
    if key in PICTURES:
        return find_picture(key, node, frame.folder, frame.allow_outside)
    return _model(frame, node) if key == "model" else check(key, node)


def find_picture(key: str, node: Node, folder: Path, allow_outside: bool) -> Init:
    """The picture that an `init` or a `mask` names; it is looked at as a whole."""
    path = find_inside(node, folder, allow_outside)
    if not os.path.exists(path):
        hint = "; a pattern can stand in a job, its matrix or its zip" if MAGIC.search(node.written) else ""
        raise node.error(f"{key}: {path}: there is no such file{hint}")
    if not path.is_file():
        raise node.error(f"{key}: {node} is not a file")  # opening a pipe would never return
    try:
        return PICTURES[key](path)
    except inits.InitError as error:
        raise node.error(f"{key}: {error}") from None


def find_inside(node: Node, folder: Path, allow_outside: bool) -> Path:
    """The path of a file that is named relative to `folder`, and may not leave it unless that is allowed."""
    if is_url(node.text()):
        raise node.error(f"{node} is a URL; what a manifest names is read from this machine's disk")
    path = folder / node.text()
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        raise node.error(f"{node} can't be followed; is it a link to itself?") from None
    if not inside and not allow_outside:
        raise node.error(f"{node} leaves the manifest's folder; allow_outside=true permits it")
    return path


def read_listed(what: str, key: Node, node: Node, frame: Frame) -> ListedFile:
    """A file that is listed as `name: path` or `name: {path: ..., sha256: ...}`; `what` it is of, for messages."""
    given = node.mapping(FILE_KEYS) if isinstance(node.value, dict) else {"path": node}
    if "path" not in given:
        raise node.error(f"the {what} {key} needs a 'path', where its file is")
    path = find_inside(given["path"], frame.folder, frame.allow_outside)
    return ListedFile(path, read_sha256(given["sha256"]) if "sha256" in given else "", given["path"])


def read_sha256(node: Node) -> str:
    """The SHA-256 that the tensors of a file should have."""
    if not SHA256.fullmatch(node.text()):
        raise node.error(f"sha256: {node} is none; it has 64 hexadecimal digits, in small letters")
    return node.text()


def list_models(node: Node | None, frame: Frame) -> dict[str, tuple[Model, Node]]:
    """The models that the manifest lists, by their names; their files needn't be there unless a job asks for them."""
    if node is None:
        return {}
    if not isinstance(node.value, dict):
        raise node.error(f"models: expected a mapping of names to models (name: {{path: ...}}), not {node}")
    return dict(every(lambda entry: _list_model(*entry, frame), node.value.items()))


def _list_model(key: Node, node: Node, frame: Frame) -> tuple[str, tuple[Model, Node]]:
    name, given = key.text(), node.mapping(MODEL_KEYS)
    if not name or "path" not in given:
        raise node.error(f"the model {key} needs a name and a 'path': a diffusers folder, a .safetensors or a .ckpt")
    path = find_inside(given["path"], frame.folder, frame.allow_outside)
    prediction = given["prediction"].choice(PREDICTIONS) if "prediction" in given else PREDICTIONS[0]
    vae = str(find_inside(given["vae"], frame.folder, frame.allow_outside)) if "vae" in given else ""
    return name, (Model(name=name, path=str(path), prediction=prediction, vae=vae), given["path"])


def _model(frame: Frame, node: Node) -> Model:
    """The model of a name, one of the manifest's own or of `conf/model/`."""
    name, listed = check("model", node), frame.listed or {}
    if name not in listed:
        # Where the list itself is wrong, that is said already, and the name may stand in it.
        model, place = Model() if frame.listed is None else configured_model(node, listed), node
    else:
        model, place = listed[name]
        if not Path(model.path).exists():
            raise place.error(f"the model '{name}': there is nothing at {model.path}")
    frame.places.setdefault(model, place.location)
    return model


def configured_model(node: Node, others: Iterable[str] = ()) -> Model:
    """The model that a file of `conf/model/` describes; `others` are the names that are known beside these."""
    if (name := check("model", node)) not in (known := group_names("model")):
        raise node.error(f"model: {node} is not known, {did_you_mean(name, {*known, *others})}")
    found = named_model(name)
    return Model(name=name, path=found.path, prediction=found.prediction, vae=found.vae)
