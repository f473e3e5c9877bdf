"""Which wave comes next, and what becomes of those whose workers died."""

import itertools

from builders import make_execution, make_item

from runner.engine.tasks import LOOKED_AT, Tasks
from runner.item import Lora
from runner.planning.waves import Wave

LAYOUT = make_execution(unet_bs=2).layout(64, 64)


def lora(name):
    return (Lora(name, f"/{name}", name * 8, "", 1.0, 1.0),)


def wave(*numbers, loras=()):
    return Wave(items=tuple(make_item(number=number, loras=loras) for number in numbers), layout=LAYOUT)


def numbers(task):
    return [item.number for item in task.wave.items]


def take(tasks, put_on=None, others=(), workers=1, idle=True):
    return tasks.take(put_on, set(others), workers=workers, idle=idle)


def test_waves_come_in_their_order():
    tasks = Tasks([wave(0, 1), wave(2, 3)])
    assert [numbers(take(tasks)), numbers(take(tasks)), take(tasks)] == [[0, 1], [2, 3], None]
    assert not tasks


def test_waves_are_taken_from_their_source_as_late_as_possible():
    source = itertools.count()
    tasks = Tasks(wave(number) for number in source)
    take(tasks, workers=3)
    assert next(source) <= 3 * LOOKED_AT + 1


def test_a_worker_keeps_its_set():
    tasks = Tasks([wave(0, loras=lora("a")), wave(1, loras=lora("b")), wave(2, loras=lora("a"))])
    assert numbers(take(tasks, put_on=lora("b"), workers=2)) == [1]


def test_a_worker_without_a_set_takes_one_that_nobody_has():
    tasks = Tasks([wave(0, loras=lora("a")), wave(1, loras=lora("b"))])
    assert numbers(take(tasks, others=[lora("a")], workers=2)) == [1]
    assert numbers(take(tasks, others=[lora("a")], workers=2)) == [0]


def test_a_wave_comes_again_before_others():
    tasks = Tasks([wave(0, 1), wave(2)])
    task = take(tasks)
    assert tasks.again(task, blamed=True) == []
    assert numbers(take(tasks)) == [0, 1]


def test_a_wave_that_kills_twice_is_tried_item_by_item_alone():
    tasks = Tasks([wave(0, 1)])
    for _ in range(2):
        tasks.again(take(tasks), blamed=True)
    assert take(tasks, idle=False) is None
    first, second = take(tasks), take(tasks)
    assert (numbers(first), numbers(second)) == ([0], [1])
    assert first.alone
    assert second.alone


def test_an_item_that_kills_again_has_failed():
    tasks = Tasks([wave(0, 1)])
    for _ in range(2):
        tasks.again(take(tasks), blamed=True)
    assert [item.number for item in tasks.again(take(tasks), blamed=True)] == [0]
    assert numbers(take(tasks)) == [1]
    assert not tasks


def test_a_machine_that_went_is_no_fault_of_its_waves():
    tasks = Tasks([wave(0, 1)])
    for _ in range(5):
        assert tasks.again(take(tasks), blamed=False) == []
    assert numbers(take(tasks)) == [0, 1]
    for _ in range(2):
        tasks.again(Tasks([wave(0, 1)]).take(None, set(), workers=1, idle=True), blamed=True)
    assert tasks
