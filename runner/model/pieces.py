"""Cuts a prompt in AUTOMATIC1111's syntax into pieces of 75 tokens, as its web UI does (version 1.10, its defaults).

[piece] = cut(fragments("a (dog:1.2)"), tokenizer)
piece.weights[:4] == (1.0, 1.0, 1.2, 1.0)  # the start, a, dog, the end
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from runner.a1111.emphasis import BREAK, Fragment
from runner.model.tokens import LENGTH, NO_WORDS, ROOM, ClipTokenizer, Words

LOOKED_BACK = 20  # tokens from the end of a full piece, among which a comma parts it


class Piece(NamedTuple):
    """`LENGTH` tokens, and the weight of each: that of its fragment, or 1 of the start, the end and the padding."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def weighted(self) -> bool:
        """Whether a weight is another than 1."""
        return self.weights.count(1.0) < len(self.weights)


class _Cutter:
    """Fills pieces: `_held` are the tokens of the present one with their weights."""

    def __init__(self, tokenizer: ClipTokenizer) -> None:
        self.pieces: list[Piece] = []
        self._tokenizer = tokenizer
        self._held: list[tuple[int, float]] = []
        self._comma = 0  # the place behind the last comma; 0 for none

    @property
    def held(self) -> int:
        return len(self._held)

    def close(self, count: int | None = None) -> None:
        """Ends the piece, behind its first `count` tokens; those behind them begin the next one."""
        count = len(self._held) if count is None else count
        ids, weights = zip(*self._held[:count], strict=True) if count else ((), ())
        self.pieces.append(
            Piece(ids=self._tokenizer.frame(ids), weights=(1.0, *weights, *[1.0] * (LENGTH - 1 - count)))
        )
        self._held, self._comma = self._held[count:], 0

    def add(self, unit: Sequence[int], weight: float) -> None:
        """Adds tokens that may not be parted."""
        is_comma = unit[0] == self._tokenizer.comma
        if self.held == ROOM and self._comma and self._comma > ROOM - LOOKED_BACK and not is_comma:
            self.close(self._comma)
        if self.held + len(unit) > ROOM and self._held:
            self.close()
        for token in unit:  # more than a piece has room for are parted nevertheless
            if self.held == ROOM:
                self.close()
            self._held.append((token, weight))
        if is_comma:
            self._comma = self.held


def cut(fragments: Sequence[Fragment], tokenizer: ClipTokenizer, words: Words = NO_WORDS) -> list[Piece]:
    """The pieces of a text, at least one. Each fragment is read by itself, BREAK begins a piece.

    Where a piece is full and the last comma stands among its last tokens, what is behind that goes to the next piece.
    `words` are the numbers of learnt words' vectors, which stay together.
    """
    cutter = _Cutter(tokenizer)
    for fragment in fragments:
        if fragment == BREAK:
            cutter.close()
            continue
        for unit in tokenizer.units(fragment.text, words):
            cutter.add(unit, fragment.weight)
    if cutter.held or not cutter.pieces:
        cutter.close()
    return cutter.pieces
