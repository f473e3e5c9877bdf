import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.device.ring import Ring, plan

SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=12)


def test_units_lie_one_behind_the_other():
    assert [tuple(place) for place in plan([70, 20, 70], 140)] == [(0, 70, 1), (70, 20, 3), (0, 70, 2)]
    assert [place.waits_for for place in plan([10, 10, 10], 30)] == [3, 3, 3]  # all have room, each waits for itself


@given(SIZES, st.integers(0, 60))
def test_no_unit_is_brought_where_another_one_is_needed(sizes, more):
    """Walks of all units: what lies in a place is needed until it's released, in the order in which it came."""
    room, count = max(sizes) + more, len(sizes)
    ring, there = Ring(torch.device("cpu")), {}
    ring.lay([size * 512 for size in sizes], room * 512)
    coming = 0
    for number in range(3 * count):
        while ring.has_room_for(coming):
            place = plan(sizes, room)[coming % count]
            mine = range(place.start, place.start + place.size)
            assert place.start + place.size <= room
            assert not any(set(mine) & set(other) for other in there.values())
            there[coming] = mine
            coming += 1
        assert number in there  # what is needed next is always there
        del there[number]
        ring.release()
    assert coming >= 3 * count


def test_with_more_room_more_units_are_on_their_way():
    sizes = [70, 10, 20, 10, 70, 10, 10]

    def ahead(room):
        ring = Ring(torch.device("cpu"))
        ring.lay(sizes, room)
        return next(number for number in range(99) if not ring.has_room_for(number))

    assert [ahead(room) for room in (70, 140, 200)] == sorted(ahead(room) for room in (70, 140, 200))
    assert ahead(140) > 2
