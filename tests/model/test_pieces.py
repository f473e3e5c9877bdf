"""Pieces of 75 tokens: commas, BREAK, and what may not be parted."""

import pytest

from runner.a1111.emphasis import fragments
from runner.model.pieces import cut
from runner.model.tokens import LENGTH, ROOM, SHIPPED, ClipTokenizer

END = 49407


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer(SHIPPED)


def words(count: int, word: str = "cat") -> str:
    return " ".join([word] * count)


def filled(pieces) -> list[int]:
    """How many tokens each piece has."""
    return [piece.ids.index(END) - 1 for piece in pieces]


def read(text, tokenizer):
    return cut(fragments(text), tokenizer)


@pytest.mark.parametrize("text", ["", "a cat", "a cat, a dog", "it's 1999!! don't"])
def test_a_short_text_without_weights_is_the_plain_one(tokenizer, text):
    [piece] = read(text, tokenizer)
    assert piece.ids == tokenizer.encode(text).ids
    assert piece.weights == (1.0,) * LENGTH and not piece.weighted


def test_each_token_has_the_weight_of_its_fragment(tokenizer):
    [piece] = read("a (tabby cat:1.3), [dog]", tokenizer)
    assert piece.ids == tokenizer.encode("a tabby cat, dog").ids
    assert piece.weights[:8] == (1.0, 1.0, 1.3, 1.3, 1.0, 1 / 1.1, 1.0, 1.0)
    assert piece.weighted


def test_each_fragment_is_read_by_itself(tokenizer):
    [piece] = read("cat(fish:1.2)", tokenizer)
    assert piece.ids == tokenizer.encode("cat fish").ids != tokenizer.encode("catfish").ids


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (words(ROOM), [75]),
        (words(ROOM + 1), [75, 1]),
        (words(200), [75, 75, 50]),
        (f"{words(60)}, {words(20)}", [61, 20]),  # the comma is the 61st token
        (f"{words(55)}, {words(30)}", [56, 30]),  # 20 tokens from the end
        (f"{words(54)}, {words(30)}", [75, 10]),  # 21
        (f"{words(74)}, {words(5)}", [75, 5]),
        (f"{words(75)}, {words(5)}", [75, 6]),
        (f"{words(60)}, {words(75)}", [61, 75]),
        (f"{words(60)}, {words(70)}, {words(10)}", [61, 71, 10]),
        (f"{words(60)}, (dog:1.2) {words(20)}", [61, 21]),
        ("a BREAK b", [1, 1]),
        ("BREAK b", [0, 1]),
        ("a BREAK", [1]),
        ("BREAK", [0]),
        ("a BREAK BREAK b", [1, 0, 1]),
        (f"{words(80)} BREAK b", [75, 5, 1]),
        (f"{words(60)}, {words(10)} BREAK {words(80)}", [71, 75, 5]),
    ],
)
def test_where_a_text_is_cut(tokenizer, text, counts):
    assert filled(read(text, tokenizer)) == counts


def test_weights_go_with_their_tokens(tokenizer):
    first, second = read(f"{words(60)}, (dog:1.2) {words(20)}", tokenizer)
    assert not first.weighted
    assert second.weights[:3] == (1.0, 1.2, 1.0)


def test_padding_is_framed_as_the_encoder_wants_it(tmp_path):
    padded = ClipTokenizer(tmp_path / "missing", pad="!")
    assert [piece.ids for piece in read("a BREAK b", padded)] == [padded.encode("a").ids, padded.encode("b").ids]


def test_the_vectors_of_an_embedding_stay_together():
    numbers = range(END + 1, END + 11)
    pieces = cut(fragments(f"{words(70)} (<v>:1.2) b"), ClipTokenizer(SHIPPED), {"v": numbers})
    assert filled(pieces) == [70, 11]
    assert pieces[1].ids[1:11] == tuple(numbers) and pieces[1].weights[1:12] == (1.2,) * 10 + (1.0,)
