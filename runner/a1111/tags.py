"""The tags of a prompt, `<lora:name:0.8>`, which AUTOMATIC1111's web UI takes out before it reads anything else.

read_tags("a cat <lora:ink:0.8>") == ("a cat ", (Tag(name="ink", unet=0.8, text=0.8, offset=6),))
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from runner.keys import MOST_STRENGTH
from runner.text import shorten

SHOWN = 40  # characters
TAG = re.compile(r"<(\w+):")
STRENGTH = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
LORAS = ("lora", "lyco")


class PromptError(ValueError):
    """A prompt that can't be read or rendered. `offset` is the place in it, in characters from 0."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (character {offset + 1} of the prompt)")
        self.message, self.offset = message, offset


class Tag(NamedTuple):
    """A LoRA that a prompt asks for, `<lora:name:text:unet>`; `offset` is the tag's place in the prompt, from 0."""

    name: str
    unet: float
    text: float
    offset: int


def read_tags(text: str) -> tuple[str, tuple[Tag, ...]]:
    """A prompt's text without its tags, and the LoRAs that these name; `<word>` without a colon is no tag.

    Raises:
        PromptError: a tag of another kind, one that can't be read, or two with one name.
    """
    if "<" not in text:
        return text, ()
    rest, tags, place = list[str](), dict[str, Tag](), 0
    for start, end, kind in spans(text):
        tag = _tag(kind, text[start:end], start)
        if tag.name in tags:
            raise PromptError(f"'{shorten(text[start:end], SHOWN)}': the LoRA '{tag.name}' stands here twice", start)
        tags[tag.name] = tag
        rest.append(text[place:start])
        place = end
    return "".join([*rest, text[place:]]) if tags else text, tuple(tags.values())


def spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Where each tag begins and ends, and its kind; of whatever kind it is."""
    place = 0
    while match := TAG.search(text, place):
        end = text.find(">", match.end() + 1)
        if end < 0:
            return
        yield match.start(), end + 1, match[1]
        place = end + 1


def _tag(kind: str, written: str, offset: int) -> Tag:
    shown = f"'{shorten(written, SHOWN)}'"
    if kind not in LORAS:
        raise PromptError(f"{shown}: '{shorten(kind, SHOWN)}' is no kind of tag that is known; lora is", offset)
    values = [each.strip() for each in written[1:-1].split(":")[1:]]
    named = dict((key.strip(), value.strip()) for key, equals, value in (e.partition("=") for e in values) if equals)
    name, *numbers = [each for each in values if "=" not in each] or [""]
    if not name:
        raise PromptError(f"{shown} names no LoRA; write <lora:name:0.8>", offset)
    if len(numbers) > 2 or named.keys() - {"te", "unet"}:
        raise PromptError(f"{shown}: write <lora:name:0.8>, <lora:name:text:unet> or <lora:name:te=1:unet=0.5>", offset)
    text = _strength(named.get("te", numbers[0] if numbers else "1"), shown, offset)
    unet = _strength(named["unet"] if "unet" in named else numbers[1] if len(numbers) > 1 else str(text), shown, offset)
    return Tag(name=name, unet=unet, text=text, offset=offset)


def _strength(written: str, shown: str, offset: int) -> float:
    if STRENGTH.fullmatch(written) and abs(strength := float(written)) <= MOST_STRENGTH:
        return strength
    limits = f"from -{MOST_STRENGTH} to {MOST_STRENGTH}"
    raise PromptError(f"{shown}: '{shorten(written, SHOWN)}' is no number {limits}", offset)
