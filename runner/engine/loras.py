"""Puts LoRAs on a model that is loaded, and takes them off: only the weights that differ are read again.

loras = Loras(model, components)
loras.put_on(item.loras)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from runner.device.component import Component
from runner.errors import ModelError
from runner.item import Lora
from runner.model.files import ModelFiles
from runner.model.loras import Changes, fit, read_lora
from runner.model.safetensors import Change

UNET = "unet"
OnTop = Mapping[str, tuple[Change, ...]]  # by tensor


class Loras:
    """What is on top of a model's weights at the moment."""

    def __init__(self, model: ModelFiles, components: Mapping[str, Component]) -> None:
        self._model, self._components = model, components
        self._known: dict[str, Changes] = {}  # by fingerprint
        self._on: dict[str, OnTop] = {}
        self._doubtful: dict[str, set[str]] = {}  # tensors that were being changed when something went wrong
        self.texts: tuple[tuple[str, float], ...] = ()  # those of the text encoders, by fingerprint, and how strong

    @torch.inference_mode()
    def put_on(self, loras: Sequence[Lora]) -> None:
        """Lets the weights be the model's own with these LoRAs, and no others.

        Raises:
            ValueError: the file of one is gone, or was changed.
        """
        ordered = sorted(loras, key=lambda lora: lora.sha256)  # so that a sum doesn't depend on who came first
        wanted: dict[str, dict[str, tuple[Change, ...]]] = {name: {} for name in self._components}
        for lora in ordered:
            for component, changes in self._changes(lora).items():
                weight = lora.unet if component == UNET else lora.text
                for tensor, change in changes.items() if weight else ():
                    others = wanted[component].get(tensor, ())
                    wanted[component][tensor] = (*others, replace(change, weight=weight))
        for name, on_top in wanted.items():
            self._replace(name, on_top)
        self.texts = tuple((lora.sha256, lora.text) for lora in ordered if lora.text)

    def _replace(self, component: str, wanted: OnTop) -> None:
        on, doubtful = self._on.get(component, {}), self._doubtful.setdefault(component, set())
        doubtful |= {
            name for name in on.keys() | wanted.keys() if not _are_same(on.get(name, ()), wanted.get(name, ()))
        }
        if not doubtful:
            return
        own = self._model.tensors[component]
        tensors = dict(own) | {name: replace(own[name], changes=changes) for name, changes in wanted.items()}
        self._on[component] = wanted
        self._components[component].replace(tensors, doubtful)
        doubtful.clear()

    def _changes(self, lora: Lora) -> Changes:
        if lora.sha256 not in self._known:
            try:
                found = read_lora(Path(lora.path))
                changes = fit(found, self._model)
            except ModelError as error:
                raise ValueError(str(error)) from None
            if found.sha256 != lora.sha256:
                raise ValueError(f"{lora.path}: was changed since the run began")
            self._known[lora.sha256] = changes
        return self._known[lora.sha256]


def _are_same(one: Sequence[Change], other: Sequence[Change]) -> bool:
    """Whether the same parts are added with the same weights; a part that was read once stays the same object."""
    return len(one) == len(other) and all(
        a.parts is b.parts and a.weight == b.weight for a, b in zip(one, other, strict=True)
    )
