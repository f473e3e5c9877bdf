import pytest

from runner.a1111.editing import schedule


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("a cat", {10: "a cat"}),
        ("", {10: ""}),
        ("a [b:3]", {3: "a ", 10: "a b"}),
        ("a [b: 3 ]", {3: "a ", 10: "a b"}),
        ("a [b::3]", {3: "a b", 10: "a "}),
        ("a [b:c:3] d", {3: "a b d", 10: "a c d"}),
        ("a [b:c:.5] d", {5: "a b d", 10: "a c d"}),
        ("a [b:c:0.29]", {2: "a b", 10: "a c"}),
        ("a [b:c:1.0]", {10: "a b"}),
        ("a [b:c:1]", {1: "a b", 10: "a c"}),
        ("a [b:c:99]", {10: "a b"}),
        ("a [b:c:0]", {10: "a c"}),
        ("a [b:c:-2]", {10: "a c"}),
        ("a [b:c:1e400]", {10: "a b"}),
        ("a [b:[c:d:6]:3]", {3: "a b", 6: "a c", 10: "a d"}),
        ("[[a:b:2]:[c:d:8]:4]", {2: "a", 4: "b", 8: "c", 10: "d"}),
        ("[a:b:3] [c:d:3]", {3: "a c", 10: "b d"}),
        ("a [[[b]]:2]", {2: "a ", 10: "a [[b]]"}),
        ("[(a:1.2):3]", {3: "", 10: "(a:1.2)"}),
        ("[(a:1.2):(b:0.8):0.3]", {3: "(a:1.2)", 10: "(b:0.8)"}),
        ("(a [b:c:3]:1.2)", {3: "(a b:1.2)", 10: "(a c:1.2)"}),
        ("[cat|dog]", {1: "cat", 2: "dog", 3: "cat", 4: "dog", 5: "cat", 6: "dog", 7: "cat", 8: "dog", 9: "cat",
                       10: "dog"}),
        ("[a|b|c]", {1: "a", 2: "b", 3: "c", 4: "a", 5: "b", 6: "c", 7: "a", 8: "b", 9: "c", 10: "a"}),
        ("[[a|b]:c:2]", {1: "a", 2: "b", 10: "c"}),
        ("[fe|]male [x:9]", {1: "female ", 2: "male ", 3: "female ", 4: "male ", 5: "female ", 6: "male ",
                             7: "female ", 8: "male ", 9: "female ", 10: "male x"}),
        # None of these is an edit: they are emphasis, or plain.
        ("[a]", {10: "[a]"}),
        ("[a:b]", {10: "[a:b]"}),
        ("a [never closed", {10: "a [never closed"}),
        ("a] [b:c:3]", {3: "a] b", 10: "a] c"}),
        ("[a (b:c:3]", {10: "[a (b:c:3]"}),
        ("[a:b:c:3]", {10: "[a:b:c:3]"}),
        ("see: [a:b:3]", {3: "see: a", 10: "see: b"}),
        (r"\[a:b:3\]", {10: r"\[a:b:3\]"}),
        (r"[a\]:b:3]", {3: r"a\]", 10: "b"}),
        # A bar or a backslash by itself switches all of it off.
        ("a | b [c:d:3]", {10: "a | b [c:d:3]"}),
        ("[a|b:3]", {10: "[a|b:3]"}),
        ("[a:b:3] \\", {10: "[a:b:3] \\"}),
    ],
)  # fmt: skip
def test_which_text_holds_when(text, spans):
    assert dict(schedule(text, 10)) == spans


@pytest.mark.parametrize("steps", [0, 1, 7, 500])
def test_the_last_text_holds_to_the_end(steps):
    spans = schedule("[a:b:0.5] [c|d]", steps)
    assert spans[-1][0] == steps
    assert [end for end, _ in spans] == sorted({end for end, _ in spans})
