"""A module whose weights walk through the device: each unit is brought once for all calls, before it is needed.

The calls are the module's own, unmodified forward passes: each runs in a greenlet that stops before every unit until
all the others stand there too. The first walk finds out in which order the units come, and how often each weight is
used. From then on units have their places in a ring, and those whose weights are used least stay, as many as may:
bringing them would take longest for what they do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import greenlet
import torch
from torch import Tensor, nn

from runner.device.lanes import Place
from runner.device.parking import Parking, Tensors
from runner.device.ring import Piece, Ring
from runner.device.units import Unit, find_layers, find_units
from runner.planning.costs import UNITS_IN_RING


class Walk:
    """A module's units, brought one after the other, while those before them are in use."""

    def __init__(self, module: nn.Module, parking: Parking, place: Place, device: torch.device) -> None:
        self.units = {name: Unit(name, part) for name, part in find_units(module).items()}
        self.loads = dict.fromkeys(self.units, 0)  # how often each unit was brought
        self.kept: dict[str, int] = {}  # the bytes of the units that stay
        self._module, self._parking, self._place, self._device = module, parking, place, device
        self._may_keep = 0
        self._uses: dict[str, int] = {}  # of each weight of a unit, in the order in which units are called
        self._layers: list[Unit] = []  # what the kept units were brought in
        self._streamed: list[str] = []  # all others, in their order
        self._sizes: list[int] = []  # of these, as they have their places in the ring
        self._ring = Ring(device)
        self._ahead: dict[int, Future[Tensors]] = {}  # units on their way, by their numbers in the ring
        for unit in self.units.values():
            unit.module.register_forward_pre_hook(partial(self._stop_before, unit.name), with_kwargs=True)

    def keep(self, size: int) -> None:
        """Lets units of up to so many bytes stay from the next walk on."""
        if size != self._may_keep:
            self.close()
            self._may_keep = size

    def run(self, calls: Sequence[Callable[[nn.Module], Tensor]], *, once: bool = False) -> list[Tensor]:
        """Brings each unit once and lets every call go through it; `once` says that nothing is kept for the next."""
        known = bool(self._uses)
        if known:
            self._settle()
        walkers = self._place.run([partial(_Walker, call) for call in calls])
        try:
            stands = self._place.run([partial(walker.switch, self._module) for walker in walkers])
            while not all(walker.dead for walker in walkers):
                here = stands[0]
                assert all(stand == here for stand in stands), "calls of one module take one way through it"
                unit = self.units[here]
                self.loads[here] += 1
                unit.put(self._take(here) if known else self._bring(unit))
                stands = self._place.run([walker.switch for walker in walkers])
                if not once:
                    self._remember(unit)
                unit.take_away()
                if known:
                    self._ring.release()
                else:
                    unit.forget()
        except BaseException:
            self._uses = self._uses if known else {}
            self._give_up(walkers)
            raise
        return stands

    def rest(self) -> None:
        """Gives back the memory that units walk through; those that stay, stay."""
        self._give_up([])
        self._ring.clear()
        for unit in self.units.values():
            unit.forget()

    def close(self) -> None:
        """Gives all memory back."""
        self.rest()
        for unit in self._layers:
            unit.take_away()
        self._layers, self.kept, self._streamed = [], {}, []

    def _bring(self, unit: Unit) -> Tensors:
        """A unit, where it isn't known yet what comes next."""
        return self._parking.bring(unit.name, unit.module, Piece(self._device), again=True)

    def _take(self, here: str) -> Tensors:
        """The next unit of the ring; those after it are brought as far as there is room."""
        number = self._ring.released
        assert self._name(number) == here, "a module's units come in the same order in each walk"
        coming = max(self._ahead, default=number - 1) + 1
        while self._ring.has_room_for(coming):
            unit = self.units[self._name(coming)]
            self._ahead[coming] = self._parking.bring_ahead(unit.name, unit.module, self._ring.piece(coming))
            coming += 1
        return self._ahead.pop(number).result()

    def _name(self, number: int) -> str:
        return self._streamed[number % len(self._streamed)]

    def _remember(self, unit: Unit) -> None:
        if unit.name not in map(self._name, self._ahead):  # where it's being read it can't be written
            self._parking.keep(unit.name, unit.module)

    def _settle(self) -> None:
        """Sees to it that what may stay is there, and that all others have their places."""
        try:
            if not self._streamed:
                self._choose()
            sizes = [self._size(name) for name in self._streamed]
            if sizes != self._sizes:
                self._give_up([])
                self._ring.lay(sizes, UNITS_IN_RING * max(map(self._size, self.units)))
                self._sizes = sizes
        except BaseException:
            self.close()
            raise

    def _choose(self) -> None:
        left = self._may_keep
        for name in sorted(self._uses, key=lambda name: (self._uses[name], -self._size(name))):
            if (size := self._size(name)) <= left and len(self.kept) < len(self._uses) - 1:
                left -= size
                self._stay(self.units[name], size)
        self._streamed = [name for name in self._uses if name not in self.kept]

    def _stay(self, unit: Unit, size: int) -> None:
        self.kept[unit.name] = size
        layers = find_layers(unit.module) if self._parking.by_layer else {"": unit.module}
        for name, layer in layers.items():
            self._layers.append(each := Unit(f"{unit.name}.{name}".strip("."), layer))
            each.put(self._parking.bring(each.name, layer, Piece(self._device), again=False))
            each.forget()

    def _size(self, name: str) -> int:
        return self._parking.size(name, self.units[name].module)

    def _give_up(self, walkers: Sequence[_Walker]) -> None:
        """No call goes on, and nothing is on its way."""
        for number in sorted(self._ahead):
            with contextlib.suppress(Exception):  # it couldn't be brought; nobody needs it any more
                self._ahead[number].result()  # the memory isn't given back while a copy is on its way into it
        self._ahead.clear()
        self._sizes = []
        self._place.run([walker.stop for walker in walkers])
        for unit in self.units.values():
            if unit.name not in self.kept:
                unit.take_away()

    def _stop_before(self, unit: str, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        walker = greenlet.getcurrent()
        if isinstance(walker, _Walker) and unit not in self.kept:
            self._uses.setdefault(unit, _places(given, named))
            walker.parent.switch(unit)


class _Walker(greenlet.greenlet):  # type: ignore[misc]
    """One call on its way through a module, on one thread from its beginning to its end."""

    def stop(self) -> None:
        """Doesn't go on."""
        if not self.dead:
            self.throw()


def _places(given: tuple[Any, ...], named: dict[str, Any]) -> int:
    """How many vectors of channels a layer is given, each of which it multiplies by all of its weights."""
    tensors = [each for each in [*given, *named.values()] if isinstance(each, Tensor)]
    if not tensors or tensors[0].dim() < 2:
        return 0
    channels = tensors[0].shape[1 if tensors[0].dim() == 4 else -1]
    return tensors[0].numel() // max(1, channels)
