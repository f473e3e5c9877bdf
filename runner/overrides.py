"""What `key=value` means: the value by the key's type, any text as it is, and with multirun the values of a sweep.

A value is not read by Hydra's grammar, in which accents, `~`, `=`, brackets and commas have meanings of their own. It
is taken as written, but for quotes around all of it. Only a sweep's commas count, and its forms `range(...)`,
`choice(...)` and, for groups, `glob(...)`.

    read("limit=3").value  # 3
    jobs(["steps=2,4", "out=a"])  # [["steps=2", "out=a"], ["steps=4", "out=a"]], each with what differs
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from runner.errors import SettingError

KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
INTEGER, REAL = re.compile(r"[+-]?\d+"), re.compile(r"[+-]?(\d+\.\d*|\.?\d+)([eE][+-]?\d+)?")
LITERALS = {"true": True, "false": False, "null": None}
FORM = re.compile(r"(choice|range|glob|interval|shuffle|sort|tag)\((.*)\)", re.DOTALL)
OPENING, CLOSING = "([{", ")]}"
MOST_JOBS = 1000


@dataclass(frozen=True, slots=True)
class Override:
    """A setting that is given: its key, and the text after the first `=`."""

    key: str
    text: str

    @property
    def written(self) -> str:
        return f"{self.key}={self.text}"


def split(word: str) -> Override:
    """A word of the command line as a setting.

    Raises:
        SettingError: it isn't one.
    """
    key, equals, text = word.partition("=")
    bare = key.lstrip("+~")
    if bare != key and KEY.fullmatch(bare):
        raise SettingError(f"'{word}': settings can be changed, but not added or removed; write {bare}=value")
    if not equals or not KEY.fullmatch(key):
        raise SettingError(f"'{word}' is not a setting: should be key=value")
    return Override(key, text)


def unquote(text: str) -> str:
    """A text without the quotes around all of it."""
    stripped = text.strip()
    if len(stripped) > 1 and QUOTED.fullmatch(stripped):
        return re.sub(r"\\(['\"\\])", r"\1", stripped[1:-1])
    return text


def scalar(text: str) -> Any:
    """A number, `true`, `false` or `null` where a text is one; a list in brackets; else the text."""
    stripped = text.strip()
    if stripped.lower() in LITERALS:
        return LITERALS[stripped.lower()]
    if INTEGER.fullmatch(stripped):
        return int(stripped)
    if REAL.fullmatch(stripped):
        return float(stripped)
    if stripped.startswith("[") and stripped.endswith("]"):
        return [scalar(part) for part in parts(stripped[1:-1]) if part.strip()]
    return unquote(text)


def text_or_null(text: str) -> str | None:
    """A text as it is; `null` is none."""
    return None if text.strip() == "null" else unquote(text)


def texts(text: str) -> list[str]:
    """Texts in brackets, or one text."""
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return [unquote(text)]
    return [unquote(part.strip()) for part in parts(stripped[1:-1]) if part.strip()]


def parts(text: str) -> list[str]:
    """A text cut at its commas, but not within quotes or brackets."""
    found, begun, depth, place = list[str](), 0, 0, 0
    while place < len(text):
        quoted = QUOTED.match(text, place) if text[begun:place].strip() == "" else None
        if quoted:
            place = quoted.end()
            continue
        if text[place] in OPENING:
            depth += 1
        elif text[place] in CLOSING:
            depth -= 1
        elif text[place] == "," and depth <= 0:
            found.append(text[begun:place])
            begun = place + 1
        place += 1
    return [*found, text[begun:]]


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a multirun: its overrides, and those among them that another run has with another value."""

    overrides: tuple[str, ...]
    differs: tuple[Override, ...]


def jobs(words: Sequence[str], names: Callable[[str], Sequence[str]]) -> list[Job]:
    """The runs of a multirun, the last setting varying fastest; `names` are the files of a group.

    Raises:
        SettingError: a sweep names no values, or far too many.
    """
    swept = [(override, _values(override, names)) for override in map(split, words)]
    count = 1
    for _, values in swept:
        count *= len(values)
    if count > MOST_JOBS:
        raise SettingError(f"--multirun: {count} runs are more than {MOST_JOBS}; large sweeps belong in the manifest")
    found = []
    for chosen in itertools.product(*(values for _, values in swept)):
        overrides = [Override(override.key, value) for (override, _), value in zip(swept, chosen, strict=True)]
        differs = [each for each, (_, values) in zip(overrides, swept, strict=True) if len(values) > 1]
        found.append(Job(tuple(each.written for each in overrides), tuple(differs)))
    return found


def _values(override: Override, names: Callable[[str], Sequence[str]]) -> list[str]:
    """The values of a sweep, each once; one where it is none."""
    form = FORM.fullmatch(override.text.strip())
    found = [part.strip() for part in parts(override.text)]
    if form:
        found = list(_form(override, form[1], form[2], names))
    if len(found) == 1 and not form:
        return [override.text]
    if not all(found):
        raise SettingError(f"'{override.written}': a value between commas is empty; put a text with commas into quotes")
    return list(dict.fromkeys(found))


def _form(override: Override, form: str, inside: str, names: Callable[[str], Sequence[str]]) -> Iterator[str]:
    given = [part.strip() for part in parts(inside)]
    if form == "choice":
        yield from given
    elif form == "range":
        yield from _range(override, given)
    elif form == "glob":
        known = [name for name in names(override.key) if any(_matches(name, pattern) for pattern in given)]
        if not known:
            raise SettingError(
                f"'{override.written}': glob() names files of conf/, and none fits {override.key}={inside}"
            )
        yield from known
    else:
        raise SettingError(
            f"'{override.written}': {form}() names no values to run with; write them as {override.key}=a,b"
        )


def _range(override: Override, given: Sequence[str]) -> Iterator[str]:
    """Whole numbers or fractions as Python's range has them: the end is left out."""
    numbers = [scalar(each.partition("=")[2] or each) for each in given]
    if not 1 <= len(numbers) <= 3 or not all(type(number) in (int, float) for number in numbers) or 0 in numbers[2:]:
        raise SettingError(f"'{override.written}': should be range(start,stop) or range(start,stop,step), in numbers")
    start, stop, step = ([0, *numbers, 1] if len(numbers) == 1 else [*numbers, 1])[:3]
    for index in range(MOST_JOBS + 1):
        number = start + index * step
        if (number >= stop) if step > 0 else (number <= stop):
            return
        yield f"{number:g}" if isinstance(number, float) else str(number)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, unquote(pattern))
