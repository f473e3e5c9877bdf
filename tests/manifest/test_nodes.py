"""YAML as an enemy would write it, and as a tired friend would."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import Location, ManifestError
from runner.manifest import nodes
from runner.manifest.nodes import Node, parse, read, resolve, wrap

PATH = Path("m.yaml")


def refusal(text: str) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        parse(text, PATH)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture(params=[yaml.CSafeLoader, yaml.SafeLoader], ids=["c", "python"], autouse=True)
def either_parser(request: pytest.FixtureRequest, limit) -> None:
    limit(nodes, LOADER=request.param)


TEXTS = "NO no yes on off y n 16:9 1:30:00 2026-01-01 1_000 0b11 1e .e5 . - + e5 tRUE nULL inf nan 0X1F 0o9 +0x1 ="


@pytest.mark.parametrize(
    "written",
    TEXTS.split(),
)
def test_what_core_schema_calls_text_stays_text(written: str) -> None:
    assert parse(f"- {written}" if written != "-" else "- '-'", PATH).items()[0].value == written


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5e-1", 0.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.25", -0.25),
        ("+7", 7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("-.inf", -math.inf),
    ],
)
def test_plain_scalars_are_resolved_by_yaml_1_2(written: str, value: object) -> None:
    found = parse(f"- {written}", PATH).items()[0]
    assert (found.value, type(found.value)) == (value, type(value))


def test_quoted_scalars_are_texts() -> None:
    assert [node.value for node in parse("""['1', "true", "", 'NO']""", PATH).items()] == ["1", "true", "", "NO"]


def test_numbers_too_long_to_convert_are_not_whole_numbers() -> None:
    with pytest.raises(ManifestError, match=r"'9{57}\.\.\.' is not a whole number from 1 to 1000"):
        parse("9" * 10_000, PATH).integer(1, 1000)


@given(st.text())
def test_resolving_never_fails(written: str) -> None:
    value = resolve(written)
    assert value is None or isinstance(value, str | int | float)


@pytest.mark.parametrize("written", ["1984", "NO", "true", "~", "null", "5e-1", "2026-01-01", "16:9"])
def test_a_plain_scalar_is_the_text_as_it_is_written(written: str) -> None:
    assert parse(f"[{written}]", PATH).items()[0].text() == written


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        ("a: a cat # black", True),
        ("a: a cat  # black", False),
        ("a: a cat  \nb: 1", False),
        ("# above\na: a cat\n# below", False),
        ("a: a cat#1", False),
        ("a: 'a cat # black'", False),
        ("a: 'a cat' # black", False),
        ("a: |\n  a cat # black", False),
        ("é: 🐈 кот # black\r\n", True),
        ("a: [a cat # black\n  ]", True),
        ("a: a\n  long cat # black", True),
    ],
)
def test_a_comment_behind_a_plain_scalar_is_noticed(text: str, follows: bool) -> None:
    root = parse(text, PATH).value
    assert isinstance(root, dict)
    node = next(iter(root.values()))
    assert (node.items()[0] if isinstance(node.value, list) else node).doubtful_comment is follows


@pytest.mark.parametrize(
    ("text", "line", "column", "parts"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1, ["'a'", "twice", "line 1"]),
        ("x:\n  {a: 1, 'a': 2}", 2, 10, ["'a'", "twice"]),
        ("a: &b 1\nc:\n  <<: *b", 3, 3, ["<<", "write the entries out"]),
        ("a: !!python/object:os.system ls", 1, 4, ["tag", "python/object", "quote"]),
        ("- !bang", 1, 3, ["tag '!bang'", "quote"]),
        ("--- 1\n--- 2\n", 2, 1, ["second document"]),
        ("- *bold", 1, 3, ["'*bold'", "no anchor", "quote"]),
        ("a: &a [1, *a]", 1, 11, ["'*a'", "within what it repeats"]),
        ("? [a]\n: 1", 1, 3, ["a list", "text as key"]),
        ("a:\n\tb: 1", 2, 1, ["a tab", "spaces"]),
        ("a: portrait: oil", 1, 12, ["colon and a space", "quote"]),
        ("- @home", 1, 3, ["quote"]),
        ("a: 'open\n", None, None, ["quoted scalar"]),
        ("[a, b", None, None, ["flow sequence"]),
        ("", 0, 0, ["empty"]),
        ("# only a comment\n", 0, 0, ["empty"]),
        ("[" * 33, 1, 33, ["32 levels"]),
        ("[" * 100_000, 1, 33, ["32 levels"]),
        ("{a: " * 100_000, 1, None, ["32 levels"]),
        ("- " * 5_000, 1, None, ["32 levels"]),
    ],
)
def test_refused_yaml_says_where_and_what(text: str, line: int | None, column: int | None, parts: list[str]) -> None:
    error = refusal(text)
    assert line is None or error.location.line == line
    assert column is None or error.location.column == column
    assert all(part in error.message for part in parts), error.message


def test_aliases_can_not_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    error = refusal("\n".join(lines))
    assert f"more than {nodes.MOST_NODES} values" in error.message
    assert error.location.line == 7


def test_aliases_can_not_dig_deeper_than_nesting_may() -> None:
    steps = [f"- &a{n} [{f'*a{n - 1}' if n else 1}]" for n in range(40)]
    assert "32 levels" in refusal("\n".join(steps)).message


def test_an_alias_stands_for_what_it_names() -> None:
    root = parse("a: &x [1, 2]\nb: *x\nc: {d: *x}", PATH)
    entries = root.mapping("abc")
    assert [node.value for node in entries["b"].items()] == [1, 2]
    assert entries["c"].mapping("d")["d"] is entries["a"]


def test_nodes_know_their_places() -> None:
    entries = parse("é: 1\nlist:\n  - 🐈\n  - x: |\n      y\n", PATH).mapping(("é", "list"))
    second = entries["list"].items()[1]
    assert entries["é"].location == Location(PATH, 1, 4)
    assert entries["list"].items()[0].location == Location(PATH, 3, 5)
    assert second.mapping("x")["x"].location == Location(PATH, 4, 8)
    assert second.mapping("x")["x"].text() == "y\n"


@pytest.mark.parametrize(
    ("written", "call", "message"),
    [
        ("[]", lambda node: node.items(), "not an empty one"),
        ("a cat", lambda node: node.items(), "expected a list, not 'a cat'"),
        ("[a]", lambda node: node.mapping("a"), "expected a mapping (key: value), not a list"),
        ("{stesp: 1}", lambda node: node.mapping(["steps"]), "unknown key 'stesp', did you mean 'steps'?"),
        ("{zip: 1}", lambda node: node.mapping(["a"], refused={"zip": "not yet"}), "not yet"),
        ("{a: 1}", lambda node: node.text(), "expected a text, not a mapping"),
        ('"\\0"', lambda node: node.text(), "can't be written"),
        ("0", lambda node: node.integer(1, 5), "'0' is not a whole number from 1 to 5"),
        ("6", lambda node: node.integer(1, 5), "'6' is not a whole number"),
        ("2.5", lambda node: node.integer(1, 5), "'2.5' is not a whole number"),
        ("true", lambda node: node.integer(0, 5), "'true' is not a whole number"),
        ("'3'", lambda node: node.integer(0, 5), "'3' is not a whole number"),
        (".nan", lambda node: node.integer(0, 5), "'.nan' is not a whole number"),
        ("1e999", lambda node: node.integer(0, 5), "'1e999' is not a whole number"),
        (".nan", lambda node: node.number(0, 5), "'.nan' is not a number from 0 to 5"),
        (".inf", lambda node: node.number(0, 5), "'.inf' is not a number"),
        ("1e999", lambda node: node.number(0, 5), "'1e999' is not a number"),
        ("true", lambda node: node.number(0, 5), "'true' is not a number"),
        ("yes", lambda node: node.flag(), "expected true or false, not 'yes'"),
        ("plsm", lambda node: node.choice(["plms", "ddim"]), "'plsm' is not known, did you mean 'plms'?"),
        ("zz", lambda node: node.choice(["plms", "ddim"]), "known are: ddim, plms"),
    ],
)
def test_reading_helpers_name_the_value_and_the_remedy(written: str, call: object, message: str) -> None:
    assert callable(call)
    node = parse(f"\n  {written}", PATH)
    with pytest.raises(ManifestError) as caught:
        call(node)
    assert message in caught.value.message
    assert caught.value.location.line == 2
    assert str(caught.value).startswith("m.yaml:2:")


def test_nothing_where_a_text_is_wanted() -> None:
    with pytest.raises(ManifestError, match='an empty text is written ""'):
        parse("a:", PATH).mapping("a")["a"].text()
    assert parse('a: ""', PATH).mapping("a")["a"].text() == ""


def test_reading_helpers_read() -> None:
    numbers = parse("[5, 5.0, -0.0, false]", PATH).items()
    assert [numbers[0].integer(1, 5), numbers[1].integer(1, 5)] == [5, 5]
    assert math.copysign(1, numbers[2].number(-1, 1)) == 1
    assert numbers[3].flag() is False


def test_half_surrogates_are_no_text() -> None:
    with pytest.raises(ManifestError):
        parse('"\\ud83d"', PATH).text()


@pytest.mark.parametrize(
    ("data", "line", "column", "part"),
    [
        (b"a: 1\nb: \xff\xfe\n", 2, 4, "byte 0xff"),
        (b"\xef\xbb\xbf\xc3\xa9: \xff\n", 1, 4, "byte 0xff"),
        ("a: 1".encode("utf-16"), 1, 1, "UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", 1, 1, "UTF-8"),
        (b"a: 1\nb: \x00\n", 2, 4, "character 0x00"),
        (b"", 0, 0, "empty"),
        (b"\xef\xbb\xbf", 0, 0, "empty"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, data: bytes, line: int, column: int, part: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=part) as caught:
        read(path)
    assert caught.value.location == Location(path, line, column)


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x # y\r\n")
    entries = read(path).mapping("ab")
    assert (entries["a"].value, entries["b"].doubtful_comment) == (1, True)
    assert entries["b"].location == Location(path, 2, 4)


def test_what_is_no_file(tmp_path: Path, limit) -> None:
    with pytest.raises(ManifestError, match="No such file"):
        read(tmp_path / "missing.yaml")
    with pytest.raises(ManifestError, match="is not a file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ManifestError, match="is not a file"):
        read(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ManifestError, match="symbolic links"):
        read(tmp_path / "loop")
    (tmp_path / "big").write_text("x" * 11)
    limit(nodes, MOST_BYTES=10)
    with pytest.raises(ManifestError, match="larger than"):
        read(tmp_path / "big")


def test_values_from_elsewhere_become_nodes() -> None:
    node = wrap({"a": [1, None, True, "x"], 5: 2.5}, Location(PATH))
    assert [entry.value for entry in node.mapping(("a", "5"))["a"].items()] == [1, None, True, "x"]
    assert wrap(1984, Location(PATH), plain=True).text() == "1984"
    for value in (1984, None, True):
        with pytest.raises(ManifestError, match="expected a text"):
            wrap(value, Location(PATH)).text()
    with pytest.raises(ManifestError, match="not a value"):
        wrap({"a": {1, 2}}, Location(PATH))


@given(st.text(alphabet=st.sampled_from("abc:-[]{},&*!|>'\"%@`#?\n \t~<1é\\"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert isinstance(parse(text, PATH), Node)
    except ManifestError as error:
        assert error.location.path == PATH


def test_messages_hold_nothing_that_a_terminal_obeys() -> None:
    assert str(wrap("a\x1b[31m\nb", Location(Path()))) == "'a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b'"
