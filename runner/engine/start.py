"""Makes a model ready on this machine: the device, how pictures will be made there, and an engine that makes them."""

from __future__ import annotations

from runner.device.memory import available_devices, free_memory, held_memory
from runner.engine.executor import Executor
from runner.engine.local import LocalEngine
from runner.model.files import ModelFiles
from runner.planning import choices
from runner.planning.layouts import Execution
from runner.settings import Settings


def plan_execution(settings: Settings, files: ModelFiles, sharing: int = 1) -> Execution:
    """How this machine makes a model's pictures, with the memory that is free now.

    On a CPU it is shared by so many processes that make pictures.

    Raises:
        SettingError: the machine has no such device, or can't do what the settings ask for.
    """
    device = choices.check_device(settings.device, available_devices())
    free = free_memory(device)
    if free is not None and device == "cpu":
        free //= sharing
    return choices.decide(settings, files, device, free, held_memory(device))


def start_engine(settings: Settings, files: ModelFiles, execution: Execution | None = None) -> LocalEngine:
    """An engine that holds a model; `execution` is how its pictures are made, if that is planned already.

    Raises:
        SettingError: as `plan_execution`.
    """
    return LocalEngine(Executor(files, execution or plan_execution(settings, files)))
