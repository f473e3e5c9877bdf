r"""Emphasis: `(x)` times 1.1, `[x]` divided by 1.1, `(x:1.3)`, `\(` for a plain bracket, and BREAK.

fragments("a (dog:1.2)") == (Fragment("a ", 1.0), Fragment("dog", 1.2))
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

UP, DOWN = 1.1, 1 / 1.1  # of one pair of brackets
KEPT = 256  # texts
CLOSING = {"(": ")", "[": "]"}
MARK = re.compile(r"\\[()\[\]\\]?|[()\[\]]|:\s*([-+]?[.\d]+)\s*\)")
BREAK_WORD = re.compile(r"\bBREAK\b")
SUSPECT = re.compile(r"[()\[\]\\]|BREAK")  # a text without any of it is one fragment of weight 1


class Fragment(NamedTuple):
    """A piece of text and the weight that its tokens have."""

    text: str
    weight: float


BREAK = Fragment("BREAK", -1.0)  # what stands behind it begins a new piece of 75 tokens


@functools.lru_cache(maxsize=KEPT)
def fragments(text: str) -> tuple[Fragment, ...]:
    """The fragments of a text, at least one, neighbours of one weight joined; BREAK stands for itself.

    Brackets that are never closed count to the end, closing ones too many are plain text, and a single backslash says
    nothing. As in AUTOMATIC1111 a BREAK within brackets has their weight, which makes it a word like others.
    """
    if not SUSPECT.search(text):
        return (Fragment(text, 1.0),)
    found, rounds, squares, place = list[tuple[str, list[float]]](), list[int](), list[int](), 0
    # Each fragment has its factors, the innermost first: sums of floats in another order wouldn't be the same bits.
    for mark in MARK.finditer(text):
        found += _broken(text[place : mark.start()])
        place = mark.end()
        factor = None if mark[1] is None else read_weight(mark[1])
        if mark[0][0] == "\\":
            found.append((mark[0][1:], [1.0]))
        elif mark[0] == "(":
            rounds.append(len(found))
        elif mark[0] == "[":
            squares.append(len(found))
        elif mark[0] == "]" and squares:
            _multiply(found, squares.pop(), DOWN)
        elif mark[0][-1] == ")" and rounds:
            found += [] if mark[0] == ")" or factor is not None else _broken(mark[0][:-1])
            _multiply(found, rounds.pop(), UP if factor is None else factor)
        else:
            found += _broken(mark[0])
    found += _broken(text[place:])
    for start in rounds:
        _multiply(found, start, UP)
    for start in squares:
        _multiply(found, start, DOWN)
    return _joined(found)


def _multiply(found: Sequence[tuple[str, list[float]]], start: int, factor: float) -> None:
    for _, weight in found[start:]:
        weight[0] *= factor


def _broken(text: str) -> list[tuple[str, list[float]]]:
    """A plain text, with BREAK by itself and without the white space around that."""
    if not text:
        return []  # where nothing stands there is nothing that parts its neighbours
    first, *more = BREAK_WORD.split(text)
    found = [(first.rstrip() if more else first, [1.0])]
    for number, part in enumerate(more, 1):
        part = part.lstrip()
        found += [(BREAK.text, [BREAK.weight]), (part.rstrip() if number < len(more) else part, [1.0])]
    return found


def _joined(found: Sequence[tuple[str, list[float]]]) -> tuple[Fragment, ...]:
    runs = itertools.groupby(found, key=lambda fragment: fragment[1][0])
    joined = [Fragment("".join(text for text, _ in run), weight) for weight, run in runs]
    return tuple(fragment for fragment in joined if fragment.text) or (Fragment("", 1.0),)


def read_weight(written: str) -> float | None:
    """The number that a weight is; None where it is none."""
    try:
        return float(written)
    except ValueError:
        return None
