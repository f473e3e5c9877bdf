"""The verb `doctor`: what this machine has, what its device makes of each number type, and what `auto` will choose.

It keeps how fast layers of a large model's size are; from then on `planning.choices` decides by that. It renders
nothing, and `text` prints its report.

    report = examine(settings.compose(["device=cpu"]))
    report.probes[0].finite, report.choice["dtype"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.device import memory
from runner.errors import SettingError
from runner.machine import describe, speeds
from runner.machine import memory as machine_memory
from runner.machine.cache import cache_folder
from runner.model.files import ModelFiles, find_model
from runner.planning import choices
from runner.planning.choices import LARGE_UNET
from runner.planning.layouts import Execution
from runner.record import environment
from runner.request import OUTPUTS
from runner.settings import Settings
from runner.verbs.doctor.probes import Probe, probe_large_layers, probe_model

USUAL_SIZE = 512  # pixels along one side, beside the model's own size


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found. `kept` is the file with the times of large layers; None if they can't be kept."""

    machine: Mapping[str, Any]
    probes: Sequence[Probe]
    choice: Mapping[str, Any]
    notes: Sequence[str]
    kept: str | None


def examine(settings: Settings, probe_large: Callable[[str], Iterable[Probe]] = probe_large_layers) -> Report:
    """Looks at the machine, probes the model's fragments, and keeps how fast large layers are.

    `probe_large` measures a large layer on a device in each number type.

    Raises:
        SettingError: the machine has no such device, or the model isn't one.
    """
    device = choices.check_device(settings.device, memory.available_devices())
    model = find_model(settings.model.path, settings.model.prediction, settings.model.vae)
    free, held = memory.free_memory(device), memory.held_memory(device)  # as a run finds them, with nothing loaded
    before = choices.choose_dtype("autocast", device, LARGE_UNET)
    with torch.inference_mode():
        large = list(probe_large(device))
        probes = [*probe_model(model, device, free), *large]
    usable = {probe.dtype: probe.seconds for probe in large if probe.finite}
    kept = speeds.keep(device, {probe.dtype: usable.get(probe.dtype) for probe in large})
    return Report(
        machine=describe_machine(settings),
        probes=probes,
        choice=describe_choice(settings, choices.decide(settings, model, device, free, held), model),
        notes=list(_notes(device, before)),
        kept=str(kept) if kept else None,
    )


def describe_choice(settings: Settings, execution: Execution, model: ModelFiles) -> dict[str, Any]:
    """How a run would make this model's pictures, of its own size and of the usual one."""
    layouts = []
    for side in sorted({model.native_size, USUAL_SIZE}):
        try:
            layout = execution.layout(side, side)
            how = {"turbo": layout.turbo, "unet_bs": layout.unet_bs, "wave_rows": layout.wave_rows}
            layouts.append({"size": f"{side}x{side}", **how, "memory_bytes": layout.peak, "problem": ""})
        except SettingError as error:  # memory= is too small
            layouts.append({"size": f"{side}x{side}", "problem": str(error)})
    return {
        "model": model.name,
        "unet_parameters": model.parameters("unet"),
        "device": execution.device,
        "dtype": execution.dtype,
        "large_dtype": choices.choose_dtype(settings.precision, execution.device, LARGE_UNET),
        "memory_limit_bytes": execution.limit,
        "layouts": layouts,
    }


def _notes(device: str, before: str) -> Iterator[str]:
    """Where the choice for large models is not what the device's kind suggests, or not what it was."""
    rule = choices.choose_dtype("autocast", device, LARGE_UNET, measured={})
    now = choices.choose_dtype("autocast", device, LARGE_UNET)
    if now != rule:
        yield f"large models: {now}, as measured; without the measurement it would be {rule}"
    if now != before:
        yield f"large models were made in {before} until now: to go on in their folders a run needs mixed=true"


def describe_machine(settings: Settings) -> dict[str, Any]:
    """The machine as the report has it. Sizes are in bytes; None stands for what is absent or unknown."""
    folders = {"outputs": Path(settings.out) if settings.out else OUTPUTS, "cache": cache_folder()}
    return {
        **describe.describe(),
        "cpu": memory.device_name("cpu"),
        "threads": torch.get_num_threads(),
        "memory_free_bytes": machine_memory.free_main_memory(),
        "devices": [_describe_device(device) for device in memory.available_devices()],
        "versions": dict(environment()),
        "disks": {name: describe.free_disk(folder) for name, folder in folders.items()},
    }


def _describe_device(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {"device": device, "name": memory.device_name(device)}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {"memory_bytes": properties.total_memory, "capability": f"{properties.major}.{properties.minor}"}
    return found | {"memory_free_bytes": memory.free_memory(device)}
