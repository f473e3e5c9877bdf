"""The entries of `exclude`: which of a job's items are left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.errors import did_you_mean, every
from runner.keys import words
from runner.manifest import grid
from runner.manifest.grid import Axis, Remainder
from runner.manifest.job import Job, shown
from runner.manifest.loras import ONE, read_value, with_ones
from runner.manifest.nodes import Node
from runner.manifest.places import Frame
from runner.manifest.prompts import Prompt
from runner.manifest.rules import ITEM_KEYS, OWN_SIZE, read_entries
from runner.text import name_some

MOST_COMPARED, MOST_LISTED = 1000, 30  # values, to say which was meant


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """An item that matches all the values is left out."""

    node: Node
    values: Mapping[str, tuple[Node, Any]]


def read_exclusion(frame: Frame, node: Node) -> Exclusion:
    known = with_ones(frame, ITEM_KEYS, node)
    values = read_entries(node, known, lambda key, value: (value, _compared(frame, key, value)))
    if not values:
        raise node.error("exclude: an empty entry would match every item; give it at least one key")
    return Exclusion(node=node, values=values)


def _compared(frame: Frame, key: str, node: Node) -> Any:
    return words(node) if key == "prompt" else read_value(frame, key, node)


def leave_out(exclusions: Sequence[Exclusion], job: Job) -> Remainder:
    """What remains of a job; values are compared as they were read, with the defaults filled in."""
    fixed = {f"{ONE}{lora.name}": (lora,) for lora in job.values.get("loras", ())}
    columns = {**fixed, **{key: (value,) for key, value in job.values.items()}, **job.columns}
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
    exclusion: Exclusion,
    axes: Sequence[Axis],
    columns: Mapping[str, Sequence[Any]],
    finders: Mapping[str, Callable[[Any], Sequence[int]]],
) -> dict[int, Sequence[int]]:
    """The places that match on each axis that the exclusion speaks of, by the axis' index."""
    matches: dict[int, Sequence[int]] = {}
    for key, (node, value) in exclusion.values.items():
        if key not in columns and key.startswith(ONE):
            raise node.error(f"exclude: the job has no {key}")
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
