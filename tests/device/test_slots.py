import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.device.slots import Slots, gather

SIZES = st.lists(st.integers(0, 50), min_size=1, max_size=12)


def test_units_that_come_one_after_the_other_share_a_slot():
    assert gather({"a": 10, "b": 60, "c": 70, "d": 0, "e": 30}, 70) == [["a", "b"], ["c", "d"], ["e"]]
    assert gather({"a": 80, "b": 1}, 70) == [["a"], ["b"]]
    assert gather({}, 70) == []


@given(SIZES, st.integers(1, 3))
def test_no_unit_is_brought_where_another_one_is_needed(sizes, count):
    """Walks of all groups: each is there when it is needed, whole, and in memory of its own."""
    room = max(sizes) or 1
    named = {str(number): size for number, size in enumerate(sizes)}
    groups = gather(named, room)
    assert [name for group in groups for name in group] == list(named)
    slots, there, coming = Slots(torch.device("cpu"), count), {}, 0
    slots.lay([[named[name] for name in group] for group in groups], room)
    for number in range(3 * len(groups)):
        while slots.has_room_for(coming):
            group = groups[coming % len(groups)]
            for name, piece in zip(group, slots.pieces(coming), strict=True):
                piece.allocate(named[name]).fill_(coming % 256)
                there[coming, name] = piece.allocate(named[name])
            coming += 1
        assert coming > number and coming - number <= count
        for name in groups[number % len(groups)]:
            found = there.pop((number, name))
            assert found.numel() == named[name] and (found == number % 256).all()
        slots.release()
