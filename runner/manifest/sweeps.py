"""The axes of a job: its matrix, and the lists that it zips."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from runner.errors import every
from runner.manifest.grid import Axis
from runner.manifest.inputs import read_inputs
from runner.manifest.loras import ONE, read_ones, read_value, with_ones
from runner.manifest.nodes import Node
from runner.manifest.places import PICTURES, Frame
from runner.manifest.prompts import read_prompts
from runner.manifest.rules import ITEM_KEYS, read_axis, read_entries, read_seeds


def read_matrix(frame: Frame, node: Node) -> list[Axis]:
    """An axis for each key."""
    columns = read_entries(node, with_ones(frame, ITEM_KEYS, node), partial(_column, frame))
    return [Axis.of(key, values) for key, values in columns.items()]


def read_zip(frame: Frame, node: Node) -> list[Axis]:
    """One axis for all keys."""
    columns = read_entries(node, with_ones(frame, ITEM_KEYS, node), partial(_column, frame))
    if not columns:
        raise node.error("zip: expected at least one key with its list")
    if len(set(map(len, columns.values()))) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in columns.items())
        raise node.error(f"zip: the lists are walked together and need the same length; {lengths}")
    return [Axis(columns=columns, named=True)]


def _column(frame: Frame, key: str, node: Node) -> Sequence[Any]:
    if key == "prompt":
        return read_prompts(node.items(), frame)
    if key in PICTURES:
        return read_inputs(frame, key, node)
    if key.startswith(ONE):
        return read_ones(frame, key, node)
    if key in ("crop", "model", "loras"):
        return every(partial(read_value, frame, key), node.items())
    return read_seeds(key, node) if key == "seed" else read_axis(key, node)
