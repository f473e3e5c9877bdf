"""The engine of one process: what overflows is made again in float32, and lowered rows are named."""

import dataclasses
import pickle

from builders import make_execution, make_item
from fake_engine import MAKING, paint

from runner.engine.executor import NotFinite
from runner.engine.local import LocalEngine
from runner.events import Failure, ItemFailed, Rendered, WaveDone, WaveStarted


class FakeExecutor:
    """Makes pictures of noise in float32; in half precision those of odd seeds overflow."""

    def __init__(self, dtype="float16", rows=4):
        self.execution = dataclasses.replace(make_execution(unet_bs=4), dtype=dtype)
        self.rows = rows

    def describe(self):
        return MAKING._replace(dtypes=(("unet", self.execution.dtype),))

    def in_full(self):
        return FakeExecutor("float32", self.rows)

    def run(self, wave):
        yield WaveStarted(items=wave.items)
        making = self.describe()._replace(unet_bs=self.rows)
        for item in wave.items:
            if self.execution.dtype == "float16" and item.seed % 2:
                yield ItemFailed(item=item, error=Failure.of(NotFinite("the latents are not finite")), making=making)
            else:
                yield Rendered(item=item, pixels=paint(item), seconds={}, peak_bytes=0, making=making)
        yield WaveDone()


def run(engine, seeds):
    return list(engine.run(engine.group(make_item(seed=seed, number=seed) for seed in seeds)))


def test_what_overflows_is_rendered_again_in_float32_and_says_why():
    made = [event for event in run(LocalEngine(FakeExecutor()), range(8)) if isinstance(event, Rendered)]
    assert [event.item.seed for event in made] == [0, 2, 4, 6, 1, 3, 5, 7]
    assert [event.making.is_full for event in made] == [False] * 4 + [True] * 4
    assert [event.rerendered for event in made] == [""] * 4 + ["the latents are not finite"] * 4


def test_what_overflows_does_not_wait_for_the_end():
    engine = LocalEngine(FakeExecutor(), most_overflowed=2)
    seeds = [event.item.seed for event in run(engine, range(16)) if isinstance(event, Rendered)]
    assert seeds.index(1) < seeds.index(14)
    assert sorted(seeds) == list(range(16))


def test_what_fails_in_float32_has_failed():
    executor = FakeExecutor("float32")
    executor.run = lambda wave: iter([ItemFailed(item=wave.items[0], error=Failure.of(NotFinite("still")))])
    [failed] = [event for event in run(LocalEngine(executor), [1]) if isinstance(event, ItemFailed)]
    assert (str(failed.error), failed.rerendered) == ("still", "")
    assert failed.making == executor.describe()


def test_fewer_rows_than_planned_are_named():
    [event] = [event for event in run(LocalEngine(FakeExecutor(rows=2)), [2]) if isinstance(event, Rendered)]
    assert (event.making.unet_bs, event.making.lowered_from) == (2, 4)
    [event] = [event for event in run(LocalEngine(FakeExecutor(rows=4)), [2]) if isinstance(event, Rendered)]
    assert (event.making.unet_bs, event.making.lowered_from) == (4, None)


def test_events_can_be_sent_to_another_process():
    events = [
        *run(LocalEngine(FakeExecutor()), range(3)),
        ItemFailed(item=make_item(), error=Failure.of(KeyError("x"))),
    ]
    again = pickle.loads(pickle.dumps(events))
    assert [type(event) for event in again] == [type(event) for event in events]
    assert again[-1].error == events[-1].error
    assert again[-1].error.to_dict() == {"class": "KeyError", "message": "'x'"}
