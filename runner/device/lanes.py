"""Where calls of a module are made: one after the other on all of torch's threads, or side by side, each on one.

The layers of a small model are so short that threads which share them mostly wait for each other; of two calls each on
a thread of its own neither waits. No sum is shared among threads then, so a picture doesn't depend on their number.
`planning.choices` decides for which models.

    lanes = Lanes(2)
    results = lanes.run([lambda: unet(first), lambda: unet(second)])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")


class Place(Protocol):
    """Where tasks are done; `width` of them at a time."""

    width: int

    def run(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """What the tasks return, in their order; no task is under way any more when it returns or raises.

        Raises:
            Exception: a task did; the first one of them.
        """


class Here:
    """The calling thread, one task after the other."""

    width = 1

    def run(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """What the tasks return; the first error ends it."""
        return [task() for task in tasks]


class Lanes:
    """Threads that torch shares no work of with others; `width` of the `count` that there are take part.

    A task's place among the others decides on its lane, so that what is begun by one task can be gone on with by
    another one at its place: a greenlet never leaves its thread.
    """

    def __init__(self, count: int) -> None:
        self.count = self.width = count
        threads = torch.get_num_threads()
        self._lanes = [
            ThreadPoolExecutor(1, f"lane-{number}", initializer=torch.set_num_threads, initargs=(1,))
            for number in range(count)
        ]
        futures.wait([lane.submit(torch.get_num_threads) for lane in self._lanes])
        torch.set_num_threads(threads)  # or other threads, when they begin, would take over what the last lane has set

    def run(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """What the tasks return, in their order."""
        inference = torch.is_inference_mode_enabled()  # a thread's own

        def do(task: Callable[[], Result]) -> Result:
            with torch.inference_mode(inference):
                return task()

        begun = [self._lanes[place % self.width].submit(do, task) for place, task in enumerate(tasks)]
        try:
            futures.wait(begun)
        except BaseException:  # Ctrl-C
            for future in begun:
                future.cancel()
            futures.wait(begun)  # or the weights would leave while they are in use
            raise
        return [future.result() for future in begun]
