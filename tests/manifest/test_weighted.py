"""Weighted prompts: what is a weight, what is a plain colon, and that nothing is lost on the way back to text."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from runner.item import Part
from runner.manifest.weighted import combine, parse, to_text


def read(text: str) -> list[tuple[str, object]]:
    return [(part.text, part.weight) for part in parse(text)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat", [("a cat", 1)]),
        ("  a  cat\n", [("a  cat", 1)]),
        ("", [("", 1)]),
        ("cat:0.5", [("cat", 1)]),
        ("tabby cat:0.25 white duck:0.75", [("tabby cat", 0.25), ("white duck", 0.75)]),
        ("tabby cat:0.25 white duck:0.75 hybrid", [("tabby cat", 0.125), ("white duck", 0.375), ("hybrid", 0.5)]),
        ("cat:1 dog:3", [("cat", 0.25), ("dog", 0.75)]),
        ("cat:.5 dog:1.", [("cat", 1 / 3), ("dog", 2 / 3)]),
        ("cat:2 dog:-1", [("cat", 2), ("dog", -1)]),
        ("cat:+1e-1 dog:9E-1", [("cat", 0.1), ("dog", 0.9)]),
        ("cat:1\tdog:1\n", [("cat", 0.5), ("dog", 0.5)]),
        ("cat:1\u00a0dog:1", [("cat", 0.5), ("dog", 0.5)]),
        ("cat:0 dog:1", [("cat", 0), ("dog", 1)]),
        ("portrait: oil", [("portrait: oil", 1)]),
        ("http://x", [("http://x", 1)]),
        ("cat:nan", [("cat:nan", 1)]),
        ("cat:inf dog:1", [("cat:inf dog", 1)]),
        ("cat:1/4", [("cat:1/4", 1)]),
        ("cat:1,", [("cat:1,", 1)]),
        ("at 16:9:2 wide", [("at 16:9", 2 / 3), ("wide", 1 / 3)]),
        ("cat:٣", [("cat:٣", 1)]),
        ("cat : 1", [("cat : 1", 1)]),
        ("cat :1", [("cat", 1)]),
        (r"ratio 16\:9", [("ratio 16:9", 1)]),
        (r"cat\:2:1 dog:1", [("cat:2", 0.5), ("dog", 0.5)]),
        (r"\:0.5", [(":0.5", 1)]),
        (r"back\slash \n", [(r"back\slash \n", 1)]),
    ],
)
def test_how_prompts_are_read(text: str, parts: list[tuple[str, float]]) -> None:
    assert read(text) == [(words, pytest.approx(weight)) for words, weight in parts]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (":0.5", ["no words before ':0.5'"]),
        ("cat:1 :2", ["no words before ':2'"]),
        ("cat:0", ["0", "greater than zero"]),
        ("cat:-1", ["-1", "greater than zero"]),
        ("cat:1 dog:-1", ["1, -1", "add up to 0"]),
        ("cat:0.1 dog:0.2 bird:-0.3", ["greater than zero"]),
        ("cat:1e999", ["the weight inf", "1e+09"]),
        ("cat:1e10", ["the weight 1e+10"]),
    ],
)
def test_prompts_that_can_not_be_drawn(text: str, parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("texts", "weights", "part"),
    [
        (["a", "b"], [1], "2 parts but 1 weights"),
        ([], [], "without words"),
        (["a", " "], [1, 1], "without words"),
        (["a"], [math.nan], "nan"),
        (["a"], [math.inf], "inf"),
        (["a"], [0], "greater than zero"),
    ],
)
def test_parts_that_can_not_be_combined(texts: list[str], weights: list[float], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        combine(texts, weights)


def test_combining_divides_by_the_sum() -> None:
    assert combine([" cat ", "dog"], [1, 3]) == (Part(text="cat", weight=0.25), Part(text="dog", weight=0.75))


def test_text_of_parts_is_the_one_people_write() -> None:
    assert to_text(["tabby cat", "white duck"], [0.25, 0.75]) == "tabby cat:0.25 white duck:0.75"
    assert to_text(["cat", "dog"], [1, 3.0]) == "cat:1 dog:3"
    assert to_text(["http://x", "cat:2"], [1, 1]) == r"http://x:1 cat\:2:1"


texts = st.text(st.sampled_from("ab :\\.-+e159 \n\u00a0é🐈"), max_size=12).map(str.strip).filter(bool)
pairs = st.lists(st.tuples(texts, st.floats(-1e9, 1e9)), min_size=1, max_size=4)


@given(pairs)
def test_text_of_parts_is_read_as_the_same_parts(pairs: list[tuple[str, float]]) -> None:
    words, weights = [text for text, _ in pairs], [weight for _, weight in pairs]
    assume(math.fsum(weights) > 1e-6 * math.fsum(map(abs, weights)))
    assert parse(to_text(words, weights)) == combine(words, weights)


@given(pairs)
def test_weights_divided_once_stay_what_they_are(pairs: list[tuple[str, float]]) -> None:
    words, weights = [text for text, _ in pairs], [weight for _, weight in pairs]
    assume(math.fsum(weights) > 1e-6 * math.fsum(map(abs, weights)))
    once = combine(words, weights)
    assert combine(words, [part.weight for part in once]) == once
    assert math.fsum(part.weight for part in once) == pytest.approx(1, abs=1e-9)


def test_long_rows_of_digits_and_colons_are_read_quickly() -> None:
    began = time.perf_counter()
    assert len(parse(":" + "1" * 200_000 + "x")) == 1
    assert len(parse(":1" * 100_000 + "x")) == 1
    assert len(parse("a:1 " * 50_000)) == 50_000
    assert time.perf_counter() - began < 5


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parts = parse(text)
    except ValueError:
        assert ":" in text
    else:
        assert parts
        assert all(part.text or len(parts) == 1 for part in parts)
