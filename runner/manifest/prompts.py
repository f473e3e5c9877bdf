"""The prompts of a manifest: texts, weighted parts, and lines of files."""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from runner.a1111.tags import read_tags
from runner.errors import Location, ManifestError, Problems, every
from runner.item import Part
from runner.keys import A1111, PLAIN, words
from runner.manifest.lazy import Lazy, join, parts_of
from runner.manifest.nodes import Node, read_text
from runner.manifest.places import Frame, find_inside
from runner.manifest.weighted import LARGEST_WEIGHT, combine, parse, to_text

PROMPT_KEYS = {  # the kind of prompt, and what may stand beside it
    "text": ("weighted", "id", "negative"),
    "prompt": ("weighted", "id", "negative"),
    "parts": ("weights", "id", "negative"),
    "file": ("weighted", "negative", "comments"),
}
QUOTE_HINT = "; a prompt that holds a colon and a space needs quotes"
MOST_PROMPTS = 5 * 10**6
LINE_END = re.compile(r"\r\n|\r|\n")
SUSPECT = re.compile(r"[:<()\[\\]|AND")
INVISIBLE = "\ufeff\u200b\u2060\u00ad"  # around a line, as editors and pages leave them


class Prompt(NamedTuple):
    """A prompt as it was written, a tuple, since there may be millions.

    `label` is what an axis shows for it, `negative` its own, if it has one, and `id` is what it was
    called, alone or with others that differ in weights. `in_parts` says whether it was written as parts with weights.
    """

    text: str
    label: str
    id: str | None
    weighted: bool
    negative: str | None
    location: Location
    in_parts: bool = False

    def parts(self, syntax: str = PLAIN) -> tuple[Part, ...]:
        """Its parts; in AUTOMATIC1111's syntax it is one, without the tags."""
        if syntax == A1111:
            return (Part(read_tags(self.text)[0].strip(), 1.0),)
        return parse(self.text) if self.weighted else (Part(self.text, 1.0),)


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
        return tuple.__new__(Prompt, (text, text, None, self.weighted, self.negative, location, False))

    def suspects(self, *, plain: bool) -> Iterator[Prompt]:
        """Those that may be wrong; most are not even looked at."""
        if plain:
            return (self._make(n) for n, text in enumerate(self.texts) if ":" in text) if self.weighted else iter(())
        return (self._make(n) for n, text in enumerate(self.texts) if SUSPECT.search(text))


def suspects(prompts: Sequence[Prompt], *, plain: bool) -> Iterator[Prompt]:
    """The prompts that may be wrong in the plain syntax, or in either."""
    for part in parts_of(prompts):
        yield from part.suspects(plain=plain) if isinstance(part, _Lines) else part


def own_negatives(prompts: Sequence[Prompt]) -> Iterator[tuple[str, Location]]:
    """The negatives that prompts bring along, with their places; those of a file's lines once."""
    for part in parts_of(prompts):
        for prompt in part[:1] if isinstance(part, _Lines) else part:
            if prompt.negative is not None:
                yield prompt.negative, prompt.location


def read_prompts(nodes: Sequence[Node], frame: Frame) -> Sequence[Prompt]:
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


def _prompt(node: Node, frame: Frame) -> Sequence[Prompt]:
    if not isinstance(node.value, dict):
        return (_made(words(node), node.location, frame),)
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
        comments = given["comments"].text() if "comments" in given else None
        if comments is not None and not comments.strip():
            raise given["comments"].error("comments: expected what such lines begin with, for instance '#' in quotes")
        return _from_file(given["file"], frame, negative, weighted, comments)
    if kind == "parts":
        return _from_parts(given, negative, id)
    return (_made(words(given[kind]), given[kind].location, frame, negative, weighted, id=id),)


def _made(
    text: str,
    location: Location,
    frame: Frame,
    negative: str | None = None,
    weighted: bool = True,
    *,
    id: str | None = None,
) -> Prompt:
    label = text if id is None else id
    prompt = Prompt(text=text, label=label, id=id, weighted=weighted, negative=negative, location=location)
    if frame.plain:
        check_weights(prompt)
    return prompt


def check_weights(prompt: Prompt) -> None:
    """Reads a prompt in the plain syntax.

    Raises:
        ManifestError: its weights are wrong.
    """
    try:
        prompt.parts()
    except ValueError as error:
        raise ManifestError(f"{error}; or set 'weighted: false' on the prompt", prompt.location) from None


def _from_parts(given: Mapping[str, Node], negative: str | None, id: str | None) -> list[Prompt]:
    parts = every(words, given["parts"].items())
    if "weights" not in given:
        raise given["parts"].error(f"'weights' is missing; {len(parts)} parts need {len(parts)} weights")
    rows = given["weights"].items()
    swept = isinstance(rows[0].value, list)

    def prompt(row: Node) -> Prompt:
        weights = [node.number(-LARGEST_WEIGHT, LARGEST_WEIGHT) for node in row.items()]
        try:
            combine(parts, weights)
        except ValueError as error:
            raise row.error(str(error)) from None
        variant = f" ({', '.join(f'{weight:g}' for weight in weights)})" if swept else ""
        text = to_text(parts, weights)
        label = text if id is None else f"{id}{variant}"
        return Prompt(text, label, id, weighted=True, negative=negative, location=row.location, in_parts=True)

    return every(prompt, rows if swept else [given["weights"]])


def _from_file(node: Node, frame: Frame, negative: str | None, weighted: bool, comments: str | None) -> _Lines:
    path = find_inside(node, frame.folder, frame.allow_outside)
    found, problems = _Lines(path, negative, weighted), Problems()
    for number, line in enumerate(LINE_END.split(read_text(path, node.location)), 1):
        text = line.strip().strip(INVISIBLE).strip()
        if not text or (comments and text.startswith(comments)):
            continue
        found.texts.append(text)
        found.lines.append(number)
        if len(found.texts) > MOST_PROMPTS:
            break
    for prompt in found.suspects(plain=True) if frame.plain else ():
        with problems:
            check_weights(prompt)
    problems.raise_all()
    if not found:
        raise node.error(f"the file {node} holds no prompts")
    return found
