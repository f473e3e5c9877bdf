"""Finds a model's weights and says what they are: configurations, tensors by one set of names, fingerprints.

Reads files only and never imports torch, so that `plan` knows every item's id. A model is a diffusers folder, or a
single file by CompVis' names; both become tables of the same names, over the bytes where they lie.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.errors import ModelError
from runner.model import torch_file
from runner.model.architecture import LATENT_DIFFUSION, V1, Family, family_of
from runner.model.safetensors import WEIGHT_TYPES, StoredTensor, read_header
from runner.model.single_file import read_single_file

BUILTIN = "builtin:"
AUTO = "auto"

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
class ModelFiles:
    """A model that was found and looks whole: per component its configuration and its tensors.

    `pad_token` is what prompts are filled up with; None where the tokenizer's own files say it.
    """

    name: str
    path: Path
    configs: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, StoredTensor]]
    pad_token: str | None = None
    family: Family = V1

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.configs["unet"].get("in_channels", self.family.latent_channels))

    @property
    def latent_factor(self) -> int:
        """Pixels for each latent, along one side."""
        return int(2 ** (len(self.configs["vae"]["block_out_channels"]) - 1))

    @property
    def native_size(self) -> int:
        """Pixels along one side of the pictures that the model was trained on."""
        size = self.configs["unet"].get("sample_size") or self.family.sample_size
        return int(max(size) if isinstance(size, list) else size) * self.latent_factor

    def parameters(self, component: str) -> int:
        """How many numbers a component has."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors[component].values())


def find_model(path: str, prediction: str = AUTO) -> ModelFiles:
    """The model at `path`: a diffusers folder, a single file, or `builtin:NAME`.

    `prediction` replaces what the model's files say about it, unless it is `auto`.

    Raises:
        ModelError: nothing is there, or it isn't a model, or a file of it is damaged.
    """
    place = place_of(path)
    if not place.exists():
        raise ModelError(
            f"model.path={path}: there is nothing at {place}; give a diffusers folder, or a file of a model"
        )
    model = _find_folder(place) if place.is_dir() else _find_file(place)
    if prediction != AUTO:
        scheduler = dict(model.configs["scheduler"]) | {"prediction_type": prediction}
        model = replace(model, configs=dict(model.configs) | {"scheduler": scheduler})
    _check_channels(model)
    return model


def place_of(path: str) -> Path:
    """Where a model's files are, or should be."""
    if path.startswith(BUILTIN):
        return Path(__file__).parents[1] / "models" / path.removeprefix(BUILTIN)
    return Path(path).expanduser()


def _check_channels(model: ModelFiles) -> None:
    takes, has = model.latent_channels, model.configs["vae"].get("latent_channels", model.family.latent_channels)
    if takes != has:
        raise ModelError(
            f"{model.path}: its UNet takes {takes} channels and its autoencoder has {has}; "
            "models for inpainting, depth or upscaling are not known"
        )


def _find_folder(folder: Path) -> ModelFiles:
    if not (folder / "unet").is_dir():
        raise ModelError(
            f"model.path={folder}: is not a diffusers folder; it should hold model_index.json and the folders "
            f"{', '.join(LATENT_DIFFUSION)}, tokenizer and scheduler"
        )
    configs = {name: _read_config(folder / name, each.module) for name, each in LATENT_DIFFUSION.items()}
    configs["scheduler"] = _read_json(folder / "scheduler" / "scheduler_config.json")
    tensors = {name: _component_tensors(folder / name) for name in LATENT_DIFFUSION}
    family = family_of(str(configs["text_encoder"].get("hidden_act")))
    return ModelFiles(name=folder.resolve().name, path=folder, configs=configs, tensors=tensors, family=family)


def _find_file(file: Path) -> ModelFiles:
    found = read_single_file(file, read_tensors(file))
    for table in found.tensors.values():
        _check_types(table)
    return ModelFiles(
        name=file.stem,
        path=file,
        configs=found.configs,
        tensors=found.tensors,
        pad_token=found.family.text.pad_token,
        family=found.family,
    )


def read_tensors(file: Path) -> dict[str, StoredTensor]:
    """The table of a file of weights, whatever it is called: the contents tell which kind it is.

    Raises:
        ModelError: it is no such file, or is damaged.
    """
    try:
        with file.open("rb") as stream:
            begin = stream.read(9)
    except OSError as error:
        raise ModelError(f"{file}: can't be read ({error})") from error
    if begin[8:] == b"{":
        return read_header(file)
    if begin.startswith(b"PK\3\4"):
        return torch_file.read_table(file)
    if begin.startswith(b"\x80"):
        raise ModelError(f"{file}: is a bare pickle, as torch wrote them before 1.6; {torch_file.SAVE_AGAIN}")
    raise ModelError(f"{file}: is neither a safetensors file nor one of torch.save, or was cut off")


def _component_tensors(folder: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        named = ((current_name(name), tensor) for name, tensor in read_tensors(file).items())
        tensors |= {name: tensor for name, tensor in named if name not in LEFTOVERS}
    _check_types(tensors)
    return tensors


def _check_types(table: Mapping[str, StoredTensor]) -> None:
    for name, tensor in table.items():
        if tensor.dtype not in WEIGHT_TYPES:
            raise ModelError(f"{tensor.file}: {name} is of type {tensor.dtype}; known are: {', '.join(WEIGHT_TYPES)}")


def current_name(name: str) -> str:
    """The name that a tensor has in today's diffusers and transformers."""
    for pattern, replacement in OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _weight_files(folder: Path) -> list[Path]:
    """The component's weights: safetensors before pickles, shards by their index, full precision before half."""
    for ending in ("safetensors", "bin"):
        indexes = sorted(folder.glob(f"*.{ending}.index.json"))
        if indexes:
            shards = _read_json(indexes[0]).get("weight_map", {})
            return [folder / Path(str(name)).name for name in sorted(set(shards.values()))]
        for name in ("diffusion_pytorch_model", "model", "pytorch_model"):
            for variant in ("", ".fp16", ".bf16"):
                if (file := folder / f"{name}{variant}.{ending}").is_file():
                    return [file]
    raise ModelError(f"{folder}: has no weights, neither diffusion_pytorch_model.safetensors nor model.safetensors")


def _read_config(folder: Path, wanted_class: str) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    found = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if found != wanted_class:
        raise ModelError(f"{folder}: is a {found}; Stable Diffusion has a {wanted_class} there")
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
