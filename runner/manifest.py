"""From a manifest, version 1, to a checked one: every value in its range, every prompt read, every place known.

The result holds descriptions, not items: a range of seeds stays a range, and `expand` makes the items. Models, memory
and devices are not known here, and the rules for single values stand in `values`. All errors of a manifest are raised
together: first every entry is read for itself, and only where that went well it is asked whether they fit together.

    manifest = load(Path("alps.yaml"), overrides={"steps": 4}, allow_outside=False)
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from runner import grid, inits, prompts, yaml_nodes
from runner.errors import Location, ManifestError, Problems, SettingError, did_you_mean, every, name_some
from runner.grid import Axis, Grid, Remainder
from runner.inits import Init
from runner.lazy import Lazy, join
from runner.settings import PREDICTIONS, group_names, named_model
from runner.spec import Model, Part
from runner.values import (
    ALIASES,
    DEFAULTS,
    ITEM_KEYS,
    LARGEST_SEED,
    MOST_ITEMS,
    OWN_SIZE,
    check,
    entries,
    read_axis,
    read_count,
    read_seeds,
    words,
)
from runner.yaml_nodes import Node

TOP_KEYS = ("version", "name", "models", "lists", "defaults", "jobs")
MODEL_KEYS = ("path", "prediction")
JOB_KEYS = (*ITEM_KEYS, "prompts", "seeds", "n_samples", "n_iter", "zip", "matrix", "exclude", "include")
INCLUDE_KEYS = (*ITEM_KEYS, "seeds")
NOT_INCLUDED = {
    key: f"'{key}' can't stand in an include, which is a single item; add a job for more"
    for key in JOB_KEYS
    if key not in INCLUDE_KEYS
}
PROMPT_KEYS = {  # the kind of prompt, and what may stand beside it
    "text": ("weighted", "id", "negative"),
    "prompt": ("weighted", "id", "negative"),
    "parts": ("weights", "id", "negative"),
    "file": ("weighted", "negative"),
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
QUOTE_HINT = "; a prompt that holds a colon and a space needs quotes"

MOST_PROMPTS = 5 * 10**6
MOST_COMPARED, MOST_LISTED = 1000, 30  # values, to say which was meant
FOLDER_NAME = re.compile(r"\w[\w .,+=()@-]*(?<![ .])")
LONGEST_NAME = 200  # bytes; file systems allow 255


class Prompt(NamedTuple):
    """A prompt as it was written, a tuple, since there may be millions.

    `label` is what an axis shows for it, `negative` its own, if it has one, and `id` is what it was
    called, alone or with others that differ in weights.
    """

    text: str
    label: str
    id: str | None
    weighted: bool
    negative: str | None
    location: Location

    def parts(self) -> tuple[Part, ...]:
        return prompts.parse(self.text) if self.weighted else (Part(self.text, 1.0),)


class _Lines(Lazy[Prompt]):
    """The prompts in the lines of a file, of which the texts alone are kept; `lines` are the lines' numbers."""

    def __init__(self, path: Path, negative: str | None, weighted: bool) -> None:
        self.path, self.negative, self.weighted = path, negative, weighted
        self.texts, self.lines = list[str](), array("I")

    def __len__(self) -> int:
        return len(self.texts)

    def _make(self, place: int) -> Prompt:
        # Without the constructors, which take more time than all the rest.
        text, location = self.texts[place], tuple.__new__(Location, (self.path, self.lines[place], 1))
        return tuple.__new__(Prompt, (text, text, None, self.weighted, self.negative, location))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Every combination of the axes' values that remains, over values that are the same for all.

    `drawn` is the number of seeds that count up from one that has yet to be drawn, 0 where the seeds are known; they
    vary faster than all axes. `samples` is the number of seeds that one iteration goes through. `index` is the place of
    the job in the manifest's list; what it includes has the same.
    """

    index: int
    values: Mapping[str, Any]
    axes: tuple[Axis, ...]
    remainder: Remainder | None
    drawn: int
    samples: int
    location: Location

    @property
    def size(self) -> int:
        return Grid(self.axes, self.remainder).size * max(self.drawn, 1)

    @property
    def columns(self) -> dict[str, Sequence[Any]]:
        """The values that each varying key takes."""
        return {key: values for axis in self.axes for key, values in axis.columns.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`jobs` has also what they include, each as a job of its own behind its job.

    `models` are those that the jobs ask for, each with the place where it is named; they are looked for later.
    """

    path: Path
    name: str
    jobs: tuple[Job, ...]
    models: Mapping[Model, Location]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """What a job stands in; there are no defaults where they were wrong, and jobs are only read then, not made.

    `listed` are the manifest's own models by their names, None where these were wrong; `places` says where each model
    that is asked for is named.
    """

    folder: Path
    allow_outside: bool
    listed: Mapping[str, tuple[Model, Node]] | None = None
    defaults: Mapping[str, Any] | None = None
    places: dict[Model, Location] = dataclasses.field(default_factory=dict)


def load(path: Path, *, overrides: Mapping[str, object], allow_outside: bool) -> Manifest:
    """The checked manifest; `overrides` are defaults from the command line, which beat those of the manifest."""
    root = yaml_nodes.read(path)
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
    frame = bare = _Frame(folder=path.parent, allow_outside=allow_outside)
    with problems:
        frame = bare = dataclasses.replace(bare, listed=_list_models(given.get("models"), bare))
    with problems:
        own = _read(given["defaults"], ITEM_KEYS, partial(_value, bare)) if "defaults" in given else {}
        frame = dataclasses.replace(bare, defaults={**DEFAULTS, **own, **_overrides(overrides, bare)})
    jobs: tuple[Job, ...] = ()
    with problems:
        jobs = _jobs(given["jobs"], frame) if "jobs" in given else ()
    problems.raise_all()
    asked = (model for job in jobs for model in job.columns.get("model", [job.values.get("model")]))
    models = {model: frame.places.get(model, root.location) for model in asked}
    return Manifest(path=path, name=name, jobs=jobs, models=models)


def _check_lists(node: Node | None) -> None:
    """Lists are there for their anchors alone; what is in them is read where an alias stands for them."""
    if node is None:
        return
    if not isinstance(node.value, dict):
        raise node.error(f"lists: expected a mapping of names to lists, not {node}")
    for value in node.value.values():
        if not isinstance(value.value, list | dict):
            raise value.error(f"lists: expected a list with an anchor (name: &name [...]), not {value}")


def _read(
    node: Node, known: Sequence[str], read: Callable[[str, Node], T], refused: Mapping[str, str] | None = None
) -> dict[str, T]:
    """What `read` makes of each entry of a mapping; wrong keys and wrong values are raised together."""
    problems = Problems()
    found: dict[str, T] = {}
    for key, value in entries(node, known, refused, problems).items():
        with problems:
            found[key] = read(key, value)
    problems.raise_all()
    return found


def _value(frame: _Frame, key: str, node: Node) -> Any:
    """What a value says by itself; most are item keys' own, checked by their rules."""
    return READERS[key](frame, node) if key in READERS else check(key, node)


def find_init(node: Node, folder: Path, allow_outside: bool) -> Init:
    """The picture that an `init` names; it is looked at as a whole."""
    path = find_inside(node, folder, allow_outside)
    if os.path.exists(path) and not path.is_file():
        raise node.error(f"init: {node} is not a file")  # opening a pipe would wait for ever
    try:
        return inits.examine(path)
    except inits.InitError as error:
        raise node.error(f"init: {error}") from None


def _overrides(overrides: Mapping[str, object], frame: _Frame) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        try:
            node = yaml_nodes.wrap({key: value}, Location(Path("command line")), plain=True)
            values = _read(node, ITEM_KEYS, partial(_value, frame))
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


def _prompts(nodes: Sequence[Node], frame: _Frame) -> Sequence[Prompt]:
    found: list[Sequence[Prompt]] = []
    count, problems = 0, Problems()
    for node in nodes:
        with problems:
            found.append(_prompt(node, frame))
            count += len(found[-1])
        if count > MOST_PROMPTS:
            raise node.error(f"more than {MOST_PROMPTS} prompts in one list")
    problems.raise_all()
    if any(isinstance(each, _Lines) for each in found):
        return join(found)
    return tuple(itertools.chain.from_iterable(found))


def _prompt(node: Node, frame: _Frame) -> Sequence[Prompt]:
    if not isinstance(node.value, dict):
        return (_checked(words(node), node.location),)
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
    id = given["id"].text() if "id" in given else None
    weighted = given["weighted"].flag() if "weighted" in given else True
    if kind == "file":
        return _from_file(given["file"], frame, negative, weighted)
    if kind == "parts":
        return _from_parts(given, negative, id)
    return (_checked(words(given[kind]), given[kind].location, negative, weighted, id=id),)


def _checked(
    text: str,
    location: Location,
    negative: str | None = None,
    weighted: bool = True,
    *,
    id: str | None = None,
    variant: str = "",
) -> Prompt:
    if weighted:
        _check_weights(text, location)
    label = text if id is None else f"{id}{variant}"
    return Prompt(text=text, label=label, id=id, weighted=weighted, negative=negative, location=location)


def _check_weights(text: str, location: Location) -> None:
    try:
        prompts.parse(text)
    except ValueError as error:
        raise ManifestError(f"{error}; or set 'weighted: false' on the prompt", location) from None


def _from_parts(given: Mapping[str, Node], negative: str | None, id: str | None) -> list[Prompt]:
    parts = every(words, given["parts"].items())
    if "weights" not in given:
        raise given["parts"].error(f"'weights' is missing; {len(parts)} parts need {len(parts)} weights")
    rows = given["weights"].items()
    swept = isinstance(rows[0].value, list)

    def prompt(row: Node) -> Prompt:
        weights = [node.number(-prompts.LARGEST_WEIGHT, prompts.LARGEST_WEIGHT) for node in row.items()]
        try:
            prompts.combine(parts, weights)
        except ValueError as error:
            raise row.error(str(error)) from None
        variant = f" ({', '.join(f'{weight:g}' for weight in weights)})" if swept else ""
        return _checked(prompts.to_text(parts, weights), row.location, negative, id=id, variant=variant)

    return every(prompt, rows if swept else [given["weights"]])


def _from_file(node: Node, frame: _Frame, negative: str | None, weighted: bool) -> _Lines:
    path = find_inside(node, frame.folder, frame.allow_outside)
    found, problems = _Lines(path, negative, weighted), Problems()
    for number, line in enumerate(yaml_nodes.read_text(path, node.location).split("\n"), 1):
        if not (text := line.strip()):
            continue
        if weighted and ":" in text:
            with problems:
                _check_weights(text, Location(path, number, 1))
        found.texts.append(text)
        found.lines.append(number)
        if len(found.texts) > MOST_PROMPTS:
            break
    problems.raise_all()
    if not found:
        raise node.error(f"the file {node} holds no prompts")
    return found


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


# ---- models


def _list_models(node: Node | None, frame: _Frame) -> dict[str, tuple[Model, Node]]:
    """The models that the manifest lists, by their names; their files needn't be there unless a job asks for them."""
    if node is None:
        return {}
    if not isinstance(node.value, dict):
        raise node.error(f"models: expected a mapping of names to models (name: {{path: ...}}), not {node}")
    return dict(every(lambda entry: _list_model(*entry, frame), node.value.items()))


def _list_model(key: Node, node: Node, frame: _Frame) -> tuple[str, tuple[Model, Node]]:
    name, given = key.text(), node.mapping(MODEL_KEYS)
    if not name or "path" not in given:
        raise node.error(f"the model {key} needs a name and a 'path': a diffusers folder, a .safetensors or a .ckpt")
    path = find_inside(given["path"], frame.folder, frame.allow_outside)
    prediction = given["prediction"].choice(PREDICTIONS) if "prediction" in given else PREDICTIONS[0]
    return name, (Model(name=name, path=str(path), prediction=prediction), given["path"])


def _model(frame: _Frame, node: Node) -> Model:
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
    return Model(name=name, path=found.path, prediction=found.prediction)


# ---- jobs


def _jobs(node: Node, frame: _Frame) -> tuple[Job, ...]:
    jobs = tuple(itertools.chain.from_iterable(every(lambda job: _job(*job, frame), enumerate(node.items()))))
    if (size := sum(job.size for job in jobs)) > MOST_ITEMS:
        raise node.error(f"the jobs make {size} items; the most is {MOST_ITEMS}")
    return jobs


def _job(index: int, node: Node, frame: _Frame) -> list[Job]:
    """A job, and those that it includes."""
    problems = Problems()
    said: dict[str, Any] = {}
    with problems:
        said = _read(node, JOB_KEYS, partial(_value, frame))
    with problems:
        _refuse_conflicts(_places(node))
    problems.raise_all()
    if frame.defaults is None:
        return []
    job = _make(index, node, said, frame.defaults)
    includes: list[_Include] = said.get("include", [])
    return [job, *every(lambda include: _included(include, job, frame.defaults or {}), includes)]


def _make(index: int, node: Node, said: Mapping[str, Any], defaults: Mapping[str, Any]) -> Job:
    places = _places(node)
    values = {**defaults, **said}
    axes: list[Axis] = [*said.get("zip", ()), *said.get("matrix", ())]
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
    )
    _refuse_own_negatives(job, places)
    _check_crops(job, node)
    return dataclasses.replace(job, remainder=_remainder(said["exclude"], job)) if "exclude" in said else job


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


def _check_crops(job: Job, node: Node) -> None:
    """Every crop that the job can have has to be within every picture."""
    columns = {key: job.columns.get(key, [job.values.get(key)]) for key in ("init", "crop")}
    together = any(columns.keys() <= axis.columns.keys() for axis in job.axes)
    for init, crop in (zip if together else itertools.product)(columns["init"], columns["crop"]):
        if init is None and crop is not None:
            raise node.error("'crop' needs an 'init', the picture that it cuts")
        try:
            if init is not None:
                init.own_size(crop)
        except inits.InitError as error:
            raise node.error(f"{init.path}: {error}") from None


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


# ---- sweeps


def _matrix(frame: _Frame, node: Node) -> list[Axis]:
    columns = _read(node, ITEM_KEYS, partial(_column, frame))
    return [Axis.of(key, values) for key, values in columns.items()]


def _zip(frame: _Frame, node: Node) -> list[Axis]:
    columns = _read(node, ITEM_KEYS, partial(_column, frame))
    if not columns:
        raise node.error("zip: expected at least one key with its list")
    if len(set(map(len, columns.values()))) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in columns.items())
        raise node.error(f"zip: the lists are walked together and need the same length; {lengths}")
    return [Axis(columns=columns, named=True)]


def _column(frame: _Frame, key: str, node: Node) -> Sequence[Any]:
    if key == "prompt":
        return _prompts(node.items(), frame)
    if key in ("init", "crop", "model"):
        return every(partial(_value, frame, key), node.items())
    return read_seeds(key, node) if key == "seed" else read_axis(key, node)


# ---- include


@dataclass(frozen=True, slots=True, kw_only=True)
class _Include:
    node: Node
    said: Mapping[str, Any]


def _include(frame: _Frame, node: Node) -> _Include:
    said = _read(node, INCLUDE_KEYS, partial(_value, frame), NOT_INCLUDED)
    if "seed" in said and "seeds" in said:
        raise node.error("'seed' and 'seeds' can't stand together in one include")
    return _Include(node=node, said=said)


def _included(include: _Include, job: Job, defaults: Mapping[str, Any]) -> Job:
    """The include as a job of its own: over the job's fixed values, and its prompt and seed where it has just one."""
    own = {**defaults, **job.values}
    for key, others in (("prompt", ("prompt",)), ("seed", ("seed", "seeds"))):
        own.pop(key, None)
        column = job.columns.get(key, range(job.drawn))
        if not include.said.keys().isdisjoint(others):
            continue
        if len(column) > 1:
            raise include.node.error(f"an include needs a '{key}' of its own, since its job has {len(column)}")
        if key in job.columns:
            own[key] = column if key == "prompt" else column[0]
    return _make(job.index, include.node, include.said, own)


# ---- exclude


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exclusion:
    """An item that matches all the values is left out."""

    node: Node
    values: Mapping[str, tuple[Node, Any]]


def _exclusion(frame: _Frame, node: Node) -> _Exclusion:
    values = _read(node, ITEM_KEYS, lambda key, value: (value, _compared(frame, key, value)))
    if not values:
        raise node.error("exclude: expected at least one key with its value; nothing but every item matches this")
    return _Exclusion(node=node, values=values)


def _compared(frame: _Frame, key: str, node: Node) -> Any:
    return words(node) if key == "prompt" else _value(frame, key, node)


def _remainder(exclusions: Sequence[_Exclusion], job: Job) -> Remainder:
    """What remains of a job; values are compared as they were read, with the defaults filled in."""
    columns = {**{key: (value,) for key, value in job.values.items()}, **job.columns}
    if columns["init"] == (None,):
        columns |= {key: (OWN_SIZE,) for key in ("width", "height") if columns[key] == (None,)}
    spoken_of = {key for exclusion in exclusions for key in exclusion.values} & columns.keys()
    place = exclusions[0].node
    try:
        grid.check_size(axis for axis in job.axes if spoken_of & axis.columns.keys())
        finders = {key: _finder(columns[key]) for key in spoken_of}
        matches = every(lambda exclusion: _matches(exclusion, job.axes, columns, finders), exclusions)
        remainder = grid.leave_out(job.axes, matches)
    except grid.TooLarge as error:
        raise place.error(f"exclude: {error}") from None
    if not len(remainder.numbers):
        raise place.error("exclude: nothing of the job is left")
    return remainder


def _matches(
    exclusion: _Exclusion,
    axes: Sequence[Axis],
    columns: Mapping[str, Sequence[Any]],
    finders: Mapping[str, Callable[[Any], Sequence[int]]],
) -> dict[int, Sequence[int]]:
    """The places that match on each axis that the exclusion speaks of, by the axis' index."""
    matches: dict[int, Sequence[int]] = {}
    for key, (node, value) in exclusion.values.items():
        if key not in columns:
            raise node.error(f"exclude: the job's {key} is drawn when it runs; give it one of its own to exclude it")
        if not (places := finders[key](value)):
            raise node.error(f"exclude: no item of the job has the {key} {node}; {_known(node, columns[key])}")
        for index, axis in enumerate(axes):
            if key in axis.columns:
                others = matches.get(index, places)
                matches[index] = places if others is places else sorted({*places}.intersection(others))
    if not all(matches.values()):
        raise exclusion.node.error("exclude: no item of the job has all of these")
    return matches


def _finder(column: Sequence[Any]) -> Callable[[Any], Sequence[int]]:
    """Finds the places of a value, a prompt by its text, its label or its id."""
    if isinstance(column, range):
        return lambda value: [column.index(value)] if value in column else []
    places: dict[Any, list[int]] = {}
    for place, value in enumerate(column):
        for name in {value.text, value.label, value.id} if isinstance(value, Prompt) else {value}:
            places.setdefault(name, []).append(place)
    return lambda value: places.get(value, [])


def _known(node: Node, column: Sequence[Any]) -> str:
    values = dict.fromkeys(map(shown, column[:MOST_COMPARED]))
    names = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return did_you_mean(node.written, names) if len(names) <= MOST_LISTED else f"it has {name_some(names)}"


def shown(value: Any) -> Any:
    """A value as the items name it on an axis."""
    if isinstance(value, Init):
        return value.path.name
    if isinstance(value, Model):
        return value.name or "the one of model="
    return value.label if isinstance(value, Prompt) else value


READERS: Mapping[str, Callable[[_Frame, Node], Any]] = {
    "prompt": lambda frame, node: _prompts([node], frame),
    "prompts": lambda frame, node: _prompts(node.items(), frame),
    "init": lambda frame, node: find_init(node, frame.folder, frame.allow_outside),
    "model": _model,
    "seeds": lambda frame, node: read_seeds("seeds", node),
    "n_samples": lambda frame, node: read_count("n_samples", node),
    "n_iter": lambda frame, node: read_count("n_iter", node),
    "matrix": _matrix,
    "zip": _zip,
    "exclude": lambda frame, node: every(partial(_exclusion, frame), node.items()),
    "include": lambda frame, node: every(partial(_include, frame), node.items()),
}
