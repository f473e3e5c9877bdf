"""Finds a model's weights and says what they are: configurations, tensors by one set of names, fingerprints.

Reads files only and never imports torch, so that `plan` knows every item's id. A model is a diffusers folder, or a
single file by CompVis' names; both become tables of the same names, over the bytes where they lie.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.errors import ModelError
from runner.files import expanded
from runner.model import configs as model_configs
from runner.model import torch_file
from runner.model.architecture import LATENT_DIFFUSION, V1, Family, family_of
from runner.model.guess import kind_of_bytes
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
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model|pytorch_model)(\.(?P<variant>[^.]+))?\.(?P<ending>safetensors|bin)"
)
INDEX = re.compile(
    r"(diffusion_pytorch_model|model|pytorch_model)(\.[^.]+)?\.(?P<ending>safetensors|bin)\.index(\.(?P<variant>[^.]+))?\.json"
)
SHARD = re.compile(r"-\d+-of-\d+")
VARIANTS = ("", "fp16", "bf16")  # as they are preferred: full precision before half
CONFIG_RULES = {
    "text_encoder": model_configs.TEXT_ENCODER,
    "unet": model_configs.UNET,
    "vae": model_configs.AUTOENCODER,
}


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

    @property
    def vocabulary(self) -> int:
        """How many tokens the text encoder knows."""
        return int(self.configs["text_encoder"]["vocab_size"])

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
    if not _exists(place):
        raise ModelError(
            f"model.path={path}: there is nothing at {place}; give a diffusers folder, or a file of a model"
        )
    model = _find_folder(place) if place.is_dir() else _find_file(place)
    if prediction != AUTO:
        scheduler = dict(model.configs["scheduler"]) | {"prediction_type": prediction}
        model = replace(model, configs=dict(model.configs) | {"scheduler": scheduler})
    _check_fit(model)
    return model


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        raise ModelError(f"model.path={place}: is no path of this system ({error})") from None


def place_of(path: str) -> Path:
    """Where a model's files are, or should be."""
    if path.startswith(BUILTIN):
        return Path(__file__).parents[1] / "models" / path.removeprefix(BUILTIN)
    return expanded(path)


def _check_fit(model: ModelFiles) -> None:
    """Whether the components are of one model."""
    text, unet, vae = (model.configs[name] for name in ("text_encoder", "unet", "vae"))
    takes, has = model.latent_channels, vae.get("latent_channels", model.family.latent_channels)
    if takes != has:
        raise ModelError(
            f"{model.path}: its UNet takes {takes} channels and its autoencoder has {has}; "
            "models for inpainting, depth or upscaling are not known"
        )
    if unet.get("out_channels", takes) != takes:
        raise ModelError(
            f"{model.path}: its UNet takes {takes} channels and gives {unet['out_channels']}; models that predict more "
            "than the noise are not known"
        )
    if unet["cross_attention_dim"] != text["hidden_size"]:
        raise ModelError(
            f"{model.path}: its UNet is told texts of {unet['cross_attention_dim']} numbers (cross_attention_dim), and "
            f"its text encoder makes {text['hidden_size']} (hidden_size): they are not of one model"
        )


def _find_folder(folder: Path) -> ModelFiles:
    if not (folder / "unet").is_dir():
        raise ModelError(
            f"model.path={folder}: is not a diffusers folder; it should hold model_index.json and the folders "
            f"{', '.join(LATENT_DIFFUSION)}, tokenizer and scheduler"
        )
    configs = {name: _read_config(folder, name, each.module) for name, each in LATENT_DIFFUSION.items()}
    configs["scheduler"] = model_configs.read_scheduler(folder / "scheduler" / "scheduler_config.json")
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
        if not file.is_file():  # opening a pipe would never return
            raise ModelError(f"{file}: is not a file")
        with file.open("rb") as stream:
            begin = stream.read(40)
    except OSError as error:
        raise ModelError(f"{file}: can't be read ({error})") from error
    if begin[8:9] == b"{":
        return read_header(file)
    if begin.startswith(b"PK\3\4"):
        return torch_file.read_table(file)
    if begin.startswith(b"\x80"):
        raise ModelError(f"{file}: is a bare pickle, as torch wrote them before 1.6; {torch_file.SAVE_AGAIN}")
    kind = kind_of_bytes(begin)
    if not begin:
        kind = "empty"
    raise ModelError(
        f"{file}: is {kind}" if kind else f"{file}: is neither a safetensors file nor one of torch.save, or was cut off"
    )


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
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise ModelError(f"{folder}: can't be read ({error})") from error
    for ending in ("safetensors", "bin"):
        whole, indexes = (
            {
                match["variant"] or "": name
                for name in names
                if (match := pattern.fullmatch(name)) and match["ending"] == ending and not SHARD.search(name)
            }
            for pattern in (WEIGHTS, INDEX)
        )
        found = indexes | whole if not indexes.get("") else whole | indexes
        if found:
            name = found[_choose_variant(folder, sorted(found))]
            return _shards(folder / name) if name.endswith(".json") else [folder / name]
    raise ModelError(f"{folder}: has no weights, neither diffusion_pytorch_model.safetensors nor model.safetensors")


def _choose_variant(folder: Path, variants: list[str]) -> str:
    for variant in VARIANTS:
        if variant in variants:
            return variant
    if len(variants) > 1:
        raise ModelError(f"{folder}: has the variants {', '.join(variants)}; keep the files of one of them")
    return variants[0]


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it."""
    shards = model_configs.read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{index}: weight_map should name the file of each tensor")
    files = [index.parent / Path(name).name for name in sorted(set(shards.values()))]
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: is missing, and {index.name} names it; was it downloaded?")
    return files


def _read_config(folder: Path, component: str, wanted_class: str) -> dict[str, Any]:
    file = folder / component / "config.json"
    config = model_configs.read_json(file)
    listed = config.get("architectures")
    found = config.get("_class_name") or (listed[0] if isinstance(listed, list) and listed else None)
    if found != wanted_class:
        raise ModelError(f"{file}: is of a {str(found)[:60]}; Stable Diffusion v1 and v2 have a {wanted_class} there")
    return model_configs.check(file, config, CONFIG_RULES[component])
