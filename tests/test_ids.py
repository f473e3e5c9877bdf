"""Lists of ids: a text file or JSON, whole ids or their beginnings, and what is said of those that no item has."""

import json

import pytest

from runner.errors import ManifestError
from runner.ids import is_id, read_ids

ONE, TWO, THREE = "1" * 64, "2" * 64, "ab" * 32


@pytest.fixture
def listed(tmp_path):
    def read(text, name="ids.txt"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_ids(str(tmp_path / name))

    return read


@pytest.mark.parametrize(
    "text",
    [
        f"{ONE}\n{THREE}\n",
        f"\ufeff# favourites\r\n\r\n  {ONE.upper()}  \r\n{THREE[:8].upper()}",
        json.dumps([ONE, THREE]),
    ],
)
def test_a_list_takes_what_it_names(listed, text):
    ids = listed(text)
    assert [ids.take(each) for each in (ONE, TWO, THREE)] == [True, False, True]
    assert ids.note("alps.yaml") == ""


def test_a_beginning_stands_for_all_that_begin_so_and_beside_longer_ones(listed):
    ids = listed(f"{ONE[:8]}\n{ONE[:9]}\n{TWO}")
    assert ids.take(ONE) and ids.take("1" * 8 + "2" * 56) and ids.take(TWO)
    assert ids.note("x") == ""


def test_ids_of_nothing_are_named_and_nothing_but_those_is_an_error(listed):
    ids = listed(f"{ONE}\n{TWO[:10]}\n")
    assert ids.take(ONE)
    assert ids.note("alps.yaml").endswith(f"ids.txt: 1 ids are of no item of alps.yaml: {TWO[:10]}")
    with pytest.raises(ManifestError, match=r"ids.txt: none of its 1 ids is that of an item of alps.yaml"):
        listed(ONE).note("alps.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no ids"),
        ("# nothing\n", "lists no ids"),
        ("[]", "lists no ids"),
        (f"{ONE}\n1234567\n", "ids.txt:2:1: '1234567' is no id: should be 8 to 64 hexadecimal digits"),
        (f"{ONE}1\n", "is no id"),
        ("images/cat/seed_1_00000.png\n", "is no id"),
        ('["12345678", 7]', "no list of texts"),
        ("[1234", "nor JSON"),
        ("[" * 100_000, "nor JSON"),
        (b"\xff\xfe", "can't be read"),
    ],
)
def test_a_list_that_is_none_is_refused(listed, text, said):
    with pytest.raises(ManifestError) as caught:
        listed(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.txt", "", "a\0b"])
def test_a_list_that_cannot_be_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match="can't be read"):
        read_ids(name)


def test_what_an_id_is():
    assert is_id(THREE)
    assert not is_id(THREE.upper()) and not is_id(ONE[:8]) and not is_id("../" + ONE)
