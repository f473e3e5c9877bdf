"""Stands for an Executor in tests of what happens around it: noise of the item's seed, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from builders import make_execution

from runner.events import ItemFailed, Rendered, StepDone, WaveEvent, WaveStarted
from runner.item import Item
from runner.planning.waves import Wave


class Painter:
    """Paints every item but those for which `refuse` has an error."""

    def __init__(
        self,
        unet_bs: int = 4,
        refuse: Callable[[Item], Exception | None] = lambda _: None,
        how: Mapping[str, Any] | None = None,
    ) -> None:
        self.execution = make_execution(unet_bs=unet_bs)
        self.refuse, self.how = refuse, how or {}

    def describe(self) -> dict[str, Any]:
        run = {"device": "cpu", "device_name": "paper", "threads": 1, "turbo": True, "prediction": "epsilon"}
        return run | {"dtypes": {"unet": "float32"}}

    def run(self, wave: Wave) -> Iterator[WaveEvent]:
        yield WaveStarted(items=wave.items)
        yield StepDone(step=1, steps=1)
        for item in wave.items:
            if error := self.refuse(item):
                yield ItemFailed(item=item, error=error)
            else:
                yield Rendered(item=item, pixels=paint(item), seconds={"denoise": 1.0}, peak_bytes=1, how=self.how)


def paint(item: Item) -> np.ndarray[Any, Any]:
    """The item's picture, which a disk can't make smaller."""
    noise = np.random.default_rng([item.seed, *item.prompt.encode()])
    return noise.integers(256, size=(item.height, item.width, 3), dtype=np.uint8)
