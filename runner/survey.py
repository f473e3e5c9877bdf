"""The verb `plan`: what a run would do, without doing it, as a table for people or as one JSON document."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner import plan
from runner.plan import Execution
from runner.records import read_index
from runner.request import Request
from runner.spec import Item, Part

DISK_BYTES_PER_PIXEL = {"png": 1.6, "jpg": 0.45}  # typical of photographs; flat pictures are smaller
PROMPTS_SHOWN = 20


@dataclass(slots=True, kw_only=True)
class Survey:
    """What a run has to do. Sizes are in bytes; groups are counted by size, sampler, steps and `unet_bs`."""

    execution: Execution
    images: int = 0
    missing: int = 0
    waves: int = 0
    disk_bytes: int = 0
    memory_bytes: int = 0
    groups: Counter[tuple[str, str, int, int]] = field(default_factory=Counter)
    prompts: dict[str, tuple[Part, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As one JSON document."""
        return {
            "images": self.images,
            "missing": self.missing,
            "waves": self.waves,
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "device": self.execution.device,
            "dtype": self.execution.dtype,
            "turbo": self.execution.turbo,
            "groups": [
                {"size": size, "sampler": sampler, "steps": steps, "unet_bs": unet_bs, "images": images}
                for (size, sampler, steps, unet_bs), images in self.groups.items()
            ],
            "prompts": [
                {"prompt": prompt, "parts": [{"text": part.text, "weight": part.weight} for part in parts]}
                for prompt, parts in self.prompts.items()
            ],
        }


def make_survey(request: Request) -> Survey:
    """Counts what is wanted and what is missing, and estimates what that takes."""
    device = plan.guess_device(request.settings.device)
    free = plan.free_main_memory() if device == "cpu" else None
    execution = plan.decide(request.settings, request.model, device, free)
    answer = Survey(execution=execution)
    index = read_index(request.folder)
    missing: list[Item] = []
    for item in request.wanted():
        answer.images += 1
        if len(answer.prompts) < PROMPTS_SHOWN:
            answer.prompts[item.prompt] = item.parts
        if not index.is_done(request.identity(item)):
            missing.append(item)
    for wave in plan.group(missing, execution):
        answer.waves += 1
        answer.memory_bytes = max(answer.memory_bytes, wave.layout.peak)
        for item in wave.items:
            answer.missing += 1
            answer.disk_bytes += int(item.width * item.height * DISK_BYTES_PER_PIXEL[item.format])
            answer.groups[f"{item.width}x{item.height}", item.sampler, item.steps, wave.unet_bs] += 1
    return answer


def print_survey(survey: Survey, request: Request, *, as_json: bool) -> None:
    """Prints the answer on stdout."""
    if as_json:
        print(orjson.dumps(survey.to_dict()).decode())
        return
    console = Console()
    console.print(_summary(survey, request), highlight=False)
    console.print(_groups(survey))
    console.print(_prompts(survey))


def _summary(survey: Survey, request: Request) -> Text:
    done = survey.images - survey.missing
    execution = survey.execution
    mode = "the UNet stays on the device" if execution.turbo else "the UNet is streamed"
    return Text(
        f"{survey.images} images, {done} done, {survey.missing} to render in {survey.waves} waves: {request.folder}\n"
        f"model {request.model.name} on {execution.device} in {execution.dtype}; {mode}\n"
        f"about {_size(survey.memory_bytes)} of memory, at most about {_size(survey.disk_bytes)} of disk"
    )


def _groups(survey: Survey) -> Table:
    table = Table("size", "sampler", "steps", "unet_bs", "images")
    for (size, sampler, steps, unet_bs), images in survey.groups.items():
        table.add_row(size, sampler, str(steps), str(unet_bs), str(images))
    return table


def _prompts(survey: Survey) -> Table:
    table = Table("prompt", "read as")
    for prompt, parts in survey.prompts.items():
        weighted = [f"{part.weight:.3g} x {part.text}" for part in parts]
        table.add_row(Text(prompt), Text("as it is" if len(parts) == 1 else "\n".join(weighted)))
    return table


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
