"""The engine of this process: one executor, and a second one in float32 for what overflows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

from runner.device.memory import release_memory
from runner.engine.base import Delivery
from runner.engine.executor import Executor, NotFinite
from runner.events import ItemFailed, MemoryShort, Rendered, StepDone, WaveDone, WaveEvent, WaveStarted
from runner.item import Item, item_id
from runner.planning import waves
from runner.planning.layouts import Execution
from runner.planning.waves import Wave
from runner.record import FULL, Making

MOST_OVERFLOWED = 64  # items that wait until they are rendered again in float32
log = logging.getLogger("runner")


class LocalEngine:
    """One model on one device, in this process."""

    def __init__(self, executor: Executor, most_overflowed: int = MOST_OVERFLOWED) -> None:
        self.executor = executor
        self._most = most_overflowed
        self._overflowed: dict[str, tuple[Item, str]] = {}  # by id: the item, and what is wrong with its picture
        self._planned: dict[tuple[str, int, int], int] = {}  # rows by number type and size

    @property
    def execution(self) -> Execution:
        """How its pictures are made, as it is planned."""
        return self.executor.execution

    def describe(self) -> Making:
        """How its pictures are made, without what depends on their size."""
        return self.executor.describe()

    def planned_rows(self, width: int, height: int) -> int:
        """The rows of a UNet call that are planned for pictures of a size in pixels."""
        return self._plan(self.executor, width, height)

    def group(self, items: Iterable[Item]) -> Iterator[Wave]:
        """The items in waves, lazily."""
        return waves.group(items, self.executor.execution)

    def run(self, waves: Iterable[Wave], delivery: Delivery | None = None) -> Iterator[WaveEvent]:
        """Makes the pictures of the waves; after the last one those that overflowed."""
        for wave in waves:
            yield from self._run(self.executor, wave)
            if len(self._overflowed) >= self._most:
                yield from self._run_again()
        yield from self._run_again()

    def close(self) -> None:
        """Gives the model's memory back."""
        device = self.executor.execution.device
        del self.executor
        release_memory(device)

    def _run_again(self) -> Iterator[WaveEvent]:
        """Renders in float32 what overflowed."""
        if self._overflowed:
            executor = self.executor.in_full()
            for wave in waves.group([item for item, _ in self._overflowed.values()], executor.execution):
                yield from self._run(executor, wave)
            self._overflowed.clear()

    def _run(self, executor: Executor, wave: Wave) -> Iterator[WaveEvent]:
        planned = self._plan(executor, wave.items[0].width, wave.items[0].height)
        for event in executor.run(wave):
            match event:
                case Rendered() | ItemFailed():
                    if self._is_put_off(event, executor):
                        continue
                    making = _lowered(event.making or executor.describe(), planned)
                    yield replace(event, making=making, rerendered=self._why(event.item))
                case WaveStarted() | StepDone() | MemoryShort() | WaveDone():
                    yield event

    def _plan(self, executor: Executor, width: int, height: int) -> int:
        """The planned rows, worked out once for each size: nothing that is measured changes them."""
        key = executor.execution.dtype, width, height
        if key not in self._planned:
            self._planned[key] = executor.execution.planned_rows(width, height)
        return self._planned[key]

    def _is_put_off(self, event: Rendered | ItemFailed, executor: Executor) -> bool:
        """Whether a picture overflowed in half precision, so that nothing has failed yet."""
        overflowed = isinstance(event, ItemFailed) and event.error.kind == NotFinite.__name__
        if not overflowed or executor.execution.dtype == FULL:
            return False
        assert isinstance(event, ItemFailed)
        self._overflowed[item_id(event.item)] = event.item, str(event.error)
        log.info("item %d is rendered again in full precision: %s", event.item.number, event.error)
        return True

    def _why(self, item: Item) -> str:
        return self._overflowed[item_id(item)][1] if self._overflowed and item_id(item) in self._overflowed else ""


def _lowered(making: Making, planned: int) -> Making:
    """The making, with the rows that were planned where fewer were taken."""
    return making._replace(lowered_from=planned) if making.unet_bs and making.unet_bs < planned else making
