"""What is wrong with a prompt in AUTOMATIC1111's syntax, and what of it isn't rendered here.

text, tags = check_prompt("a (cat:1.2) <lora:ink:0.8>")
"""

from __future__ import annotations

import re

from runner.a1111.emphasis import CLOSING, MARK, fragments, read_weight
from runner.a1111.tags import LORAS, SHOWN, PromptError, Tag, read_tags, spans
from runner.text import shorten

MOST_NESTED = 100  # brackets that are open at once
LARGEST_WEIGHT = 1e9
AND_WORD = re.compile(r"\bAND\b")
WHOLE_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")
NETWORKS = (*LORAS, "hypernet")


def check_prompt(text: str) -> tuple[str, tuple[Tag, ...]]:
    """As `read_tags`, of a prompt that can be rendered.

    Raises:
        PromptError: as `read_tags` and `check`, or it composes prompts with AND or the weight of a whole prompt.
    """
    rest, tags = read_tags(text)
    try:
        _refuse_composed(rest)
        check(rest)
    except PromptError as error:
        raise PromptError(error.message, _in_full(text, error.offset)) from None
    return rest.strip(), tags


def _in_full(text: str, offset: int) -> int:
    """The place in a prompt of what is at `offset` once the tags are out."""
    for start, end, _ in spans(text):
        offset += end - start if start <= offset else 0
    return offset


def _refuse_composed(text: str) -> None:
    if found := AND_WORD.search(text):
        message = "AND composes prompts in AUTOMATIC1111, which isn't rendered here; write 'and' for the word"
        raise PromptError(message, found.start())
    head, colon, number = text.rpartition(":")
    if colon and WHOLE_WEIGHT.fullmatch(number.strip()):
        written = f":{shorten(number.strip(), SHOWN)}"
        message = f"'{written}' at the end is the weight of a whole prompt in AUTOMATIC1111 (as with AND), which isn't "
        raise PromptError(f"{message}rendered here; write '(words{written})', or a comma behind it", len(head))


def check_negative(text: str) -> str:
    """A negative prompt that can be rendered; AND and `:1.2` at its end are plain text in it.

    Raises:
        PromptError: as `check`, or it has a tag of a network, which only a prompt can have.
    """
    for start, end, kind in spans(text):
        if kind in NETWORKS:
            raise PromptError(f"'{shorten(text[start:end], SHOWN)}' can't stand in a negative prompt", start)
    return check(text)


def check(text: str) -> str:
    """The text, without tags, if its brackets and weights can be read; then no function here raises anything for it.

    Raises:
        PromptError: a weight is no number or too large, or too many brackets are open at once.
    """
    opened = {"(": 0, "[": 0}
    for mark in MARK.finditer(text):
        if mark[0] in CLOSING:
            opened[mark[0]] += 1
            if sum(opened.values()) > MOST_NESTED:
                raise PromptError(f"more than {MOST_NESTED} brackets are open at once", mark.start())
        elif mark[0] == "]":
            opened["["] = max(0, opened["["] - 1)
        elif mark[0][-1] == ")" and mark[0][0] != "\\" and opened["("]:
            opened["("] -= 1
            if mark[1] is not None and read_weight(mark[1]) is None:
                written = shorten(mark[1], SHOWN)
                raise PromptError(f"'{written}' is no number, as a weight should be: (words:1.2)", mark.start())
    for fragment in fragments(text):
        if not abs(fragment.weight) <= LARGEST_WEIGHT:
            said = shorten(fragment.text.strip(), SHOWN)
            raise PromptError(f"the weight of '{said}' is beyond {LARGEST_WEIGHT:g}", max(0, text.find(said)))
    return text
