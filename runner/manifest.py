"""From a manifest, version 1, to a checked one: every value in its range, every prompt read, every place known.

The result holds descriptions, not items: a range of seeds stays a range, and `expand` makes the items. Models, memory
and devices are not known here, and the rules for single values stand in `values`.

    manifest = load(Path("alps.yaml"), overrides={"steps": 4}, allow_outside=False)
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import inits, prompts, yaml_nodes
from runner.errors import Location, ManifestError, SettingError
from runner.inits import Init
from runner.spec import Part
from runner.values import (
    DEFAULTS,
    ITEM_KEYS,
    LARGEST_SEED,
    LATER,
    MOST_ITEMS,
    check,
    entries,
    read_axis,
    read_count,
    read_seeds,
    words,
)
from runner.yaml_nodes import Node

JOB_KEYS = (*ITEM_KEYS, "prompts", "seeds", "n_samples", "n_iter", "matrix")
PROMPT_KEYS = {  # the kind of prompt, and what may stand beside it
    "text": ("weighted", "id", "negative"),
    "prompt": ("weighted", "id", "negative"),
    "parts": ("weights", "id", "negative"),
    "file": ("weighted", "negative"),
}
CONFLICTS = (
    ("prompts", "prompt"),
    ("prompts", "matrix.prompt"),
    *(("seeds", other) for other in ("seed", "n_samples", "n_iter", "matrix.seed")),
    *((other, "matrix.seed") for other in ("n_samples", "n_iter")),
    *((key, f"matrix.{key}") for key in ITEM_KEYS),
)
QUOTE_HINT = "; a prompt that holds a colon and a space needs quotes"

MOST_PROMPTS = 5 * 10**6
FOLDER_NAME = re.compile(r"\w[\w .,+=()@-]*(?<![ .])")
LONGEST_NAME = 200  # bytes; file systems allow 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt as it was written; `label` is what an axis shows for it, `negative` its own, if it has one."""

    text: str
    label: str
    weighted: bool
    negative: str | None
    location: Location

    def parts(self) -> tuple[Part, ...]:
        return prompts.parse(self.text) if self.weighted else (Part(text=self.text, weight=1.0),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One key and the values that it takes in turn; `named` says whether the items name their value on it."""

    key: str
    values: Sequence[Any]
    named: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Every combination of the axes' values, the last one varying fastest, over values that are the same for all.

    `drawn` is the number of seeds that count up from one that has yet to be drawn, 0 where the seeds are known;
    `samples` the number of seeds that one iteration goes through.
    """

    values: Mapping[str, Any]
    axes: tuple[Axis, ...]
    drawn: int
    samples: int
    location: Location

    @property
    def size(self) -> int:
        return math.prod(len(axis.values) for axis in self.axes) * max(self.drawn, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    path: Path
    name: str
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """What a job stands in."""

    folder: Path
    allow_outside: bool
    defaults: Mapping[str, Any]


def load(path: Path, *, overrides: Mapping[str, object], allow_outside: bool) -> Manifest:
    """The checked manifest; `overrides` are defaults from the command line, which beat those of the manifest."""
    root = yaml_nodes.read(path)
    given = root.mapping(("version", "name", "defaults", "jobs"), refused=LATER)
    for key in ("version", "jobs"):
        if key not in given:
            raise root.error(f"'{key}' is missing" + ("; write 'version: 1'" if key == "version" else ""))
    if given["version"].written != "1":
        raise given["version"].error(f"version {given['version']} is not known; this runner reads version: 1")
    bare = _Frame(folder=path.parent, allow_outside=allow_outside, defaults=DEFAULTS)
    defaults = _values(entries(given["defaults"], ITEM_KEYS), bare) if "defaults" in given else {}
    defaults = {**DEFAULTS, **defaults, **_overrides(overrides, bare)}
    frame = _Frame(folder=path.parent, allow_outside=allow_outside, defaults=defaults)
    jobs = tuple(_job(node, frame) for node in given["jobs"].items())
    if (size := sum(job.size for job in jobs)) > MOST_ITEMS:
        raise given["jobs"].error(f"the jobs make {size} items; the most is {MOST_ITEMS}")
    return Manifest(path=path, name=_name(given.get("name"), path), jobs=jobs)


def _values(given: Mapping[str, Node], frame: _Frame) -> dict[str, Any]:
    """The checked values of item keys; a prompt becomes the prompts that it stands for, an init its picture."""
    return {key: _value(key, node, frame) for key, node in given.items() if key in ITEM_KEYS}


def _value(key: str, node: Node, frame: _Frame) -> Any:
    if key == "prompt":
        return _prompts([node], frame)
    return find_init(node, frame.folder, frame.allow_outside) if key == "init" else check(key, node)


def find_init(node: Node, folder: Path, allow_outside: bool) -> Init:
    """The picture that an `init` names; it is looked at as a whole."""
    try:
        return inits.examine(find_inside(node, folder, allow_outside))
    except inits.InitError as error:
        raise node.error(f"init: {error}") from None


def _overrides(overrides: Mapping[str, object], frame: _Frame) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        try:
            node = yaml_nodes.wrap({key: value}, Location(Path("command line")), plain=True)
            values = _values(entries(node, ITEM_KEYS), frame)
        except ManifestError as error:
            raise SettingError(f"defaults.{key}: {error.message.removeprefix(f'{key}: ')}") from None
        if not found.keys().isdisjoint(values):
            raise SettingError(
                f"defaults.{key}: '{next(iter(values))}' is set twice; only one of its names can be used"
            )
        found |= values
    return found


def _name(node: Node | None, path: Path) -> str:
    name = node.text() if node else path.stem
    if FOLDER_NAME.fullmatch(name) and len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    message = "can't name a folder; use letters, digits and any of ' _.,+=()@-', beginning with a letter or digit"
    raise (
        node.error(f"name: {node} {message}")
        if node
        else ManifestError(f"the file's own name '{name}' {message}; or add a line 'name: ...'", Location(path))
    )


# ---- prompts


def _prompts(nodes: Sequence[Node], frame: _Frame) -> tuple[Prompt, ...]:
    found: list[Prompt] = []
    for node in nodes:
        found += itertools.islice(_prompt(node, frame), MOST_PROMPTS + 1)
        if len(found) > MOST_PROMPTS:
            raise node.error(f"more than {MOST_PROMPTS} prompts in one list")
    return tuple(found)


def _prompt(node: Node, frame: _Frame) -> Iterator[Prompt]:
    if not isinstance(node.value, dict):
        yield _checked(words(node), node.location)
        return
    given = node.mapping(
        dict.fromkeys(key for kind in PROMPT_KEYS for key in (kind, *PROMPT_KEYS[kind])), hint=QUOTE_HINT
    )
    kinds = [kind for kind in PROMPT_KEYS if kind in given]
    if len(kinds) != 1:
        raise node.error("a prompt is made of exactly one of text, parts (with weights) or file")
    kind = kinds[0]
    for key in given:
        if key != kind and key not in PROMPT_KEYS[kind]:
            raise given[key].error(f"'{key}' can't stand beside '{kind}'")
    negative = words(given["negative"]) if "negative" in given else None
    label = given["id"].text() if "id" in given else None
    weighted = given["weighted"].flag() if "weighted" in given else True
    if kind == "file":
        yield from _from_file(given["file"], frame, negative, weighted)
    elif kind == "parts":
        yield from _from_parts(given, negative, label)
    else:
        yield _checked(words(given[kind]), given[kind].location, negative, label, weighted)


def _checked(
    text: str, location: Location, negative: str | None = None, label: str | None = None, weighted: bool = True
) -> Prompt:
    if weighted:
        try:
            prompts.parse(text)
        except ValueError as error:
            raise ManifestError(f"{error}; or set 'weighted: false' on the prompt", location) from None
    label = text if label is None else label
    return Prompt(text=text, label=label, weighted=weighted, negative=negative, location=location)


def _from_parts(given: Mapping[str, Node], negative: str | None, label: str | None) -> Iterator[Prompt]:
    parts = [words(node) for node in given["parts"].items()]
    if "weights" not in given:
        raise given["parts"].error(f"'weights' is missing; {len(parts)} parts need {len(parts)} weights")
    rows = given["weights"].items()
    swept = isinstance(rows[0].value, list)
    for row in rows if swept else [given["weights"]]:
        weights = [node.number(-prompts.LARGEST_WEIGHT, prompts.LARGEST_WEIGHT) for node in row.items()]
        try:
            prompts.combine(parts, weights)
        except ValueError as error:
            raise row.error(str(error)) from None
        text = prompts.to_text(parts, weights)
        named = f"{label} ({', '.join(f'{weight:g}' for weight in weights)})" if label and swept else label
        yield _checked(text, row.location, negative, named)


def _from_file(node: Node, frame: _Frame, negative: str | None, weighted: bool) -> Iterator[Prompt]:
    path = find_inside(node, frame.folder, frame.allow_outside)
    found = False
    for number, line in enumerate(yaml_nodes.read_text(path, node.location).split("\n"), 1):
        if text := line.strip():
            found = True
            yield _checked(text, Location(path, number, 1), negative, weighted=weighted)
    if not found:
        raise node.error(f"the file {node} holds no prompts")


def find_inside(node: Node, folder: Path, allow_outside: bool) -> Path:
    """The path of a file that is named relative to `folder`, and may not leave it unless that is allowed."""
    path = folder / node.text()
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        raise node.error(f"{node} can't be followed; is it a link to itself?") from None
    if not inside and not allow_outside:
        raise node.error(f"{node} leaves the manifest's folder; allow_outside=true permits it")
    return path


# ---- jobs


def _job(node: Node, frame: _Frame) -> Job:
    given = entries(node, JOB_KEYS)
    matrix = entries(given["matrix"], ITEM_KEYS) if "matrix" in given else {}
    _refuse_conflicts({**given, **{f"matrix.{key}": value for key, value in matrix.items()}})
    values = {**frame.defaults, **_values(given, frame)}
    axes = [Axis(key=key, values=_axis_values(key, value, frame), named=True) for key, value in matrix.items()]
    if "prompt" not in matrix:
        texts = _prompts(given["prompts"].items(), frame) if "prompts" in given else values.get("prompt")
        if texts is None:
            raise node.error("a job needs prompts: a list, or a single 'prompt'")
        axes.insert(0, Axis(key="prompt", values=texts, named=len(texts) > 1))
    drawn = 0
    if "seed" not in matrix:
        seeds, drawn = _job_seeds(given, values.get("seed"))
        axes += [Axis(key="seed", values=seeds, named=len(seeds) > 1)] if seeds else []
    if "negative" in matrix:
        _refuse_own_negatives(axes, matrix["negative"])
    _check_crops(values, axes, node)
    fixed = {key: value for key, value in values.items() if key in DEFAULTS and key not in matrix}
    samples = read_count("n_samples", given["n_samples"]) if "n_samples" in given else 1
    return Job(values=fixed, axes=tuple(axes), drawn=drawn, samples=samples, location=node.location)


def _check_crops(values: Mapping[str, Any], axes: Sequence[Axis], node: Node) -> None:
    """Every crop that the job can have has to be within every picture."""
    varied = {axis.key: axis.values for axis in axes}
    for init in varied.get("init", [values["init"]]):
        for crop in varied.get("crop", [values["crop"]]):
            if init is None and crop is not None:
                raise node.error("'crop' needs an 'init', the picture that it cuts")
            try:
                if init is not None:
                    init.own_size(crop)
            except inits.InitError as error:
                raise node.error(f"{init.path}: {error}") from None


def _refuse_conflicts(given: Mapping[str, Node]) -> None:
    for one, other in CONFLICTS:
        if one in given and other in given:
            raise given[other].error(f"'{one}' and '{other}' can't stand together in one job")


def _refuse_own_negatives(axes: Sequence[Axis], place: Node) -> None:
    for axis in axes:
        own = (
            next((prompt for prompt in axis.values if prompt.negative is not None), None)
            if axis.key == "prompt"
            else None
        )
        if own:
            raise place.error(f"'matrix.negative' can't stand together with the 'negative' of a prompt ('{own.label}')")


def _job_seeds(given: Mapping[str, Node], first: int | None) -> tuple[Sequence[int], int]:
    """The seeds of a job, or else the number of those that have yet to be drawn."""
    if "seeds" in given:
        return read_seeds("seeds", given["seeds"]), 0
    count = math.prod(read_count(key, given[key]) for key in ("n_samples", "n_iter") if key in given)
    if first is None:
        return (), count
    if first > LARGEST_SEED - count + 1:
        place = next(given[key] for key in ("seed", "n_samples", "n_iter") if key in given)
        raise place.error(f"{count} seeds from {first} go beyond the largest seed, {LARGEST_SEED}")
    return range(first, first + count), 0


def _axis_values(key: str, node: Node, frame: _Frame) -> Sequence[Any]:
    if key == "prompt":
        return _prompts(node.items(), frame)
    if key == "init":
        return [find_init(entry, frame.folder, frame.allow_outside) for entry in node.items()]
    if key == "crop":
        return [check(key, entry) for entry in node.items()]
    return read_seeds(key, node) if key == "seed" else read_axis(key, node)
