"""Combinations by their numbers: what a list of all of them, filtered, would say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.manifest import grid
from runner.manifest.grid import Axis, Grid, TooLarge, leave_out


@st.composite
def axes_and_exclusions(draw: st.DrawFn) -> tuple[list[Axis], list[dict[int, list[int]]]]:
    axes = [
        Axis.of(str(n), range(length))
        for n, length in enumerate(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    ]
    places = [st.lists(st.integers(0, len(axis) - 1), min_size=1, unique=True).map(sorted) for axis in axes]
    exclusion = st.fixed_dictionaries({}, optional=dict(enumerate(places))).filter(bool)
    return axes, draw(st.lists(exclusion, min_size=1, max_size=4))


@given(axes_and_exclusions())
def test_what_remains_is_what_no_exclusion_matches(case: tuple[list[Axis], list[dict[int, list[int]]]]) -> None:
    axes, exclusions = case
    expected = [
        position
        for position, places in enumerate(itertools.product(*(range(len(axis)) for axis in axes)))
        if not any(all(places[index] in those for index, those in exclusion.items()) for exclusion in exclusions)
    ]
    remaining = Grid(axes, leave_out(axes, exclusions))
    assert remaining.size == len(expected)
    assert [remaining.position(number) for number in range(remaining.size)] == expected


def test_without_exclusions_a_number_is_its_position() -> None:
    whole = Grid([Axis.of("steps", [10, 20]), Axis(columns={"a": range(10**9), "b": range(10**9)}, named=True)])
    assert (whole.size, whole.position(1_234_567_890)) == (2 * 10**9, 1_234_567_890)


def test_only_the_axes_between_those_spoken_of_are_looked_at(limit) -> None:
    axes = [Axis.of("p", range(10**6)), Axis.of("a", [1, 2]), Axis.of("b", [1, 2]), Axis.of("seed", range(10**6))]
    remainder = leave_out(axes, [{1: [0], 2: [1]}])
    assert (remainder.first, remainder.stop) == (1, 3)
    assert np.array_equal(remainder.numbers, [0, 2, 3])
    with pytest.raises(TooLarge, match="4000000000000 combinations would have to be looked at"):
        leave_out(axes, [{0: [1], 3: [1]}])
    limit(grid, MOST_LOOKED_AT=3)
    with pytest.raises(TooLarge, match="4 combinations"):
        leave_out(axes, [{1: [0], 2: [1]}])
