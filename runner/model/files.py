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
from runner.files import expanded, is_url
from runner.model import configs as model_configs
from runner.model import torch_file
from runner.model.architecture import LATENT_DIFFUSION, V1, XL, Family, family_of
from runner.model.guess import kind_of_bytes
from runner.model.safetensors import WEIGHT_TYPES, StoredTensor, read_header
from runner.model.single_file import SIZES, read_autoencoder, read_single_file

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
PROJECTING = "CLIPTextModelWithProjection"  # which kept its names
VARIANTS = ("", "fp16", "bf16")  # as they are preferred: full precision before half
CONFIG_RULES = {
    "text_encoder": model_configs.TEXT_ENCODER,
    "text_encoder_2": model_configs.PROJECTING_TEXT_ENCODER,
    "unet": model_configs.UNET,
    "vae": model_configs.AUTOENCODER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model that was found and looks whole: per component its configuration and its tensors.

    `zeros` says whether no negative prompt is zeros, and not the encoded empty text.
    """

    name: str
    path: Path
    configs: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, StoredTensor]]
    family: Family = V1
    zeros: bool = False

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.configs["vae"].get("latent_channels", self.family.latent_channels))

    @property
    def inpaints(self) -> bool:
        """Whether its UNet is given a mask and a masked picture beside the latents."""
        return int(self.configs["unet"].get("in_channels", self.latent_channels)) != self.latent_channels

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
    def upcast(self) -> bool:
        """Whether the autoencoder overflows in half precision, as its configuration says of this family."""
        return self.family.upcast and bool(self.configs["vae"].get("force_upcast", True))

    def parameters(self, component: str) -> int:
        """How many numbers a component has."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors[component].values())


def find_model(path: str, prediction: str = AUTO, vae: str = "") -> ModelFiles:
    """The model at `path`: a diffusers folder, a single file, or `builtin:NAME`.

    `prediction` replaces what the model's files say about it, unless it is `auto`; the autoencoder at `vae`, a
    diffusers folder or a single file, replaces its own.

    Raises:
        ModelError: nothing is there, or it isn't a model, or a file of it is damaged.
    """
    for key, given in (("path", path), ("vae", vae)):
        if is_url(given):
            raise ModelError(f"model.{key}={given}: a model is read from this machine's disk, not from a URL")
    place = place_of(path)
    if not _exists(place):
        raise ModelError(
            f"model.path={path}: there is nothing at {place}; give a diffusers folder, or a file of a model"
        )
    model = _find_folder(place) if place.is_dir() else _find_file(place)
    if prediction != AUTO:
        scheduler = dict(model.configs["scheduler"]) | {"prediction_type": prediction}
        model = replace(model, configs=dict(model.configs) | {"scheduler": scheduler})
    if vae:
        model = _with_vae(model, place_of(vae))
    _check_fit(model)
    return model


def _with_vae(model: ModelFiles, place: Path) -> ModelFiles:
    if not _exists(place):
        raise ModelError(f"model.vae={place}: there is nothing; give a diffusers folder, or a file of an autoencoder")
    if place.is_dir():
        folder = place if (place / "config.json").exists() else place / "vae"
        kind = model.family.components["vae"].module
        config, table = _read_config(folder.parent, folder.name, kind, "vae"), _component_tensors(folder, kind)
    else:
        found = {current_name(name): tensor for name, tensor in read_tensors(place).items()}
        made, tensors = read_autoencoder(place, found, model.family)
        config, table = dict(made), dict(tensors)
        _check_types(table)
    return replace(model, configs=dict(model.configs) | {"vae": config}, tensors=dict(model.tensors) | {"vae": table})


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
    texts, unet = model.family.texts, model.configs["unet"]
    has = model.latent_channels
    takes = unet.get("in_channels", has)
    if takes not in (has, 2 * has + 1):  # latents; or latents, a mask, and a masked picture's latents
        raise ModelError(
            f"{model.path}: its UNet takes {takes} channels and its autoencoder has {has}; "
            "models for depth, upscaling or editing by words are not known"
        )
    if unet.get("out_channels", has) != has:
        raise ModelError(
            f"{model.path}: its UNet predicts {unet['out_channels']} channels and its autoencoder has {has}; models "
            "that predict more than the noise are not known"
        )
    made = [int(model.configs[name]["hidden_size"]) for name in model.family.texts]
    if unet["cross_attention_dim"] != sum(made):
        what = "its text encoder makes" if len(made) == 1 else "its text encoders make"
        raise ModelError(
            f"{model.path}: its UNet is told texts of {unet['cross_attention_dim']} numbers (cross_attention_dim), and "
            f"{what} {' + '.join(map(str, made))} (hidden_size): they are not of one model"
        )
    if bool(unet.get("addition_embed_type")) != model.family.sizes:
        told = "is not told sizes" if model.family.sizes else "is told sizes (addition_embed_type)"
        file = model.path / "unet" / "config.json" if model.path.is_dir() else model.path
        raise ModelError(f"{file}: its UNet {told}, which doesn't go with its text encoders ({', '.join(texts)})")
    if model.family.sizes:
        _check_conditions(model)


def _check_conditions(model: ModelFiles) -> None:
    unet = model.configs["unet"]
    pooled = sum(int(model.configs[name]["projection_dim"]) for name, text in model.family.texts.items() if text.pooled)
    sizes, takes = unet["addition_time_embed_dim"], unet["projection_class_embeddings_input_dim"]
    if sizes is None or takes != pooled + SIZES * sizes:
        raise ModelError(
            f"{model.path}: its UNet takes {takes} numbers beside the texts (projection_class_embeddings_input_dim), "
            f"and is told {pooled} of the whole prompt and {SIZES} sizes of {sizes} (addition_time_embed_dim)"
        )


def _find_folder(folder: Path) -> ModelFiles:
    if not (folder / "unet").is_dir():
        raise ModelError(
            f"model.path={folder}: is not a diffusers folder; it should hold model_index.json and the folders "
            f"{', '.join(LATENT_DIFFUSION)}, tokenizer and scheduler"
        )
    second = (folder / "text_encoder_2").is_dir()
    if second and not (folder / "text_encoder").is_dir():
        raise ModelError(
            f"model.path={folder}: has no text_encoder, as refiners of Stable Diffusion XL; it is not known"
        )
    components = XL.components if second else LATENT_DIFFUSION
    configs = {name: _read_config(folder, name, each.module) for name, each in components.items()}
    configs["scheduler"] = model_configs.read_scheduler(folder / "scheduler" / "scheduler_config.json")
    tensors = {name: _component_tensors(folder / name, each.module) for name, each in components.items()}
    family = family_of(str(configs["text_encoder"].get("hidden_act")), two_encoders=second)
    return ModelFiles(
        name=folder.resolve().name,
        path=folder,
        configs=configs,
        tensors=tensors,
        family=family,
        zeros=_has_zeros(folder, family),
    )


def _has_zeros(folder: Path, family: Family) -> bool:
    """What the pipeline's own file says about an empty negative prompt."""
    index = folder / "model_index.json"
    said = (
        model_configs.read_json(index).get("force_zeros_for_empty_prompt") if family.zeros and index.exists() else None
    )
    if said is not None and not isinstance(said, bool):
        raise ModelError(f"{index}: force_zeros_for_empty_prompt should be true or false")
    return family.zeros if said is None else said


def _find_file(file: Path) -> ModelFiles:
    found = read_single_file(file, read_tensors(file))
    for table in found.tensors.values():
        _check_types(table)
    return ModelFiles(
        name=file.stem,
        path=file,
        configs=found.configs,
        tensors=found.tensors,
        family=found.family,
        zeros=found.family.zeros,
    )


def read_tensors(file: Path, find: torch_file.Find | None = None) -> dict[str, StoredTensor]:
    """The table of a file of weights, whatever it is called: the contents tell which kind it is.

    `find` finds the tensors in what torch saved, where they are elsewhere than in a model.

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
        return torch_file.read_table(file, find)
    if begin.startswith(b"\x80"):
        raise ModelError(f"{file}: is a bare pickle, as torch wrote them before 1.6; {torch_file.SAVE_AGAIN}")
    kind = kind_of_bytes(begin)
    if not begin:
        kind = "empty"
    raise ModelError(
        f"{file}: is {kind}" if kind else f"{file}: is neither a safetensors file nor one of torch.save, or was cut off"
    )


def _component_tensors(folder: Path, module: str) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        named = ((current_name(name, module), tensor) for name, tensor in read_tensors(file).items())
        tensors |= {name: tensor for name, tensor in named if not name.endswith(LEFTOVERS)}
    _check_types(tensors)
    return tensors


def _check_types(table: Mapping[str, StoredTensor]) -> None:
    for name, tensor in table.items():
        if tensor.dtype not in WEIGHT_TYPES:
            raise ModelError(f"{tensor.file}: {name} is of type {tensor.dtype}; known are: {', '.join(WEIGHT_TYPES)}")


def current_name(name: str, module: str = "") -> str:
    """The name that a tensor of a module has in today's diffusers and transformers."""
    if module == PROJECTING:
        return name
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


def _read_config(folder: Path, component: str, wanted_class: str, rules: str = "") -> dict[str, Any]:
    file = folder / component / "config.json"
    config = model_configs.read_json(file)
    listed = config.get("architectures")
    found = config.get("_class_name") or (listed[0] if isinstance(listed, list) and listed else None)
    if found != wanted_class:
        raise ModelError(f"{file}: is of a {str(found)[:60]}; the models known here have a {wanted_class} there")
    return model_configs.check(file, config, CONFIG_RULES[rules or component])
