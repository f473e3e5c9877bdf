import pytest

from runner.manifest.lazy import join


def test_sequences_stand_one_after_the_other_without_a_list() -> None:
    joined = join([range(10**9), range(0), range(5, 7)])
    assert len(joined) == 10**9 + 2
    assert [joined[0], joined[10**9], joined[-1]] == [0, 5, 6]
    assert joined[10**9 - 1 : 10**9 + 1] == [10**9 - 1, 5]
    with pytest.raises(IndexError):
        joined[10**9 + 2]


def test_one_sequence_stays_itself() -> None:
    assert join([range(10**9)]) == range(10**9)
