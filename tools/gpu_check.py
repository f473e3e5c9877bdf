"""The first eight minutes on a card: are its pictures right, how fast are they made, and what is in the way.

Each phase is a process of its own with a limit of time, so that one which hangs or dies costs no other. What is found
goes to `results.jsonl` in the folder of `--out`, a line for each finding; those that matter most are printed last.
With `--dry` all of it runs on the CPU with the model that ships with the package, to see that the script works.

    $ python tools/gpu_check.py --out gpu-check              # all phases
    $ python tools/gpu_check.py --out gpu-check small full   # some of them
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from runner.bench.random_model import save
from runner.bench.worker import ITEMS, WARM_UP, Job, Stock, StockPipeline
from runner.device.memory import release_memory
from runner.engine.conditions import empty, unet_call
from runner.engine.executor import Executor
from runner.events import ItemFailed, MemoryShort, Rendered
from runner.files import write_lines
from runner.item import Item, Part
from runner.machine.describe import driver_version, processors
from runner.model.files import ModelFiles, find_model
from runner.planning.costs import model_costs
from runner.planning.layouts import Execution
from runner.planning.waves import group
from runner.record import INDUCTOR, NONE
from runner.sampler_names import SAMPLERS
from runner.settings import compose

SHIPPED = Path(__file__).parents[1] / "runner" / "models" / "emoji"
CEILING = 1200 << 20
MIB = 1 << 20
WHOLE_SECONDS = 480
BACKENDS = (None, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
LATE_KERNELS, LATE_COPIES = 300_000, 5_000_000  # cycles


class Check:
    """What the phases share: the device, the sizes, and where findings go."""

    def __init__(self, out: Path, *, dry: bool) -> None:
        self.out, self.dry = out, dry
        self.device, self.half = ("cpu", "bfloat16") if dry else ("cuda:0", "float16")
        self.side, self.steps, self.images = (64, 2, 2) if dry else (512, 50, 16)
        self.model = SHIPPED if dry else out / "sd15"
        self.ceiling = None if dry else CEILING

    def say(self, phase: str, **found: Any) -> None:
        """Notes a finding."""
        line = json.dumps({"phase": phase, **found})
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        print(line[:1500], flush=True)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if not self.dry:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], times: int = 10) -> float:
        """How long the device takes for a call."""
        for _ in range(2):
            call()
        self.wait()
        begun = time.perf_counter()
        for _ in range(times):
            call()
        self.wait()
        return (time.perf_counter() - begun) / times

    def executor(
        self, model: ModelFiles, dtype: str, *, device: str = "", compiler: str = NONE, **how: Any
    ) -> Executor:
        """The runner's own, with nothing measured before."""
        costs = model_costs(model, device or self.device, dtype, compiler=compiler)
        return Executor(model, Execution(dtype=dtype, costs=costs, processors=processors(device or self.device), **how))

    def items(self, count: int, steps: int, side: int, samplers: Sequence[str] = ("ddim",)) -> list[Item]:
        """Pictures of different prompts and seeds, guided and not."""
        return [
            make_item(n, side, samplers[n % len(samplers)], steps, scale=1.0 if n % 4 == 3 else 7.5)
            for n in range(count)
        ]

    def render(self, made: Executor, wanted: Sequence[Item]) -> dict[int, np.ndarray]:
        """The pictures by their items' numbers."""
        found = {}
        for wave in group(wanted, made.execution):
            for event in made.run(wave):
                if isinstance(event, ItemFailed):
                    raise RuntimeError(event.error.trace)
                if isinstance(event, MemoryShort):
                    self.say("note", memory=event.message)
                if isinstance(event, Rendered):
                    found[event.item.number] = event.pixels
        return found

    def memory(self) -> dict[str, Any]:
        """What torch, the card and the host hold, at most or now, in MiB."""
        if self.dry:
            return {}
        free, total = torch.cuda.mem_get_info()
        stats = torch.cuda.memory_stats()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return {
            "allocated_MiB": torch.cuda.max_memory_allocated() // MIB,
            "reserved_MiB": torch.cuda.max_memory_reserved() // MIB,
            "card_MiB": (total - free) // MIB,
            "host_MiB": int(status["VmHWM"].split()[0]) >> 10,
            "locked_MiB": int(status["VmPin"].split()[0]) >> 10,
            "shortages": stats.get("num_ooms"),
            "retries": stats.get("num_alloc_retries"),
        }

    def forget_peak(self) -> None:
        """Lets `memory` begin anew."""
        if not self.dry:
            torch.cuda.reset_peak_memory_stats()


def make_item(number: int, side: int, sampler: str, steps: int, *, scale: float) -> Item:
    """A picture to be made."""
    text = f"a lighthouse, {number % 5}"
    return Item(
        number=number,
        prompt=text,
        parts=(Part(text=text, weight=1.0),),
        negative="",
        seed=number,
        width=side,
        height=side,
        steps=steps,
        scale=scale,
        sampler=sampler,
        eta=0.0,
        format="png",
        long_prompts="cut",
    )


def differing(one: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray]) -> list[int]:
    """The numbers of the pictures that aren't the same bytes."""
    return sorted(number for number in one if not np.array_equal(one[number], other[number]))


def environment(check: Check) -> None:
    """Versions, and how fast the card is at what these models are made of."""
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    check.say("environment", **versions, driver=driver_version(), processors=processors(check.device))
    if check.dry:
        return
    check.say("environment", name=torch.cuda.get_device_name(), total_MiB=torch.cuda.mem_get_info()[1] // MIB)
    free, total = torch.cuda.mem_get_info()
    check.say("environment", context_MiB=(total - free) // MIB)
    host, there = (
        torch.empty(256 * MIB, dtype=torch.uint8).pin_memory(),
        torch.empty(256 * MIB, dtype=torch.uint8, device="cuda"),
    )
    check.say(
        "environment", to_device_GB_s=round(0.268 / check.seconds(lambda: there.copy_(host, non_blocking=True)), 1)
    )
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.half)
    check.say("environment", matmul_TFLOP_s=round(2 * 8192**3 / check.seconds(lambda: square @ square) / 1e12))
    for channels, side in ((320, 64), (640, 32), (1280, 16), (1280, 8)):
        check.say("environment", **_convolution(check, channels, side))
    for tokens, width in ((4096, 40), (1024, 80), (256, 160), (4096, 64)):
        check.say("environment", **_attention(check, tokens, width))


def _convolution(check: Check, channels: int, side: int) -> dict[str, Any]:
    """TFLOP/s of a convolution by the order of its input and weight."""
    plain = torch.randn(16, channels, side, side, device="cuda", dtype=torch.half)
    weight = torch.randn(channels, channels, 3, 3, device="cuda", dtype=torch.half)
    last, last_weight = (each.to(memory_format=torch.channels_last) for each in (plain, weight))
    work = 2 * 16 * side**2 * channels**2 * 9 / 1e12
    pairs = {"plain": (plain, weight), "last": (last, last_weight), "last_input": (last, weight)}
    rates = {
        name: round(work / check.seconds(lambda pair=pair: functional.conv2d(*pair, padding=1)))
        for name, pair in pairs.items()
    }
    return {"convolution": f"{channels}@{side}", "TFLOP_s": rates}


def _attention(check: Check, tokens: int, width: int) -> dict[str, Any]:
    """TFLOP/s of attention by its backend."""
    query, rates = torch.randn(16, 8, tokens, width, device="cuda", dtype=torch.half), {}
    for backend in BACKENDS:
        chosen = sdpa_kernel(backend) if backend is not None else contextlib.nullcontext()
        with contextlib.suppress(RuntimeError), chosen:
            took = check.seconds(lambda: functional.scaled_dot_product_attention(query, query, query))
            name = backend.name if backend is not None else "default"
            rates[name] = round(4 * 16 * 8 * tokens**2 * width / took / 1e12)
    return {"attention": f"{tokens}x{width}", "TFLOP_s": rates}


def small(check: Check) -> None:
    """A small model with every sampler: again, streamed, in another order, alone, and with late kernels and copies."""
    count = len(SAMPLERS) if check.dry else 2 * len(SAMPLERS)
    model, wanted = find_model(str(SHIPPED)), check.items(count, 2, 64, tuple(SAMPLERS))
    on_cpu = check.render(check.executor(model, "float32", device="cpu", turbo=True, unet_bs=4), wanted)
    for dtype in ("float32",) if check.dry else ("float32", check.half):
        usual = {"turbo": True, "unet_bs": 4}
        base = check.render(check.executor(model, dtype, **usual), wanted)
        levels = max(int(np.abs(base[n].astype(int) - on_cpu[n].astype(int)).max()) for n in base)
        alone = [check.render(check.executor(model, dtype, **usual), [item]) for item in wanted[::7]]
        check.say(
            "small",
            dtype=dtype,
            levels_from_cpu=levels,
            again=differing(base, check.render(check.executor(model, dtype, **usual), wanted)),
            streamed=differing(base, check.render(check.executor(model, dtype, turbo=False, unet_bs=4), wanted)),
            shuffled=differing(base, check.render(check.executor(model, dtype, **usual), wanted[::-1])),
            alone=[number for one in alone for number in differing(one, base)],
        )
        if not check.dry:
            for late in ("kernels", "copies"):
                made = check.executor(model, dtype, turbo=False, unet_bs=4)
                make_late(made, late)
                found = check.render(made, wanted[:8])
                check.say("small", dtype=dtype, late=late, differ=differing(found, base))


def make_late(made: Executor, what: str) -> None:
    """Lets a card do something late, so that whoever doesn't wait for it is found out by its pictures."""
    unet = made.components["unet"]
    if what == "kernels":
        for layer in unet.module.modules():
            layer.register_forward_pre_hook(lambda *_: torch.cuda._sleep(LATE_KERNELS))
        return
    parking: Any = unet.parking
    copy = parking._copy

    def late(*given: Any, **named: Any) -> Any:
        with torch.cuda.stream(parking._stream):
            torch.cuda._sleep(LATE_COPIES)
        return copy(*given, **named)

    parking._copy = late


def sanitized(check: Check) -> None:
    """A streamed run under torch's own detector of races, which raises an error at the first one."""
    if not check.dry:
        from torch.cuda import _sanitizer

        _sanitizer.enable_cuda_sanitizer()
    executor = check.executor(find_model(str(SHIPPED)), "float32", turbo=False, unet_bs=4)
    check.say("sanitized", pictures=len(check.render(executor, check.items(4, 2, 64))), races=0)


def full(check: Check) -> None:
    """Full size: does a row's place in a call count, what does a step wait for, the same bytes in each way."""
    model, wanted = find_model(str(check.model)), check.items(min(8, check.images), min(4, check.steps), check.side)
    made = check.executor(model, check.half, turbo=True, unet_bs=8)
    base = check.render(made, wanted)
    check.say("full", **_places(check, made))
    check.say("full", waits=_waits(check, made, wanted))
    del made
    release_memory(check.device)
    for name, how in (("streamed", {"turbo": False}), ("ceiling", {"limit": check.ceiling})):
        check.forget_peak()
        found = check.render(check.executor(model, check.half, unet_bs=8, **how), wanted)
        check.say("full", way=name, differ=differing(base, found), **check.memory())
        release_memory(check.device)


@torch.inference_mode()
def _places(check: Check, made: Executor) -> dict[str, bool]:
    """Whether a row's place in a call, or what stands in the other rows, changes its bits: neither may."""
    unet, rows, generator = made.components["unet"], 8, torch.Generator().manual_seed(1)
    side = check.side // made.model.latent_factor
    latents = torch.randn(rows, 4, side, side, generator=generator).to(check.device, unet.dtype)
    told = empty(unet.config, rows, side).to(torch.device(check.device), unet.dtype)
    times = torch.full((rows,), 500.0, device=check.device)
    order = torch.tensor([3, 1, 0, 7, 6, 2, 5, 4], device=check.device)

    def predict(sent: torch.Tensor) -> torch.Tensor:
        sent = sent.contiguous(memory_format=torch.channels_last)
        return unet.call_all([unet_call(sent, times, told)])[0]

    one, moved, others = predict(latents), predict(latents[order]), latents.clone()
    others[1:] = 0
    return {
        "place_in_call_counts": not torch.equal(one[order], moved),
        "neighbours_count": not torch.equal(one[0], predict(others)[0]),
    }


def _waits(check: Check, made: Executor, wanted: Sequence[Item]) -> dict[str, int]:
    """How often the host waits for the device, by the line of the program."""
    if check.dry:
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        check.render(made, wanted[:4])
        torch.cuda.set_sync_debug_mode("default")
    return dict(Counter(f"{Path(each.filename).name}:{each.lineno}" for each in caught))


def speed(name: str, **how: Any) -> Callable[[Check], None]:
    """A phase that measures this runner."""

    def measure(check: Check) -> None:
        limit = {"limit": check.ceiling} if how.get("ceiling") else {}
        compiler = how.get("compiler", NONE) if not check.dry else NONE
        turbo = how.get("turbo")
        made = check.executor(find_model(str(check.model)), check.half, compiler=compiler, turbo=turbo, **limit)
        begun = time.perf_counter()
        check.render(made, check.items(check.images, 1, check.side))
        check.wait()
        ready = time.perf_counter()
        check.forget_peak()
        found = check.render(made, check.items(check.images, check.steps, check.side))
        check.wait()
        layout = made.execution.layout(check.side, check.side)
        check.say(
            "speed",
            contender=name,
            pictures_per_s=round(check.images / (time.perf_counter() - ready), 3),
            first_s=round(ready - begun, 1),
            layout=str(layout),
            planned_MiB=layout.peak // MIB,
            sha256=hashlib.sha256(found[0].tobytes()).hexdigest()[:12],
            **check.memory(),
        )

    return measure


def stock(name: str, *, batch: int = 1, offload: str = "", share: float = 1.0) -> Callable[[Check], None]:
    """A phase that measures diffusers; `share` of the steps are made, and the speed is that of all."""

    def measure(check: Check) -> None:
        steps, count = max(1, int(check.steps * share)), min(check.images, batch)
        inputs = check.out / name
        inputs.mkdir(exist_ok=True)
        wanted = [
            {
                "prompt": f"a lighthouse, {n}",
                "seed": n,
                "steps": steps,
                "scale": 7.5,
                "width": check.side,
                "height": check.side,
            }
            for n in range(count)
        ]
        write_lines(inputs / ITEMS, wanted)
        write_lines(inputs / WARM_UP, [wanted[0] | {"steps": 1}])
        settings = compose([f"model.path={check.model}", f"device={check.device}"])
        way = Stock(half=True, batch=count, offload="" if check.dry else offload)
        pipeline = StockPipeline(
            Job(task="measure", settings=settings, inputs=inputs, folder=inputs / "out", stock=way)
        )
        list(pipeline.render(pipeline.warm_up))
        check.wait()
        check.forget_peak()
        begun = time.perf_counter()
        list(pipeline.render(pipeline.wanted))
        check.wait()
        took = (time.perf_counter() - begun) * check.steps / steps
        check.say("speed", contender=name, pictures_per_s=round(count / took, 3), batch=count, **check.memory())

    return measure


def profile(check: Check) -> None:
    """Which kernels take the time, resident and under the ceiling; the traces are written beside the results."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if not check.dry:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    key = "self_cpu_time_total" if check.dry else "self_device_time_total"
    for name, how in (("resident", {"turbo": True}), ("ceiling", {"turbo": False, "limit": check.ceiling})):
        made = check.executor(find_model(str(check.model)), check.half, **how)
        check.render(made, check.items(check.images, 2, check.side))
        with torch.profiler.profile(activities=activities) as seen:
            begun = time.perf_counter()
            check.render(made, check.items(check.images, 3, check.side))
            check.wait()
            took = time.perf_counter() - begun
        events = sorted(seen.key_averages(), key=lambda event: -getattr(event, key))
        top = [[event.key[:70], event.count, round(getattr(event, key) / 1e3, 2)] for event in events[:25]]
        busy = sum(getattr(event, key) for event in events) / 1e3
        check.say("profile", way=name, wall_ms=round(took * 1e3), device_ms=round(busy), top=top)
        seen.export_chrome_trace(str(check.out / f"trace-{name}.json.gz"))
        del made
        release_memory(check.device)


PHASES: Mapping[str, tuple[Callable[[Check], None], int]] = {  # in this order; the most seconds for each
    "environment": (environment, 45),
    "small": (small, 75),
    "sanitized": (sanitized, 40),
    "full": (full, 90),
    "resident": (speed("resident", turbo=True), 60),
    "ceiling": (speed("ceiling", ceiling=True), 60),
    "stock_half": (stock("stock_half"), 40),
    "stock_half_batched": (stock("stock_half_batched", batch=8), 50),
    "profile": (profile, 60),
    "stock_group_offload": (stock("stock_group_offload", batch=8, offload="group", share=0.2), 45),
    "stock_model_offload": (stock("stock_model_offload", batch=8, offload="model", share=0.5), 45),
    "stock_sequential_offload": (stock("stock_sequential_offload", offload="sequential", share=0.1), 40),
    "compiled": (speed("compiled", turbo=True, compiler=INDUCTOR), 170),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs phases; the exit code says how many of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("phases", nargs="*", metavar="phase", help=f"all, or some of {', '.join(PHASES)}")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="the folder of the results")
    parser.add_argument("--dry", action="store_true", help="on the CPU, in small")
    parser.add_argument("--here", action="store_true", help="in this process, without limits of time")
    given = parser.parse_args(arguments)
    if unknown := set(given.phases) - PHASES.keys():
        parser.error(f"no such phase: {', '.join(sorted(unknown))}")
    given.out.mkdir(parents=True, exist_ok=True)
    check = Check(given.out, dry=given.dry)
    if not given.dry:
        save("sd15", check.model)
    failed = 0
    for name in given.phases or PHASES:
        if given.here:
            PHASES[name][0](check)
        elif problem := run_apart(check, name):
            check.say("failed", name=name, problem=problem)
            failed += 1
    for line in summary(given.out):
        print(line)
    return failed


def run_apart(check: Check, name: str) -> str:
    """Runs a phase in a process of its own; why it failed, or nothing."""
    command = [sys.executable, __file__, name, "--here", "--out", str(check.out), *(["--dry"] if check.dry else [])]
    with (check.out / "log.txt").open("ab") as log:
        try:
            code = subprocess.run(command, stderr=log, stdout=log, timeout=PHASES[name][1]).returncode
        except subprocess.TimeoutExpired:
            return f"took more than {PHASES[name][1]} s"
    return f"ended with code {code}, see {check.out}/log.txt" if code else ""


def summary(out: Path) -> Iterator[str]:
    """The findings that decide: what differs, what failed, and the speeds."""
    for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines():
        if json.loads(line)["phase"] in ("small", "sanitized", "full", "speed", "failed"):
            yield line[:400]


if __name__ == "__main__":
    sys.exit(main())
