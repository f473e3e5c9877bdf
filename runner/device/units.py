"""The parts of a module that weights come for together, and how a part's modules get and lose them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from runner.device.parking import Tensors
from runner.kernels.packed import Packed, PackedConv2d, PackedLinear
from runner.model.architecture import USUAL_UNITS


class Unit:
    """A part of a module; while its weights are away it has parameters of the same shapes on the meta device."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self._places = {own: _place(module, own) for own, _ in module.named_parameters()}
        self._away = [
            (parameters, key, nn.Parameter(torch.empty_like(parameters[key], device="meta"), requires_grad=False))
            for parameters, key in self._places.values()
        ]
        self._layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        self._made: tuple[Tensors, list[tuple[dict[str, Any], str, nn.Parameter]]] | None = None

    def put(self, tensors: Tensors) -> None:
        """Gives the part its weights, by their names in it."""
        if self._made is None or self._made[0] is not tensors:
            plain = [(*self._places[own], each) for own, each in tensors.items() if not isinstance(each, Packed)]
            made = [(owner, key, nn.Parameter(each, requires_grad=False)) for owner, key, each in plain]
            self._made = tensors, made
        for owner, key, parameter in self._made[1]:
            owner[key] = parameter
        for own, each in tensors.items():
            if isinstance(each, Packed):
                layer: Any = self.module.get_submodule(own.rpartition(".")[0])
                layer.packed = each

    def has(self, names: Collection[str]) -> bool:
        """Whether one of its weights has one of these names in the whole module."""
        return any(f"{self.name}.{own}".lstrip(".") in names for own in self._places)

    def take_away(self) -> None:
        """Drops the weights."""
        for owner, key, parameter in self._away:
            owner[key] = parameter
        for layer in self._layers:
            if isinstance(layer, PackedConv2d | PackedLinear):
                layer.packed = None

    def forget(self) -> None:
        """Lets go of the memory that the weights came in."""
        self._made = None


def _place(module: nn.Module, own: str) -> tuple[dict[str, Any], str]:
    owner, _, key = own.rpartition(".")
    return module.get_submodule(owner)._parameters, key


def find_units(module: nn.Module, count: int = USUAL_UNITS) -> Mapping[str, nn.Module]:
    """The modules that weights are brought for, in which every parameter is exactly once.

    From the top down: a module is a unit if it has at most one in `count` parameters, or if it has some of its own.
    """
    limit = sum(parameter.numel() for parameter in module.parameters()) / count
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


def find_layers(module: nn.Module) -> Mapping[str, nn.Module]:
    """The modules that have parameters of their own."""
    return {name: part for name, part in module.named_modules() if any(True for _ in part.parameters(recurse=False))}
