"""Which wave a worker gets next, and what becomes of one whose worker died; knows nothing of how workers are reached.

Waves are taken from their source as late as possible. A worker gets one of the LoRAs that it has put on, if one is in
sight, else one of a set that nobody has: each set is put on by few workers. A wave that took two workers down with it
is tried item by item, each alone on a worker; an item that takes one down again has failed.

    tasks = Tasks(waves)
    while task := tasks.take(put_on, {loras of the others}, workers=4, idle=True):
        ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from runner.item import Item, Lora
from runner.planning.waves import Wave

LOOKED_AT = 8  # waves for each worker
KILLS = 2  # workers that a wave may take down before its items are tried one by one
Loras = tuple[Lora, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A wave that a worker makes, and how many workers died of it, or near it."""

    wave: Wave
    kills: int = 0

    @property
    def alone(self) -> bool:
        """Whether no other wave may be with its worker, so that it is known what a death comes of."""
        return self.kills >= KILLS

    @property
    def loras(self) -> Loras:
        """What is put on the model for it."""
        return self.wave.items[0].loras


class Tasks:
    """The waves that no worker has."""

    def __init__(self, waves: Iterable[Wave]) -> None:
        self._source = iter(waves)
        self._waiting: deque[Task] = deque()
        self._suspects: deque[Task] = deque()  # each alone

    def take(self, put_on: Loras | None, others: Collection[Loras], *, workers: int, idle: bool) -> Task | None:
        """The next one for a worker that has these LoRAs on, when the `others` have those; None if there is none.

        `workers` is how many there are in all; an `idle` one has no other wave.
        """
        if idle and self._suspects:
            return self._suspects.popleft()
        self._look_ahead(LOOKED_AT * workers)
        wanted = (
            lambda task: task.loras == put_on,
            lambda task: task.loras not in others,
            lambda task: True,
        )
        for fits in wanted:
            for task in self._waiting:
                if fits(task):
                    self._waiting.remove(task)
                    return task
        return None

    def again(self, task: Task, *, blamed: bool) -> list[Item]:
        """Takes back a wave whose worker died; returns the items that have failed by that.

        One is `blamed` if it may be what the worker died of: the machine didn't go.
        """
        if blamed and task.alone:
            return list(task.wave.items)
        task = replace(task, kills=task.kills + blamed)
        if task.alone:
            self._suspects += [replace(task, wave=replace(task.wave, items=(item,))) for item in task.wave.items]
        else:
            self._waiting.appendleft(task)
        return []

    def enough(self, count: int) -> bool:
        """Whether so many are left."""
        self._look_ahead(count)
        return len(self._waiting) >= count

    def __bool__(self) -> bool:
        """Whether a worker could get one."""
        return self.enough(1) or bool(self._suspects)

    def _look_ahead(self, count: int) -> None:
        while len(self._waiting) < count:
            wave = next(self._source, None)
            if wave is None:
                return
            self._waiting.append(Task(wave))
