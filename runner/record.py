"""What a line of the ledger holds, and how its picture was made: the one place that knows the keys of a record.

A record is written by `Record.to_dict` and read by `Record.from_dict`, which takes what a file holds, altered or from
an earlier version: a value of the wrong kind counts as absent. Lines without a version are of version 1.

    record = Record.from_dict(orjson.loads(line))
    record.making.differences(now)
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version as version_of
from typing import Any, NamedTuple

from runner import __version__
from runner.item import ON_TOP, Item, Model

VERSION = 1
DONE, FAILED = "done", "failed"
NONE, INDUCTOR, OPENVINO = "none", "inductor", "openvino"  # what compiles the UNet
FULL = "float32"
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow")
Pairs = tuple[tuple[str, str], ...]


class Making(NamedTuple):
    """How a picture was made. A factor that is unknown is None. A tuple, since a folder's ways are compared in sets.

    `dtypes` are the number types by fragment, `env` the versions of what has a say in a picture's bytes, `lowered_from`
    is the `unet_bs` that was planned where less memory than planned lowered it. `precision`, `memory` and `engine` are
    what was asked for.
    """

    device: str | None = None
    device_name: str | None = None
    threads: int | None = None
    dtypes: Pairs = ()
    prediction: str | None = None
    compile: str = NONE
    precision: str | None = None
    memory: int | str | None = None
    engine: str | None = None
    unet_bs: int | None = None
    turbo: bool | None = None
    lowered_from: int | None = None
    env: Pairs = ()

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Making:
        """The making that a record's `run` and `env` hold."""
        run, dtypes = part(record, "run"), _pairs(part(part(record, "run"), "dtypes"))
        known = {key: run[key] for key, kinds in KINDS.items() if type(run.get(key)) in kinds}
        return cls(**known, dtypes=dtypes, env=_pairs(part(record, "env")))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """`run` and `env`, as a record has them."""
        run = {key: value for key, value in self._asdict().items() if value is not None and key != "env"}
        return {"run": run | {"dtypes": dict(self.dtypes)}, "env": dict(self.env)}

    @property
    def is_full(self) -> bool:
        """Whether every fragment was in float32."""
        return bool(self.dtypes) and all(dtype == FULL for _, dtype in self.dtypes)

    def rounding(self, rerendered: bool = False) -> Making:
        """Only what may change a picture's bytes on a machine; of one that was `rerendered`, less than that.

        Cards of one kind are one device. A sum is shared among threads on a CPU alone. A picture that was rendered
        again was made in float32, whatever the run's own number type, rows and compiler are.
        """
        kind = self.device and self.device.partition(":")[0]
        threads = self.threads if kind == "cpu" else None
        alike = self._replace(device=kind, threads=threads, precision=None, memory=None, engine=None, turbo=None)
        return alike._replace(dtypes=(), compile="", unet_bs=None, lowered_from=None) if rerendered else alike

    def differences(self, now: Making) -> dict[str, tuple[Any, Any]]:
        """The factors that are different `now`, as (then, now)."""
        then, today = self._factors(), now._factors()
        names = [*then, *(today.keys() - then.keys())]
        return {name: (then.get(name), today.get(name)) for name in names if then.get(name) != today.get(name)}

    def _factors(self) -> dict[str, Any]:
        """Each factor by its name, without those that change no byte by themselves."""
        shown = {key: getattr(self, key) for key in FACTORS if getattr(self, key) is not None}
        return dict(self.env) | shown | {f"dtype of {fragment}": dtype for fragment, dtype in self.dtypes}


FACTORS = ("device", "device_name", "threads", "prediction", "compile", "unet_bs")  # and `dtypes`, `env`
KINDS: Mapping[str, tuple[type, ...]] = {  # of the values of a record's `run`
    "device": (str,), "device_name": (str,), "threads": (int,), "prediction": (str,), "compile": (str,),
    "precision": (str,), "memory": (int, str), "engine": (str,), "unet_bs": (int,), "turbo": (bool,),
    "lowered_from": (int,),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A picture's file as bytes, with the hashes of these and of its pixels, and its thumbnail if it is large."""

    data: bytes
    sha256: str
    pixels_sha256: str
    thumbnail: bytes | None = None

    def written(self, path: str) -> Written:
        """The same, once it is in its place."""
        return Written(path=path, sha256=self.sha256, pixels_sha256=self.pixels_sha256, bytes=len(self.data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A picture that is in its place; `path` is within the run folder."""

    path: str
    sha256: str
    pixels_sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line: an item, and the picture that it became or why it failed.

    `item` is `Item.to_dict()` with the model's name; `model` is the model's name, path and fingerprints. `image` is the
    picture's path in the run folder, `sha256` that of its file, `pixels` that of its RGB bytes. `seconds` are its share
    of each stage's time, `peak_bytes` is the memory of its wave. `made` is when it was recorded, ISO 8601
    with its offset; older records don't say. `rerendered` is why it was made again in float32.
    """

    version: int = VERSION
    id: str
    status: str = ""
    item: Mapping[str, Any]
    model: Mapping[str, Any]
    making: Making
    rerendered: str = ""
    image: str = ""
    sha256: str = ""
    pixels: str = ""
    bytes: int = 0
    error: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    made: str = ""

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Record:
        """The record of a line; what is missing or of the wrong kind is empty."""
        return cls(
            version=_value(line, "version", int) or VERSION,
            id=_value(line, "id", str),
            status=_value(line, "status", str),
            item=part(line, "item"),
            model=part(line, "model"),
            making=Making.from_dict(line),
            rerendered=str(line.get("rerendered", "")),
            image=_value(line, "image", str),
            sha256=_value(line, "sha256", str),
            pixels=_value(line, "pixels", str),
            bytes=_value(line, "bytes", int),
            error=part(line, "error"),
            seconds=part(line, "seconds"),
            peak_bytes=_value(line, "peak_bytes", int),
            made=_value(line, "made", str),
        )

    def to_dict(self) -> dict[str, Any]:
        """The line, without what doesn't count for its status."""
        again = {"rerendered": self.rerendered} if self.rerendered else {}
        seconds = {"seconds": {stage: round(value, 6) for stage, value in self.seconds.items()}}
        made = {key: getattr(self, key) for key in ("image", "sha256", "pixels", "bytes")}
        ending = {"error": self.error} | seconds if self.status == FAILED else made | seconds
        about = {key: getattr(self, key) for key in ("version", "id", "status", "item", "model")}
        peak = {} if self.status == FAILED else {"peak_bytes": self.peak_bytes}
        when = {"made": self.made} if self.made else {}
        return about | self.making.to_dict() | again | ending | peak | when

    @property
    def fingerprints(self) -> Pairs:
        """SHA-256 of the weights by fragment."""
        return fingerprints_of(self.model)

    @property
    def size(self) -> tuple[Any, Any]:
        """Width and height in pixels, as recorded."""
        return self.item.get("width"), self.item.get("height")

    def finished(self, written: Written, seconds: Mapping[str, float], peak_bytes: int) -> Record:
        """The record once its picture is in its file."""
        return replace(
            self,
            status=DONE,
            image=written.path,
            sha256=written.sha256,
            pixels=written.pixels_sha256,
            bytes=written.bytes,
            seconds=seconds,
            peak_bytes=peak_bytes,
        )

    def failed(self, error: Mapping[str, str], seconds: Mapping[str, float]) -> Record:
        """The record of an item without a picture."""
        return replace(self, status=FAILED, error=error, seconds=seconds)


def is_record(line: object) -> bool:
    """Whether a line of JSON is a record that a ledger can count: it has an id, and a picture unless it failed."""
    if not isinstance(line, dict) or not isinstance(line.get("id"), str):
        return False
    if line.get("status") != DONE:
        return line.get("status") == FAILED
    return isinstance(line.get("image"), str) and isinstance(line.get("bytes"), int)


def is_newer(line: Mapping[str, Any]) -> bool:
    """Whether a later version of this runner wrote a record."""
    version = line.get("version", VERSION)
    return isinstance(version, int) and version > VERSION


def part(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A mapping within a record, which may have been altered; an empty one where there is none."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def fingerprints_of(model: Mapping[str, Any]) -> Pairs:
    """The fingerprints of a record's or a picture's `model`."""
    return _pairs(part(model, "fingerprints"))


def model_dict(model: Model) -> dict[str, Any]:
    """A record's `model`."""
    more = {"vae": model.vae, "family": model.family}
    return {"name": model.name, "path": model.path, "fingerprints": dict(model.fingerprints)} | {
        key: value for key, value in more.items() if value
    }


def item_dict(item: Item) -> dict[str, Any]:
    """A record's `item`: as it stands in the picture, the model's name, and where the files are that it names."""
    placed = {
        key: {each.name: {"path": each.path, **each.to_dict()} for each in getattr(item, key)}
        for key in ON_TOP
        if getattr(item, key)
    }
    return item.to_dict() | {"model": item.model.name} | placed


def item_of_picture(item: Mapping[str, Any]) -> dict[str, Any]:
    """A record's `item` as it stands in the picture: the way back from `item_dict`."""

    def without_path(entry: Any) -> Any:
        return {key: value for key, value in entry.items() if key != "path"} if isinstance(entry, dict) else entry

    placed = {
        key: {name: without_path(each) for name, each in part(item, key).items()} for key in ON_TOP if key in item
    }
    return {key: value for key, value in item.items() if key != "model"} | placed


@functools.cache
def environment(compiler: str = NONE) -> Pairs:
    """The versions of what has a say in a picture's bytes."""
    libraries = (*LIBRARIES, *([compiler] if compiler == OPENVINO else []))
    own = (("runner", __version__), ("python", platform.python_version()))
    return (*own, *((name, version_of(name)) for name in libraries))


def _pairs(values: Mapping[str, Any]) -> Pairs:
    return tuple((str(key), str(value)) for key, value in values.items())


def _value(line: Mapping[str, Any], key: str, kind: type) -> Any:
    value = line.get(key)
    return value if type(value) is kind else kind()
