"""A report of `doctor` for people: short, in sections, each fact with a mark for what is there and what isn't.

print_plainly(lambda console: show(report, console))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from runner.planning.choices import LARGE_UNET
from runner.report.table import Row, section
from runner.text import shorten, show_size
from runner.verbs.doctor.doctor import Report
from runner.verbs.doctor.probes import TYPES, Probe

THERE, NOT_THERE, WRONG = "[ok]", "[--]", "[!!]"


def show(report: Report, console: Console) -> None:
    """Shows it section by section."""
    choice = report.choice
    console.print(Text(f"runner {report.machine['versions']['runner']} on this machine", style="bold"))
    section(console, "", _machine(report.machine))
    section(console, f"number types on {choice['device']}: time of a small call, distance to float32", _probes(report))
    section(console, f"what auto chooses for {choice['model']}", _layouts(choice))
    section(console, "", _large(report))


def _machine(found: Mapping[str, Any]) -> Iterator[Row]:
    versions = dict(found["versions"])
    yield THERE, "system", f"{found['system']}, Python {versions.pop('python')}"
    yield THERE, "cpu", f"{found['cpu']}, {found['cores']} cores, {found['threads']} used by torch"
    yield _fact("instructions", " ".join(found["instruction_sets"]), "not known")
    yield _fact(
        "threading", " ".join(f"{key}={value}" for key, value in found["threading"].items() if value), "not set"
    )
    limit = f", at most {show_size(found['container_limit_bytes'])} here" if found["container_limit_bytes"] else ""
    free = found["memory_free_bytes"]
    yield THERE, "memory", f"{show_size(found['memory_bytes'])}{limit}" + (f", {show_size(free)} free" if free else "")
    for device in found["devices"]:
        if device["device"] != "cpu":
            yield THERE, device["device"], _device(device)
    if len(found["devices"]) == 1:
        yield NOT_THERE, "gpu", "none that torch can use"
    yield THERE, "libraries", ", ".join(f"{name} {number}" for name, number in versions.items() if name != "runner")
    for name, number in found["extras"].items():
        yield _fact(name, number, "not installed; only what needs it does without")
    yield _fact("C++ compiler", found["compiler"], "none")
    for name, disk in found["disks"].items():
        yield THERE, name, f"{disk['folder']}, {show_size(disk['free_bytes'])} free"


def _device(device: Mapping[str, Any]) -> str:
    total, free = device.get("memory_bytes"), device["memory_free_bytes"]
    memory = (f", {show_size(total)}" if total else "") + (f", {show_size(free)} free" if free else "")
    return f"{device['name']}{memory}" + (f", capability {device['capability']}" if "capability" in device else "")


def _fact(name: str, value: str | None, otherwise: str) -> Row:
    return (THERE, name, value) if value else (NOT_THERE, name, otherwise)


def _probes(report: Report) -> Iterator[Row]:
    cells: dict[str, dict[str, str]] = {}
    for probe in report.probes:
        cells.setdefault(probe.fragment, {})[probe.dtype] = _probe(probe)
    yield "", *TYPES
    for fragment, types in cells.items():
        yield fragment, *(types.get(dtype, "") for dtype in TYPES)


def _probe(probe: Probe) -> str:
    if probe.problem:
        return f"{NOT_THERE} {shorten(probe.problem)}"
    if not probe.finite:
        return f"{WRONG} not finite"
    seconds = probe.seconds or 0
    time = f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
    return f"{THERE} {time}" + (f", {probe.relative:.1e}" if probe.relative else "")


def _layouts(choice: Mapping[str, Any]) -> Iterator[Row]:
    yield "", "type", "UNet", "unet_bs", "rows in a wave", "memory"
    for layout in choice["layouts"]:
        yield layout["size"], *_layout(choice["dtype"], layout)


def _layout(dtype: str, layout: Mapping[str, Any]) -> Sequence[str]:
    if layout["problem"]:
        return (f"{WRONG} {layout['problem']}",)
    where = "stays on the device" if layout["turbo"] else "is streamed"
    return dtype, where, str(layout["unet_bs"]), str(layout["wave_rows"]), show_size(layout["memory_bytes"])


def _large(report: Report) -> Iterator[Row]:
    large = f"{report.choice['large_dtype']}, for UNets above {LARGE_UNET // 10**6} million weights"
    yield THERE, "large models", large
    yield _fact("kept", report.kept, "the measurement can't be kept, so the choice is made without it")
    for note in report.notes:
        yield WRONG, "note", note
