"""The workers of `engine=ray`: where there may be one, and Ray's actors, one in each such place. Never imports torch.

Ray is started on this machine, or joined where it runs already. Each GPU is a place, or, where there are none, each
`ray.cpus` cores of a machine. A place whose worker died gets a new one; machines come and go as Ray says.

    with Fleet(settings) as fleet:
        for member in fleet.refresh():
            member.actor.load.remote(model)
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from runner.engine.worker import Job, Start, Worker, start_here
from runner.errors import SettingError
from runner.machine.describe import THREAD_COUNTS, cores, threads
from runner.planning.choices import guess_device
from runner.settings import Settings

LOOK_SECONDS = 2.0  # between two looks at the machines
MOST_DEATHS = 3  # of a place's workers, one after the other, before it has made a picture
REACH_SECONDS = 10.0  # until a cluster is heard
OBJECT_STORE = 1 << 29  # bytes; what is on its way between processes
QUIET = {  # in the environment: reports to the maker, and advice about what may change
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
CARDS = "/proc/driver/nvidia/gpus"
TOKEN = ". Where the cluster asks for a token, set RAY_AUTH_MODE=token in the environment"
MISSING = "engine=ray needs Ray: pip install 'manifest-runner[ray]'"


class Place(NamedTuple):
    """Where a worker may be: the number of one on a machine, by its id in Ray, and what it gets of it."""

    node: str
    number: int
    cards: int
    cores: float


class Machine(NamedTuple):
    """A machine as Ray lists it."""

    node: str
    name: str
    cards: int
    cores: int


@dataclass(eq=False, slots=True)
class Member:
    """A worker: its place, the name of its machine, and Ray's handle."""

    place: Place
    machine: str
    actor: Any
    at_home: bool


class Fleet:
    """The workers that there are. `start` is how a worker starts its engine."""

    def __init__(self, settings: Settings, start: Start = start_here) -> None:
        self.settings = settings
        self.members: list[Member] = []
        self.left_out: dict[str, str] = {}  # by machines' ids, why they get no work
        self.given_up: dict[Place, str] = {}  # places whose workers died again and again, and why
        self._start = start
        self._deaths: dict[Place, int] = {}
        self._looked = -LOOK_SECONDS
        self._hired = False
        self._home = ""  # the machine of this process
        self._joined = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._joined:
            return
        self._joined = False
        import ray

        with contextlib.suppress(Exception):  # they may be dead, or Ray itself
            ray.wait([member.actor.close.remote() for member in self.members], num_returns=len(self.members), timeout=1)
        for member in self.members:
            with contextlib.suppress(Exception):
                ray.kill(member.actor)
        self.members.clear()
        ray.shutdown()

    def join(self) -> None:
        """Starts Ray, or joins it where it runs; does nothing the second time.

        Raises:
            SettingError: Ray isn't installed, doesn't start, or can't be reached.
        """
        if self._joined:
            return
        os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
        ray, address = _import(), self.settings.ray.address
        if address is None and not any(places([machine_here(self.settings)], self.settings)):
            raise SettingError(_no_place([machine_here(self.settings)], self.settings))
        own = {} if address else {"num_cpus": cores(), "object_store_memory": OBJECT_STORE, "include_dashboard": False}
        with _own_signals(), warnings.catch_warnings(action="ignore"):
            try:
                if address and address != "auto":
                    check_reachable(address)
                ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
            except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
                what = "Ray doesn't start" if address is None else f"ray.address={address}: can't be reached"
                hint = TOKEN if address and "RAY_AUTH_MODE" not in os.environ else ""
                raise SettingError(f"{what}: {first_line(error)}{hint}") from error
        self._joined = True
        if not (address or "").startswith("ray://"):
            self._home = ray.get_runtime_context().get_node_id()

    def refresh(self) -> Sequence[Member]:
        """Looks at the machines at times: drops the workers of those that went, and starts those that may be.

        Returns those that were started.

        Raises:
            SettingError: no machine can ever have a worker as the settings want it.
        """
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return []
        self._looked = time.monotonic()
        machines = {machine.node: machine for machine in self.machines()}
        if not self._hired and not any(places(machines.values(), self.settings)):
            raise SettingError(_no_place(machines.values(), self.settings))
        self.members = [member for member in self.members if member.place.node in machines]
        taken, started = {member.place for member in self.members}, []
        for place in places(machines.values(), self.settings):
            full = self.settings.ray.workers is not None and len(self.members) >= self.settings.ray.workers
            if full or place in taken or place in self.given_up or place.node in self.left_out:
                continue
            started.append(self._hire(place, machines[place.node]))
            self.members.append(started[-1])
        return started

    def has(self, member: Member) -> bool:
        """Whether the worker's machine is there, as far as Ray knows by now."""
        return member.place.node in {machine.node for machine in self.machines()}

    def dismiss(self, member: Member, *, unfit: str = "") -> None:
        """Lets a worker go; its place gets another one, unless the machine is `unfit`, which says why."""
        import ray

        self.members = [other for other in self.members if other is not member]
        with contextlib.suppress(Exception):  # it may be dead
            ray.kill(member.actor)
        if unfit:
            self.left_out[member.place.node] = f"{member.machine}: {unfit}"
        self._looked = -LOOK_SECONDS  # another one is wanted now

    def died(self, member: Member, why: str) -> None:
        """A worker is dead: its place gets another one, unless too many died there before they made anything."""
        self._deaths[member.place] = deaths = self._deaths.get(member.place, 0) + 1
        if deaths >= MOST_DEATHS:
            self.given_up[member.place] = f"{member.machine}: {deaths} workers died one after the other: {why}"
        self.dismiss(member)

    def forgive(self) -> None:
        """Forgets which machines and places get no work: another model may be there."""
        self.left_out.clear()
        self.given_up.clear()
        self._deaths.clear()

    def without_work(self) -> list[str]:
        """Why machines and places get no work."""
        return [*self.left_out.values(), *self.given_up.values()]

    def proved(self, member: Member) -> None:
        """A worker has made pictures."""
        self._deaths.pop(member.place, None)

    def machines(self) -> Iterator[Machine]:
        """The machines that Ray has now."""
        import ray

        for node in ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                name = str(node["NodeManagerHostname"])
                yield Machine(node["NodeID"], name, int(has.get("GPU", 0)), int(has.get("CPU", 0)))

    def _hire(self, place: Place, machine: Machine) -> Member:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        settings, self._hired = self.settings, True
        sharing = sum(other.node == place.node for other in places([machine], settings))
        device = "cuda" if place.cards else "cpu"
        job = Job(
            settings=dataclasses.replace(settings, device=device if settings.device in ("auto", device) else "cpu"),
            start=self._start,
            cores=settings.ray.cpus if not place.cards else None,
            sharing=min(sharing, settings.ray.workers or sharing),
            environment={name: os.environ[name] for name in THREAD_COUNTS if name in os.environ},
        )
        at_home = place.node == self._home
        actor = (
            ray.remote(Worker)
            .options(
                num_cpus=place.cores,
                num_gpus=place.cards,
                max_concurrency=4,  # a wave that is rendered, one that is encoded, one that waits, and `keep`
                max_restarts=0,  # a new one has to load the model first
                max_task_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
            )
            .remote(job)
        )
        return Member(place, machine.name, actor, at_home)


def places(machines: Iterable[Machine], settings: Settings) -> Iterator[Place]:
    """Where there may be workers, each time the same: on cards if any machine has one, else on cores.

    With `mixed=true` machines without a card have workers as well.
    """
    machines = sorted(machines)
    cards = any(machine.cards for machine in machines) and settings.device != "cpu"
    for machine in machines:
        if cards and machine.cards:
            share = max(1, machine.cores // machine.cards) if machine.cores else 0
            yield from (Place(machine.node, number, 1, share) for number in range(machine.cards))
        elif settings.device != "cuda" and (not cards or settings.mixed):
            each = settings.ray.cpus or machine.cores
            yield from (Place(machine.node, number, 0, each) for number in range(machine.cores // each if each else 0))


class Strength(NamedTuple):
    """How many workers a run would have, and how many times as fast as in one process here it would be by that."""

    workers: int
    times: float


def strength(settings: Settings) -> Strength:
    """What a run would have: on this machine it is worked out, a cluster is asked.

    Raises:
        SettingError: as `Fleet.join` and `Fleet.refresh`.
    """
    machines = [machine_here(settings)]
    if settings.ray.address is not None:
        with Fleet(settings) as fleet:
            fleet.join()
            machines = [*fleet.machines()]
    found = list(itertools.islice(places(machines, settings), settings.ray.workers))
    if not found:
        raise SettingError(_no_place(machines, settings))
    used = sum(place.cores for place in found)
    return Strength(len(found), len(found) if found[0].cards else max(1.0, used / threads()))


def machine_here(settings: Settings) -> Machine:
    """This machine as Ray would list it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = len(list(Path(CARDS).glob("*"))) if guess_device(settings.device) == "cuda" else 0
    if visible is not None:
        cards = min(cards, len([each for each in visible.split(",") if each.strip() not in ("", "-1")]))
    return Machine("", "", cards, cores())


def _no_place(machines: Iterable[Machine], settings: Settings) -> str:
    most = max((machine.cores for machine in machines), default=0)
    if settings.device == "cuda":
        return "device=cuda: no machine of Ray has a card; leave device= out, or start Ray where there are some"
    return f"ray.cpus={settings.ray.cpus}: no machine of Ray has so many cores; the largest has {most}"


def _import() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise SettingError(MISSING) from error
    return ray


def check_reachable(address: str) -> None:
    """Whether something listens at `HOST:PORT`; Ray itself would try for minutes.

    Raises:
        OSError, ValueError: nothing does, or it is no such address.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS):
        pass


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps the handlers of signals: Ray sets its own for SIGTERM, which would leave at once."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def first_line(error: BaseException) -> str:
    """The beginning of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
