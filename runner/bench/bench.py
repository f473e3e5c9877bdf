"""The verb `bench`: this runner against stock diffusers on this machine, in one run.

What is the same for all contenders: weights, prompts, seeds, first noise, sampler (`ddim`), steps, guidance, number of
torch's threads, and that each picture is a PNG file in the end. What differs: stock diffusers saves with Pillow's
defaults, one file after the other, and nothing else; the runner writes its records, metadata and gallery in the same
time. Waiting threads spin or sleep as each tool has it: torch's default, or as `machine.threads` sets it.
64 prompts are different, then they come again with other seeds, and the runner encodes a text only once.

Each contender has a process of its own, so that memory is its own, and renders a picture of one step before the clock
runs. They take turns, every second round in the opposite order; a ratio is the median of the rounds' own ratios, which
a slow spell of the machine doesn't change. The first contender of the device (`stock_full` on a CPU, `stock_half`
elsewhere: as people run it) is what the others are measured by; pictures are compared with `stock_full`'s.

Nothing is measured in this process, and torch isn't imported.

    report = bench(settings.compose(["bench.images=8", "bench.rounds=1"]), command="runner bench")
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from PIL import Image

from runner.bench.worker import FIND_BATCH, ITEMS, OFFLOADS, WARM_UP, Job, Stock
from runner.errors import ModelError, SettingError, did_you_mean
from runner.files import atomic_write, on_disk, write_lines, writing_to
from runner.images.distance import psnr
from runner.machine import describe
from runner.machine.cache import cache_folder
from runner.model.files import find_model
from runner.settings import BenchSettings, Settings

RANDOM = "random:"
RANDOM_MODELS = {"sd15": "2.1 GB", "sdxl": "6.9 GB"}  # by what is behind it; how much of the disk each takes
ALL, USUAL = "all", "usual"
USUALLY = ("stock_full", "stock_full_batched", "runner", "runner_streamed", "runner_openvino")
ANY_GPU = "cuda:0"
LOG = "bench.log"
# The process finds the modules where this one does.
PROGRAM = f"import sys; sys.path[:] = {sys.path!r}; from runner.bench import worker; worker.main()"
WORKER = (sys.executable, "-W", "ignore", "-c", PROGRAM)
THINGS = ("tiger face", "penguin", "red apple", "fire engine", "mushroom", "rocket", "pizza", "octopus")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "pink", "gray")

Ask = Callable[[Job, Path], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to render: stock diffusers, or this runner with some settings changed."""

    name: str
    stock: Stock | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Standing:
    """A contender and the answers of its rounds; `problem` is why there are no more of them."""

    contender: Contender
    answers: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    psnr: float | None = None
    largest_difference: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured, where, and how; a row of `rows` is a contender. Times are in seconds, sizes in bytes."""

    command: str
    bench: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]

    @property
    def problems(self) -> list[str]:
        """What went wrong with a contender."""
        return [f"{row['name']}: {row['problem']}" for row in self.rows if row["problem"]]


def bench(
    settings: Settings, command: str, say: Callable[[str], None] = lambda line: None, ask: Ask | None = None
) -> Report:
    """Lets the contenders take turns; `say` is told about each turn, and `ask` answers a job with a process of its own.

    Raises:
        RunnerError: a setting or the model is wrong. A contender that fails is only reported.
    """
    if settings.limit or settings.skip_save or settings.shuffle is not None:
        raise SettingError(
            "limit, shuffle and skip_save are not for bench; bench.images says how many pictures it makes"
        )
    anywhere = [dataclasses.replace(settings, device=device) for device in ("cpu", ANY_GPU)]
    choose([each for on in anywhere for each in contenders(on)], settings.bench.contenders)  # says typos at once
    ask = ask or ask_process
    settings, folder = with_model(settings, say, ask), folder_of(settings)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / LOG, b"")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".bench-") as inputs:
            _write_items(Path(inputs), settings.bench)
            return Turns(settings, Path(inputs), folder / LOG, say, ask).report(command)


def folder_of(settings: Settings) -> Path:
    """Where the report is written."""
    return on_disk(settings.out or f"outputs/bench-{settings.bench.name}", "runner bench")


class Turns:
    """The contenders' turns: who renders when, and what they answered."""

    def __init__(self, settings: Settings, inputs: Path, log: Path, say: Callable[[str], None], ask: Ask) -> None:
        self.inputs, self.log, self.say, self._ask = inputs, log, say, ask
        chosen = settings.bench.contenders
        *_, answer = ask(Job(task="describe", settings=settings, inputs=inputs, folder=inputs), log)
        if "error" in answer:
            raise SettingError(answer["error"])
        self.about = answer
        self.settings = dataclasses.replace(settings, device=answer["run"]["device"])
        known = contenders(self.settings)
        self.standings = [Standing(contender=contender) for contender in choose(known, chosen)]

    def report(self, command: str) -> Report:
        """Takes all the turns."""
        for standing in self.standings:
            self._find_batch(standing)
        for round_ in range(self.settings.bench.rounds):
            for standing in self.standings[:: -1 if round_ % 2 else 1]:
                self._take_turn(standing, round_)
            if not round_:
                _compare_all(self.standings)
        return Report(
            command=command,
            bench=dataclasses.asdict(self.settings.bench) | {"model": self.settings.model.path},
            machine=_machine() | {key: self.about["run"][key] for key in ("device", "device_name")},
            versions=self.about["env"] | _accelerate(),
            rows=summarise(self.standings, self.settings),
        )

    def _find_batch(self, standing: Standing) -> None:
        """The batch in which stock diffusers is fastest, looked for once."""
        stock = standing.contender.stock
        if stock is None or stock.batch != FIND_BATCH:
            return
        answers = self._ask(self._job("batch", standing, "batches"), self.log)
        tried = [answer for answer in answers if "batch" in answer]  # a process without memory may not say goodbye
        if not tried:
            standing.problem = answers[-1]["error"]
            return
        best = min(tried, key=lambda answer: answer["seconds"])["batch"]
        self.say(f"{standing.contender.name}: of batches of up to {tried[-1]['batch']}, {best} is fastest")
        standing.contender = dataclasses.replace(standing.contender, stock=dataclasses.replace(stock, batch=best))

    def _take_turn(self, standing: Standing, round_: int) -> None:
        if standing.problem:
            return
        name, bench = standing.contender.name, self.settings.bench
        *_, answer = self._ask(self._job("measure", standing, f"{round_}-{name}"), self.log)
        if "error" in answer:
            standing.problem, said = answer["error"], answer["error"]
        else:
            standing.answers.append(answer)
            said = f"{bench.images / answer['seconds']:.3g} pictures/s"
        self.say(f"round {round_ + 1}/{bench.rounds}: {name}: {said}")

    def _job(self, task: str, standing: Standing, folder: str) -> Job:
        contender = standing.contender
        settings = dataclasses.replace(self.settings, **contender.changes)
        place = self.inputs / folder
        return Job(task=task, settings=settings, inputs=self.inputs, folder=place, stock=contender.stock)


def ask_process(job: Job, log: Path) -> list[dict[str, Any]]:
    """The answers of a process that is started for the job, at least one; `error` in the last says what went wrong.

    What the process writes elsewhere goes into the log.
    """
    with log.open("ab") as errors:
        done = subprocess.run(WORKER, input=pickle.dumps(job), stdout=subprocess.PIPE, stderr=errors)
    answers: list[dict[str, Any]] = [orjson.loads(line) for line in done.stdout.splitlines()]
    if done.returncode and not (answers and "error" in answers[-1]):
        answers.append({"error": f"its process ended with code {done.returncode}, see {log}"})
    return answers


def contenders(settings: Settings) -> list[Contender]:
    """All that can be compared on the device of the settings."""
    gpu = settings.device.startswith("cuda")
    stock = [
        Contender(name="stock_full", stock=Stock(half=False)),
        Contender(name="stock_full_batched", stock=Stock(half=False, batch=FIND_BATCH)),
        Contender(name="stock_half", stock=Stock(half=True)),
        Contender(name="stock_half_batched", stock=Stock(half=True, batch=FIND_BATCH)),
        *(Contender(name=f"stock_{way}_offload", stock=Stock(half=True, offload=way)) for way in OFFLOADS if gpu),
    ]
    changes: dict[str, Mapping[str, Any]] = {
        "runner": {},  # with its usual settings
        "runner_full": {"precision": "full"},
        "runner_resident": {"turbo": True},
        "runner_streamed": {"turbo": False, "compile": False},
        "runner_compiled": {"turbo": None, "compile": True},
        **{f"runner_{size}": {"memory": size} for size in settings.bench.ceilings},
    }
    if settings.device == "cpu" and find_spec("openvino"):
        changes["runner_openvino"] = {"turbo": None, "compile": "openvino"}
    return stock + [Contender(name=name, changes=change) for name, change in changes.items()]


def choose(known: Sequence[Contender], names: Sequence[str]) -> list[Contender]:
    """The contenders of these names, in the order of the names; `all` is every one, `usual` those few there are.

    Raises:
        SettingError: a name that is none.
    """
    table = {contender.name: contender for contender in known}
    groups = {ALL: list(table), USUAL: [name for name in USUALLY if name in table]}
    wanted = dict.fromkeys(each for name in names for each in groups.get(name, [name]))
    for name in wanted:
        if name not in table:
            hint = did_you_mean(name, [*groups, *table])
            raise SettingError(f"bench.contenders: '{name}' is no contender on this machine; {hint}")
    if not wanted:
        raise SettingError(f"bench.contenders=[]: name some of {', '.join([*groups, *table])}")
    return [table[name] for name in wanted]


def with_model(settings: Settings, say: Callable[[str], None], ask: Ask) -> Settings:
    """The settings with the model's folder as its path; a random model is made if it isn't there."""
    path = settings.model.path
    if path.startswith(RANDOM):
        path = str(_random_model(path.removeprefix(RANDOM), settings, say, ask))
    model = find_model(path)
    if not model.path.is_dir():
        raise ModelError(f"model.path={path}: bench needs a diffusers folder, since stock diffusers has to read it too")
    if model.inpaints:
        raise ModelError(
            f"model.path={path}: is for inpainting, and bench compares pictures of prompts alone; take its base model"
        )
    return dataclasses.replace(settings, model=dataclasses.replace(settings.model, path=str(model.path)))


def _random_model(kind: str, settings: Settings, say: Callable[[str], None], ask: Ask) -> Path:
    if kind not in RANDOM_MODELS:
        raise ModelError(f"model.path={RANDOM}{kind}: {did_you_mean(kind, RANDOM_MODELS)}")
    folder = cache_folder() / f"bench-{kind}"
    if not folder.exists():
        say(f"writing a model with random weights to {folder}, once ({RANDOM_MODELS[kind]})")
        with writing_to(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            job = Job(task="random_model", settings=settings, inputs=folder, folder=folder)
            *_, answer = ask(job, folder.with_suffix(".log"))
        if "error" in answer:
            raise ModelError(f"{folder}: {answer['error']}")
    return folder


def _write_items(folder: Path, bench: BenchSettings) -> None:
    """The pictures that all make, and one of a single step with texts of its own, so that no text is known before."""
    common = {"width": bench.size, "height": bench.size, "scale": bench.scale, "sampler": "ddim"}
    prompts = [f"{thing} on a {colour} background" for thing, colour in itertools.product(THINGS, COLOURS)]
    items = [
        common | {"prompt": prompts[seed % len(prompts)], "seed": seed, "steps": bench.steps}
        for seed in range(bench.images)
    ]
    warm_up = common | {"prompt": "warming up", "negative": "waiting", "seed": 0, "steps": 1}
    write_lines(folder / ITEMS, items)
    write_lines(folder / WARM_UP, [warm_up])


# ---- what the answers add up to


def baseline(device: str) -> str:
    """The contender that others are measured by: stock diffusers as people run it on such a device."""
    return "stock_full" if device == "cpu" else "stock_half"


def summarise(standings: Sequence[Standing], settings: Settings) -> list[dict[str, Any]]:
    """A row for each contender."""
    rounds = {standing.contender.name: [each["seconds"] for each in standing.answers] for standing in standings}
    against = rounds.get(baseline(settings.device), [])
    return [_summary(standing, settings.bench.images, against) for standing in standings]


def _summary(standing: Standing, images: int, against: Sequence[float]) -> dict[str, Any]:
    answers = standing.answers
    seconds = [answer["seconds"] for answer in answers]
    ratios = [theirs / own for theirs, own in zip(against, seconds, strict=False)]

    def median(key: str) -> float | None:
        values = [answer[key] for answer in answers if answer.get(key) is not None]
        return statistics.median(values) if values else None

    def most(key: str) -> int | None:
        return max((answer[key] for answer in answers), default=None)

    return {
        "name": standing.contender.name,
        "problem": standing.problem,
        "pictures_per_second": images / statistics.median(seconds) if seconds else None,
        "ratio": statistics.median(ratios) if ratios else None,
        "ratios": ratios,
        "seconds": seconds,
        "ready_seconds": median("ready_seconds"),
        "first_picture_seconds": median("first_picture_seconds"),
        **{key: most(key) for key in ("peak_bytes", "process_peak_bytes", "load_peak_bytes")},
        "psnr": standing.psnr,
        "largest_difference": standing.largest_difference,
        "overhead": median("overhead"),
        "loads_per_step": median("loads_per_step"),
        **{key: answers[0][key] if answers else None for key in ("dtype", "rows", "threads", "omp_waiting")},
    }


def _compare_all(standings: Sequence[Standing]) -> None:
    """Compares each contender's pictures with those of stock diffusers in float32, if it took part."""
    files = {standing.contender.name: standing.answers[0]["files"] for standing in standings if standing.answers}
    reference = files.get("stock_full")
    for standing in standings:
        if reference and standing.answers and standing.contender.name != "stock_full":
            own = files[standing.contender.name]
            standing.psnr, standing.largest_difference = compare(reference, own)


def compare(files: Sequence[str], others: Sequence[str]) -> tuple[float, int]:
    """The PSNR in dB over all the pictures' bytes (infinite where they are equal), and the greatest difference."""
    squares, largest = [], 0
    for file, other in zip(files, others, strict=True):
        with Image.open(file) as one, Image.open(other) as two:
            difference = np.asarray(one.convert("RGB"), np.int16) - np.asarray(two.convert("RGB"), np.int16)
        squares.append(float(np.square(difference, dtype=np.float64).mean()))
        largest = max(largest, int(np.abs(difference).max()))
    found = psnr(statistics.fmean(squares))
    return math.inf if found is None else found, largest


def _accelerate() -> dict[str, str]:
    """Its version: stock diffusers loads with less memory where it is installed, and needs it for some offloading."""
    return {"accelerate": version("accelerate") if find_spec("accelerate") else "none"}


def _machine() -> dict[str, Any]:
    found = describe.describe()
    return {
        "cpu": describe.device_name("cpu") or platform.processor() or platform.machine(),
        "threads": describe.threads(),
        **{key: found[key] for key in ("cores", "memory_bytes", "system")},
        "date": time.strftime("%Y-%m-%d"),
    }
