"""What makes pictures, as its callers see it: waves in, events out.

An engine holds one model, on one device or on many. Its events may come from another process, so that they hold plain
values only; those of one wave come between its `WaveStarted` and its `WaveDone`. What overflows in half precision is
rendered again in float32 inside the engine. Run folders and records belong to the caller.

    engine = start_engine(settings, files)
    for event in engine.run(engine.group(items)):
        ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from runner.events import WaveEvent
from runner.item import Item
from runner.planning.waves import Wave
from runner.record import Making


class Engine(Protocol):
    """Makes pictures with one model."""

    def describe(self) -> Making:
        """How its pictures are made, without what depends on their size."""

    def planned_rows(self, width: int, height: int) -> int:
        """The rows of a UNet call (`unet_bs`) that are planned for pictures of a size in pixels."""

    def group(self, items: Iterable[Item]) -> Iterator[Wave]:
        """The items in waves, lazily."""

    def run(self, waves: Iterable[Wave]) -> Iterator[WaveEvent]:
        """Makes the pictures of the waves. Each item ends in one `Rendered` or one `ItemFailed`."""

    def close(self) -> None:
        """Gives the model's memory back."""
