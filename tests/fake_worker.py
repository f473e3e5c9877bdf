"""How workers in other processes start fake engines; what goes wrong with them is told by files and by prompts.

`FOLDER` in a worker's environment is where tests say what its engines do, and read what they did.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

import numpy as np
from fake_engine import MAKING, FakeEngine

from runner.errors import ModelError
from runner.item import Item, Model
from runner.settings import Settings

FOLDER = "RUNNER_FAKES"


class WorkerEngine(FakeEngine):
    """Dies of an item whose prompt says so, and waits in each wave while there is a file `wait`."""

    def __init__(self, machine: str) -> None:
        self.folder = Path(os.environ[FOLDER])
        other = (self.folder / f"other-{machine}").exists()
        super().__init__(unet_bs=2, making=MAKING._replace(device_name="iron" if other else "paper"))
        self.machine = machine

    def run(self, waves, delivery=None):
        for wave in waves:
            with (self.folder / f"waves-{self.machine}-{os.getpid()}").open("a") as file:
                file.write(" ".join(str(item.number) for item in wave.items) + "\n")
            while (self.folder / "wait").exists():
                time.sleep(0.01)
            if any("poison" in item.prompt for item in wave.items):
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super().run([wave])


def start(settings: Settings, model: Model, sharing: int) -> WorkerEngine:
    """An engine, unless a test says that the machine lacks the model."""
    import ray

    machine = ray.get_runtime_context().get_node_id()
    if Path(os.environ[FOLDER], f"lacks-{machine}").exists():
        raise ModelError("no such model here")
    return WorkerEngine(machine)


class Files(FakeEngine):
    """Paints each picture in the colour that its init's first byte says."""

    def run(self, waves, delivery=None):
        for wave in waves:
            for event in super().run([wave]):
                if isinstance(item := getattr(event, "item", None), Item):
                    shade = Path(item.init).read_bytes()[0]
                    event = dataclasses.replace(event, pixels=np.full_like(event.pixels, shade))
                yield event


def start_files(settings: Settings, model: Model, sharing: int) -> Files:
    """An engine that reads files."""
    return Files()
