"""What the page lets people choose from: models, autoencoders and LoRAs, by names, looked for anew each time.

Models are the files of `conf/model/`, what lies in the folder `web.models`, and the one that the page was started with.

    choices = Choices(settings)
    choices.models["sd15"].path, choices.loras["ink"]
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path

from runner.errors import SettingError, did_you_mean
from runner.files import expanded
from runner.manifest.syntax import ENDINGS
from runner.settings import ModelSettings, Settings, group_names, named_model

MOST_LISTED, DEEPEST = 2000, 4  # files and folders of one kind, and how far down they are looked for
MODEL_ENDINGS = (".safetensors", ".ckpt")
DIFFUSERS = "model_index.json"  # what a diffusers folder is told by
RANDOM = "random:"  # of models that `runner bench` makes
UNSAFE = re.compile(r"[\s<>:,{}\[\]]+")  # what can't stand in a LoRA's name
OWN_VAE = "the model's own"


class Choices:
    """What there is to choose from now."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.models = _models(settings)
        self.vaes = {OWN_VAE: "", **_vaes(settings)}
        self.loras = dict(_files(expanded(settings.web.loras), ENDINGS))

    @property
    def started_with(self) -> str:
        """The name of the model that the page was started with."""
        return self.model_at(self._settings.model.path)

    @property
    def first_vae(self) -> str:
        """The name of the autoencoder that the page was started with."""
        return self.vae_at(self._settings.model.vae)

    def model_at(self, path: str) -> str:
        """The name of the model that lies at a path; "" if none that is listed does."""
        return next((name for name, model in self.models.items() if _place(model.path) == _place(path)), "")

    def vae_at(self, path: str) -> str:
        """The name of the autoencoder that lies at a path; "" if none that is listed does."""
        return next((name for name, place in self.vaes.items() if place == path), "")

    def model(self, name: str, vae: str) -> ModelSettings:
        """The model of a name, with the autoencoder of a name.

        Raises:
            SettingError: there is none of that name any more.
        """
        for key, wanted, known in (("model", name, self.models), ("vae", vae, self.vaes)):
            if wanted not in known:
                raise SettingError(f"{key}: there is no '{wanted}', {did_you_mean(wanted, known)}")
        found = self.models[name]
        return replace(found, vae=found.vae if vae == OWN_VAE and self.started_with != name else self.vaes[vae])

    def lora(self, name: str) -> Path:
        """The file of a LoRA.

        Raises:
            SettingError: there is none of that name.
        """
        if name not in self.loras:
            hint = did_you_mean(name, self.loras) if self.loras else f"put its file into '{self._settings.web.loras}'"
            raise SettingError(f"loras: there is no LoRA '{name}', {hint}")
        return self.loras[name]


def _models(settings: Settings) -> dict[str, ModelSettings]:
    named = {name: named_model(name) for name in group_names("model")}
    found = {name: model for name, model in named.items() if not model.path.startswith(RANDOM)}
    folder = expanded(settings.web.models)
    for name, path in (*_files(folder, MODEL_ENDINGS), *_diffusers(folder)):
        if name not in found or _place(found[name].path) != _place(str(path)):
            found[_free(name, path, found)] = ModelSettings(path=str(path), prediction="auto")
    own = settings.model
    same = [name for name, model in found.items() if _place(model.path) == _place(own.path)]
    usual = Path(own.path.partition(":")[2] or own.path).stem or own.path
    return {**found, same[0] if same else _free(usual, own.path, found): own}


def _vaes(settings: Settings) -> dict[str, str]:
    folder = expanded(settings.web.vaes)
    found = {name: str(path) for name, path in _files(folder, ENDINGS)}
    for path in _folders(folder):
        if (path / "config.json").is_file():
            found[_free(path.name, path, found)] = str(path)
    own = settings.model.vae
    return found if not own or own in found.values() else {**found, _free(Path(own).stem, own, found): own}


def _free(name: str, path: object, taken: Container[str]) -> str:
    """A name that no other has: where there is one, the path is told too."""
    return f"{name} ({path})" if name in taken else name


def _place(path: str) -> str:
    """Where a model lies, so that two ways to write it are the same."""
    return path if ":" in path else os.path.abspath(expanded(path))


def _files(folder: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """The files in a folder and in those below it, each with a name of its own; a diffusers folder's are its parts."""
    taken = set[str]()
    if "\0" in str(folder):  # no folder has such a name
        return
    for path in sorted(itertools.islice(_walk(folder, endings), MOST_LISTED)):
        name = UNSAFE.sub("_", path.relative_to(folder).with_suffix("").as_posix())
        if name in taken:
            name = UNSAFE.sub("_", path.relative_to(folder).as_posix())
        taken.add(name)
        yield name, path


def _walk(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    for place, inner, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        if DIFFUSERS in names or depth == DEEPEST:
            inner.clear()
        if DIFFUSERS not in names:
            yield from (Path(place, name) for name in names if name.lower().endswith(endings))


def _diffusers(folder: Path) -> Iterator[tuple[str, Path]]:
    return ((path.name, path) for path in _folders(folder) if (path / DIFFUSERS).is_file())


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in itertools.islice(folder.iterdir(), MOST_LISTED) if path.is_dir())
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return []
