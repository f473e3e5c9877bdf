import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from runner.errors import ModelError
from runner.model.tokens import LENGTH, ROOM, SHIPPED, ClipTokenizer, surely_fits

TEXTS = [
    "", "a photograph of an astronaut riding a horse", "Tiger FACE  on\ta blue\n background", "naïve café — 日本語 🐯",
    "it's 1999!! don't 'S", "ﬁ ½ İ ß e\u0301", "(word:1.2) {a|b} <lora:x:1>", "supercalifragilistic " * 30,
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer(SHIPPED)


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_are_those_of_transformers(tokenizer, text):
    stock = CLIPTokenizer.from_pretrained(str(SHIPPED))
    wanted = stock(text, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    assert list(tokenizer.encode(text).ids) == wanted


def test_the_known_example_of_clip(tokenizer):
    assert tokenizer.encode("a photograph of an astronaut riding a horse").ids[:10] == (
        49406, 320, 8853, 539, 550, 18376, 6765, 320, 4558, 49407,
    )  # fmt: skip


def test_what_does_not_fit_is_named(tokenizer):
    fits = " ".join(["cat"] * ROOM)
    assert tokenizer.encode(fits).lost == ""
    assert tokenizer.encode(fits + " white Duck").lost == "white Duck"


GROWING = "\u0344\u0958İ"  # composed or in small letters they have more bytes


@given(st.text(max_size=90) | st.text(GROWING + "a ", max_size=40))
def test_what_surely_fits_loses_nothing(tokenizer, text):
    assert not surely_fits(text) or tokenizer.encode(text).lost == ""


@pytest.mark.parametrize(
    ("text", "fits"), [("a" * ROOM, True), ("é" * 37, True), ("é" * 38, False), ("\u0344" * 37, False)]
)
def test_a_text_surely_fits_by_the_bytes_that_are_read(text, fits):
    assert surely_fits(text) == fits


def test_special_tokens_in_a_prompt_are_plain_text(tokenizer):
    assert tokenizer.encode("<|endoftext|> cat").ids.index(49407) > 5


def test_a_tokenizer_json_serves_as_well(tokenizer, tmp_path):
    CLIPTokenizer.from_pretrained(str(SHIPPED)).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").unlink(missing_ok=True)
    (tmp_path / "merges.txt").unlink(missing_ok=True)
    assert json.loads((tmp_path / "tokenizer.json").read_text())
    other = ClipTokenizer(tmp_path)
    assert [other.encode(text) for text in TEXTS[1:3]] == [tokenizer.encode(text) for text in TEXTS[1:3]]


def test_version_2_is_padded_with_another_token(tokenizer, tmp_path):
    padded = ClipTokenizer(tmp_path / "missing", pad="!").encode("a cat").ids
    assert padded == (*tokenizer.encode("a cat").ids[:4], *[0] * (LENGTH - 4))


@pytest.mark.parametrize(
    ("files", "number"),
    [
        ({}, 49407),
        ({"tokenizer_config": {"pad_token": "!"}}, 0),
        ({"tokenizer_config": {"pad_token": {"__type": "AddedToken", "content": "!"}}}, 0),
        ({"tokenizer_config": {"pad_token": "<|endoftext|>"}, "special_tokens_map": {"pad_token": "!"}}, 0),
        ({"tokenizer_config": {"pad_token": "!", "added_tokens_decoder": {}}, "special_tokens_map": {}}, 0),
    ],
)
def test_the_padding_is_what_the_tokenizers_files_say(tmp_path, files, number):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(SHIPPED / name)
    common = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    for name, content in ({"tokenizer_config": {}} | files).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(common | content))
    made = ClipTokenizer(tmp_path).encode("a cat").ids
    assert made[-1] == number
    if "added_tokens_decoder" not in files.get("tokenizer_config", {}):
        stock = CLIPTokenizer.from_pretrained(str(tmp_path))
        assert stock("a cat", padding="max_length", max_length=LENGTH).input_ids == list(made)


def test_damaged_files_of_a_tokenizer_are_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer_config"):
        ClipTokenizer(tmp_path)


def test_a_model_without_a_vocabulary_takes_the_shipped_one(tokenizer, tmp_path):
    assert ClipTokenizer(tmp_path / "missing").encode("a cat") == tokenizer.encode("a cat")


def test_a_long_prompt_in_pieces_loses_nothing(tokenizer):
    words = " ".join(f"cat {n % 10}" for n in range(100))
    pieces = tokenizer.encode_chunks(words)
    assert [len(piece) for piece in pieces] == [LENGTH] * 3
    inner = [token for piece in pieces for token in piece if token < 49406]
    whole = [token for n in range(0, 200, 20) for token in tokenizer.encode(" ".join(words.split()[n : n + 20])).ids]
    assert inner == [token for token in whole if token < 49406]
    assert tokenizer.encode_chunks("a cat") == [tokenizer.encode("a cat").ids]
    assert tokenizer.encode_chunks("") == [tokenizer.encode("").ids]


# ---- learnt words

TOY, BAD = range(50000, 50003), range(50003, 50004)
WORDS = {"toy": TOY, "bad-2.x": BAD}


def inner(ids):
    """Without the start, the end and the padding."""
    return list(ids[1 : ids.index(49407)])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("<toy>", [TOY]),
        ("a <toy> on a mat", ["a", TOY, "on a mat"]),
        ("a<toy>b", ["a", TOY, "b"]),
        ("a  <toy>\t , b", ["a", TOY, ", b"]),
        ("<toy><bad-2.x> <toy>", [TOY, BAD, TOY]),
        ("(<toy>)", ["(", TOY, ")"]),
        ("<Toy> <other> <toy >", ["<Toy> <other> <toy >"]),
        ("<<toy>>", ["<", TOY, ">"]),
        ("cat", ["cat"]),
        ("", []),
    ],
)
def test_a_learnt_word_stands_for_its_vectors(tokenizer, text, pieces):
    """What is on both sides of it is read by itself."""
    wanted = []
    for piece in pieces:
        wanted += inner(tokenizer.encode(piece).ids) if isinstance(piece, str) else piece
    made = tokenizer.encode(text, WORDS)
    assert inner(made.ids) == wanted and len(made.ids) == LENGTH and made.lost == ""
    assert tokenizer.encode_chunks(text, WORDS) == [made.ids]
    assert tokenizer.encode(text).ids == tokenizer.encode(text, {"unnamed": TOY}).ids


def test_vectors_count_among_the_tokens(tokenizer):
    fits = " ".join(["cat"] * (ROOM - 3))
    assert tokenizer.encode(f"{fits} <toy>", WORDS).lost == ""
    assert tokenizer.encode(f"<toy> {fits} Duck x", WORDS).lost == "Duck x"
    assert tokenizer.encode(f"{fits} red <toy> Duck", WORDS).lost == "<toy> Duck"
    cut = tokenizer.encode(f"{fits} red <toy> Duck", WORDS).ids
    assert cut[-4:] == (*tokenizer.encode("red").ids[1:2], *TOY[:2], 49407)


def test_the_vectors_of_a_word_are_in_one_piece(tokenizer):
    words = WORDS | {"all": range(50010, 50010 + ROOM)}
    fits = " ".join(["cat"] * (ROOM - 2))
    first, second = tokenizer.encode_chunks(f"{fits} <toy> duck", words)
    assert inner(first) == inner(tokenizer.encode(fits).ids) and len(first) == LENGTH
    assert inner(second) == [*TOY, *inner(tokenizer.encode("duck").ids)]
    pieces = tokenizer.encode_chunks("a <all> b", words)
    assert [inner(piece) for piece in pieces] == [
        inner(tokenizer.encode("a").ids), list(words["all"]), inner(tokenizer.encode("b").ids)
    ]  # fmt: skip
    assert all(len(piece) == LENGTH and piece[-1] == 49407 for piece in pieces)


@given(st.text("a <toy>.-é", max_size=60), st.integers(1, ROOM))
def test_what_surely_fits_loses_nothing_whatever_the_words(tokenizer, text, count):
    assert not surely_fits(text) or tokenizer.encode(text, {"toy": range(50000, 50000 + count)}).lost == ""


@given(st.lists(st.sampled_from(["cat ", "<toy>", "<bad-2.x> ", "é, "]), max_size=120).map("".join))
def test_pieces_hold_every_token_in_order(tokenizer, text):
    pieces = tokenizer.encode_chunks(text, WORDS)
    assert all(len(piece) == LENGTH for piece in pieces)
    found = [token for piece in pieces for token in inner(piece)]
    plain = text.replace("<toy>", " 1 ").replace("<bad-2.x>", " 2 ")
    wanted = [inner(piece) for piece in tokenizer.encode_chunks(plain)]
    one, two = (inner(tokenizer.encode(number).ids)[0] for number in "12")
    numbers = {one: TOY, two: BAD}
    assert found == [each for piece in wanted for token in piece for each in numbers.get(token, [token])]


def test_a_word_of_the_tokenizers_own_is_known(tokenizer, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(SHIPPED / name)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 49408}))
    own = ClipTokenizer(tmp_path)
    assert own.has_added("<cat-toy>") and not own.has_added("<cat>") and not own.has_added("cat")
    assert not tokenizer.has_added("<cat-toy>")
