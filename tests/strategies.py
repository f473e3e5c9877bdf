"""Hypothesis strategies that several tests share."""

from __future__ import annotations

from hypothesis import strategies as st

from runner.item import Embedding, Item, Part
from runner.keys import FORMATS, LARGEST_SEED
from runner.manifest.weighted import combine
from runner.sampler_names import SAMPLERS

texts = st.text(max_size=20).map(str.strip).filter(lambda text: "\x00" not in text)


@st.composite
def any_parts(draw: st.DrawFn) -> tuple[Part, ...]:
    texts_ = draw(st.lists(texts.filter(bool), min_size=1, max_size=3))
    return combine(texts_, [1.0, *(draw(st.floats(0, 100)) for _ in texts_[1:])])


@st.composite
def any_item(draw: st.DrawFn) -> Item:
    sampler = draw(st.sampled_from(tuple(SAMPLERS)))
    axes = draw(
        st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(0, 2**63) | st.text() | st.floats(-9, 9))
    )
    parts = draw(any_parts())
    words = draw(st.lists(st.sampled_from(["toy", "a-1.b", "猫"]), max_size=2, unique=True))
    if words:
        named = " ".join(f"<{word}>" for word in words)
        parts = (parts[0]._replace(text=f"{parts[0].text} {named}".strip()), *parts[1:])
    return Item(
        number=3,
        prompt=draw(texts),
        parts=parts,
        negative=draw(texts),
        seed=draw(st.integers(0, LARGEST_SEED)),
        width=64 * draw(st.integers(1, 64)),
        height=64 * draw(st.integers(1, 64)),
        steps=draw(st.integers(1, 500)),
        scale=draw(st.floats(0, 100)) + 0.0,
        sampler=sampler,
        eta=draw(st.floats(0, 1)) + 0.0 if sampler == "ddim" else 0.0,
        format=draw(st.sampled_from(FORMATS)),
        long_prompts=draw(st.sampled_from(["error", "truncate"])),
        axes=tuple(axes.items()),
        embeddings=tuple(Embedding(word, "", f"{len(word):064x}") for word in sorted(words)),
    )
