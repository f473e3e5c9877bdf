"""A survey for people: short, in sections, folded to the width of a terminal and whole in a file or a pipe.

show(survey, Console())
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from runner.folder.names import image_path
from runner.item import MASK_SHA256, Item
from runner.machine.describe import device_name
from runner.manifest.loras import show_set
from runner.report.axes import as_text
from runner.report.table import Row, duration, many, print_plainly, section
from runner.text import shorten, show_size
from runner.verbs.plan.lint import Example
from runner.verbs.plan.survey import Axis, Survey

VALUES_SHOWN, GROUPS_SHOWN, PROMPTS_SHOWN = 6, 12, 12
VALUE_LENGTH = 32
CONTEXT = ", and some 300 to 600 MiB for the driver and its kernels"  # which torch doesn't count


def print_survey(survey: Survey) -> None:
    """Shows it on stdout."""
    print_plainly(lambda console: show(survey, console))


def show(survey: Survey, console: Console) -> None:
    """Shows it section by section, without those that are empty."""
    console.print(Text(_headline(survey), style="bold"))
    section(console, "", _facts(survey))
    section(console, "axes", [(key, *_axis(axis)) for key, axis in survey.axes.items()])
    section(console, f"to render, in about {many(survey.waves, 'wave')}", _groups(survey))
    section(console, "weighted prompts", _weighted(survey))
    section(console, "first and last", [_item(item) for item in dict.fromkeys(survey.ends)])
    for warned in survey.warnings:
        counted = many(warned.count, warned.check.unit)
        section(console, f"{counted}: {warned.check.message}", map(_example, warned.examples), style="yellow")


def _headline(survey: Survey) -> str:
    todo = f"{survey.missing:,} to render" if survey.missing else "nothing to render"
    tries = f" ({survey.failed:,} of them failed before, {many(survey.attempts, 'time')} in all)"
    return f"{many(survey.images, 'picture')}: {survey.done:,} done, {todo}{tries if survey.failed else ''}"


def _facts(survey: Survey) -> Iterator[Row]:
    name = device_name(survey.device)
    device = survey.device if name in (None, survey.device) else f"{survey.device} ({name})"
    yield "folder", str(survey.request.store)
    for turn in survey.turns:
        mode = "kept on the device" if turn.turbo else "streamed through it"
        todo = f"; {turn.missing:,} to render" if len(survey.turns) > 1 else ""
        yield "model", f"{turn.model.name}, {turn.execution.dtype}, on {device}, the UNet {mode}{todo}"
    if survey.strength:
        yield "workers", f"{survey.strength.workers}, by Ray"
    if survey.missing:
        yield "time", _time(survey)
        yield "disk", f"about {show_size(survey.forecast.disk_bytes)}"
        of = "the process" if survey.device == "cpu" else "the device's memory"
        besides = CONTEXT if survey.device.startswith("cuda") else ""
        each = ", for each worker" if survey.strength else ""
        yield "memory", f"about {show_size(survey.memory_bytes)} of {of}{besides}{each}"
    weighted = f", {survey.weighted:,} of them weighted" if survey.weighted else ""
    yield "prompts", f"{survey.prompts:,} different{weighted}"
    yield "warnings", f"{len(survey.warnings)}, at the end" if survey.warnings else "none"


def _time(survey: Survey) -> str:
    if not survey.forecast.seconds:
        return f"no records of this machine and model yet; 'runner run {survey.request.target} limit=8' makes some"
    total, pictures = math.fsum(survey.forecast.seconds.values()), many(survey.forecast.pictures, "picture")
    return f"about {duration(total)} and the loading, judged by {pictures} made here"


def _axis(axis: Axis) -> Row:
    values, counts = list(itertools.islice(axis.values, VALUES_SHOWN)), set(axis.values.values())
    least, most = min(counts), max(counts)
    each = f"{least:,} each" if least == most else f"{least:,} to {most:,} each"
    different = f"{len(axis.values):,}{'+' if axis.more else ''}"
    if _is_span(axis):
        return different, f"{min(axis.values)} to {max(axis.values)} ({each})"
    if len(axis.values) > VALUES_SHOWN:
        shown = ", ".join(shorten(as_text(value), VALUE_LENGTH) for value in values)
        return different, f"{shown}, {len(axis.values) - VALUES_SHOWN:,} more ({each})"
    if least == most:
        return different, ", ".join(map(as_text, values)) + f" ({each})"
    return different, ", ".join(f"{as_text(value)} ({count:,})" for value, count in axis.values.items())


def _is_span(axis: Axis) -> bool:
    """Whether an axis has all whole numbers of a range, and more than a few."""
    if len(axis.values) <= 2 or axis.more or not all(type(value) is int for value in axis.values):
        return False
    return bool(max(axis.values) - min(axis.values) + 1 == len(axis.values))


def _groups(survey: Survey) -> Iterator[Row]:
    several = len(survey.turns) > 1
    if survey.groups:
        yield "pictures", *(["model"] if several else []), "size", "sampler", "steps", "unet_bs"
    for group in survey.groups[:GROUPS_SHOWN]:
        model = [group.model] if several else []
        yield f"{group.images:,}", *model, group.size, group.sampler, str(group.steps), str(group.unet_bs)
    if more := survey.groups[GROUPS_SHOWN:]:
        yield f"{sum(group.images for group in more):,}", f"in {many(len(more), 'more group')}"


def _weighted(survey: Survey) -> Iterator[Row]:
    for reading in survey.read_as[:PROMPTS_SHOWN]:
        yield (str(reading),)
    if survey.weighted > PROMPTS_SHOWN:
        yield (f"{survey.weighted - PROMPTS_SHOWN:,} more",)


def _item(item: Item) -> Row:
    size, extra = f"{item.width}x{item.height}", f", strength {item.strength:g} of {item.init}" if item.init else ""
    more = "".join(f", {key} {as_text(value)}" for key, value in item.extra if key != MASK_SHA256)
    more += f", loras {show_set(item.loras)}" if item.loras else ""
    settings = f"seed {item.seed}, {size}, {item.steps} steps of {item.sampler}, scale {item.scale:g}{extra}{more}"
    return f"item {item.number}", f"{item.prompt}\n{settings}\n{image_path(item)}"


def _example(example: Example) -> Row:
    return str(example.place or f"item {example.item}"), example.text
