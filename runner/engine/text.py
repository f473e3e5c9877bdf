"""Prompts become embeddings: each text is encoded once, and the parts of a weighted prompt are added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from runner.device.component import Component
from runner.engine.autoencoder import padded_batches
from runner.item import Item
from runner.model.tokens import LENGTH, ClipTokenizer

TEXT_ROWS = 4


def encode_texts(
    encoder: Component, tokenizer: ClipTokenizer, texts: Sequence[str], *, chunked: bool = False
) -> dict[str, Tensor]:
    """Each text's embedding, float32 [77, C], or where texts are chunked [77 * pieces, C]."""
    pieces = [tokenizer.encode_chunks(text) if chunked else [tokenizer.encode(text).ids] for text in texts]
    ids = torch.tensor([piece for text in pieces for piece in text], device=encoder.device)  # [N, 77]
    encoded = encoder.call_all([text_call(batch) for batch in padded_batches(ids, TEXT_ROWS)])
    split = torch.split(torch.cat(encoded)[: len(ids)], [len(text) for text in pieces])
    return {text: embedding.flatten(0, 1) for text, embedding in zip(texts, split, strict=True)}


def text_call(ids: Tensor) -> Callable[[nn.Module], Tensor]:
    """A call of a text encoder with [rows, 77] ids; it returns embeddings [rows, 77, C] in float32."""
    return lambda encoder: encoder(ids).last_hidden_state.float()


def combine(item: Item, embeddings: Mapping[str, Tensor]) -> Tensor:
    """A weighted prompt's embedding [77, C]: the sum of its parts' by weight; shorter parts end in empty pieces."""
    if len(item.parts) == 1:
        return embeddings[item.parts[0].text]
    parts = [embeddings[part.text] for part in item.parts]
    if any(len(part) != len(parts[0]) for part in parts):
        pieces = max(map(len, parts)) // LENGTH
        parts = [torch.cat([part, *[embeddings[""]] * (pieces - len(part) // LENGTH)]) for part in parts]
    return torch.stack([embedding * part.weight for embedding, part in zip(parts, item.parts, strict=True)]).sum(0)
