"""Where a component's weights are: parked in their file, on the device for a visit, or walking through it unit by unit.

A component that doesn't stay is brought for a `visit`. A component that is too large to visit as a whole is walked:
its weights come unit by unit, each unit once for all the calls of a walk, and are dropped after it. The calls are the
module's own, unmodified forward passes: each runs in a greenlet that stops before every unit until all the others
stand there too. Nothing is ever copied back, since weights don't change.

    unet = Component(module, tensors, device=device, dtype=dtype, stays=False)
    predictions = unet.call_all([lambda unet: unet(latents, times, context).sample, ...])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import greenlet
import torch
from torch import Tensor, nn

from runner.checkpoint import read_tensor
from runner.stored import StoredTensor

UNITS = 24  # a unit has at most about this share of the weights, unless it can't be divided


class Component:
    """A module whose weights come and go."""

    def __init__(
        self,
        module: nn.Module,
        tensors: Mapping[str, StoredTensor],
        *,
        device: torch.device,
        dtype: torch.dtype,
        stays: bool,
    ) -> None:
        self.module, self.device, self.dtype, self.stays = module, device, dtype, stays
        self.config = _config_of(module)
        self._tensors = tensors
        self._here = False
        self.walk = None if stays else Walk(self)
        for owner in module.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                setattr(owner, name, buffer.to(device))

    @contextmanager
    def visit(self) -> Iterator[nn.Module]:
        """The module with all its weights on the device; they leave afterwards, unless they stay."""
        if not self._here:
            put(self.module, self.read("", self.module))
            self._here = True
        try:
            yield self.module
        finally:
            if not self.stays:
                self.leave()

    def leave(self) -> None:
        """Takes the weights off the device; the next visit brings them back."""
        if self._here:
            take_away(self.module)
            self._here = False

    def call_all(self, calls: Sequence[Callable[[nn.Module], Tensor]]) -> list[Tensor]:
        """The results of several calls of the module; if it doesn't stay, each unit is brought once for all of them."""
        if self.walk:
            return self.walk.run(calls)
        with self.visit() as module:
            return [call(module) for call in calls]

    def read(self, prefix: str, part: nn.Module) -> dict[str, Tensor]:
        """The weights of a part of the module, on the device."""
        dot = f"{prefix}." if prefix else ""
        names = [name for name, _ in part.named_parameters()]
        return {name: read_tensor(self._tensors[dot + name], self.dtype).to(self.device) for name in names}


class Walk:
    """A module's units, brought one after the other, while a thread reads the next one ahead."""

    def __init__(self, component: Component) -> None:
        self.units = find_units(component.module)
        self.loads = dict.fromkeys(self.units, 0)  # how often each unit was brought
        self._component = component
        self._order: list[str] = []  # in which the units are called, known after the first walk
        self._ahead: tuple[str, Future[dict[str, Tensor]]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="weights")
        for name, unit in self.units.items():
            unit.register_forward_pre_hook(lambda *_, name=name: _stop_before(name))

    def run(self, calls: Sequence[Callable[[nn.Module], Tensor]]) -> list[Tensor]:
        """Brings each unit once and lets every call go through it."""
        walkers = [_Walker(call) for call in calls]
        stands = [walker.switch(self._component.module) for walker in walkers]
        order: list[str] = []
        while not all(walker.dead for walker in walkers):
            here = stands[0]
            assert all(stand == here for stand in stands), "calls of one module take one way through it"
            order.append(here)
            put(self.units[here], self._fetch(here))
            self._read_ahead(len(order))
            stands = [walker.switch() for walker in walkers]
            take_away(self.units[here])
        self._order = order
        return stands

    def _read_ahead(self, position: int) -> None:
        if self._order:
            name = self._order[position % len(self._order)]
            self._ahead = name, self._reader.submit(self._component.read, name, self.units[name])

    def _fetch(self, name: str) -> dict[str, Tensor]:
        self.loads[name] += 1
        ahead, self._ahead = self._ahead, None
        if ahead and ahead[0] == name:
            return ahead[1].result()
        return self._component.read(name, self.units[name])


class _Walker(greenlet.greenlet):  # type: ignore[misc]
    """One call on its way through a module."""


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


def put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a module its weights."""
    for name, tensor in tensors.items():
        _set_parameter(module, name, tensor)


def take_away(module: nn.Module) -> None:
    """Drops a module's weights."""
    for name, parameter in list(module.named_parameters()):
        _set_parameter(module, name, torch.empty_like(parameter, device="meta"))


def _set_parameter(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner = module.get_submodule(name.rpartition(".")[0])
    owner._parameters[name.rpartition(".")[2]] = nn.Parameter(tensor, requires_grad=False)
