"""How errors are shown: the line of the file with a caret below it, several together, names that were meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.errors import LINE_SHOWN, Location, ManifestError, ManifestErrors, Problems, every
from runner.text import name_some


@pytest.mark.parametrize(
    ("line", "column", "shown", "offset"),
    [
        ("steps: 0", 8, "steps: 0", 7),
        ("\t\tsteps: 0", 10, "  steps: 0", 9),
        ("猫と犬: 0", 6, "猫と犬: 0", 8),
        ("e\u0301: 0", 5, "e\u0301: 0", 3),
        ("a: \x1b[31m0", 4, "a: \N{REPLACEMENT CHARACTER}[31m0", 3),
        ("a: 1\r", 5, "a: 1", 4),
        ("a:", 3, "a:", 2),
        ("\ufeffa: 1", 4, "a: 1", 3),
    ],
)
def test_the_caret_stands_below_the_place(tmp_path: Path, line: str, column: int, shown: str, offset: int) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(f"{line}\nnext\n".encode())
    assert Location(path, 1, column).excerpt() == [f"    {shown}", f"    {' ' * offset}^"]


@pytest.mark.parametrize("column", [1, 40, 5000, 9990])
def test_a_long_line_is_cut_around_the_place(tmp_path: Path, column: int) -> None:
    path = tmp_path / "m.yaml"
    text = "".join(chr(ord("a") + place % 26) for place in range(9990))
    path.write_text(text)
    shown, caret = Location(path, 1, column).excerpt()
    assert shown[caret.index("^")] == text[column - 1]
    assert len(shown) <= LINE_SHOWN + len("    ......")
    assert shown.startswith("    ...") is (column > LINE_SHOWN // 2)
    assert shown.endswith("...") is (column < 9900)


def test_no_excerpt_where_there_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("a\n\n")
    for location in (Location(path), Location(path, 2, 1), Location(path, 9, 1), Location(path, 1, 9)):
        assert location.excerpt() == []
    for missing in (tmp_path / "none", tmp_path, Path("command line")):
        assert Location(missing, 1, 1).excerpt() == []
        assert ManifestError("wrong", Location(missing, 1, 1)).report() == f"{missing}:1:1: wrong"


def test_several_errors_are_one(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("a: 1\nb: 2\n")

    def refuse(line: int) -> int:
        if line:
            raise ManifestError(f"'{line}'", Location(path, line, 4))
        return line

    with pytest.raises(ManifestErrors) as caught:
        every(refuse, [2, 0, 1, 2])
    assert caught.value.exit_code == 4
    assert (caught.value.message, caught.value.location) == ("'1'; '2'", Location(path, 1, 4))
    assert str(caught.value) == f"2 errors\n{path}:1:4: '1'\n{path}:2:4: '2'"
    assert caught.value.within("k").report().splitlines() == [
        "2 errors",
        f"{path}:1:4: k: '1'",
        "    a: 1",
        "       ^",
        f"{path}:2:4: k: '2'",
        "    b: 2",
        "       ^",
    ]
    assert every(refuse, [0, 0]) == [0, 0]


def test_one_error_stays_itself_and_others_pass() -> None:
    problems = Problems()
    error = ManifestError("wrong", Location(Path("m.yaml")))
    with problems:
        raise error
    assert problems
    with pytest.raises(ManifestError) as caught:
        problems.raise_all()
    assert caught.value is error
    with pytest.raises(ZeroDivisionError), problems:
        raise ZeroDivisionError
    Problems().raise_all()


def test_names_are_counted_beyond_the_first() -> None:
    assert name_some([str(n) for n in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_an_excerpt_shows_nothing_of_an_endless_line() -> None:
    assert Location(Path("/dev/zero"), 1, 1).excerpt() == []
