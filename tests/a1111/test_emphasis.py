import pytest

from runner.a1111.emphasis import BREAK, Fragment, fragments


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [("", 1)]),
        ("a cat", [("a cat", 1)]),
        ("(a)", [("a", 1.1)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("(a:1.3) b", [("a", 1.3), (" b", 1)]),
        ("(a: 1.3 )", [("a", 1.3)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("(a:.5)", [("a", 0.5)]),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("((a:1.2) b)", [("a", 1.2 * 1.1), (" b", 1.1)]),
        ("[(a)]", [("a", 1.1 * (1 / 1.1))]),
        ("(a:1.2)(b:1.2)", [("ab", 1.2)]),
        ("a (b:1) c", [("a b c", 1)]),
        ("(never closed", [("never closed", 1.1)]),
        ("[never (closed", [("never ", 1 / 1.1), ("closed", 1.1 * (1 / 1.1))]),
        ("a) b] c", [("a) b] c", 1)]),
        ("a:1.2) b", [("a:1.2) b", 1)]),
        ("a: b", [("a: b", 1)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1)]),
        (r"(\(a\):1.5)", [("(a)", 1.5)]),
        (r"a\b", [("ab", 1)]),
        ("()", [("", 1)]),
        ("<word> (<name>:0.8)", [("<word> ", 1), ("<name>", 0.8)]),
        ("a BREAK b", [("a", 1), BREAK, ("b", 1)]),
        ("a, BREAK, b", [("a,", 1), BREAK, (", b", 1)]),
        ("BREAK BREAK a", [BREAK, BREAK, ("a", 1)]),
        ("BREAKFAST a BREAKS break", [("BREAKFAST a BREAKS break", 1)]),
        ("(a BREAK b:1.2)", [("a", 1.2), ("BREAK", -1.2), ("b", 1.2)]),  # as there
    ],
)
def test_a_text_is_split_by_weight(text, found):
    assert [*fragments(text)] == [Fragment(*each) for each in found]
