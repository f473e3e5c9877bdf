"""Predicts how fast weights that are streamed let a card be, from each unit's real bytes and FLOPs. No card is needed.

The plan is the runner's own: the layout that it chooses under a ceiling, the units that stay, and which come together.
A card is two numbers: the rate at which it multiplies (assumed equal in all layers), and that at which the host's
pinned memory reaches it. What it can't show is anything else that a card does.

    $ python tools/simulate.py --memory 1200MiB --size 512
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from runner.device.slots import gather
from runner.device.units import find_units
from runner.device.walk import choose_kept, count_uses
from runner.engine.conditions import empty, unet_call
from runner.machine.cache import cache_folder
from runner.model.files import find_model
from runner.model.modules import build_module
from runner.planning.choices import decide
from runner.planning.costs import SLOTS
from runner.planning.layouts import Layout
from runner.settings import compose, parse_size

STEPS = 8  # until each is like the one before it


class Card(NamedTuple):
    """A card by its name: effective TFLOP/s in half precision, GB/s from pinned memory, and multiprocessors."""

    name: str
    rate: float
    bandwidth: float
    processors: int


# Rates are what convolutions and attention of these models reach in practice, about half of the data sheets'.
CARDS = (
    Card("H100, eager", 180, 52, 132),
    Card("H100, compiled", 330, 52, 132),
    Card("RTX 4090", 65, 24, 128),
    Card("RTX 3090", 35, 24, 82),
    Card("RTX 3060", 18, 24, 28),
    Card("RTX 4060", 22, 12, 24),
    Card("RTX 2060", 9.5, 12, 30),
)


class Unit(NamedTuple):
    """A unit of the UNet: bytes in half precision, FLOPs for one row, and how many vectors its weights see."""

    size: int
    flops: float
    uses: int


def units_of(path: str, size: int) -> dict[str, Unit]:
    """The units of a model's UNet in the order in which they are called, for pictures of `size` pixels along a side."""
    model = find_model(path)
    unet = build_module(model, "unet")
    parts, order = find_units(unet, model.family.components["unet"].units), dict[str, int]()
    for name, part in parts.items():
        part.register_forward_pre_hook(partial(_note, order, name), with_kwargs=True)
    side = size // model.latent_factor
    latents = torch.empty(1, model.latent_channels, side, side, device="meta")
    told = empty(model.configs["unet"], 1, side).to(torch.device("meta"), torch.float32)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        unet_call(latents, torch.empty(1, device="meta"), told)(unet)
    counts = counter.get_flop_counts()
    prefix = type(unet).__name__
    return {
        name: Unit(
            sum(2 * parameter.numel() for parameter in parts[name].parameters()),
            float(sum(counts.get(f"{prefix}.{name}", {}).values())),
            uses,
        )
        for name, uses in order.items()
    }


def _note(order: dict[str, int], name: str, _: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    order.setdefault(name, count_uses(given, named))


def step_seconds(units: Mapping[str, Unit], kept: Collection[str], rows: int, card: Card) -> tuple[float, float]:
    """A step's seconds with weights that are streamed, but for the units that are kept, and with resident ones."""
    room = max(unit.size for unit in units.values())
    streamed = {name: unit.size for name, unit in units.items() if name not in kept}
    groups = gather(streamed, room)
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    copies = [sum(streamed[name] for name in group) / (card.bandwidth * 1e9) for group in groups]
    work = {name: rows * unit.flops / (card.rate * 1e12) for name, unit in units.items()}
    now, copied, arrived, left, ends = 0.0, 0.0, list[float](), list[float](), [0.0]  # left: when a group was done
    for step in range(STEPS):
        for name, seconds in work.items():
            number = step * len(groups) + group_of[name] if name in group_of else -1
            if number > len(left):
                left.append(now)
            while number >= len(arrived):
                free = left[len(arrived) - SLOTS] if len(arrived) >= SLOTS else 0.0
                copied = max(copied, free) + copies[len(arrived) % len(groups)]
                arrived.append(copied)
            now = max(now, arrived[number] if number >= 0 else 0.0) + seconds
        ends.append(now)
    return ends[-1] - ends[-2], sum(work.values())


def main() -> None:
    """Prints a table of cards."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made = cache_folder() / "bench-sd15"
    parser.add_argument("--model", default=str(made), help=f"a model's folder or file; {made}, which bench=sd15 makes")
    parser.add_argument("--memory", default="1200MiB", help="the ceiling")
    parser.add_argument("--size", type=int, default=512, help="pixels along a side")
    given = parser.parse_args()
    print_table(given.model, parse_size(given.memory, "--memory"), given.size)


def print_table(path: str, ceiling: int, size: int) -> None:
    """Prints how fast each card would be under a ceiling."""
    units = units_of(path, size)
    table = Table("card", "TFLOP/s", "GB/s", "rows", "stays MiB", "of resident")
    for card in CARDS:
        layout = layout_of(path, ceiling, size, card)
        kept = choose_kept({name: unit.uses for name, unit in units.items()}, sizes(units), layout.kept)
        streamed, resident = step_seconds(units, kept, layout.wave_rows, card)
        staying = sum(units[name].size for name in kept) >> 20
        table.add_row(
            card.name, f"{card.rate:g}", f"{card.bandwidth:g}", str(layout.wave_rows), str(staying),
            f"{resident / streamed:.0%}",
        )  # fmt: skip
    Console().print(table)


def sizes(units: Mapping[str, Unit]) -> dict[str, int]:
    """Bytes by unit."""
    return {name: unit.size for name, unit in units.items()}


def layout_of(path: str, ceiling: int, size: int, card: Card) -> Layout:
    """How the runner would make such pictures on a card."""
    settings = compose([f"model.path={path}", "turbo=false", f"memory={ceiling}"])
    execution = decide(settings, find_model(path), "cuda:0", None)
    return replace(execution, processors=card.processors).layout(size, size)


if __name__ == "__main__":
    sys.exit(main())
