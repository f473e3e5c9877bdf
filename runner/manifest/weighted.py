r"""Weighted prompts: the text `tabby cat:0.25 white duck:0.75` and the parts that it stands for.

`words:number`, the number ended by white space or the end, is a part; words after the last one are a part of weight 1.
A colon that no number follows is a plain character, and `\:` always is. A wrong prompt is a ValueError: the caller adds
its place in the file.

    parse("cat:1 dog:3") == (Part(text="cat", weight=0.25), Part(text="dog", weight=0.75))
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

from runner.item import Part

NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
MARK = re.compile(rf"\\:|:({NUMBER})(?!\S)")
TO_ESCAPE = re.compile(rf"(?<=\\):|:(?={NUMBER}(?!\S))")
LARGEST_WEIGHT = 1e9
LEAST_SUM = 1e-6  # of the weights' sizes; below it they cancel out, and the embedding would be blown up by its inverse
ROUNDING = 2.0**-51  # of the weights' sizes; a sum that is so near to 1 differs from it by rounding alone


def parse(text: str) -> tuple[Part, ...]:
    """The parts of a prompt, their weights divided by their sum; a prompt without weights is one part."""
    return _parse(text) if ":" in text else (Part(text.strip(), 1.0),)


@functools.lru_cache(maxsize=4096)  # each prompt is wanted with many seeds and settings
def _parse(text: str) -> tuple[Part, ...]:
    texts: list[str] = []
    weights: list[float] = []
    words, position = "", 0
    for mark in MARK.finditer(text):
        words, position = words + text[position : mark.start()], mark.end()
        if mark[1] is None:
            words += ":"
            continue
        if not words.strip():
            raise ValueError(
                f"no words before ':{mark[1][:20]}'; a part is words:number, and a plain colon is written '\\:'"
            )
        texts.append(words)
        weights.append(float(mark[1]))
        words = ""
    words += text[position:]
    if words.strip() or not texts:
        texts.append(words)
        weights.append(1.0)
    return combine(texts, weights)


def combine(texts: Sequence[str], weights: Sequence[float]) -> tuple[Part, ...]:
    """The parts with these texts, stripped of outer white space, and these weights, divided by their sum."""
    if len(texts) != len(weights):
        raise ValueError(f"{len(texts)} parts but {len(weights)} weights; each part needs one")
    texts = [text.strip() for text in texts]
    if not texts or (len(texts) > 1 and not all(texts)):
        raise ValueError("a part without words")
    return tuple(Part(text=text, weight=weight) for text, weight in zip(texts, _normalised(weights), strict=True))


def _normalised(weights: Sequence[float]) -> list[float]:
    for weight in weights:
        if not abs(weight) <= LARGEST_WEIGHT:  # nan compares as false
            raise ValueError(f"the weight {weight:g} is not a number from {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}")
    total, sizes = math.fsum(weights), math.fsum(abs(weight) for weight in weights)
    if total <= LEAST_SUM * sizes:
        shown = ", ".join(map(_written, weights[:8])) + (", ..." if len(weights) > 8 else "")
        raise ValueError(f"the weights {shown} add up to {total:g}; their sum must be greater than zero")
    # Weights that have been divided by their sum once must stay what they are, or a record would change when read.
    divisor = 1.0 if abs(total - 1.0) <= ROUNDING * sizes else total
    return [weight / divisor + 0.0 for weight in weights]  # + 0.0: no -0.0


def to_text(texts: Sequence[str], weights: Sequence[float]) -> str:
    """The prompt that `parse` reads as `combine(texts, weights)`."""
    escaped = [_escaped(text.strip()) for text in texts]
    if len(escaped) == 1:
        return escaped[0]
    return " ".join(f"{text}:{_written(weight)}" for text, weight in zip(escaped, weights, strict=True))


def _escaped(text: str) -> str:
    # A backslash at the end would escape the colon of the weight; the space is stripped when the text is read.
    return TO_ESCAPE.sub(r"\\:", text) + (" " if text.endswith("\\") else "")


def _written(weight: float) -> str:
    return repr(float(weight)).removesuffix(".0")
