"""The model that a run has loaded: how it is made ready on this machine, and what a record says of that.

Models take turns; one is loaded at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
from importlib.metadata import version
from typing import Any

from runner import __version__, plan
from runner.costs import NONE, OPENVINO
from runner.errors import SettingError
from runner.execute import Executor, available_devices, free_memory, held_memory, release_memory
from runner.plan import Execution
from runner.request import Request
from runner.spec import Model
from runner.stops import Stop

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow")


class Loader:
    """Holds the one model that is loaded, at first perhaps one that somebody else has loaded."""

    def __init__(self, request: Request, stop: Stop, executor: Executor | None) -> None:
        self._request, self._stop = request, stop
        self._executor, self._model = executor, next(iter(request.models))

    def load(self, model: Model) -> Executor:
        """The model's executor; the one of another model is let go of first, since two may not fit."""
        if self._executor is None or model != self._model:
            if self._executor:
                device, self._executor = self._executor.execution.device, None
                release_memory(device)
            self._model = model
            with self._stop.harmless():
                self._executor = start_executor(self._request, model)
        return self._executor


def start_executor(request: Request, model: Model) -> Executor:
    """One of the request's models, as its settings want it on this machine."""
    device = plan.check_device(request.settings.device, available_devices())
    free, held = free_memory(device), held_memory(device)
    executions = (
        (each, plan.decide(request.settings, request.models[each], device, free, held))
        for each in itertools.dropwhile(lambda each: each != model, request.models)
    )
    _, execution = next(executions)
    if request.settings.memory:
        for each, its in ((model, execution), *executions):
            _check_ceiling(request, each, its)
    return Executor(request.models[model], execution)


def _check_ceiling(request: Request, model: Model, execution: Execution) -> None:
    """Says at the start, not in the middle of the run, that a size needs more memory than there may be."""
    grid = request.grid_sizes()
    with contextlib.suppress(SettingError):  # of a size that no item has, maybe
        for size in grid or ():
            execution.layout(*size)
        if grid:
            return
    for size in {(item.width, item.height) for item in request.items if item.model == model}:
        execution.layout(*size)


def constant_record(request: Request, executor: Executor) -> dict[str, Any]:
    """What is the same in every record of a run's one model."""
    settings = request.settings
    run_settings = executor.describe() | {
        "precision": settings.precision,
        "memory": settings.memory or "auto",
        "engine": settings.engine,
    }
    return {
        "run": run_settings,
        "env": environment(executor.execution.compiler),
    }


def environment(compiler: str = NONE) -> dict[str, str]:
    """The versions of what has a say in a picture's bytes."""
    libraries = {name: version(name) for name in (*LIBRARIES, *([compiler] if compiler == OPENVINO else []))}
    return {"runner": __version__, "python": platform.python_version(), **libraries}
