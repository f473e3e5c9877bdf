"""What is wrong is found at once; what is let pass raises nothing later, however long or odd it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.a1111.check import check_negative, check_prompt
from runner.a1111.editing import schedule
from runner.a1111.emphasis import fragments
from runner.a1111.tags import PromptError

PIECES = ["a", "b c", " ", "(", ")", "[", "]", ":", "|", "\\", "\\(", ":1.2)", ":0.5]", ":3]", ":1.2.3)", " BREAK ",
          " AND ", "<lora:x:1>", "<y>", "<", ">", ",", "\n", "1", "."]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=60)


@given(texts, st.integers(0, 30))
def test_no_text_raises_anything_but_an_error_of_the_prompt(text, steps):
    for check in (lambda: check_prompt(text)[0], lambda: check_negative(text)):
        try:
            checked = check()
        except PromptError as error:
            assert 0 <= error.offset <= len(text)
            continue
        for end, said in schedule(checked, steps):
            assert end <= steps
            assert all(abs(fragment.weight) < 1e15 for fragment in fragments(said))


@pytest.mark.parametrize(
    ("text", "message", "offset"),
    [
        ("a cat AND a dog", "AND composes prompts", 6),
        ("<lora:x:1>a (AND) b", "AND composes prompts", 13),
        ("a cat, 16:9", "':9' at the end is the weight of a whole prompt", 9),
        ("a cat :1.2 ", "':1.2' at the end", 6),
        ("a (cat:1.2.3)", "'1.2.3' is no number", 6),
        ("<lora:x:1>a <lora:y:1>(cat:.)", "'.' is no number", 26),
        ("a ((b:9999999):9999999)", "the weight of 'b' is beyond 1e+09", 4),
        ("(" * 101, "more than 100 brackets are open", 100),
        ("a" + "[(" * 60, "more than 100 brackets are open", 101),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text, message, offset):
    with pytest.raises(PromptError) as caught:
        check_prompt(text)
    assert message in caught.value.message
    assert caught.value.offset == offset


def test_what_may_stand_in_a_negative_prompt():
    assert check_negative("bad AND ugly, 16:9 <neg> <3:x>") == "bad AND ugly, 16:9 <neg> <3:x>"
    for text in ("bad <lora:x:1>", "bad <lyco:x>", "bad <hypernet:x:1>"):
        with pytest.raises(PromptError, match="can't stand in a negative prompt") as caught:
            check_negative(text)
        assert caught.value.offset == 4


@pytest.mark.parametrize(
    "text",
    ["(a" * 10_000 + ")" * 10_000, "[a:" * 10_000 + ":3]" * 10_000, "[" * 100_000, "<a:" * 33_000, "<" * 100_000],
)
def test_deep_and_endless_texts_end_in_an_error_or_in_a_text(text):
    try:
        assert check_prompt(text)[0] == text
    except PromptError as error:
        assert "brackets are open at once" in error.message


@pytest.mark.parametrize("part", [" " * 99 + "BREAK", "x ", ": ", "[a:b:0.5]", "(a:1.2) ", r"\(", "\\", "[a] ", "<y>"])
def test_long_texts_are_read(part):
    text, _ = check_prompt(part * (100_000 // len(part)) + "end")
    assert schedule(text, 20)[-1][1].endswith("end")
    assert fragments(text)[-1].text.endswith("end")
