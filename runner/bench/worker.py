"""One contender of `bench` in a process of its own: loads the model, renders its job, and answers what that took.

A `Job` comes in on stdin, answers go out as JSON lines on stdout; `bench` starts the process and reads them. Stock
diffusers is used as its documentation shows it: one pipeline, called for each picture or for each batch, `image.save`.

    python -c "from runner.bench import worker; worker.main()" < job
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from runner.errors import RunnerError
from runner.files import read_lines
from runner.machine import threads
from runner.machine.memory import free_main_memory
from runner.record import Making
from runner.settings import Settings

ITEMS, WARM_UP = "items.jsonl", "warm-up.jsonl"  # in a job's `inputs`
FIND_BATCH = 0
MOST_BATCH = 64
TRIAL_STEPS, TRIAL_SECONDS = 2, 2.0
HOPELESS = 1.3  # times the best: larger batches are not tried
OFFLOADS = ("model", "group", "sequential")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """A way to use stock diffusers: `half` is bfloat16 on a CPU and float16 elsewhere; `offload` is one of OFFLOADS."""

    half: bool
    batch: int = 1
    offload: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a process has to do. `stock` is None for this runner; `begun` is when the process was started."""

    task: str
    settings: Settings
    inputs: Path
    folder: Path
    stock: Stock | None = None
    begun: float = field(default_factory=time.monotonic)  # counts from the machine's start, in every process


def main() -> None:
    """Does the job on stdin."""
    job: Job = pickle.load(sys.stdin.buffer)
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        sys.exit(_answer(job, answers))


def _answer(job: Job, answers: BinaryIO) -> int:
    if job.stock is None:
        threads.settle()  # as the command line does
    try:
        for answer in TASKS[job.task](job):
            answers.write(orjson.dumps(answer) + b"\n")
            answers.flush()
    except Exception as error:
        traceback.print_exc()
        message = str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
        answers.write(orjson.dumps({"error": message}) + b"\n")
        return 1
    return 0


def _describe(job: Job) -> Iterator[dict[str, Any]]:
    """The device, the number types and the libraries, as a record says them."""
    from runner.request import read_request
    from runner.verbs.run.session import describe
    from runner.verbs.run.turns import start

    request = read_request(job.inputs / ITEMS, job.settings)
    (model,) = request.models
    yield describe(request, start(request, model).describe())


def _make_random_model(job: Job) -> Iterator[dict[str, Any]]:
    from runner.bench.random_model import save

    save(job.folder.name.removeprefix("bench-"), job.folder)
    yield {}


def find_batch(
    job: Job,
    shortest: Callable[[StockPipeline, Sequence[Mapping[str, Any]]], float] | None = None,
    limit_memory: Callable[[], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """The seconds that a picture takes in batches of 1, 2, 4, ..., until it gets much slower or memory runs out."""
    if job.settings.device == "cpu":  # elsewhere the driver takes address space for itself
        (limit_memory or limit_to_free_memory)()
    contender = StockPipeline(job)
    _render(contender, contender.warm_up)
    best, batch = float("inf"), 1
    while batch <= min(MOST_BATCH, len(contender.wanted)):
        contender.batch = batch
        items = [item | {"steps": TRIAL_STEPS} for item in contender.wanted[:batch]]
        try:
            seconds = (shortest or shortest_of_tries)(contender, items) / batch
        except (RuntimeError, MemoryError):  # how torch says that there isn't enough
            if batch == 1:
                raise
            return
        yield {"batch": batch, "seconds": seconds}
        if seconds > HOPELESS * best:
            return
        best, batch = min(best, seconds), 2 * batch


def shortest_of_tries(contender: StockPipeline, items: Sequence[Mapping[str, Any]]) -> float:
    """The seconds of the quickest of as many tries as fit into a short time, at least one."""
    begun, best = time.monotonic(), float("inf")
    while time.monotonic() - begun < TRIAL_SECONDS:
        now = time.monotonic()
        _render(contender, items)
        best = min(best, time.monotonic() - now)
    return best


def limit_to_free_memory() -> None:
    """Lets an allocation fail that the machine has no memory for, where the system would kill some process instead."""
    if available := free_main_memory():
        with contextlib.suppress(OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (available, available))


def _measure(job: Job) -> Iterator[dict[str, Any]]:
    """Renders a picture of one step, so that nothing is loaded any more, and then the items against the clock."""
    contender = StockPipeline(job) if job.stock else ThisRunner(job)
    _render(contender, contender.warm_up)
    ready, load_peak = time.monotonic(), peak_bytes("cpu")
    reset_peaks(contender.device)
    begun, files, first = time.monotonic(), dict[int, str](), 0.0
    for number, file in contender.render(contender.wanted):
        first = first or time.monotonic()
        files[number] = str(file)
    seconds = time.monotonic() - begun
    peak = max(peak_bytes(contender.device), contender.wave_peak)
    yield {
        "seconds": seconds,
        "ready_seconds": ready - job.begun,
        "first_picture_seconds": first - job.begun,
        "load_peak_bytes": load_peak,
        "peak_bytes": peak,
        "process_peak_bytes": peak if contender.device == "cpu" else peak_bytes("cpu"),
        "files": [files[number] for number in sorted(files)],
        **contender.details(seconds),
        **_threads(),
    }


def _render(contender: StockPipeline | ThisRunner, wanted: Any) -> None:
    for _ in contender.render(wanted):
        pass


def _threads() -> dict[str, Any]:
    import torch

    return {"threads": torch.get_num_threads(), "omp_waiting": threads.environment()}


class ThisRunner:
    """This runner as a library, as its own verbs use it."""

    def __init__(self, job: Job) -> None:
        from runner.request import read_request
        from runner.verbs.run.turns import start

        def read(name: str, **changes: Any) -> Any:
            folder = str(job.folder / name.removesuffix(".jsonl"))
            return read_request(job.inputs / name, dataclasses.replace(job.settings, out=folder, **changes))

        self.wanted, self.warm_up = read(ITEMS), read(WARM_UP, skip_grid=True)
        self.engine: Any = start(self.wanted, *self.wanted.models)
        self.device: str = self.engine.describe().device or ""
        self.wave_peak = 0  # the runner itself forgets the peak at each wave
        self._making = Making()
        self._seconds_in_stages = 0.0
        self._steps = 0
        self._loads_before = 0

    def render(self, request: Any) -> Iterator[tuple[int, Path]]:
        """Renders a request; gives each item's number and file as soon as its record is written."""
        from runner.events import ItemDone, ItemFailed, StepDone
        from runner.verbs.run import run

        self._seconds_in_stages, self._steps, self._loads_before = 0.0, 0, _most_loads(self.engine.executor)
        for event in run.run(request, self.engine):
            match event:
                case ItemFailed():
                    raise RuntimeError(f"{event.error.kind}: {event.error}")
                case StepDone():
                    self._steps += 1
                case ItemDone():
                    record = event.record
                    self._making = record.making
                    self._seconds_in_stages += sum(record.seconds.values())
                    self.wave_peak = max(self.wave_peak, record.peak_bytes)
                    yield event.item.number, Path(f"{request.store}/{record.image}")

    def details(self, seconds: float) -> dict[str, Any]:
        """How the pictures were made. `overhead` is the share of the time that the model's stages didn't take."""
        loads = _most_loads(self.engine.executor) - self._loads_before
        return {
            "dtype": next(dtype for name, dtype in self._making.dtypes if name.startswith("unet")),
            "rows": self._making.unet_bs,
            "overhead": 1 - self._seconds_in_stages / seconds,
            "loads_per_step": loads / self._steps if loads else None,
        }


def _most_loads(executor: Any) -> int:
    """How often the unit of the UNet was brought that was brought most often; 0 where the UNet stays."""
    walk = executor.components["unet"].walk
    return max(walk.loads.values()) if walk else 0


class StockPipeline:
    """Stock diffusers' pipeline with the runner's weights, tokenizer, `ddim` settings and first noise."""

    def __init__(self, job: Job) -> None:
        import torch
        from diffusers import DDIMScheduler

        assert job.stock
        self.device, self.batch, self.folder = job.settings.device, job.stock.batch or 1, job.folder
        half = torch.bfloat16 if self.device == "cpu" else torch.float16
        self.dtype = half if job.stock.half else torch.float32
        self.wanted = read_lines(job.inputs / ITEMS)
        self.warm_up = read_lines(job.inputs / WARM_UP) * self.batch
        self.wave_peak = 0
        model = Path(job.settings.model.path)
        noise = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
        scheduler = DDIMScheduler.from_pretrained(model / "scheduler", **noise)
        pipeline = _make_pipeline(model, scheduler, self.dtype)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = _place(pipeline, self.device, job.stock.offload)
        self.folder.mkdir(parents=True, exist_ok=True)

    def render(self, items: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Path]]:
        """Renders items in batches; gives each item's number and file as soon as it is written."""
        for start in range(0, len(items), self.batch):
            batch = items[start : start + self.batch]
            pictures = self.pipeline(
                [item["prompt"] for item in batch],
                latents=self._noise(batch),
                height=batch[0]["height"],
                width=batch[0]["width"],
                num_inference_steps=batch[0]["steps"],
                guidance_scale=batch[0]["scale"],
            ).images
            for number, picture in enumerate(pictures, start):
                file = self.folder / f"{number:05d}.png"
                picture.save(file)
                yield number, file

    def _noise(self, batch: Sequence[Mapping[str, Any]]) -> Any:
        """Each item's noise [n, 4, h, w], drawn in float32: from half precision's generator come other numbers."""
        import torch

        factor, channels = self.pipeline.vae_scale_factor, self.pipeline.unet.config.in_channels
        shape = (channels, batch[0]["height"] // factor, batch[0]["width"] // factor)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(item["seed"])) for item in batch]
        return torch.stack(noise).to(self.device, self.dtype)

    def details(self, seconds: float) -> dict[str, Any]:
        """How the pictures were made; a guided picture is two rows of the UNet."""
        rows = self.batch * (2 if self.wanted[0]["scale"] > 1 else 1)
        return {"dtype": str(self.dtype).removeprefix("torch."), "rows": rows}


def _make_pipeline(model: Path, scheduler: Any, dtype: Any) -> Any:
    """diffusers' own pipeline for the family that a folder is of."""
    import diffusers
    import transformers

    def tokenizer(name: str, **more: str) -> Any:
        own, shipped = model / name, Path(__file__).parents[1] / "models" / "emoji" / "tokenizer"
        return transformers.CLIPTokenizer.from_pretrained(own if (own / "vocab.json").exists() else shipped, **more)

    parts = {
        "vae": diffusers.AutoencoderKL.from_pretrained(model / "vae", torch_dtype=dtype),
        "text_encoder": transformers.CLIPTextModel.from_pretrained(model / "text_encoder", dtype=dtype),
        "tokenizer": tokenizer("tokenizer"),
        "unet": diffusers.UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=dtype),
        "scheduler": scheduler,
    }
    if not (model / "text_encoder_2").is_dir():
        bare = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return diffusers.StableDiffusionPipeline(**parts, **bare)
    second = transformers.CLIPTextModelWithProjection.from_pretrained(model / "text_encoder_2", dtype=dtype)
    more = {"text_encoder_2": second, "tokenizer_2": tokenizer("tokenizer_2", pad_token="!")}
    return diffusers.StableDiffusionXLPipeline(**parts, **more, add_watermarker=False)


def _place(pipeline: Any, device: str, offload: str) -> Any:
    import torch

    match offload:
        case "model":
            pipeline.enable_model_cpu_offload(device=device)
        case "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        case "group":
            pipeline.enable_group_offload(
                onload_device=torch.device(device), offload_type="leaf_level", use_stream=True, record_stream=True
            )
        case _:
            return pipeline.to(device)
    return pipeline


def reset_peaks(device: str) -> None:
    """Forgets the highest memory use so far, of the process and of the device."""
    from runner.device import memory

    for each in {device, "cpu"}:
        memory.reset_peak(each)


def peak_bytes(device: str) -> int:
    """The highest memory use since `reset_peaks`; on a CPU the process's own. macOS can't reset that."""
    from runner.device import memory

    return memory.peak_bytes(device) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


TASKS: Mapping[str, Callable[[Job], Iterator[dict[str, Any]]]] = {
    "describe": _describe,
    "random_model": _make_random_model,
    "batch": find_batch,
    "measure": _measure,
}
