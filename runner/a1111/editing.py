"""Prompt editing: `[from:to:when]`, `[to:when]`, `[from::when]`, and `[a|b]`, which takes turns.

schedule("a [cat:(dog:1.2):0.5]", 20) == ((10, "a cat"), (20, "a (dog:1.2)"))
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from runner.a1111.emphasis import CLOSING

KEPT = 256  # schedules
TOKEN = re.compile(r"\\.|[\\()\[\]:|]|[^\\()\[\]:|]+")
WHEN = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


class _Edit(NamedTuple):
    """`[before:after:when]`."""

    before: _Run
    after: _Run
    when: str

    def step(self, steps: int) -> int:
        """The last step, from 1, that has what stands before; with a point it is written as a share of the steps."""
        when = float(self.when) * (steps if "." in self.when else 1)
        return int(max(-1.0, min(float(steps), when)))


class _Turns(NamedTuple):
    """`[one|other|...]`."""

    options: list[_Run]


_Run: TypeAlias = "list[str | _Edit | _Turns | _Run]"


@dataclass(slots=True)
class _Open:
    """A bracket that isn't closed yet, and what stands behind it: runs with a colon or a bar between each two."""

    bracket: str
    runs: list[_Run] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)

    def close(self, bracket: str) -> _Run | None:
        """What it is with its closing bracket; None where that is nothing, so that both are plain characters."""
        if CLOSING.get(self.bracket) != bracket:
            return None
        if not self.marks or (self.bracket == "(" and self.marks == [":"]):
            return [*self.plain(), bracket]
        if self.bracket == "(":
            return None
        if set(self.marks) == {"|"}:
            return [_Turns(self.runs)]
        when = "".join(each if isinstance(each, str) else "\\" for each in self.runs[-1]).strip()
        if len(self.marks) > 2 or "|" in self.marks or not WHEN.fullmatch(when):
            return None
        return [_Edit(before=self.runs[0] if len(self.runs) > 2 else [], after=self.runs[-2], when=when)]

    def plain(self) -> _Run:
        """It and its contents, of which itself and its marks are plain characters."""
        found: _Run = [self.bracket, self.runs[0]]
        for mark, run in zip(self.marks, self.runs[1:], strict=True):
            found += [mark, run]
        return found


def _parse(text: str) -> _Run | None:
    """The editing in a text; None where AUTOMATIC1111 reads none at all: it has a bar or a backslash by itself."""
    stack = [_Open("")]
    for token in TOKEN.findall(text):
        top = stack[-1]
        if token == "\\":
            return None
        if token in CLOSING:
            stack.append(_Open(token))
        elif token in (":", "|"):
            top.marks.append(token)
            top.runs.append([])
        elif token not in (")", "]"):
            top.runs[-1].append(token)
        elif (made := top.close(token)) is not None:
            stack.pop()
            stack[-1].runs[-1].append(made)
        else:  # what is wrong within a bracket makes that a plain character, and so all around it
            _give_up(stack)
            stack[0].runs[-1].append(token)
    _give_up(stack)
    return None if "|" in stack[0].marks else stack[0].plain()


def _give_up(stack: list[_Open]) -> None:
    bottom, *opened = stack
    del stack[1:]
    for each in opened:
        first, *more = each.runs
        bottom.runs[-1] += [each.bracket, *first]
        bottom.marks += each.marks
        bottom.runs += more


@functools.lru_cache(maxsize=KEPT)
def schedule(text: str, steps: int) -> tuple[tuple[int, str], ...]:
    """Which text holds when, as (last step, text): step i, counted from 0, has the first one with i <= last step.

    A `when` with a point is a share of the steps, any other is a number of steps. As in AUTOMATIC1111 the text of the
    last step s is that which step s, counted from 1, should have, so that each change comes one step late: of
    `[a:b:0.5]` and 20 steps the steps 0 to 10 have `a`. Neighbours with one text are one.
    """
    run = _parse(text) if "[" in text else None
    if run is None:
        return ((steps, text),)
    found = list[tuple[int, str]]()
    for step in sorted({steps, *_ends(run, steps)}):
        said = "".join(_said(run, step, steps))
        if found and found[-1][1] == said:
            found.pop()
        found.append((step, said))
    return tuple(found)


def _ends(run: _Run, steps: int) -> set[int]:
    """The steps, from 1, behind which the text may be another one."""
    ends = set[int]()
    for node in run:
        if isinstance(node, _Edit):
            ends |= {node.step(steps)} if node.step(steps) >= 1 else set()
            ends |= _ends(node.before, steps) | _ends(node.after, steps)
        elif isinstance(node, _Turns):
            return set(range(1, steps + 1))
        elif isinstance(node, list):
            ends |= _ends(node, steps)
    return ends


def _said(run: _Run, step: int, steps: int) -> Iterator[str]:
    for node in run:
        if isinstance(node, str):
            yield node
        elif isinstance(node, _Edit):
            yield from _said(node.before if step <= node.step(steps) else node.after, step, steps)
        elif isinstance(node, _Turns):
            yield from _said(node.options[(step - 1) % len(node.options)], step, steps)
        else:
            yield from _said(node, step, steps)
