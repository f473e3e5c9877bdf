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

from runner.device.component import Component
from runner.engine.autoencoder import padded_batches
from runner.engine.words import LearntWords
from runner.item import Embedding, Item
from runner.manifest.embeddings import named
from runner.model.architecture import Text
from runner.model.tokens import LENGTH, ClipTokenizer, Words

TEXT_ROWS = 4


class Encoded(NamedTuple):
    """A text's embedding, float32: `context` [77, C], or where it is in pieces [77 * pieces, C], and `pooled` [P]."""

    context: Tensor
    pooled: Tensor | None = None

    def zeros(self) -> Encoded:
        """As long, and says nothing."""
        return Encoded(torch.zeros_like(self.context), None if self.pooled is None else torch.zeros_like(self.pooled))


class TextWay(NamedTuple):
    """In pieces or not, from which layer (None for the model's own), and with which learnt words."""

    chunked: bool
    layer: int | None
    words: tuple[Embedding, ...]

    def named(self, texts: Sequence[str]) -> tuple[Embedding, ...]:
        """The learnt words that texts name."""
        return named(texts, {word.name: word for word in self.words})


def text_ways(items: Sequence[Item]) -> list[TextWay]:
    """How each item's texts are encoded. The learnt words are those of all, unless an item means something else by one.

    So texts with other words are encoded together.
    """
    words = {word.name: word for item in items for word in item.embeddings}
    layers = (item.value("clip_skip") for item in items)
    return [
        TextWay(
            item.chunked,
            layer if isinstance(layer, int) else None,
            tuple(words.values()) if named(item.texts(), words) == item.embeddings else item.embeddings,
        )
        for item, layer in zip(items, layers, strict=True)
    ]


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

    def encode(
        self,
        texts: Sequence[str],
        *,
        chunked: bool = False,
        layer: int | None = None,
        embeddings: Sequence[Embedding] = (),
    ) -> dict[str, Encoded]:
        """Each text's embedding, from the layer that is asked for, counted from the last one, or the model's own.

        `embeddings` are what words in the texts stand for.

        Raises:
            ValueError: a text encoder hasn't so many layers, or an embedding can't be had.
        """
        with self._words.known(embeddings) as words:
            made = [
                _encode(*encoder, words[name], texts, chunked=chunked, layer=layer)
                for name, encoder in self._encoders.items()
            ]
        return {text: _side_by_side([each[text] for each in made]) for text in texts}

    def rest(self) -> None:
        """Gives the memory back that weights walk through."""
        for _, encoder, _ in self._encoders.values():
            encoder.rest()


def _encode(
    text: Text,
    encoder: Component,
    tokenizer: ClipTokenizer,
    words: Words,
    texts: Sequence[str],
    *,
    chunked: bool,
    layer: int | None,
) -> dict[str, Encoded]:
    layers = int(encoder.config["num_hidden_layers"])
    if layer is not None and layer > layers:
        raise ValueError(f"clip_skip={layer}: a text encoder of this model has {layers} layers")
    pieces = [
        tokenizer.encode_chunks(each, words) if chunked else [tokenizer.encode(each, words).ids] for each in texts
    ]
    rows = [piece for each in pieces for piece in each]
    ids = torch.tensor(rows, device=encoder.device)  # [N, 77]
    made = encoder.call_all([text_call(text, batch, layer=layer) for batch in padded_batches(ids, TEXT_ROWS)])
    counts = [len(each) for each in pieces]
    contexts = torch.split(torch.cat([context for context, _ in made])[: len(rows)], counts)
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


def combine(item: Item, embeddings: Mapping[str, Encoded]) -> Encoded:
    """A weighted prompt's embedding: the sum of its parts' by weight; shorter parts end in empty pieces."""
    if len(item.parts) == 1:
        return embeddings[item.parts[0].text]
    parts = [embeddings[part.text] for part in item.parts]
    contexts = [part.context for part in parts]
    if any(len(context) != len(contexts[0]) for context in contexts):
        pieces = max(map(len, contexts)) // LENGTH
        empty = embeddings[""].context
        contexts = [torch.cat([each, *[empty] * (pieces - len(each) // LENGTH)]) for each in contexts]
    pooled = [part.pooled for part in parts if part.pooled is not None]
    weights = [part.weight for part in item.parts]
    return Encoded(_sum(contexts, weights), _sum(pooled, weights) if pooled else None)


def _sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([each * weight for each, weight in zip(tensors, weights, strict=True)]).sum(0)
