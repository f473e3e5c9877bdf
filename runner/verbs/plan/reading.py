"""How a prompt was read: its parts with their weights, and in AUTOMATIC1111's syntax when they hold.

read_prompt(item).spans == ((10, (Part(text="cat", weight=1.1),)), (20, (Part(text="dog", weight=1.0),)))
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from runner.a1111.editing import schedule
from runner.a1111.emphasis import BREAK, fragments
from runner.a1111.tags import Tag, read_tags
from runner.item import Item, Part
from runner.keys import A1111

SPANS_SHOWN = 4
SUSPECT = re.compile(r"[()\[\]\\<]|BREAK")  # without any of it nothing but a text can have been read


class Reading(NamedTuple):
    """A prompt that is more than plain text.

    `spans` are its parts and the last step that has them, counted from 0, of the steps that are made; the last span has
    all the rest. `tags` are the LoRAs that stand in the text.
    """

    prompt: str
    spans: tuple[tuple[int, tuple[Part, ...]], ...]
    tags: tuple[Tag, ...] = ()
    a1111: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        *_, (_, last) = self.spans
        if not self.a1111:
            return {"prompt": self.prompt, "parts": _dicts(last)}
        spans = [{"last_step": end, "parts": _dicts(parts)} for end, parts in self.spans]
        loras = [{"name": tag.name, "unet": tag.unet, "text": tag.text} for tag in self.tags]
        return {"prompt": self.prompt, "prompt_syntax": A1111, "spans": spans, "loras": loras}

    def __str__(self) -> str:
        spans = [" + ".join(map(_part, parts)) for _, parts in self.spans[:SPANS_SHOWN]]
        ends = [f"to step {end + 1}: " for end, _ in self.spans[:-1]] + ["then: " if len(self.spans) > 1 else ""]
        shown = "; ".join(f"{end}{span}" for end, span in zip(ends, spans, strict=False))
        more = f"; {len(self.spans) - SPANS_SHOWN} more changes" if len(self.spans) > SPANS_SHOWN else ""
        loras = "".join(f" + the LoRA {tag.name} ({tag.unet:g}, text {tag.text:g})" for tag in self.tags)
        return f"{shown}{more}{loras}"


def _dicts(parts: tuple[Part, ...]) -> list[dict[str, Any]]:
    return [{"text": part.text, "weight": part.weight} for part in parts]


def _part(part: Part) -> str:
    return part.text if tuple(part) == tuple(BREAK) else f"{part.weight:.3g} '{part.text}'"


def read_prompt(item: Item) -> Reading | None:
    """How an item's prompt was read; None where it is plain text."""
    if not item.a1111:
        plain = len(item.parts) == 1 and item.parts[0].text == item.prompt.strip()
        return None if plain else Reading(item.prompt, spans=((item.steps, item.parts),))
    if not SUSPECT.search(item.prompt):
        return None
    made = item.steps - item.skipped_steps
    found = schedule(item.parts[0].text, made)
    begins = [0, *(end + 1 for end, _ in found)]
    # A change that comes after the last step is none.
    reached = [each for each, begin in zip(found, begins, strict=False) if begin < max(1, made)]
    spans = tuple((end, tuple(_parts(said))) for end, said in reached)
    if len(spans) == 1 and spans[0][1] == (Part(item.prompt.strip(), 1.0),):
        return None
    return Reading(item.prompt, spans=spans, tags=read_tags(item.prompt)[1], a1111=True)


def _parts(text: str) -> Iterator[Part]:
    for fragment in fragments(text):
        yield Part(fragment.text.strip(), fragment.weight)
