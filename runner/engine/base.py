"""What makes pictures, as its callers see it: waves in, events out.

An engine holds one model, on one device or on many. Its events may come from another process, so that they hold plain
values only; those of one wave come between its `WaveStarted` and its `WaveDone`. What overflows in half precision is
rendered again in float32 inside the engine. Run folders and records belong to the caller.

    engine = start_engine(settings, files)
    for event in engine.run(engine.group(items)):
        ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from runner.events import WaveEvent
from runner.images.codec import Pixels
from runner.item import Item
from runner.planning.waves import Wave
from runner.record import Encoded, Making, Written


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How pictures leave an engine whose workers are other processes.

    `address` says of an item how its picture tells it and where in the run folder it belongs; it is called in this
    process. `finish` makes the file of pixels, an item and a path; it is called by the worker, so it can be pickled.
    """

    address: Callable[[Item], tuple[Item, str]]
    finish: Callable[[Pixels, Item, str], Encoded | Written]


class Engine(Protocol):
    """Makes pictures with one model."""

    def describe(self) -> Making:
        """How its pictures are made, without what depends on their size."""

    def planned_rows(self, width: int, height: int) -> int:
        """The rows of a UNet call (`unet_bs`) that are planned for pictures of a size in pixels."""

    def group(self, items: Iterable[Item]) -> Iterator[Wave]:
        """The items in waves, lazily."""

    def run(self, waves: Iterable[Wave], delivery: Delivery | None = None) -> Iterator[WaveEvent]:
        """Makes the pictures of the waves. Each item ends in one `Rendered` or one `ItemFailed`.

        An engine that makes them in this process hands over pixels, whatever the `delivery` is.
        """

    def close(self) -> None:
        """Gives the model's memory back."""
