import threading
from concurrent import futures

import pytest
import torch

from runner.device.lanes import Here, Lanes


def where():
    return threading.current_thread().name


def test_results_come_in_the_tasks_order_from_threads_of_their_own():
    lanes = Lanes(2)
    met = threading.Barrier(2)  # neither comes past it alone
    found = lanes.run([lambda number=number: (number, met.wait(5), where()) for number in range(4)])
    assert [number for number, *_ in found] == [0, 1, 2, 3]
    assert len({name for *_, name in found}) == 2 and where() not in {name for *_, name in found}


def test_a_place_among_the_tasks_is_a_lane():
    lanes = Lanes(3)
    assert lanes.run([where] * 7) == lanes.run([where] * 7)
    lanes.width = 2
    assert len(set(lanes.run([where] * 7))) == 2
    assert lanes.run([]) == []


def test_torch_computes_alone_on_a_lane_and_as_before_elsewhere():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        lanes = Lanes(2)
        assert lanes.run([torch.get_num_threads] * 2) == [1, 1]
        assert torch.get_num_threads() == 3
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert found == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("inference", [True, False])
def test_whether_gradients_are_wanted_goes_with_a_task(inference):
    with torch.inference_mode(inference):
        assert Lanes(1).run([torch.is_inference_mode_enabled]) == [inference]


@pytest.mark.parametrize("place", [Here(), Lanes(2)])
def test_an_error_is_raised_when_nothing_is_under_way_any_more(place):
    ended = []

    def fail():
        raise ValueError("the first")

    def take_long():
        threading.Event().wait(0.2)
        ended.append(1)

    with pytest.raises(ValueError, match="the first"):
        place.run([take_long, fail, take_long])
    assert len(ended) == (2 if isinstance(place, Lanes) else 1)


def test_an_interrupt_waits_for_what_is_under_way_and_begins_no_more(system):
    lanes, wait, ended = Lanes(1), futures.wait, []

    def interrupt(begun):
        system(futures, wait=wait)
        raise KeyboardInterrupt

    def take_long():
        threading.Event().wait(0.2)
        ended.append(1)

    system(futures, wait=interrupt)
    with pytest.raises(KeyboardInterrupt):
        lanes.run([take_long] * 5)
    assert len(ended) <= 1
    assert lanes.run([lambda: len(ended)]) == [len(ended)]


def test_threads_end_with_their_lanes():
    lanes = Lanes(2)
    names = set(lanes.run([threading.get_ident] * 2))
    threads = [thread for thread in threading.enumerate() if thread.ident in names]
    del lanes
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
