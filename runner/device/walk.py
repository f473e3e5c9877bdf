"""A module whose weights walk through the device: each unit is brought once for all calls, before it is needed.

The calls are the module's own, unmodified forward passes: each runs in a greenlet that stops before every unit until
all the others stand there too. The first walk finds out in which order the units come, and how often each weight is
used. From then on units that follow each other come together in slots, and those whose weights are used least stay, as
many as may: bringing them would take longest for what they do.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import greenlet
import torch
from torch import Tensor, nn

from runner.device.lanes import Place
from runner.device.parking import Parking, Tensors
from runner.device.slots import Piece, Slots, gather
from runner.device.units import Unit, find_layers, find_units
from runner.model.architecture import USUAL_UNITS
from runner.planning.costs import SLOTS


class Walk:
    """A module's units, brought one after the other, while those before them are in use."""

    def __init__(
        self, module: nn.Module, parking: Parking, place: Place, device: torch.device, count: int = USUAL_UNITS
    ) -> None:
        self.units = {name: Unit(name, part) for name, part in find_units(module, count).items()}
        self.loads = dict.fromkeys(self.units, 0)  # how often each unit was brought
        self.kept: dict[str, int] = {}  # the bytes of the units that stay
        self._module, self._parking, self._place, self._device = module, parking, place, device
        self._may_keep = 0
        self._uses: dict[str, int] = {}  # of each weight of a unit, in the order in which units are called
        self._layers: list[Unit] = []  # what the kept units were brought in
        self._groups: list[list[Unit]] = []  # of all others, in their order; none until that is known
        self._first: set[str] = set()  # the first one of each group
        self._sizes: dict[str, int] = {}  # of these, as they have their places in the slots
        self._slots = Slots(device, SLOTS)
        self._ahead: dict[int, list[Future[Tensors]]] = {}  # units on their way, by the numbers of their groups
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
                group = self._take(here) if known else self._bring(here)
                stands = self._place.run([walker.switch for walker in walkers])
                self._take_away(group, keep=not once)
        except BaseException:
            self._uses = self._uses if known else {}
            self._give_up(walkers)
            raise
        return stands

    def replace(self, changed: Collection[str]) -> None:
        """Weights of these names are others by now: those that stay are brought again."""
        self.rest()
        for layer in self._layers:
            if layer.has(changed):
                layer.take_away()
                self._bring_to_stay(layer)

    def rest(self) -> None:
        """Gives back the memory that units walk through; those that stay, stay."""
        self._give_up([])
        self._slots.clear()
        for unit in self.units.values():
            unit.forget()

    def close(self) -> None:
        """Gives all memory back."""
        self.rest()
        for unit in self._layers:
            unit.take_away()
        self._layers, self.kept, self._groups = [], {}, []

    def _bring(self, here: str) -> list[Unit]:
        """A unit, where it isn't known yet what comes next."""
        unit = self.units[here]
        unit.put(self._parking.bring(here, unit.module, Piece(self._device), again=True))
        unit.forget()
        self.loads[here] += 1
        return [unit]

    def _take(self, here: str) -> list[Unit]:
        """The next group; those after it are brought as far as there are slots."""
        number = self._slots.released
        coming = max(self._ahead, default=number - 1) + 1
        while self._slots.has_room_for(coming):
            units, pieces = self._group(coming), self._slots.pieces(coming)
            self._ahead[coming] = [
                self._parking.bring_ahead(unit.name, unit.module, piece)
                for unit, piece in zip(units, pieces, strict=True)
            ]
            coming += 1
        group = self._group(number)
        assert group[0].name == here, "a module's units come in the same order in each walk"
        for unit, future in zip(group, self._ahead.pop(number), strict=True):
            unit.put(future.result())
            self.loads[unit.name] += 1
        return group

    def _group(self, number: int) -> list[Unit]:
        return self._groups[number % len(self._groups)]

    def _take_away(self, group: Sequence[Unit], *, keep: bool) -> None:
        coming = {unit.name for number in self._ahead for unit in self._group(number)}
        for unit in group:
            if keep and unit.name not in coming:  # where it's being read it can't be written
                self._parking.keep(unit.name, unit.module)
            unit.take_away()
        if self._groups:
            self._slots.release()

    def _settle(self) -> None:
        """Sees to it that what may stay is there, and that all others have their places."""
        try:
            if not self._groups:
                sizes = {name: self._size(name) for name in self._uses}
                for name, size in choose_kept(self._uses, sizes, self._may_keep).items():
                    self._stay(self.units[name], size)
            sizes = {name: self._size(name) for name in self._uses if name not in self.kept}
            if sizes != self._sizes:
                self._give_up([])
                room = max(map(self._size, self.units))
                groups = gather(sizes, room)
                self._slots.lay([[sizes[name] for name in group] for group in groups], room)
                self._groups, self._sizes = [[self.units[name] for name in group] for group in groups], sizes
                self._first = {group[0] for group in groups}
        except BaseException:
            self.close()
            raise

    def _stay(self, unit: Unit, size: int) -> None:
        self.kept[unit.name] = size
        layers = find_layers(unit.module) if self._parking.by_layer else {"": unit.module}
        for name, layer in layers.items():
            self._layers.append(each := Unit(f"{unit.name}.{name}".strip("."), layer))
            self._bring_to_stay(each)

    def _bring_to_stay(self, layer: Unit) -> None:
        layer.put(self._parking.bring(layer.name, layer.module, Piece(self._device), again=False))
        layer.forget()

    def _size(self, name: str) -> int:
        return self._parking.size(name, self.units[name].module)

    def _give_up(self, walkers: Sequence[_Walker]) -> None:
        """No call goes on, and nothing is on its way."""
        for future in itertools.chain.from_iterable(self._ahead.values()):
            with contextlib.suppress(Exception):  # it couldn't be brought; nobody needs it any more
                future.result()  # the memory isn't given back while a copy is on its way into it
        self._ahead.clear()
        self._sizes = {}
        self._place.run([walker.stop for walker in walkers])
        for unit in self.units.values():
            if unit.name not in self.kept:
                unit.take_away()

    def _stop_before(self, unit: str, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        walker = greenlet.getcurrent()
        if not isinstance(walker, _Walker):
            return
        if not self._groups:
            self._uses.setdefault(unit, count_uses(given, named))
        if not self._groups or unit in self._first:
            walker.parent.switch(unit)


class _Walker(greenlet.greenlet):  # type: ignore[misc]
    """One call on its way through a module, on one thread from its beginning to its end."""

    def stop(self) -> None:
        """Doesn't go on."""
        if not self.dead:
            self.throw()


def choose_kept(uses: Mapping[str, int], sizes: Mapping[str, int], room: int) -> dict[str, int]:
    """The units that stay, and their sizes: those whose weights are used least, as many as there is room for but one.

    What a unit computes is its size times its uses, so these have the most bytes for what they compute.
    """
    kept: dict[str, int] = {}
    for name in sorted(uses, key=lambda name: (uses[name], -sizes[name])):
        if sum(kept.values()) + sizes[name] <= room and len(kept) < len(uses) - 1:
            kept[name] = sizes[name]
    return kept


def count_uses(given: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """How many vectors of channels a layer is given, each of which it multiplies by all of its weights."""
    tensors = [each for each in [*given, *named.values()] if isinstance(each, Tensor)]
    if not tensors or tensors[0].dim() < 2:
        return 0
    channels = tensors[0].shape[1 if tensors[0].dim() == 4 else -1]
    return tensors[0].numel() // max(1, channels)
