"""An engine without a model and without torch: it paints noise of the item's seed, and fails where it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from builders import make_execution

from runner.engine.base import Delivery
from runner.events import Failure, ItemFailed, Rendered, StepDone, WaveDone, WaveEvent, WaveStarted
from runner.item import Item
from runner.planning import waves
from runner.planning.waves import Wave
from runner.record import Making

MAKING = Making(
    device="cpu", device_name="paper", threads=1, dtypes=(("unet", "float32"),), prediction="epsilon", env=(("x", "1"),)
)


class FakeEngine:
    """Paints every item but those for which `refuse` has an error; `made` is what differs in a picture's making."""

    def __init__(
        self,
        unet_bs: int = 4,
        refuse: Callable[[Item], Exception | None] = lambda _: None,
        before_wave: Callable[[], object] = lambda: None,
        making: Making = MAKING,
        made: Mapping[str, Any] | None = None,
    ) -> None:
        self.execution = make_execution(unet_bs=unet_bs)
        self.refuse, self.before_wave, self.making, self.made = refuse, before_wave, making, made or {}
        self.closed = False

    def describe(self) -> Making:
        return self.making

    def planned_rows(self, width: int, height: int) -> int:
        return self.execution.planned_rows(width, height)

    def group(self, items: Iterable[Item]) -> Iterator[Wave]:
        return waves.group(items, self.execution)

    def run(self, waves: Iterable[Wave], delivery: Delivery | None = None) -> Iterator[WaveEvent]:
        for wave in waves:
            self.before_wave()
            yield WaveStarted(items=wave.items)
            yield StepDone(step=1, steps=1)
            making = self.making._replace(**{"unet_bs": wave.unet_bs, "turbo": True} | self.made)
            for item in wave.items:
                if error := self.refuse(item):
                    yield ItemFailed(item=item, error=Failure.of(error), making=making)
                else:
                    yield Rendered(item=item, pixels=paint(item), seconds={"denoise": 1.0}, peak_bytes=1, making=making)
            yield WaveDone()

    def close(self) -> None:
        self.closed = True


def paint(item: Item) -> np.ndarray[Any, Any]:
    """The item's picture, which a disk can't make smaller."""
    noise = np.random.default_rng([item.seed, *item.prompt.encode()])
    return noise.integers(256, size=(item.height, item.width, 3), dtype=np.uint8)
