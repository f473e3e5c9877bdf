"""Words that were learnt (textual inversion): their vectors, and how a text encoder looks them up beside its tokens.

The number of a learnt vector is one that no token has: it is counted from the vocabulary's size on. The weight of the
token embedding stays what it is, so that whatever brings weights to the device knows nothing of this.

    words = LearntWords(model.family.texts, components)
    with words.known(item.embeddings) as numbers:
        numbers["text_encoder"]["toy"]  # range(49408, 49410)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runner.device.component import Component
from runner.engine.remembered import Remembered
from runner.errors import ModelError
from runner.item import Embedding
from runner.model.architecture import Text
from runner.model.embeddings import find_embedding, roles_of
from runner.model.modules import read_tensor
from runner.model.tokens import NO_WORDS, Words

VECTORS_KEPT = 16 << 20  # bytes in the host's memory


class WordError(ValueError):
    """The vectors of a word can't be had any more, so that a picture whose texts name it can't be made."""


class TokenEmbedding(nn.Embedding):
    """The vectors of a vocabulary, and behind them those of `learnt` [k, C], where there are any."""

    learnt: Tensor | None

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors [rows, 77, C] of ids [rows, 77]; nothing waits for the device."""
        if self.learnt is None:
            return super().forward(ids)
        own = super().forward(ids.clamp(max=self.num_embeddings - 1))
        others = functional.embedding((ids - self.num_embeddings).clamp(min=0), self.learnt)
        return torch.where((ids >= self.num_embeddings)[..., None], others, own)


class LearntWords:
    """The learnt words of a model's text encoders, read once, as long as they are remembered."""

    def __init__(self, texts: Mapping[str, Text], components: Mapping[str, Component]) -> None:
        self._encoders = {name: components[name] for name in texts}
        self._tables = {name: _prepare(component.module) for name, component in self._encoders.items()}
        self._kept: Remembered[str] = Remembered(VECTORS_KEPT)

    @contextmanager
    def known(self, embeddings: Sequence[Embedding]) -> Iterator[Mapping[str, Words]]:
        """The numbers of the words' vectors, by text encoder, which it understands meanwhile.

        Raises:
            WordError: a file has changed, or is gone, or doesn't fit the model.
        """
        numbers: dict[str, Words] = {name: NO_WORDS for name in self._encoders}
        try:
            if embeddings:
                read = [self._read(embedding) for embedding in embeddings]
                for place, (name, component) in enumerate(self._encoders.items()):
                    vectors = [each[place] for each in read]
                    numbers[name] = _numbers(embeddings, vectors, self._tables[name].num_embeddings)
                    self._tables[name].learnt = torch.cat(vectors).to(component.device)
            yield numbers
        finally:
            for table in self._tables.values():
                table.learnt = None

    def _read(self, embedding: Embedding) -> list[Tensor]:
        """Its vectors [n, C] for each text encoder, in the host's memory, of the encoder's number type."""
        if embedding.sha256 not in self._kept:
            try:
                tensors = find_embedding(embedding).tensors
            except ModelError as error:
                raise WordError(f"the embedding '{embedding.name}': {error}") from None
            read = []
            for role, (name, component) in zip(roles_of(len(self._encoders)), self._encoders.items(), strict=True):
                width = self._tables[name].embedding_dim
                if role not in tensors or tensors[role].shape[1] != width:
                    raise WordError(f"{embedding.path}: has no vectors of {width} numbers for the {name}")
                read.append(read_tensor(tensors[role], component.dtype))
            self._kept.keep(embedding.sha256, read)
        return [each for each in self._kept[embedding.sha256] if each is not None]


def _prepare(module: nn.Module) -> TokenEmbedding:
    """The module's token embedding, as one that can have more rows; its parameter and its hooks stay."""
    found: Any = [each for name, each in module.named_modules() if name.endswith("embeddings.token_embedding")]
    [table] = found
    table.__class__ = TokenEmbedding
    table.learnt = None
    made: TokenEmbedding = table
    return made


def _numbers(embeddings: Sequence[Embedding], vectors: Sequence[Tensor], first: int) -> Words:
    numbers: dict[str, range] = {}
    for embedding, each in zip(embeddings, vectors, strict=True):
        numbers[embedding.name] = range(first, first + len(each))
        first += len(each)
    return numbers
