"""The settings behind `conf/`: Hydra's configuration as typed dataclasses, checked once.

Default values stand in `conf/*.yaml` only. No Hydra object leaves this module: `compose` takes override strings and
returns `Settings`. Torch is never imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from runner.errors import SettingError, did_you_mean
from runner.keys import KEYS, MOST_STEPS, SIZE_STEP
from runner.overrides import Override, scalar, split, text_or_null, texts, unquote

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
FORMATS = ("webdataset", "imagefolder", "parquet")  # of an export
UNET_BS_LIMIT = 1024
GROUPS = {"model": "For a path write model.path=...", "bench": ""}  # files to choose from, and a hint about others
REPLACEABLE = tuple(key for key in KEYS if key != "prompt")  # item keys that `defaults.KEY=` may set
SWITCHES = ("yes", "no", "on", "off", "1", "0")
# What a value of a type is, in words and as a rule; OmegaConf reads yes and no as well.
NUMBERS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda value: type(value) is int),
    "float": ("a number", lambda value: type(value) in (int, float)),
    "bool": ("true or false", lambda value: isinstance(value, bool) or str(value).lower() in SWITCHES),
}
PREDICTIONS = ("auto", "epsilon", "v_prediction")
LOCAL, RAY = "local", "ray"  # engines


@dataclass(slots=True, kw_only=True)
class ModelSettings:
    """Which model: `builtin:NAME` ships with the package, anything else is a path; and what it predicts.

    `vae` is the path of another autoencoder, empty for the model's own.
    """

    path: str
    prediction: str
    vae: str = ""

    def __post_init__(self) -> None:
        _check_choice("model.prediction", self.prediction, PREDICTIONS)


@dataclass(slots=True, kw_only=True)
class BenchSettings:
    """What the verb `bench` measures; a file of `conf/bench/` explains each."""

    name: str
    images: int
    size: int
    steps: int
    scale: float
    rounds: int
    contenders: list[str]
    ceilings: list[str]

    def __post_init__(self) -> None:
        for key in ("images", "size", "steps", "rounds"):
            if getattr(self, key) < 1:
                raise SettingError(f"bench.{key}={getattr(self, key)}: should be at least 1")
        if self.size % SIZE_STEP:
            raise SettingError(f"bench.size={self.size}: should be a multiple of {SIZE_STEP}")
        if self.steps > MOST_STEPS:
            raise SettingError(f"bench.steps={self.steps}: should be at most {MOST_STEPS}")
        for size in self.ceilings:
            parse_size(size, "bench.ceilings")


@dataclass(slots=True, kw_only=True)
class RaySettings:
    """Where the workers of `engine=ray` are. `workers` and `cpus` are None for all that there are.

    `address` is None to start Ray on this machine. If `shared`, every machine has the run folder at the same path.
    """

    address: str | None
    workers: Any
    cpus: int | None
    shared: bool

    def __post_init__(self) -> None:
        self.workers = None if self.workers in (None, "auto") else self.workers
        for key, count in {"workers": self.workers, "cpus": self.cpus}.items():
            if count is not None and (type(count) is not int or count < 1):
                auto = "auto, or " if key == "workers" else ""
                raise SettingError(f"ray.{key}={count}: should be {auto}a whole number from 1 on")


@dataclass(slots=True, kw_only=True)
class WebSettings:
    """The folders whose files the page lets people choose from; one that isn't there is an empty one."""

    models: str
    loras: str
    vaes: str


@dataclass(slots=True, kw_only=True)
class Settings:
    """How pictures are made. `turbo`, `compile`, `unet_bs` and `memory` are None for `auto`; sizes are in bytes.

    `defaults` replace the manifest's defaults by item key, where they are not None; the manifest's rules check them.

    Values that were checked once pass again, so that `dataclasses.replace` works.
    """

    model: ModelSettings
    defaults: dict[str, Any]
    bench: BenchSettings
    device: str
    precision: str
    turbo: Any
    compile: Any
    unet_bs: Any
    memory: Any
    engine: str
    ray: RaySettings
    web: WebSettings
    out: str | None
    limit: int | None
    shuffle: int | None
    shard: str | None
    ids: str | None
    to: str | None
    shard_size: Any
    sample: int | None
    skip_grid: bool
    skip_save: bool
    n_rows: int | None
    watch: bool
    attempts: int
    deep: bool
    mixed: bool
    lock: bool
    allow_outside: bool
    json: bool
    debug: bool

    def __post_init__(self) -> None:
        _check_choice("precision", self.precision, ("autocast", "full"))
        _check_choice("engine", self.engine, (LOCAL, RAY))
        if not DEVICE.fullmatch(self.device):
            raise SettingError(f"device={self.device}: should be auto, cpu, cuda, cuda:N or mps")
        if self.engine == RAY and self.device.startswith(("cuda:", "mps")):
            raise SettingError(
                f"device={self.device}: a worker of engine=ray gets its card from Ray; write device=cuda"
            )
        self.turbo = _parse_switch("turbo", self.turbo)
        self.compile = _parse_switch("compile", self.compile, "openvino")
        self.unet_bs = _parse_unet_bs(self.unet_bs)
        self.memory = None if self.memory in (None, "auto") else parse_size(self.memory)
        self.shard_size = parse_size(self.shard_size, "shard_size")
        if self.shard is not None:
            parse_shard(self.shard)
        if self.to is not None:
            _check_choice("to", self.to, FORMATS)
        counts = {"limit": self.limit, "sample": self.sample, "n_rows": self.n_rows, "attempts": self.attempts}
        for key, number in counts.items():
            if number is not None and number < 1:
                raise SettingError(f"{key}={number}: should be at least 1")


# The settings inside settings.
NODES: Mapping[str, Any] = {"model": ModelSettings, "bench": BenchSettings, "ray": RaySettings, "web": WebSettings}


def given_defaults(settings: Settings) -> dict[str, Any]:
    """The replacements for the manifest's defaults that are set."""
    return {key: value for key, value in settings.defaults.items() if value is not None}


def parse_size(text: Any, key: str = "memory") -> int:
    """`2GiB`, `1.2GB`, `1200MB` or a number of bytes, in bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", str(text))
    unit = UNITS.get((match[2] or "B").upper()) if match else None
    if match is None or unit is None or not (size := int(float(match[1]) * unit)):
        auto = "auto, or " if key == "memory" else ""
        raise SettingError(f"{key}={text}: should be {auto}a size such as 2GiB, 1.2GB or 1200MB")
    return size


def parse_shard(text: str) -> tuple[int, int]:
    """`3/16`, the third of sixteen parts, as (3, 16)."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*/\s*(\d{1,5})\s*", text)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise SettingError(f"shard={text}: should be a part and their number, from 1/16 to 16/16 for sixteen parts")
    return part, parts


def conf_folder() -> Path:
    """`conf/` beside the package in a checkout, inside it once installed."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "conf"


def group_names(group: str) -> list[str]:
    """What `model=` or `bench=` can name."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def named_model(name: str) -> ModelSettings:
    """The model that a file of `conf/model/` describes.

    Raises:
        SettingError: something in it is wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    file = conf_folder() / "model" / f"{name}.yaml"
    try:
        model = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelSettings), OmegaConf.load(file)))
    except OmegaConfBaseException as error:
        raise SettingError(f"{file}: {_first_line(error)}") from error
    assert isinstance(model, ModelSettings)
    return model


def compose(overrides: Sequence[str]) -> Settings:
    """The settings for these overrides (`key=value`).

    Raises:
        SettingError: an unknown key, a wrong value or an override that isn't one.
    """
    return to_settings(compose_config(overrides))


def register_defaults() -> None:
    """Lets Hydra know `defaults.KEY=` for each item key; has to be called before it composes."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group="defaults", name="manifest", node=dict.fromkeys(REPLACEABLE))


def compose_config(overrides: Sequence[str]) -> Any:
    """The same as Hydra's DictConfig, for `--cfg job`: Hydra composes the groups, and the values come on top."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    given = check_overrides(overrides)
    register_defaults()
    groups = [each.written for each in given if each.key in GROUPS]
    try:
        with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
            config = hydra_compose("config", overrides=groups)
        for each in given:
            if each.written not in groups:
                OmegaConf.update(config, each.key, _without_meaning(_value(each)))
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError(_first_line(error)) from error


def _value(given: Override) -> Any:
    """A value by its key's type."""
    name, _, inner = given.key.rpartition(".")
    if name == "defaults":
        kind = KEYS[inner].schema.get("type")
        return (
            text_or_null(given.text) if isinstance(kind, list) or "enum" in KEYS[inner].schema else scalar(given.text)
        )
    nodes: dict[str, Any] = {"": Settings, **NODES}
    kind = next(str(field.type) for field in fields(nodes[name]) if field.name == inner)
    readers: dict[str, Callable[[str], Any]] = {"str": unquote, "str | None": text_or_null, "list[str]": texts}
    value = readers.get(kind, scalar)(given.text)
    words, fits = NUMBERS.get(kind.removesuffix(" | None"), ("", lambda value: True))
    if isinstance(value, float) and value.is_integer() and kind.startswith("int"):
        value = int(value)
    if not fits(value) and not (value is None and kind.endswith("None")):
        raise SettingError(f"{given.written}: should be {words}")
    return value


def _without_meaning(value: Any) -> Any:
    """Texts in which `${` stands for itself; OmegaConf would look for another key there."""
    if isinstance(value, dict):
        return {key: _without_meaning(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_meaning(each) for each in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)


def to_settings(config: Any) -> Settings:
    """Checked settings from Hydra's DictConfig."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = _without_meaning(OmegaConf.to_container(config, resolve=True))
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), plain))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "")
        raise SettingError(f"{key}: {_first_line(error)}" if key else _first_line(error)) from error
    assert isinstance(settings, Settings)
    return settings


def given_keys(overrides: Sequence[str]) -> frozenset[str]:
    """The keys that overrides set."""
    return frozenset(split(override).key for override in overrides)


def check_overrides(overrides: Sequence[str]) -> list[Override]:
    """The overrides, taken apart; refuses unknown keys and files of a group that there aren't."""
    known = known_keys()
    found = [split(word) for word in overrides]
    for given in found:
        if given.key not in known:
            raise SettingError(f"'{given.key}' is not a setting: {_right_key(given.key, known)}")
        if given.key in GROUPS and given.text not in group_names(given.key):
            hint = did_you_mean(given.text, group_names(given.key))
            hint += f". {GROUPS[given.key]}" if GROUPS[given.key] else ""
            raise SettingError(f"{given.key}={given.text}: no such {given.key}; {hint}")
        if given.key == "model.path" and not unquote(given.text).strip():
            raise SettingError("model.path=: names no model; give a diffusers folder, or a file of a model")
    return found


def _right_key(key: str, known: Collection[str]) -> str:
    """What was probably meant: an item key is set by the manifest, and its default from the command line."""
    aliases = {alias: name for name, row in KEYS.items() for alias in (name, *row.aliases)}
    bare = key.removeprefix("defaults.")
    if bare in ("prompt", "prompts"):
        return "prompts are set by the manifest"
    if bare == "seeds":
        return "seeds are set by the manifest; defaults.seed= replaces its default"
    if key == "defaults":
        return "write each by its name, for instance defaults.steps=4"
    if key in aliases:
        return f"it is an item key, which the manifest sets; write defaults.{aliases[key]}= to replace its default"
    return did_you_mean(key, known)


def known_keys() -> set[str]:
    """Every key that an override may set."""
    keys = {field.name for field in fields(Settings)} - {"defaults", *NODES.keys() - GROUPS.keys()}
    keys |= {f"defaults.{key}" for key in REPLACEABLE}
    return keys | {f"{name}.{field.name}" for name, node in NODES.items() for field in fields(node)}


def _check_choice(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SettingError(f"{key}={value}: {did_you_mean(value, known)}")


def _parse_switch(key: str, value: Any, *others: str) -> bool | str | None:
    if value in (None, "auto"):
        return None
    if isinstance(value, bool) or value in others:
        known: bool | str = value
        return known
    raise SettingError(f"{key}={value}: should be {', '.join(['true', *others, 'false'])} or auto")


def _parse_unet_bs(value: Any) -> int | None:
    if value in (None, "auto"):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= UNET_BS_LIMIT:
        return value
    raise SettingError(f"unet_bs={value}: should be auto or a number of rows from 1 to {UNET_BS_LIMIT}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
