"""Reads values of items by their keys' rows, wherever they are written: in a manifest, in JSON lines, as settings.

Here are the forms of seeds and of ranges; the keys themselves are in `runner.keys`.

    check("width", wrap(512, Location(path)))
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

from runner.errors import ManifestError, Problems, every
from runner.item import Model
from runner.keys import KEYS, LARGEST_SEED, refuse_random_seed
from runner.manifest.lazy import join
from runner.manifest.nodes import Node, wrap

REQUIRED = ("prompt", "seed")  # keys that have no default
DEFAULTS: Mapping[str, Any] = {
    **{name: key.default for name, key in KEYS.items() if name not in REQUIRED},
    "model": Model(),  # the one of the settings
}
OWN_SIZE = 512  # pixels
ITEM_KEYS = tuple(KEYS)
ALIASES = {alias: name for name, key in KEYS.items() for alias in key.aliases}
T = TypeVar("T")

LARGEST_NUMBER, LEAST_STEP, DECIMALS = 1e9, 1e-9, 12
MOST_ITEMS, MOST_VALUES = 10**9, 10**5
SEEDS = re.compile(r"\s*([0-9]{1,19})\s*(?:-\s*([0-9]{1,19})\s*)?")


def entries(
    node: Node, known: Sequence[str], refused: Mapping[str, str] | None = None, problems: Problems | None = None
) -> dict[str, Node]:
    """The entries of a mapping of item keys, under their real names; wrong keys as in `Node.mapping`."""
    aliases = [alias for alias, real in ALIASES.items() if real in known]
    given = node.mapping((*known, *aliases), refused=refused, problems=problems)
    for alias in aliases:
        if alias in given and ALIASES[alias] in given:
            raise given[alias].error(
                f"'{alias}' is another name of '{ALIASES[alias]}'; only one of them can stand here"
            )
    return {ALIASES.get(key, key): value for key, value in given.items()}


def read_entries(
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


def check(key: str, node: Node) -> Any:
    """The value of an item key by its rule."""
    return _named(key, KEYS[key].read, node)


def read_axis(key: str, node: Node, read: Callable[[Node], Any] | None = None) -> Sequence[Any]:
    """The values of an item key: a list of them, or a range of numbers; `read` reads one otherwise than by its rule."""
    read = read or partial(check, key)
    if isinstance(node.value, list):
        return tuple(every(read, node.items()))
    if not isinstance(node.value, dict):
        raise node.error(f"{key}: expected a list or a range {{start, stop, step}}, not {node}")
    start, step, count = _span(node, _any_number)
    if count > MOST_VALUES:
        raise node.error(f"{key}: a range of {count} values; the most is {MOST_VALUES}")
    return tuple(read(wrap(_number(start + n * step), node.location)) for n in range(count))


def read_seeds(key: str, node: Node) -> Sequence[int]:
    return _named(key, _seeds, node)


def read_count(key: str, node: Node) -> int:
    """How many items, or how many of something that items are made of."""
    return _named(key, lambda node: node.integer(1, MOST_ITEMS), node)


def _named(key: str, read: Callable[[Node], T], node: Node) -> T:
    """What `read` reads, with the key before the message of its error."""
    try:
        return read(node)
    except ManifestError as error:
        raise error.within(key) from None


# ---- seeds


def _seeds(node: Node) -> Sequence[int]:
    return join(_seed_spans(node))


def _seed_spans(node: Node) -> tuple[range, ...]:
    if isinstance(node.value, list):
        return tuple(itertools.chain.from_iterable(every(_seed_spans, node.items())))
    if isinstance(node.value, dict):
        start, step, count = _span(node, _whole)
        if step != int(step):
            raise node.error(f"{count} whole numbers don't lie evenly between the start and the stop")
        return (_seed_range(node, int(start), int(step), count),)
    refuse_random_seed(node)
    return tuple(_piece(node, piece) for piece in node.written.split(","))


def _piece(node: Node, piece: str) -> range:
    if not (match := SEEDS.fullmatch(piece)):
        forms = "7, 27-46, [1, 5, 9], {start: 27, count: 20} or {start: 0, stop: 100, step: 5}"
        raise node.error(f"{node} are not seeds; write {forms}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise node.error(f"'{piece.strip()}' runs backwards; write {last}-{first}")
    return _seed_range(node, first, 1, last - first + 1)


def _seed_range(node: Node, start: int, step: int, count: int) -> range:
    last = start + (count - 1) * step
    if min(start, last) < 0 or max(start, last) > LARGEST_SEED:
        raise node.error(f"the seeds from {start} to {last} leave the range from 0 to {LARGEST_SEED}")
    if count > MOST_ITEMS:
        raise node.error(f"{count} seeds; the most is {MOST_ITEMS}")
    return range(start, start + count * step, step)


def _whole(node: Node) -> int:
    return node.integer(-LARGEST_SEED, LARGEST_SEED)


# ---- ranges of numbers


def _span(node: Node, read: Callable[[Node], float]) -> tuple[Decimal, Decimal, int]:
    """Start, step and count of a range. Decimals are exact in what people write: no drift, no missed stop."""
    given = node.mapping(("start", "stop", "step", "count"))
    both = "stop" in given and "count" in given
    if "start" not in given or not ("stop" in given or "count" in given) or (both and "step" in given):
        raise node.error(
            "a range is written {start: 0, stop: 100, step: 5}, its stop included, or {start: 27, count: 20}, or "
            "{start: 3, stop: 7, count: 12}"
        )
    numbers = {key: Decimal(str(_named(key, read, given[key]))) for key in ("start", "stop", "step") if key in given}
    start, step = numbers["start"], numbers.get("step", Decimal(1))
    if abs(step) < Decimal(str(LEAST_STEP)):
        raise given["step"].error(f"the step {given['step']} is too small; the least is {LEAST_STEP:g}")
    if "count" in given:
        count = read_count("count", given["count"])
        if both and count == 1 and numbers["stop"] != start:
            raise given["count"].error("one value can't be the start and the stop")
        return start, (numbers["stop"] - start) / max(1, count - 1) if both else step, count
    count = math.floor((numbers["stop"] - start) / step) + 1
    if count < 1:
        raise given["stop"].error(f"the stop {given['stop']} is never reached from {start} in steps of {step}")
    return start, step, count


def _any_number(node: Node) -> float:
    return node.number(-LARGEST_NUMBER, LARGEST_NUMBER)


def _number(exact: Decimal) -> int | float:
    exact = round(exact, DECIMALS)  # a share such as 4/11 has no end
    return int(exact) if exact == exact.to_integral_value() else float(exact)
