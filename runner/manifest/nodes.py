"""Reads YAML text into nodes that know their place in the file, safely.

Scalars follow the core schema of YAML 1.2: `NO`, `16:9` and `2026-01-01` are texts, `5e-1` is a number. Tags, merge
keys, a second document and equal keys are refused; nesting, size and the growth by aliases are bounded. `rules` and
`read` know what the keys mean. A reading helper raises for its own node alone, so that a caller can go on with others.

    steps = read(Path("alps.yaml")).mapping(["steps"])["steps"].integer(1, 1000)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from runner.errors import Location, ManifestError, Problems, did_you_mean
from runner.text import printable, shorten

MOST_BYTES = 64 * 2**20
LONGEST_LINE = 1 << 20  # characters of a line of YAML
MOST_NODES = 2_000_000  # with every alias counted as a copy
LONGEST_PATH = 200  # characters in a message
DEEPEST = 32  # levels; it bounds the recursion here and in the readers of the nodes
TOO_DEEP = f"nested more than {DEEPEST} levels deep"
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # only its events are used: its composer can be crashed

INTEGER = re.compile(r"[-+]?[0-9]{1,400}")  # a longer one becomes a float: Python refuses to convert it
OTHER_BASE = re.compile(r"0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
WORDS = {word: value for text, value in (("null", None), ("true", True), ("false", False))
         for word in (text, text.title(), text.upper())} | {"~": None, "": None}  # fmt: skip
# Who means a comment sets it off by more than one space; behind a single one the text may have been meant to go on.
DOUBTFUL_COMMENT = re.compile(r" #")
NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
UNWRITABLE = re.compile("[\x00\ud800-\udfff]")  # reachable by escapes; no file and no encoder takes them
HINTS = {
    "mapping values are not allowed": "quote a text that holds a colon and a space",
    "cannot start any token": "quote a text that begins with it",
}

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """A value with its place. `written` is a scalar's own text; a mapping's value is a dictionary of key and value."""

    value: Scalar | list[Node] | dict[Node, Node]
    location: Location
    written: str = ""
    plain: bool = False
    doubtful_comment: bool = False

    def __str__(self) -> str:
        if isinstance(self.value, list | dict):
            return "a list" if isinstance(self.value, list) else "a mapping"
        if not self.written and self.plain:
            return "nothing"
        return f"'{printable(shorten(self.written))}'"

    def error(self, message: str) -> ManifestError:
        return ManifestError(message, self.location)

    def mapping(
        self,
        known: Iterable[str],
        refused: Mapping[str, str] | None = None,
        hint: str = "",
        problems: Problems | None = None,
    ) -> dict[str, Node]:
        """The entries of a mapping that may hold the known keys; `refused` has a message for keys known otherwise.

        Wrong keys are raised, or else told to `problems` and left out.
        """
        if not isinstance(self.value, dict):
            raise self.error(f"expected a mapping (key: value), not {self}")
        known = tuple(known)
        wrong = Problems() if problems is None else problems
        for key in self.value:
            with wrong:
                key._check_among(known, refused or {}, hint)
        if problems is None:
            wrong.raise_all()
        return {key.written: value for key, value in self.value.items() if key.written in known}

    def _check_among(self, known: Sequence[str], refused: Mapping[str, str], hint: str) -> None:
        if self.written not in known:
            message = refused.get(self.written, f"unknown key {self}, {did_you_mean(self.written, known)}{hint}")
            raise self.error(message)

    def items(self) -> list[Node]:
        if not isinstance(self.value, list):
            raise self.error(f"expected a list, not {self}")
        if not self.value:
            raise self.error("expected a list with at least one entry, not an empty one")
        return self.value

    def text(self) -> str:
        """A text; a plain scalar counts as it is written, so that `1984` and `NO` are texts as well."""
        if isinstance(self.value, list | dict) or not (self.plain or isinstance(self.value, str)):
            raise self.error(f"expected a text, not {self}")
        if self.plain and not self.written:
            raise self.error('expected a text, not nothing; an empty text is written ""')
        if UNWRITABLE.search(self.written):
            raise self.error("the text holds a character that can't be written (NUL, or half of a surrogate pair)")
        return self.written

    def integer(self, low: int, high: int) -> int:
        value = self.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(f"{self} is not a whole number from {low} to {high}")
        return value

    def number(self, low: float, high: float) -> float:
        # A comparison with nan is false. Adding 0.0 turns -0.0 into 0.0, which would have an id of its own.
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not low <= self.value <= high:
            raise self.error(f"{self} is not a number from {low:g} to {high:g}")
        return float(self.value) + 0.0

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.error(f"expected true or false, not {self}")
        return self.value

    def choice(self, known: Iterable[str], likely: str = "") -> str:
        """One of the known names; `likely` is what the writer may have meant, where that is not what is written."""
        name, known = self.text(), tuple(known)
        if name not in known:
            raise self.error(f"{self} is not known, {did_you_mean(likely or name, known)}")
        return name


def wrap(value: object, location: Location, *, plain: bool = False, room: int = DEEPEST) -> Node:
    """A node for a value that was never YAML; `plain` lets numbers pass as texts, as unquoted scalars do."""
    if isinstance(value, str):
        return Node(value=value, location=location, written=value)
    if value is None:
        return Node(value=value, location=location, plain=True)
    if isinstance(value, int | float):
        written = str(value).lower() if isinstance(value, bool) else str(value)
        return Node(value=value, location=location, written=written, plain=plain)
    if not isinstance(value, dict | list | tuple):
        raise ManifestError(f"{value!r} is not a value that can be read", location)
    if not room:
        raise ManifestError(TOO_DEEP, location)
    inner = partial(wrap, location=location, plain=plain, room=room - 1)
    if isinstance(value, dict):
        return Node(value={wrap(str(key), location): inner(entry) for key, entry in value.items()}, location=location)
    return Node(value=[inner(entry) for entry in value], location=location)


def read(path: Path) -> Node:
    """The one document in a YAML file."""
    return parse(read_text(path, Location(path)), path)


def read_text(path: Path, place: Location) -> str:
    """A whole UTF-8 text file; `place` is where the file is named, for the errors about the file as a whole."""
    try:
        if path.exists() and not path.is_file():
            raise ManifestError(f"'{path}' is not a file", place)
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"can't read '{shorten(str(path), LONGEST_PATH)}': {getattr(error, 'strerror', None) or error}", place
        ) from None
    if len(data) > MOST_BYTES:
        raise ManifestError(f"'{path}' is larger than {MOST_BYTES // 2**20} MiB", place)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode()
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"not UTF-8 text (byte 0x{error.object[error.start]:02x}); is this a text file, saved as UTF-8?"
        raise ManifestError(message, Location(path, line, column)) from None
    if found := NOT_TEXT.search(text):
        line, column = text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start())
        raise ManifestError(f"not text (character 0x{ord(found[0]):02x})", Location(path, line, column))
    return text


def parse(text: str, path: Path) -> Node:
    """The one document in a YAML text; `path` is for the places."""
    for number, line in enumerate(text.split("\n") if len(text) > LONGEST_LINE else (), 1):
        if len(line) > LONGEST_LINE:  # libyaml takes minutes for it
            message = f"a line of more than {LONGEST_LINE >> 20} MiB; many prompts belong in a 'file'"
            raise ManifestError(message, Location(path, number, 1))
    return _Composer(text, path).document()


def resolve(written: str) -> Scalar:
    """What a plain scalar is by the core schema of YAML 1.2."""
    if written in WORDS:
        return WORDS[written]
    if INTEGER.fullmatch(written):
        return int(written)
    if OTHER_BASE.fullmatch(written):
        return int(written, 0)
    if FLOAT.fullmatch(written):
        return float(written.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return written


class _Composer:
    """Builds the nodes from the parser's events, counting aliases as the copies that they stand for."""

    def __init__(self, text: str, path: Path) -> None:
        self.text, self.path = text, path
        self.events = self._events()
        self.anchors: dict[str, tuple[Node, int, int] | None] = {}  # node, its size, its height; None: still open
        self.nodes = self.reached = 0

    def _events(self) -> Iterator[Any]:
        try:
            yield from yaml.parse(self.text, Loader=LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = ", ".join(part for part in (error.context, error.problem) if part)
            hint = next((f"; {hint}" for part, hint in HINTS.items() if part in problem), "")
            if mark and self.text[mark.index : mark.index + 1] == "\t":
                problem, hint = "a tab", "; YAML is indented with spaces"
            raise ManifestError(f"not valid YAML: {problem}{hint}", self._place(mark)) from None
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            raise ManifestError(f"not valid YAML: {str(error).splitlines()[0]}", Location(self.path)) from None

    def _place(self, mark: Any) -> Location:
        return Location(self.path, mark.line + 1, mark.column + 1) if mark else Location(self.path)

    def document(self) -> Node:
        next(self.events)  # the start of the stream
        if isinstance(next(self.events), yaml.StreamEndEvent):
            raise ManifestError("the file is empty", Location(self.path))
        root = self._node(next(self.events), 1)
        next(self.events)  # the end of the document
        if isinstance(event := next(self.events), yaml.DocumentStartEvent):
            raise ManifestError("a second document; a file holds one", self._place(event.start_mark))
        return root

    def _node(self, event: Any, depth: int) -> Node:
        place = self._place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor, depth, place)
        if event.tag is not None:
            raise ManifestError(f"the tag '{event.tag}' is not supported; quote a text that begins with '!'", place)
        if event.anchor:
            self.anchors[event.anchor] = None
        before, outer, self.reached = self.nodes, self.reached, depth
        self._grow(1, depth, place)
        node = self._content(event, depth, place)
        if event.anchor:
            self.anchors[event.anchor] = node, self.nodes - before, self.reached - depth
        self.reached = max(self.reached, outer)
        return node

    def _alias(self, name: Any, depth: int, place: Location) -> Node:
        if (known := self.anchors.get(name)) is None:
            what = "stands within what it repeats" if name in self.anchors else "has no anchor"
            raise ManifestError(f"the alias '*{name}' {what}; quote a text that begins with '*'", place)
        node, size, height = known
        self._grow(size, depth + height, place)
        return node

    def _grow(self, size: int, depth: int, place: Location) -> None:
        self.nodes, self.reached = self.nodes + size, max(self.reached, depth)
        if self.nodes > MOST_NODES:
            raise ManifestError(f"more than {MOST_NODES} values, aliases counted as copies", place)
        if depth > DEEPEST:
            raise ManifestError(TOO_DEEP, place)

    def _content(self, event: Any, depth: int, place: Location) -> Node:
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(
                value=[self._node(entry, depth + 1) for entry in self._until(yaml.SequenceEndEvent)], location=place
            )
        if isinstance(event, yaml.MappingStartEvent):
            return Node(value=self._entries(depth), location=place)
        plain = not event.style
        return Node(
            value=resolve(event.value) if plain else event.value,
            location=place,
            written=event.value,
            plain=plain,
            doubtful_comment=plain and DOUBTFUL_COMMENT.match(self.text, event.end_mark.index) is not None,
        )

    def _until(self, end: type) -> Iterator[Any]:
        return iter(lambda: None if isinstance(event := next(self.events), end) else event, None)

    def _entries(self, depth: int) -> dict[Node, Node]:
        entries: dict[Node, Node] = {}
        first: dict[str, Location] = {}
        for event in self._until(yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            if isinstance(key.value, list | dict):
                raise key.error(f"expected a text as key, not {key}")
            if key.plain and key.written == "<<":
                raise key.error("merge keys (<<) are not supported; write the entries out")
            if key.written in first:
                raise key.error(f"the key {key} stands here twice, first in line {first[key.written].line}")
            first[key.written] = key.location
            entries[key] = self._node(next(self.events), depth + 1)
        return entries
