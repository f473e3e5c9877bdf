"""A job of a manifest: every combination of its axes' values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.errors import Location
from runner.images.inits import Init
from runner.item import Lora, Model
from runner.manifest.grid import Axis, Grid, Remainder
from runner.manifest.loras import show_set, show_strength
from runner.manifest.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Every combination of the axes' values that remains, over values that are the same for all.

    `drawn` is the number of seeds that count up from one that has yet to be drawn, 0 where the seeds are known; they
    vary faster than all axes. `samples` is the number of seeds that one iteration goes through. `index` is the place of
    the job in the manifest's list; what it includes has the same. `own` are the keys that it sets itself.
    """

    index: int
    values: Mapping[str, Any]
    axes: tuple[Axis, ...]
    remainder: Remainder | None
    drawn: int
    samples: int
    location: Location
    own: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        return Grid(self.axes, self.remainder).size * max(self.drawn, 1)

    @property
    def columns(self) -> dict[str, Sequence[Any]]:
        """The values that each varying key takes."""
        return {key: values for axis in self.axes for key, values in axis.columns.items()}

    @property
    def syntaxes(self) -> frozenset[str]:
        """Those that its texts are read in."""
        return frozenset(self.columns.get("prompt_syntax", [self.values.get("prompt_syntax")]))

    def syntaxes_with(self, key: str) -> Sequence[str] | None:
        """The syntax beside each value of a key where both are walked together; None where each meets each."""
        together = (axis.columns for axis in self.axes if {key, "prompt_syntax"} <= axis.columns.keys())
        return next((columns["prompt_syntax"] for columns in together), None)


def shown(value: Any) -> Any:
    """A value as the items name it on an axis."""
    if isinstance(value, Init):
        return value.label or value.path.name
    if isinstance(value, Model):
        return value.name or "the one of model="
    if isinstance(value, Prompt):
        return value.label
    if isinstance(value, Lora):
        return show_strength(value)
    if isinstance(value, tuple) and all(isinstance(each, Lora) for each in value):
        return show_set(value)
    return value
