"""`engine=ray`: the waves of a run over workers in other processes, on this machine or on many.

This process hands out waves, one or two to each worker, and hears what became of them; workers that die are replaced,
and their waves made again elsewhere. Which pictures come from where changes no byte: workers whose pictures would be
rounded otherwise get no work, unless `mixed=true`. `fleet` knows where workers are, `tasks` which wave is next.

    with Fleet(settings) as fleet:
        engine = start_engine(fleet, model)
        for event in engine.run(engine.group(items), delivery):
            ...
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.engine.base import Delivery
from runner.engine.fleet import Fleet, Member, first_line
from runner.engine.tasks import Loras, Task, Tasks
from runner.engine.worker import Answer, Loaded, Told, files_of, pictures_of, placed
from runner.errors import DeviceLost, RunnerError
from runner.events import Failure, ItemFailed, MemoryShort, Rendered, WaveDone, WaveEvent, WaveStarted, WorkersChanged
from runner.item import Item, Model
from runner.planning import waves
from runner.planning.layouts import Execution
from runner.planning.waves import Wave
from runner.record import Making

IN_FLIGHT = 2  # waves of a worker: one that it makes, and one that waits
LATE_SECONDS = 10.0  # that the first worker waits for others at least
WAIT_SECONDS = 1.0  # for an answer, before the machines are looked at again
ALONE_SECONDS = 60.0  # without any worker, before the run ends


@dataclass(eq=False, slots=True)
class Seat:
    """A worker and what it has: the model, once `loaded`; LoRAs that are put on; waves in flight, by their answers.

    `copies` are files of this machine that its own has copies of.
    """

    member: Member
    loading: Any
    loaded: Loaded | None = None
    loras: Loras | None = None
    flying: dict[Any, Task] = field(default_factory=dict)
    copies: dict[str, Any] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether it can't have another wave now."""
        return len(self.flying) >= IN_FLIGHT or any(task.alone for task in self.flying.values())


def start_engine(fleet: Fleet, model: Model) -> RayEngine:
    """An engine whose workers hold a model, at least one of them by now.

    Raises:
        SettingError: there is no Ray, or no machine that can make the model's pictures as the settings want it.
    """
    fleet.join()
    return RayEngine(fleet, model)


class RayEngine:
    """One model on many workers."""

    def __init__(self, fleet: Fleet, model: Model) -> None:
        self._fleet, self._model = fleet, model
        self._changes: deque[str] = deque()  # what people should know of the workers
        self._faults: dict[str, BaseException] = {}  # why workers couldn't load the model, by the text
        self._contents: dict[str, Any] = {}  # files of this machine, in Ray's object store
        self._alone_since: float | None = None
        self._reference: Loaded | None = None
        fleet.forgive()
        self._seats = [self._seat(member) for member in fleet.members]
        self._assemble()

    @property
    def execution(self) -> Execution:
        """How its pictures are made, as its workers plan it."""
        assert self._reference
        return self._reference.execution

    def describe(self) -> Making:
        """How its pictures are made, without what depends on their size."""
        assert self._reference
        return self._reference.making

    def planned_rows(self, width: int, height: int) -> int:
        """The rows of a UNet call that are planned for pictures of a size in pixels."""
        return self.execution.planned_rows(width, height)

    def group(self, items: Iterable[Item]) -> Iterator[Wave]:
        """The items in waves, lazily."""
        return waves.group(items, self.execution)

    def run(self, waves: Iterable[Wave], delivery: Delivery | None = None) -> Iterator[WaveEvent]:
        """Makes the pictures of the waves, many at a time; each comes as its file, or has none without a `delivery`.

        Raises:
            RunnerError: no picture can be made any more, or none be written.
        """
        tasks = Tasks(waves)
        try:
            while tasks or any(seat.flying for seat in self._seats):
                self._look()
                yield from self._hand_out(tasks, delivery)
                yield from self._hear(tasks)
                while self._changes:
                    yield WorkersChanged(message=self._changes.popleft(), working=len(self._ready()))
        finally:
            for seat in self._seats:
                seat.flying.clear()  # whoever stops doesn't want what they make

    def close(self) -> None:
        """Leaves the workers to another model."""
        self._seats.clear()

    def _assemble(self) -> None:
        """Waits for the first worker, and not much longer for others; most of them say what the pictures will be."""
        begun, told, nothing = time.monotonic(), False, Tasks([])
        while not self._ready():
            self._look()
            list(self._hear(nothing))
            if not told and time.monotonic() - begun > ALONE_SECONDS:
                told = True
                print(
                    "runner: no worker has the model yet; are there free cards or cores in the cluster?",
                    file=sys.stderr,
                )
        late = time.monotonic() + max(LATE_SECONDS, time.monotonic() - begun)
        while any(not seat.loaded for seat in self._seats) and time.monotonic() < late:
            list(self._hear(nothing))
        loaded = [seat.loaded for seat in self._seats if seat.loaded]
        (usual, _), *_ = Counter(each.making.rounding() for each in loaded).most_common(1)
        self._reference = next(each for each in loaded if each.making.rounding() == usual)
        for seat in self._ready():
            self._compare(seat)

    def _ready(self) -> list[Seat]:
        return [seat for seat in self._seats if seat.loaded]

    def _seat(self, member: Member) -> Seat:
        return Seat(member, member.actor.load.remote(self._model))

    def _look(self) -> None:
        """Gives new workers the model.

        Raises:
            RunnerError: there is no worker, and none will come.
        """
        self._seats += [self._seat(member) for member in self._fleet.refresh()]
        now = time.monotonic()
        self._alone_since = None if self._seats else self._alone_since or now
        if self._alone_since is None:
            return
        none_comes = self._fleet.without_work() and (self._faults or self._fleet.settings.ray.address is None)
        if none_comes or now - self._alone_since > ALONE_SECONDS:
            if len(self._faults) == 1 and isinstance(fault := next(iter(self._faults.values())), RunnerError):
                raise fault
            why = "; ".join(self._fleet.without_work()) or "Ray has no machine any more"
            raise DeviceLost(f"no worker is left: {why}. What was finished is safe; run again")

    def _hand_out(self, tasks: Tasks, delivery: Delivery | None) -> Iterator[WaveStarted]:
        """Gives each worker a wave, and then another one as long as there are enough for all."""
        for depth in range(IN_FLIGHT):
            ready = self._ready()
            for seat in ready:
                if len(seat.flying) > depth or seat.full or (depth and not tasks.enough(len(ready))):
                    continue
                others = {other.loras for other in ready if other is not seat and other.loras is not None}
                if task := tasks.take(seat.loras, others, workers=len(ready), idle=not seat.flying):
                    self._send(seat, task, delivery)
                    yield WaveStarted(items=task.wave.items)

    def _send(self, seat: Seat, task: Task, delivery: Delivery | None) -> None:
        told: list[Told] = [delivery.address(item) for item in task.wave.items] if delivery else []
        wave, copies = task.wave, []
        if seat.member.at_home:
            wave = replace(wave, items=tuple(placed(item, os.path.abspath) for item in wave.items))
        else:
            named = dict.fromkeys(path for item in wave.items for path in files_of(item))
            copies = [copy for path in named if (copy := self._copy(seat, path))]
        seat.loras = task.loras
        finish = delivery.finish if delivery else None
        seat.flying[seat.member.actor.run.remote(wave, told, finish, *copies)] = task

    def _copy(self, seat: Seat, path: str) -> Any:
        """A file's copy on the worker's machine, which is sent once; None where it has vanished, as the worker says."""
        import ray

        if path not in seat.copies:
            if path not in self._contents:
                try:
                    content = Path(path).read_bytes()
                except OSError:
                    return None
                self._contents[path] = ray.put(content)
            seat.copies[path] = seat.member.actor.keep.remote(path, self._contents[path])
        return seat.copies[path]

    def _let_go(self, seat: Seat, task: Task) -> None:
        """Drops the pictures that a wave began with: there may be one for each item, and few waves name the same."""
        flying = {path for other in seat.flying.values() for item in other.wave.items for path in pictures_of(item)}
        gone = {path for item in task.wave.items for path in pictures_of(item)} & seat.copies.keys() - flying
        if gone:
            seat.member.actor.drop.remote(*(seat.copies.pop(path) for path in gone))
        for path in gone:
            if not any(path in other.copies for other in self._seats):
                self._contents.pop(path, None)

    def _hear(self, tasks: Tasks) -> Iterator[WaveEvent]:
        """Waits a while for an answer; takes all that are there."""
        import ray

        seats = {seat.loading: seat for seat in self._seats if not seat.loaded}
        seats |= {answer: seat for seat in self._seats for answer in seat.flying}
        if not seats:
            time.sleep(WAIT_SECONDS)  # until a machine comes
            return
        if ray.wait(list(seats), timeout=WAIT_SECONDS)[0]:
            answers, _ = ray.wait(list(seats), num_returns=len(seats), timeout=0)
            for answer in answers:
                yield from self._take(seats[answer], answer, tasks)

    def _take(self, seat: Seat, answer: Any, tasks: Tasks) -> Iterator[WaveEvent]:
        """What an answer of a worker says."""
        import ray

        if seat not in self._seats:  # it died before its other answer was looked at
            return
        try:
            said = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            yield from self._failed(seat, error.cause or error, tasks)
        except ray.exceptions.RayError as error:
            yield from self._died(seat, first_line(error), tasks, blamed=self._fleet.has(seat.member))
        else:
            if isinstance(said, Loaded):
                self._loaded(seat, said)
            else:
                self._fleet.proved(seat.member)
                task = seat.flying.pop(answer)
                self._let_go(seat, task)
                yield from _events(task.wave, said, seat.member.machine)

    def _loaded(self, seat: Seat, said: Loaded) -> None:
        seat.loaded = said
        if self._reference:
            self._compare(seat)

    def _compare(self, seat: Seat) -> None:
        """Sends a worker away whose pictures would be rounded otherwise than those of most, unless that is wanted."""
        assert self._reference and seat.loaded
        usual, own = self._reference.making.rounding(), seat.loaded.making.rounding()
        differing = usual.differences(own)
        if differing and not self._fleet.settings.mixed:
            what = "; ".join(f"{name} is {there} and not {here}" for name, (here, there) in differing.items())
            self._dismiss(seat, f"it would make other bytes ({what}); mixed=true uses it all the same")

    def _dismiss(self, seat: Seat, why: str) -> None:
        """Lets a worker go, and no other one come to its machine."""
        self._seats.remove(seat)
        self._fleet.dismiss(seat.member, unfit=why)
        self._changes.append(f"{seat.member.machine} gets no work: {why}")

    def _failed(self, seat: Seat, cause: BaseException, tasks: Tasks) -> Iterator[WaveEvent]:
        """What comes of an error that a worker met.

        Raises:
            RunnerError: it would meet every other worker as well.
        """
        if not seat.loaded:
            self._faults[str(cause)] = cause
            self._dismiss(seat, first_line(cause))
        elif isinstance(cause, DeviceLost):
            yield from self._died(seat, str(cause), tasks, blamed=True)
        else:
            raise cause

    def _died(self, seat: Seat, why: str, tasks: Tasks, *, blamed: bool) -> Iterator[WaveEvent]:
        """A worker is gone: others make its waves, and another one takes its place."""
        self._seats.remove(seat)
        if any(task.alone for task in seat.flying.values()):
            self._fleet.dismiss(seat.member)  # that item explains it, and not the place
        else:
            self._fleet.died(seat.member, why)
        self._changes.append(f"a worker of {seat.member.machine} died: {why}")
        for task in seat.flying.values():
            for item in tasks.again(task, blamed=blamed):
                error = Failure(kind="WorkerDied", message=f"the worker died each time it was made: {why}")
                yield ItemFailed(item=item, error=error)


def _events(wave: Wave, answer: Answer, machine: str) -> Iterator[WaveEvent]:
    for note in answer.notes:
        yield MemoryShort(message=f"{machine}: {note}")
    for outcome in answer.outcomes:
        item = wave.items[outcome.place]
        if outcome.failure:
            yield ItemFailed(
                item=item, error=outcome.failure, seconds=outcome.seconds, making=outcome.making,
                rerendered=outcome.rerendered,
            )  # fmt: skip
        else:
            assert outcome.making
            yield Rendered(
                item=item, finished=outcome.finished, worker=machine, seconds=outcome.seconds,
                peak_bytes=outcome.peak_bytes, making=outcome.making, rerendered=outcome.rerendered,
            )  # fmt: skip
    yield WaveDone()
