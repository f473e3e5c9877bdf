"""From a manifest, version 1, to a checked one: every value in its range, every prompt read, every place known.

The result holds descriptions, not items: a range of seeds stays a range, and `items` makes the items. The rules for
single values are in `rules` and `runner.keys`. All errors of a manifest are raised together: first every entry is read
by itself, and only if that succeeds are entries checked against each other.

    manifest = load(Path("alps.yaml"), overrides={"steps": 4}, allow_outside=False)
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from runner.errors import Location, ManifestError, Problems, SettingError, every
from runner.images import inits
from runner.images.inits import Init
from runner.images.masks import unfit
from runner.item import Lora, Model
from runner.keys import LARGEST_SEED
from runner.manifest import inputs, nodes
from runner.manifest.embeddings import list_embeddings
from runner.manifest.exclude import leave_out, read_exclusion
from runner.manifest.grid import Axis
from runner.manifest.job import Job
from runner.manifest.loras import fold, list_loras, read_value, refuse_twice, with_ones
from runner.manifest.nodes import Node
from runner.manifest.places import PICTURES, Frame, Listed, list_models
from runner.manifest.prompts import read_prompts
from runner.manifest.rules import (
    ALIASES,
    DEFAULTS,
    ITEM_KEYS,
    MOST_ITEMS,
    read_count,
    read_entries,
    read_seeds,
)
from runner.manifest.sweeps import read_matrix, read_zip
from runner.manifest.syntax import SYNTAX, check_texts, speaks_of_syntax

TOP_KEYS = ("version", "name", "models", "loras", "embeddings", "lists", "defaults", "jobs")
JOB_KEYS = (*ITEM_KEYS, "prompts", "seeds", "n_samples", "n_iter", "zip", "matrix", "exclude", "include")
INCLUDE_KEYS = (*ITEM_KEYS, "seeds")
NOT_INCLUDED = {
    key: f"'{key}' can't stand in an include, which is a single item; add a job for more"
    for key in JOB_KEYS
    if key not in INCLUDE_KEYS
}
CONFLICTS = (
    ("prompts", "prompt"),
    *(("seeds", other) for other in ("seed", "n_samples", "n_iter")),
    *(
        pair
        for section in ("zip", "matrix")
        for pair in (
            ("prompts", f"{section}.prompt"),
            *((other, f"{section}.seed") for other in ("seeds", "n_samples", "n_iter")),
            *((key, f"{section}.{key}") for key in ITEM_KEYS),
        )
    ),
    *((f"zip.{key}", f"matrix.{key}") for key in ITEM_KEYS),
)
T = TypeVar("T")
FOLDER_NAME = re.compile(r"\w[\w .,+=()@-]*(?<![ .])")
LONGEST_NAME = 200  # bytes; file systems allow 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`jobs` has also what they include, each as a job of its own behind its job.

    `models` are those that the jobs ask for, each with the place where it is named; they are looked for later, and so
    are the `embeddings` that it lists, None where it has no list. `loras` are the places of the LoRAs that are asked
    for, by their files, and `tagged` those that prompts' tags name.
    """

    path: Path
    name: str
    jobs: tuple[Job, ...]
    models: Mapping[Model, Location]
    loras: Mapping[str, Location]
    embeddings: Listed | None = None
    tagged: Mapping[str, Lora] = field(default_factory=dict)


def load(path: Path, *, overrides: Mapping[str, object], allow_outside: bool) -> Manifest:
    """The checked manifest; `overrides` are defaults from the command line, which beat those of the manifest."""
    root = nodes.read(path)
    problems = Problems()
    given = root.mapping(TOP_KEYS, problems=problems)
    if "version" in given and given["version"].written != "1":
        raise given["version"].error(f"version {given['version']} is not known; this runner reads version: 1")
    missing = (
        {} if problems else {"version": "; write 'version: 1'", "jobs": ""}
    )  # an unknown key may be a misspelt one
    for key, hint in missing.items():
        with problems:
            if key not in given:
                raise root.error(f"'{key}' is missing{hint}")
    name = path.stem
    with problems:
        name = _name(given.get("name"), path)
    with problems:
        _check_lists(given.get("lists"))
    frame, embeddings = _frame(path, given, root, problems, overrides, allow_outside=allow_outside)
    jobs: tuple[Job, ...] = ()
    with problems:
        jobs = _jobs(given["jobs"], frame) if "jobs" in given else ()
    problems.raise_all()
    asked = (model for job in jobs for model in job.columns.get("model", [job.values.get("model")]))
    models = {model: frame.places.get(model, root.location) for model in asked}
    return Manifest(
        path=path,
        name=name,
        jobs=jobs,
        models=models,
        loras=frame.lora_places,
        embeddings=embeddings,
        tagged=frame.tagged,
    )


def _frame(
    path: Path, given: Mapping[str, Node], root: Node, problems: Problems, overrides: Mapping[str, object],
    *, allow_outside: bool,
) -> tuple[Frame, Listed | None]:  # fmt: skip
    """What the jobs stand in, and the embeddings that are listed."""
    plain = not (speaks_of_syntax(root) or SYNTAX in overrides)
    frame = bare = Frame(folder=path.parent, allow_outside=allow_outside, plain=plain)
    embeddings: Listed | None = None
    with problems:
        frame = bare = dataclasses.replace(bare, listed=list_models(given.get("models"), bare))
    with problems:
        embeddings = list_embeddings(given.get("embeddings"), bare)
    with problems:
        frame = bare = dataclasses.replace(bare, loras=list_loras(given.get("loras"), bare))
    with problems:
        own = _entries(bare, given["defaults"], ITEM_KEYS) if "defaults" in given else {}
        frame = dataclasses.replace(bare, defaults=fold({**DEFAULTS, **own, **_overrides(overrides, bare)}))
    return frame, embeddings


def _check_lists(node: Node | None) -> None:
    """Lists are there for their anchors alone; what is in them is read where an alias stands for them."""
    if node is None:
        return
    if not isinstance(node.value, dict):
        raise node.error(f"lists: expected a mapping of names to lists, not {node}")
    for value in node.value.values():
        if not isinstance(value.value, list | dict):
            raise value.error(f"lists: expected a list with an anchor (name: &name [...]), not {value}")


def _entries(frame: Frame, node: Node, known: Sequence[str], read: Callable[..., Any] | None = None) -> dict[str, Any]:
    """The values of a mapping of item keys, and of keys such as `loras.ink`."""
    return read_entries(node, with_ones(frame, known, node), partial(read or _value, frame))


def _value_of_job(frame: Frame, key: str, node: Node) -> Any:
    """The same for a job, which may list pictures."""
    return inputs.read_input(frame, key, node) if key in PICTURES else _value(frame, key, node)


def _value(frame: Frame, key: str, node: Node) -> Any:
    """What a value says by itself; most are item keys' own."""
    return READERS[key](frame, node) if key in READERS else read_value(frame, key, node)


def _overrides(overrides: Mapping[str, object], frame: Frame) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        try:
            node = nodes.wrap({key: value}, Location(Path("command line")), plain=True)
            values = _entries(frame, node, ITEM_KEYS)
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


# ---- jobs


def _jobs(node: Node, frame: Frame) -> tuple[Job, ...]:
    jobs = tuple(itertools.chain.from_iterable(every(lambda job: _job(*job, frame), enumerate(node.items()))))
    if (size := sum(job.size for job in jobs)) > MOST_ITEMS:
        raise node.error(f"the jobs make {size} items; the most is {MOST_ITEMS}")
    return jobs


def _job(index: int, node: Node, frame: Frame) -> list[Job]:
    """A job, and those that it includes."""
    problems = Problems()
    said: dict[str, Any] = {}
    with problems:
        said = _entries(frame, node, JOB_KEYS, _value_of_job)
    with problems:
        _refuse_conflicts(_places(node))
    problems.raise_all()
    if frame.defaults is None:
        return []
    job = _make(index, node, said, frame.defaults)
    includes: list[_Include] = said.get("include", [])
    needs = inputs.listed(said)
    jobs = [job, *every(lambda include: _included(include, job, frame.defaults or {}, needs), includes)]
    every(partial(check_texts, frame), () if frame.plain else jobs)
    return jobs


def _make(index: int, node: Node, said: Mapping[str, Any], defaults: Mapping[str, Any]) -> Job:
    places = _places(node)
    values = fold({**defaults, **said})
    axes = [*inputs.listed_axes(said, places), *said.get("zip", ()), *said.get("matrix", ())]
    swept = {key for axis in axes for key in axis.columns}
    if "prompt" not in swept:
        texts = said.get("prompts") or values.get("prompt")
        if texts is None:
            raise node.error("a job needs prompts: a list, or a single 'prompt'")
        axes.insert(0, Axis.of("prompt", texts, named=len(texts) > 1))
    drawn = 0
    if "seed" not in swept:
        seeds, drawn = _seeds(said, values.get("seed"), places)
        axes += [Axis.of("seed", seeds, named=len(seeds) > 1)] if seeds else []
    fixed = {key: value for key, value in values.items() if key in DEFAULTS and key not in swept}
    job = Job(
        index=index,
        values=fixed,
        axes=tuple(axes),
        remainder=None,
        drawn=drawn,
        samples=said.get("n_samples", 1),
        location=node.location,
        own=frozenset({*said, *swept, *({"seed"} if "seeds" in said else ())}),
    )
    _refuse_own_negatives(job, places)
    _check_crops(job, node)
    _check_masks(job, next((places[key] for key in ("mask", "zip.mask", "matrix.mask") if key in places), node))
    return dataclasses.replace(job, remainder=leave_out(said["exclude"], job)) if "exclude" in said else job


def _places(node: Node) -> dict[str, Node]:
    """The entries of a job under their real names, those of its matrix and zip as `matrix.KEY` and `zip.KEY`."""
    places = _entries_of(node)
    swept = ((section, _entries_of(places[section])) for section in ("zip", "matrix") if section in places)
    return places | {f"{section}.{key}": value for section, inner in swept for key, value in inner.items()}


def _entries_of(node: Node) -> dict[str, Node]:
    entries = node.value.items() if isinstance(node.value, dict) else ()
    return {ALIASES.get(key.written, key.written): value for key, value in entries}


def _refuse_conflicts(places: Mapping[str, Node]) -> None:
    def refuse(pair: tuple[str, str]) -> None:
        one, other = pair
        if one in places and other in places:
            raise places[other].error(f"'{one}' and '{other}' can't stand together in one job")

    every(refuse, CONFLICTS)
    refuse_twice(places)


def _check_crops(job: Job, node: Node) -> None:
    """Every crop that the job can have has to be within every picture."""
    columns = {key: job.columns.get(key, [job.values.get(key)]) for key in ("init", "crop")}
    sized = all(job.columns.get(key) or job.values.get(key) is not None for key in ("width", "height"))
    together = any(columns.keys() <= axis.columns.keys() for axis in job.axes)
    for init, crop in (zip if together else itertools.product)(columns["init"], columns["crop"]):
        if init is None and crop is not None:
            raise node.error("'crop' needs an 'init', the picture that it cuts")
        try:
            if init is not None:
                (init.cut_size if sized else init.own_size)(crop)
        except inits.InitError as error:
            raise node.error(f"{init.path}: {error}") from None


def _check_masks(job: Job, node: Node) -> None:
    """Every mask that the job can have has to fit every picture."""
    columns = {key: job.columns.get(key, [job.values.get(key)]) for key in ("init", "mask")}
    if not any(columns["mask"]):
        return
    if any(columns.keys() <= axis.columns.keys() for axis in job.axes):
        pairs: Iterable[tuple[Init | None, Init | None]] = zip(*columns.values(), strict=True)
    else:  # of pictures of one size one is enough
        pairs = itertools.product(
            *({each and each.cut_size(None): each for each in c}.values() for c in columns.values())
        )
    for init, mask in pairs:
        if problem := mask and unfit(mask, init):
            raise node.error(problem)


def _refuse_own_negatives(job: Job, places: Mapping[str, Node]) -> None:
    for swept in ("zip.negative", "matrix.negative"):
        own = (prompt for prompt in job.columns["prompt"] if prompt.negative is not None)
        if swept in places and (prompt := next(own, None)):
            message = f"'{swept}' can't stand together with the 'negative' of a prompt ('{prompt.label}')"
            raise places[swept].error(message)


def _seeds(said: Mapping[str, Any], first: int | None, places: Mapping[str, Node]) -> tuple[Sequence[int], int]:
    """The seeds of a job, or else the number of those that have yet to be drawn."""
    if "seeds" in said:
        return said["seeds"], 0
    count = said.get("n_samples", 1) * said.get("n_iter", 1)
    if first is None:
        return (), count
    if first > LARGEST_SEED - count + 1:
        place = next(places[key] for key in ("seed", "n_samples", "n_iter") if key in places)
        raise place.error(f"{count} seeds from {first} go beyond the largest seed, {LARGEST_SEED}")
    return range(first, first + count), 0


# ---- include


@dataclass(frozen=True, slots=True, kw_only=True)
class _Include:
    node: Node
    said: Mapping[str, Any]


def _include(frame: Frame, node: Node) -> _Include:
    said = read_entries(node, with_ones(frame, INCLUDE_KEYS, node), partial(_value, frame), NOT_INCLUDED)
    if "seed" in said and "seeds" in said:
        raise node.error("'seed' and 'seeds' can't stand together in one include")
    return _Include(node=node, said=said)


def _included(include: _Include, job: Job, defaults: Mapping[str, Any], needs: Iterable[str]) -> Job:
    """The include as a job of its own: over the job's fixed values, and its prompt and seed where it has just one.

    `needs` are further keys for which that counts.
    """
    own = {**defaults, **job.values}
    for key, others in (("prompt", ("prompt",)), ("seed", ("seed", "seeds")), *((key, (key,)) for key in needs)):
        own.pop(key, None)
        column = job.columns.get(key, range(job.drawn))
        if not include.said.keys().isdisjoint(others):
            continue
        if len(column) > 1:
            raise include.node.error(f"an include needs a '{key}' of its own, since its job has {len(column)}")
        if key in job.columns:
            own[key] = column if key == "prompt" else column[0]
    made = _make(job.index, include.node, include.said, own)
    return dataclasses.replace(made, own=made.own | job.own)


READERS: Mapping[str, Callable[[Frame, Node], Any]] = {
    "prompt": lambda frame, node: read_prompts([node], frame),
    "prompts": lambda frame, node: read_prompts(node.items(), frame),
    "seeds": lambda frame, node: read_seeds("seeds", node),
    "n_samples": lambda frame, node: read_count("n_samples", node),
    "n_iter": lambda frame, node: read_count("n_iter", node),
    "matrix": read_matrix,
    "zip": read_zip,
    "exclude": lambda frame, node: every(partial(read_exclusion, frame), node.items()),
    "include": lambda frame, node: every(partial(_include, frame), node.items()),
}
