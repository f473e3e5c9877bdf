"""Stops a run at a signal: at once where nothing is lost by it, else as soon as the wave in hand is done.

A signal may come at any moment, even between a picture's file and its record. So the first signal interrupts only what
is marked as harmless to interrupt; a second one interrupts anything.

    stop = Stop()
    with stop.listening():
        for event in stop.through(engine.run(waves)):
            ...
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self, TypeVar

from runner.events import StepDone, WaveDone, WaveStarted

# What asks a run to end: the keyboard, a closed terminal, a system that goes down. Windows has no SIGHUP.
ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
SHORT = 10.0  # seconds that a wave in hand may still take
T = TypeVar("T")


class Stopped(BaseException):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class Stop:
    """Whether a signal asked to stop, and how long the wave in hand will take. Without `listening` it never stops."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked = 0
        self._harmless = False
        self._left: float | None = None  # seconds for the steps of the wave in hand; None where that isn't known

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Within it SIGINT, SIGTERM and SIGHUP ask to stop, but for one that the process was told to ignore."""
        heard = [number for number in (signal.SIGINT, *ENDS) if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._hear) for number in heard}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ask(self, number: int) -> None:
        """Take a signal into account.

        Raises:
            Stopped: here and now, if it is the second one or if nothing would be lost.
        """
        again, self._asked = self._asked, number
        if again or (self._harmless and not self._nearly_done()):
            raise Stopped(number)
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, b"stopping as soon as the pictures in hand are finished; once more stops at once\n")

    @contextmanager
    def harmless(self) -> Iterator[None]:
        """Within it an interruption loses nothing but the wave in hand."""
        self._harmless = True
        try:
            if self._asked and not self._nearly_done():
                raise Stopped(self._asked)
            yield
        except SystemError as error:  # which C code makes of what a handler raises, if it doesn't expect that
            if isinstance(error.__cause__, Stopped):
                raise error.__cause__ from None
            raise
        finally:
            self._harmless = False

    def through(self, events: Iterator[T]) -> Iterator[T]:
        """The same events of an engine; an interruption is harmless while the next one is awaited.

        A wave whose steps are soon made is finished first; one that takes long is left.
        """
        begun = self._clock()
        try:
            while True:
                with self.harmless():
                    event = next(events, None)
                if event is None:
                    return
                if isinstance(event, WaveStarted | WaveDone):
                    begun, self._left = self._clock(), None
                elif isinstance(event, StepDone):
                    self._left = (self._clock() - begun) / event.step * (event.steps - event.step)
                yield event
        finally:
            self._left = None

    def _nearly_done(self) -> bool:
        return self._left is not None and self._left < SHORT

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.ask(number)
