"""Workers that make nothing: what the process above them can take is measured with these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from runner.engine.base import Delivery
from runner.engine.worker import Planned, start_here
from runner.events import Rendered, WaveDone, WaveEvent, WaveStarted
from runner.item import Item, Model
from runner.planning.waves import Wave
from runner.record import Encoded, Making, Written
from runner.settings import Settings

PICTURE = 400_000  # bytes, about a PNG of 512x512


class Nothing:
    """Has one and the same picture for each item, at once."""

    def __init__(self, engine: Planned) -> None:
        self.execution, self.making = engine.execution, engine.describe()

    def describe(self) -> Making:
        """As the engine that it was made from."""
        return self.making

    def run(self, waves: Iterable[Wave], delivery: Delivery | None = None) -> Iterator[WaveEvent]:
        """A grey picture for each."""
        grey = np.full((64, 64, 3), 128, np.uint8)
        for wave in waves:
            yield WaveStarted(items=wave.items)
            for item in wave.items:
                yield Rendered(item=item, pixels=grey, seconds={"denoise": 0.0}, peak_bytes=1, making=self.making)
            yield WaveDone()

    def close(self) -> None:
        """Holds nothing."""


def start(asked: Settings, model: Model, sharing: int) -> Nothing:
    """For a worker: what a real engine says, without what it does."""
    return Nothing(start_here(asked, model, sharing))


def written(pixels: np.ndarray, item: Item, path: str) -> Written:
    """As if the worker had put the file into the run folder."""
    return Written(path=path, sha256="0" * 64, pixels_sha256="1" * 64, bytes=PICTURE)


def encoded(pixels: np.ndarray, item: Item, path: str) -> Encoded:
    """A file that the process above writes."""
    return Encoded(data=bytes(PICTURE), sha256="0" * 64, pixels_sha256="1" * 64)
