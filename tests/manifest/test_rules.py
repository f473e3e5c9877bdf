"""Values: what each key takes, the forms of seeds and ranges, and that a refusal names the key and the value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runner.errors import ManifestError
from runner.item import Model
from runner.keys import LARGEST_SEED
from runner.manifest.nodes import Node, parse
from runner.manifest.rules import (
    ALIASES,
    DEFAULTS,
    ITEM_KEYS,
    REQUIRED,
    check,
    entries,
    read_axis,
    read_count,
    read_seeds,
)

NAMES = (*ITEM_KEYS, "seeds", "n_samples")


def entry(text: str) -> tuple[str, Node]:
    """The only entry of a mapping, under its real name."""
    ((key, node),) = entries(parse(text, Path("m.yaml")), NAMES).items()
    return key, node


def test_every_key_has_a_rule_and_every_default_obeys_it() -> None:
    assert {*REQUIRED, *DEFAULTS} == set(ITEM_KEYS)
    assert set(ALIASES.values()) <= set(ITEM_KEYS)
    for key, value in DEFAULTS.items():
        assert value in (None, Model(), ()) or check(*entry(f"{key}: {value!r}")) == value


@pytest.mark.parametrize(
    ("written", "seeds"),
    [
        ("7", [7]),
        ("27-30", [27, 28, 29, 30]),
        ("'1,5,9-12'", [1, 5, 9, 10, 11, 12]),
        ("[1, 5, 9-10]", [1, 5, 9, 10]),
        ("[5, 5]", [5, 5]),
        ("007", [7]),
        ("{start: 27, count: 3}", [27, 28, 29]),
        ("{start: 0, count: 3, step: 5}", [0, 5, 10]),
        ("{start: 0, stop: 10, step: 5}", [0, 5, 10]),
        ("{start: 0, stop: 9, step: 5}", [0, 5]),
        ("{start: 4, stop: 0, step: -2}", [4, 2, 0]),
        (f"{LARGEST_SEED}", [LARGEST_SEED]),
        (f"{{start: {LARGEST_SEED - 1}, count: 2}}", [LARGEST_SEED - 1, LARGEST_SEED]),
    ],
)
def test_the_forms_of_seeds(written: str, seeds: list[int]) -> None:
    assert list(read_seeds(*entry(f"seeds: {written}"))) == seeds


def test_seeds_stay_ranges() -> None:
    assert read_seeds(*entry("seeds: 0-999999999")) == range(10**9)
    spans = read_seeds(*entry("seeds: [0-999999999, 5-6]"))
    assert [spans[0], spans[10**9], spans[-1], len(spans)] == [0, 5, 6, 10**9 + 2]


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("scale", "{start: 5, stop: 10, step: 2.5}", [5.0, 7.5, 10.0]),
        ("scale", "{start: 0, stop: 1, step: 0.1}", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("scale", "{start: 0.1, stop: 0.3, step: 0.1}", [0.1, 0.2, 0.3]),
        ("scale", "{start: 1, stop: 0, step: -0.5}", [1.0, 0.5, 0.0]),
        ("scale", "{start: 3, stop: 3}", [3.0]),
        ("steps", "{start: 10, stop: 31, step: 10}", [10, 20, 30]),
        ("W", "{start: 256, count: 2, step: 64}", [256, 320]),
        ("negative", "[NO, '', 1984]", ["NO", "", "1984"]),
        ("sampler", "[ddim, euler_a]", ["ddim", "euler_a"]),
        ("ddim_steps", "[5, 5e0]", [5, 5]),
    ],
)
def test_an_axis_is_a_list_or_a_range(key: str, written: str, expected: list[object]) -> None:
    found_key, node = entry(f"{key}: {written}")
    found = read_axis(found_key, node)
    assert (found_key, list(found)) == (ALIASES.get(key, key), expected)
    assert all(type(one) is type(other) for one, other in zip(found, expected, strict=True) if key == "steps")


def refusal(text: str, read: Callable[[str, Node], object]) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        read(*entry(text))
    assert "\n" not in str(caught.value)
    assert (caught.value.location.path, caught.value.location.line) == (Path("m.yaml"), 1)
    return caught.value


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("width: 500", ["width: '500' is not a multiple of 64; 448 and 512 are"]),
        ("width: 63", ["'63' is not a whole number from 64 to 4096"]),
        ("H: 4160", ["height: '4160'", "4096"]),
        ("width: 512px", ["'512px'"]),
        ("width: '512'", ["'512' is not a whole number"]),
        ("steps: 0", ["steps: '0' is not a whole number from 1 to 500"]),
        ("steps: 1001", ["'1001'"]),
        ("steps: 2.5", ["'2.5'"]),
        ("steps: true", ["'true'"]),
        ("steps:", ["nothing is not a whole number"]),
        (f"steps: {'9' * 5000}", ["'999", "..."]),
        ("scale: -0.5", ["scale: '-0.5' is not a number from 0 to 100"]),
        ("scale: .nan", ["'.nan'"]),
        ("scale: .inf", ["'.inf'"]),
        ("scale: 1e999", ["'1e999'"]),
        ("eta: 1.5", ["eta: '1.5' is not a number from 0 to 1"]),
        ("sampler: k_lms", ["sampler: 'k_lms' is not known, did you mean 'lms'?"]),
        ("sampler: eular", ["did you mean 'euler'?"]),
        ("sampler: zzz", ["known are:", "ddim", "unipc"]),
        ("format: jpeg", ["format: 'jpeg' is not known, did you mean 'jpg'?"]),
        ("long_prompts: chunks", ["did you mean 'chunk'?"]),
        ("long_prompts: cut", ["known are: chunk, error, truncate"]),
        ("seed: -1", ["seed: '-1'"]),
        (f"seed: {2**63}", [f"seed: '{2**63}'", str(2**63 - 1)]),
        ("seed: 1e40", ["'1e40'"]),
        ("negative: [a]", ["negative: expected a text, not a list"]),
        ("negative:", ["negative: expected a text, not nothing"]),
        ("negative: blurry # bad", ["negative: a '#'", "quote"]),
    ],
)
def test_wrong_values(text: str, parts: list[str]) -> None:
    message = refusal(text, check).message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seeds: 27-", ["'27-' are not seeds", "27-46"]),
        ("seeds: 46-27", ["'46-27' runs backwards; write 27-46"]),
        ("seeds: -5", ["'-5' are not seeds"]),
        ("seeds: 1.5", ["'1.5' are not seeds"]),
        ("seeds: []", ["seeds: expected a list with at least one entry"]),
        ("seeds:", ["nothing are not seeds"]),
        (f"seeds: {2**63}", ["leave the range from 0 to"]),
        ("seeds: 0-9999999999", ["10000000000 seeds; the most is 1000000000"]),
        ("seeds: {start: 0}", ["a range is written"]),
        ("seeds: {start: 0, stop: 3, count: 4, step: 1}", ["a range is written"]),
        ("seeds: {start: 0, stop: 3, step: 0}", ["the step '0' is too small"]),
        ("seeds: {start: 3, stop: 0}", ["the stop '0' is never reached from 3 in steps of 1"]),
        ("seeds: {start: 0, stop: 3.5}", ["stop: '3.5' is not a whole number"]),
        ("seeds: {start: 1, count: 3, step: -1}", ["from 1 to -1 leave the range"]),
        (f"seeds: {{start: {2**63 - 1}, count: 2}}", ["leave the range"]),
        ("seeds: {start: 0, end: 3}", ["unknown key 'end'"]),
    ],
)
def test_wrong_seeds(text: str, parts: list[str]) -> None:
    message = refusal(text, read_seeds).message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sampler: ddim", ["sampler: expected a list or a range {start, stop, step}, not 'ddim'"]),
        ("steps: []", ["at least one entry"]),
        ("width: {start: 64, stop: 200, step: 50}", ["width: '114' is not a multiple of 64"]),
        ("scale: {start: 0, stop: 1, step: 1e-8}", ["100000001 values; the most is 100000"]),
        ("scale: {start: 0, stop: 1, step: 1e-300}", ["too small"]),
        ("sampler: {start: 0, stop: 1}", ["sampler: expected a text, not '0'"]),
    ],
)
def test_wrong_axes(text: str, parts: list[str]) -> None:
    message = refusal(text, read_axis).message
    assert all(part in message for part in parts), message


def test_a_count_is_at_least_one() -> None:
    assert read_count(*entry("n_samples: 3")) == 3
    assert "n_samples: '0' is not a whole number from 1 to" in refusal("n_samples: 0", read_count).message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stesp: 5", "unknown key 'stesp', did you mean 'steps'?"),
        ("{W: 64, width: 64}", "'W' is another name of 'width'; only one of them can stand here"),
    ],
)
def test_wrong_keys(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        entry(text)
    assert caught.value.message.startswith(message)
