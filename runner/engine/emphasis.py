"""Prompts in AUTOMATIC1111's syntax: what each row is told at which step, and what weights make of an embedding.

timeline(item, "a [cat:dog:0.5]") == ((10, "a cat"), (20, "a dog"))
emphasise(context, cut(fragments("a (dog:1.2)"), tokenizer))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from runner.a1111.editing import schedule
from runner.item import Item
from runner.model.pieces import Piece


def timeline(item: Item, text: str) -> tuple[tuple[int, str], ...]:
    """Which text an item's row has when, as (last step, text): a step has the first one whose last step it is not past.

    Steps are counted from 0, those alone that are made: with an init picture the first ones aren't.
    """
    made = item.steps - item.skipped_steps
    return schedule(text, made) if item.a1111 else ((made, text),)


def texts_of(item: Item) -> Iterator[str]:
    """Every text that has to be encoded for a picture."""
    for text in item.texts():
        yield from (said for _, said in timeline(item, text))


def emphasise(contexts: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Embeddings [pieces, 77, C], each token's times its weight, and each piece brought back to its own mean.

    As the web UI's `Original` emphasis does it, piece by piece, so that none depends on what is encoded with it.
    """
    return torch.stack([_weigh(each, piece) for each, piece in zip(contexts, pieces, strict=True)])


def _weigh(context: Tensor, piece: Piece) -> Tensor:
    if not piece.weighted:
        return context
    weighed = context * torch.tensor(piece.weights, dtype=context.dtype, device=context.device)[:, None]
    return weighed * (context.mean() / weighed.mean())
