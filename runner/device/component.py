"""Where a component's weights are: on the device, parked, or on their way through it.

A component either *stays* on the device, or *visits* it for as long as it is needed, or *walks* through it unit by
unit: each unit of weights is brought once for all the calls of a walk, while the next one is on its way, and is
dropped after it. The calls are the module's own, unmodified forward passes: each runs in a greenlet that stops before
every unit until all the others stand there too. Nothing is ever copied back, since weights don't change.

    unet = Component(module, tensors, device=device, dtype=dtype, mode="walks")
    predictions = unet.call_all([lambda unet: unet(latents, times, context).sample, ...])
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import greenlet
import torch
from torch import Tensor, nn

from runner.device.lanes import Here, Place
from runner.device.parking import Arena, Tensors, make_parking
from runner.kernels.packed import Packed, drop_packed
from runner.model.safetensors import StoredTensor
from runner.planning.costs import STAYS, UNITS, VISITS, WALKS


class Component:
    """A module whose weights come and go."""

    def __init__(
        self,
        module: nn.Module,
        tensors: Mapping[str, StoredTensor],
        *,
        device: torch.device,
        dtype: torch.dtype,
        mode: str,
        place: Place | None = None,
    ) -> None:
        self.module, self.device, self.dtype = module, device, dtype
        self.place = place or Here()
        self.config = _config_of(module)
        self.parking = make_parking(tensors, device, dtype)
        self._here: set[str] = set()
        self.walk: Walk | None = None
        self.substitute: Any = None  # what is called as the module would be, and sees to its weights itself
        self.mode = VISITS
        self.change(mode)
        for owner in module.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                setattr(owner, name, buffer.to(device))

    def change(self, mode: str) -> None:
        """Stays, visits or walks from now on."""
        if mode != STAYS:
            self.leave()
        if mode == WALKS:
            self.walk = self.walk or Walk(self)
        else:
            self.rest()
        self.mode = mode

    @contextmanager
    def visit(self, *parts: str) -> Iterator[nn.Module]:
        """The module with the weights of these parts of it on the device, or all; they leave unless they stay."""
        try:
            for part in parts or ("",):
                if part not in self._here:
                    self._here.add(part)  # before it is whole, so that an error leaves nothing of it behind
                    self._bring(part)
        except BaseException:
            self.leave()
            raise
        try:
            yield self.module
        finally:
            if self.mode != STAYS:
                self.leave()

    def _bring(self, part: str) -> None:
        for name, owner in self.module.get_submodule(part).named_modules(prefix=part):
            if any(True for _ in owner.parameters(recurse=False)):
                put(owner, self.parking.bring(name, owner, Arena(self.device)))

    def leave(self) -> None:
        """Drops the weights."""
        if self._here:
            take_away(self.module)
            self._here.clear()

    def rest(self) -> None:
        """Gives back the memory that the weights walk through, until the next walk."""
        if self.walk:
            self.walk.close()

    def call_all(self, calls: Sequence[Callable[[nn.Module], Tensor]], *, once: bool = False) -> list[Tensor]:
        """The results of several calls of the module; if it walks, each unit is brought once for all of them.

        `once` says that no more calls like these will come, so that nothing is kept for them.
        """
        if self.substitute:
            return self.place.run([partial(call, self.substitute) for call in calls])
        if self.mode == WALKS and self.walk:
            return self.walk.run(calls, once=once)
        with self.visit() as module:
            return self.place.run([partial(call, module) for call in calls])


class Walk:
    """A module's units, brought one after the other, each while the one before it is in use."""

    def __init__(self, component: Component) -> None:
        self.units = find_units(component.module)
        self.loads = dict.fromkeys(self.units, 0)  # how often each unit was brought
        self._component = component
        self._arenas = Arena(component.device), Arena(component.device)
        self._order: list[str] = []  # in which the units are called, known after the first walk
        self._ahead: tuple[str, Future[Tensors]] | None = None
        for name, unit in self.units.items():
            unit.register_forward_pre_hook(lambda *_, name=name: _stop_before(name))

    def run(self, calls: Sequence[Callable[[nn.Module], Tensor]], *, once: bool = False) -> list[Tensor]:
        """Brings each unit once and lets every call go through it."""
        place, module = self._component.place, self._component.module
        walkers = place.run([partial(_Walker, call) for call in calls])
        order: list[str] = []
        try:
            stands = place.run([partial(walker.switch, module) for walker in walkers])
            while not all(walker.dead for walker in walkers):
                here = stands[0]
                assert all(stand == here for stand in stands), "calls of one module take one way through it"
                order.append(here)
                put(self.units[here], self._bring(here))
                self._bring_ahead(len(order))
                stands = place.run([walker.switch for walker in walkers])
                if not once:
                    self._keep(here)
                take_away(self.units[here])
                self._arenas[0].release()
                self._arenas = self._arenas[1], self._arenas[0]
        except BaseException:
            self._give_up(walkers)
            raise
        self._order = order
        return stands

    def close(self) -> None:
        """Gives back the memory that the weights walk through."""
        self._give_up([])
        for arena in self._arenas:
            arena.clear()

    def _bring_ahead(self, position: int) -> None:
        if self._order:
            name = self._order[position % len(self._order)]
            self._ahead = name, self._component.parking.bring_ahead(name, self.units[name], self._arenas[1])

    def _bring(self, name: str) -> Tensors:
        self.loads[name] += 1
        ahead, self._ahead = self._ahead, None
        if ahead:
            tensors = ahead[1].result()
            if ahead[0] == name:
                return tensors
        return self._component.parking.bring(name, self.units[name], self._arenas[0])

    def _keep(self, name: str) -> None:
        if not (self._ahead and self._ahead[0] == name):  # where it's being read it can't be written
            self._component.parking.keep(name, self.units[name])

    def _give_up(self, walkers: Sequence[_Walker]) -> None:
        """After an error: no call goes on, and nothing is on its way."""
        ahead, self._ahead = self._ahead, None
        if ahead:
            with contextlib.suppress(Exception):  # it couldn't be brought; nobody needs it any more
                ahead[1].result()  # the memory isn't given back while a copy is on its way into it
        self._component.place.run([walker.stop for walker in walkers])
        take_away(self._component.module)


class _Walker(greenlet.greenlet):  # type: ignore[misc]
    """One call on its way through a module, on one thread from its beginning to its end."""

    def stop(self) -> None:
        """Doesn't go on."""
        if not self.dead:
            self.throw()


def find_units(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that weights are brought for, in which every parameter is exactly once.

    From the top down: a module is a unit if it is small enough, or if it has parameters of its own.
    """
    limit = sum(parameter.numel() for parameter in module.parameters()) / UNITS
    units: dict[str, nn.Module] = {}

    def divide(name: str, part: nn.Module) -> None:
        size = sum(parameter.numel() for parameter in part.parameters())
        callable_part = not isinstance(part, nn.ModuleList | nn.ModuleDict)
        if size and callable_part and (size <= limit or any(True for _ in part.parameters(recurse=False))):
            units[name] = part
        elif size:
            for child_name, child in part.named_children():
                divide(f"{name}.{child_name}" if name else child_name, child)

    divide("", module)
    return units


def _config_of(module: nn.Module) -> Mapping[str, Any]:
    """A module's configuration with all its defaults; diffusers keeps a mapping, transformers an object."""
    config: Any = module.config
    return config if isinstance(config, Mapping) else config.to_dict()


def _stop_before(unit: str) -> None:
    walker = greenlet.getcurrent()
    if isinstance(walker, _Walker):
        walker.parent.switch(unit)


def put(module: nn.Module, tensors: Tensors) -> None:
    """Gives a module its weights."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Packed):
            layer: Any = module.get_submodule(name.rpartition(".")[0])
            layer.packed = tensor
        else:
            _set_parameter(module, name, tensor)


def take_away(module: nn.Module) -> None:
    """Drops a module's weights."""
    for name, parameter in list(module.named_parameters()):
        _set_parameter(module, name, torch.empty_like(parameter, device="meta"))
    drop_packed(module)


def _set_parameter(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner = module.get_submodule(name.rpartition(".")[0])
    owner._parameters[name.rpartition(".")[2]] = nn.Parameter(tensor, requires_grad=False)
