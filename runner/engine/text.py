"""Prompts become embeddings: each text is encoded once, and the parts of a weighted prompt are added up.

A model has one text encoder or two; what they say of a token stands side by side. The second one of Stable Diffusion XL
also says something of the whole prompt, `pooled`.

    texts = Texts(model.family.texts, components, tokenizers(model))
    embeddings = texts.encode(["a cat", ""])
    combine(item, embeddings)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from runner.a1111.emphasis import fragments
from runner.device.component import Component
from runner.engine.autoencoder import padded_batches
from runner.engine.emphasis import emphasise, timeline
from runner.engine.words import LearntWords
from runner.item import Embedding, Item
from runner.manifest.embeddings import named
from runner.model.architecture import Text
from runner.model.pieces import Piece, cut
from runner.model.tokens import LENGTH, ClipTokenizer, Words

TEXT_ROWS = 4


class Encoded(NamedTuple):
    """A text's embedding, float32: `context` [77, C], or where it is in pieces [77 * pieces, C], and `pooled` [P]."""

    context: Tensor
    pooled: Tensor | None = None

    def zeros(self) -> Encoded:
        """As long, and says nothing."""
        return Encoded(torch.zeros_like(self.context), None if self.pooled is None else torch.zeros_like(self.pooled))


class Way(NamedTuple):
    """How texts are encoded: in pieces or not, from which layer (None for the model's own), in which syntax, and with
    which learnt words."""

    chunked: bool = False
    layer: int | None = None
    a1111: bool = False
    words: tuple[Embedding, ...] = ()

    def with_words_of(self, texts: Sequence[str]) -> Way:
        """The same with the learnt words alone that texts name."""
        return self._replace(words=named(texts, {word.name: word for word in self.words})) if self.words else self

    def read(self, text: str, tokenizer: ClipTokenizer, words: Words) -> list[Piece]:
        """The tokens of a text, in pieces; `words` are the numbers of the learnt words' vectors."""
        if self.a1111:
            return cut(fragments(text), tokenizer, words)
        rows = tokenizer.encode_chunks(text, words) if self.chunked else [tokenizer.encode(text, words).ids]
        return [Piece(ids=ids, weights=(1.0,) * LENGTH) for ids in rows]


PLAIN_WAY = Way()


def ways_of(items: Sequence[Item]) -> list[Way]:
    """How each item's texts are encoded. The learnt words are those of all, unless an item means something else by one.

    So texts with other words are encoded together.
    """
    words = {word.name: word for item in items for word in item.embeddings}
    return [
        Way(
            chunked=item.chunked,
            layer=_layer(item),
            a1111=item.a1111,
            words=tuple(words.values()) if named(item.texts(), words) == item.embeddings else item.embeddings,
        )
        for item in items
    ]


def _layer(item: Item) -> int | None:
    layer = item.value("clip_skip")
    return layer if isinstance(layer, int) else None


class Texts:
    """A model's text encoders, as one."""

    def __init__(
        self, texts: Mapping[str, Text], components: Mapping[str, Component], tokenizers: Mapping[str, ClipTokenizer]
    ) -> None:
        self._encoders = {name: (text, components[name], tokenizers[name]) for name, text in texts.items()}
        self._words = LearntWords(texts, components)
        for text, encoder, tokenizer in self._encoders.values():
            if text.pooled:  # what stands at the end of a text speaks for all of it
                model: Any = encoder.module
                model.text_model.eos_token_id = tokenizer.end

    def encode(self, texts: Sequence[str], *, way: Way = PLAIN_WAY) -> dict[str, Encoded]:
        """Each text's embedding; of a prompt in AUTOMATIC1111's syntax a text is what holds at a step.

        Raises:
            ValueError: a text encoder hasn't so many layers, or an embedding can't be had.
        """
        with self._words.known(way.words) as words:
            made = [_encode(*encoder, words[name], texts, way) for name, encoder in self._encoders.items()]
        return {text: _side_by_side([each[text] for each in made]) for text in texts}

    def rest(self) -> None:
        """Gives the memory back that weights walk through."""
        for _, encoder, _ in self._encoders.values():
            encoder.rest()


def _encode(
    text: Text, encoder: Component, tokenizer: ClipTokenizer, words: Words, texts: Sequence[str], way: Way
) -> dict[str, Encoded]:
    layers, layer = int(encoder.config["num_hidden_layers"]), way.layer
    if layer is not None and layer > layers:
        raise ValueError(f"clip_skip={layer}: a text encoder of this model has {layers} layers")
    pieces = [way.read(each, tokenizer, words) for each in texts]
    rows = [piece for each in pieces for piece in each]
    ids = torch.tensor([piece.ids for piece in rows], device=encoder.device)  # [N, 77]
    made = encoder.call_all([text_call(text, batch, layer=layer) for batch in padded_batches(ids, TEXT_ROWS)])
    counts = [len(each) for each in pieces]
    contexts = torch.split(emphasise(torch.cat([context for context, _ in made])[: len(rows)], rows), counts)
    if not text.pooled:
        return {each: Encoded(context.flatten(0, 1)) for each, context in zip(texts, contexts, strict=True)}
    pooled = torch.split(torch.cat([pooled for _, pooled in made])[: len(rows)], counts)
    # Of a text in pieces the first one speaks for the whole.
    return {
        each: Encoded(context.flatten(0, 1), whole[0])
        for each, context, whole in zip(texts, contexts, pooled, strict=True)
    }


def text_call(text: Text, ids: Tensor, *, layer: int | None = None) -> Callable[[Any], Any]:
    """A call of a text encoder with ids [rows, 77].

    It returns embeddings [rows, 77, C], and [rows, P] of the whole texts or None, in float32.
    """
    layer = layer or text.layer
    if layer == 1 and text.normed and not text.pooled:
        return lambda encoder: (encoder(ids).last_hidden_state.float(), None)
    return lambda encoder: _call_for_layer(encoder, text, ids, layer)


def _call_for_layer(encoder: Any, text: Text, ids: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
    """All layers are called, so that their weights come in the same order whichever of them is asked for."""
    said = encoder(ids, output_hidden_states=True)
    context = said.hidden_states[-layer]
    if text.normed:
        norm = encoder.final_layer_norm  # the last module that was called, so its weights are still there
        context = functional.layer_norm(context, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return context.float(), said.text_embeds.float() if text.pooled else None


def _side_by_side(made: Sequence[Encoded]) -> Encoded:
    if len(made) == 1:
        return made[0]
    pooled = [each.pooled for each in made if each.pooled is not None]
    return Encoded(torch.cat([each.context for each in made], -1), torch.cat(pooled) if pooled else None)


def over_time(item: Item, text: str, embeddings: Mapping[str, Encoded]) -> list[tuple[int, Encoded]]:
    """What a text says when, as `timeline` has it, all in as many pieces as the longest of it; empty ones fill up."""
    found = timeline(item, text)
    made = {said: embeddings[said] for _, said in found}
    pieces = max(len(each.context) for each in made.values()) // LENGTH
    made = {said: each._replace(context=_filled(each.context, pieces, embeddings)) for said, each in made.items()}
    return [(end, made[said]) for end, said in found]


def _filled(context: Tensor, pieces: int, embeddings: Mapping[str, Encoded]) -> Tensor:
    missing = pieces - len(context) // LENGTH
    return torch.cat([context, *[embeddings[""].context] * missing]) if missing else context


def combine(item: Item, embeddings: Mapping[str, Encoded]) -> Encoded:
    """A weighted prompt's embedding: the sum of its parts' by weight; shorter parts end in empty pieces."""
    if len(item.parts) == 1:
        return embeddings[item.parts[0].text]
    parts = [embeddings[part.text] for part in item.parts]
    pieces = max(len(part.context) for part in parts) // LENGTH
    contexts = [_filled(part.context, pieces, embeddings) for part in parts]
    pooled = [part.pooled for part in parts if part.pooled is not None]
    weights = [part.weight for part in item.parts]
    return Encoded(_sum(contexts, weights), _sum(pooled, weights) if pooled else None)


def _sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([each * weight for each, weight in zip(tensors, weights, strict=True)]).sum(0)
