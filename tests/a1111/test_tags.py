import pytest

from runner.a1111.tags import PromptError, read_tags


@pytest.mark.parametrize(
    ("text", "rest", "tags"),
    [
        ("a cat", "a cat", []),
        ("a <lora:ink:0.8> cat", "a  cat", [("ink", 0.8, 0.8, 2)]),
        ("<lora:ink>", "", [("ink", 1, 1, 0)]),
        ("<lora:ink:0.5:1>", "", [("ink", 1, 0.5, 0)]),
        ("<lora:ink:te=0.5:unet=1>", "", [("ink", 1, 0.5, 0)]),
        ("<lora:ink:te=0.5>", "", [("ink", 0.5, 0.5, 0)]),
        ("<lora:ink:unet=0.5>", "", [("ink", 0.5, 1, 0)]),
        ("<lora:ink:-1><lyco: b :.5>", "", [("ink", -1, -1, 0), ("b", 0.5, 0.5, 13)]),
        ("<word> and <other word>, 3 < 4 : 5", "<word> and <other word>, 3 < 4 : 5", []),
        ("<lora:never closed", "<lora:never closed", []),
        ("<lora:>", "<lora:>", []),
    ],
)
def test_tags_are_taken_out(text, rest, tags):
    assert read_tags(text) == (rest, tuple(tags))


@pytest.mark.parametrize(
    ("text", "message", "offset"),
    [
        ("a <lora:x:much>", "'much' is no number from -100 to 100", 2),
        ("a <lora:x:>", "'' is no number", 2),
        ("a <lora:x:nan>", "'nan' is no number", 2),
        ("a <lora:x:101>", "'101' is no number", 2),
        ("a <lora: :1>", "names no LoRA", 2),
        ("a <lora:x:1:1:1>", "write <lora:name:0.8>", 2),
        ("a <lora:x:lbw=1>", "write <lora:name:0.8>", 2),
        ("<lora:x:1> b <lora:x:2>", "the LoRA 'x' stands here twice", 13),
        ("a <hypernet:x:1>", "'hypernet' is no kind of tag", 2),
        ("a <LORA:x:1>", "'LORA' is no kind of tag", 2),
    ],
)
def test_wrong_tags_are_named_with_their_place(text, message, offset):
    with pytest.raises(PromptError) as caught:
        read_tags(text)
    assert message in str(caught.value)
    assert caught.value.offset == offset
    assert f"(character {offset + 1} of the prompt)" in str(caught.value)
