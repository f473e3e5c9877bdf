"""Where a component's weights are: on the device, parked, or on their way through it.

A component either *stays* on the device, or *visits* it for as long as it is needed, or *walks* through it unit by
unit: each unit of weights is brought once for all the calls of a walk, while the next one is on its way, and is
dropped after it. The calls are the module's own, unmodified forward passes: each runs in a greenlet that stops before
every unit until all the others stand there too. Nothing is ever copied back, since weights don't change.

    unet = Component(module, tensors, device=device, dtype=dtype, mode="walks")
    predictions = unet.call_all([lambda unet: unet(latents, times, context).sample, ...])
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from runner.device.lanes import Here, Place
from runner.device.parking import make_parking
from runner.device.slots import Piece
from runner.device.units import Unit, find_layers, find_units
from runner.device.walk import Walk
from runner.model.architecture import USUAL_UNITS
from runner.model.safetensors import StoredTensor
from runner.planning.costs import STAYS, VISITS, WALKS


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
        channels_last: bool = False,
        units: int = USUAL_UNITS,
    ) -> None:
        self.module, self.device, self.dtype = module, device, dtype
        self.place, self._count = place or Here(), units
        self.config = _config_of(module)
        self.parking = make_parking(tensors, device, dtype, channels_last=channels_last)
        self._parts: dict[str, list[Unit]] = {}  # by name: what each is brought in
        self._here: set[str] = set()
        self.walk: Walk | None = None
        self.substitute: Any = None  # what is called as the module would be, and sees to its weights itself
        self.mode = VISITS
        self.change(mode)
        for owner in module.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                setattr(owner, name, buffer.to(device))

    def change(self, mode: str, kept: int = 0) -> None:
        """Stays, visits or walks from now on; of one that walks, units of up to `kept` bytes stay."""
        if mode != STAYS:
            self.leave()
        if mode == WALKS:
            self.walk = self.walk or Walk(self.module, self.parking, self.place, self.device, self._count)
            self.walk.keep(kept)
        elif self.walk:
            self.walk.close()
        self.mode = mode

    @property
    def kept(self) -> int:
        """The bytes of the units that stay while the others walk."""
        return sum(self.walk.kept.values()) if self.walk else 0

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
        for unit in self._units(part):
            self._put(unit)

    def _put(self, unit: Unit) -> None:
        unit.put(self.parking.bring(unit.name, unit.module, Piece(self.device), again=self.mode != STAYS))
        unit.forget()

    def _units(self, part: str) -> list[Unit]:
        if part not in self._parts:
            module = self.module.get_submodule(part)
            found = find_layers(module) if self.parking.by_layer else find_units(module, self._count)
            names = {name: f"{part}.{name}".strip(".") for name in found}
            self._parts[part] = [Unit(names[name], each) for name, each in found.items()]
        return self._parts[part]

    def replace(self, tensors: Mapping[str, StoredTensor], changed: Collection[str]) -> None:
        """Takes other weights from now on; of those that are there, only the `changed` ones are read again."""
        self.parking.replace(tensors, changed)
        try:
            for part in self._here:
                for unit in self._units(part):
                    if unit.has(changed):
                        unit.take_away()
                        self._put(unit)
            if self.walk:
                self.walk.replace(changed)
        except BaseException:
            self.drop()
            raise
        if self.substitute:
            self.substitute.renew()

    def leave(self) -> None:
        """Drops the weights, but for units that stay while the others walk."""
        for part in self._here:
            for unit in self._units(part):
                unit.take_away()
        self._here.clear()

    def drop(self) -> None:
        """Drops all weights and gives all of the device's memory back."""
        self.leave()
        if self.walk:
            self.walk.close()

    def rest(self) -> None:
        """Gives back the memory that the weights walk through, until the next walk."""
        if self.walk:
            self.walk.rest()

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


def _config_of(module: nn.Module) -> Mapping[str, Any]:
    """A module's configuration with all its defaults; diffusers keeps a mapping, transformers an object."""
    config: Any = module.config
    return config if isinstance(config, Mapping) else config.to_dict()
