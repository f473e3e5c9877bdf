"""The model that a run has loaded: how it is made ready on this machine, and what a record says of that.

Models take turns; one is loaded at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
from importlib.metadata import version
from typing import Any

from runner import __version__
from runner.device.memory import available_devices, free_memory, held_memory
from runner.engine.executor import Executor
from runner.errors import SettingError
from runner.item import Model
from runner.planning import choices
from runner.planning.costs import NONE, OPENVINO
from runner.planning.layouts import Execution
from runner.request import Request

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow")


def start_executor(request: Request, model: Model) -> Executor:
    """One of the request's models, as its settings want it on this machine."""
    device = choices.check_device(request.settings.device, available_devices())
    free, held = free_memory(device), held_memory(device)
    executions = (
        (each, choices.decide(request.settings, request.models[each], device, free, held))
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
