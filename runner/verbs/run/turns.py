"""Models take turns: one is loaded at a time, and let go of before the next one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from runner.engine.base import Engine
from runner.engine.stops import Stop
from runner.errors import SettingError
from runner.item import Model
from runner.request import Request
from runner.settings import RAY

if TYPE_CHECKING:
    from runner.planning.layouts import Execution

Start = Callable[[Request, Model], Engine]


def start(request: Request, model: Model) -> Engine:
    """An engine for one of the request's models, once the ceiling is known to suffice for it and those after it.

    Raises:
        SettingError: the device isn't there, or a size needs more memory than there may be.
    """
    from runner.engine.start import plan_execution, start_engine  # brings torch, which takes seconds

    settings = request.settings
    execution = plan_execution(settings, request.models[model])
    if settings.memory:
        check_ceiling(request, model, execution)
        for later in itertools.islice(itertools.dropwhile(lambda each: each != model, request.models), 1, None):
            check_ceiling(request, later, plan_execution(settings, request.models[later]))
    return start_engine(settings, request.models[model], execution)


@contextlib.contextmanager
def starting(request: Request) -> Iterator[Start]:
    """How the request's models are started, as its settings say; workers are there until it is left."""
    if request.settings.engine != RAY:
        yield start
        return
    from runner.engine.fleet import Fleet
    from runner.engine.ray import start_engine

    with Fleet(request.settings) as fleet:

        def start_there(request: Request, model: Model) -> Engine:
            engine = start_engine(fleet, model)
            if request.settings.memory:
                check_ceiling(request, model, engine.execution)
            return engine

        yield start_there


def check_ceiling(request: Request, model: Model, execution: Execution) -> None:
    """Finds before the run, not in the middle of it, that a size needs more memory than there may be.

    Raises:
        SettingError: it does.
    """
    grid = request.grid_sizes()
    with contextlib.suppress(SettingError):  # perhaps of a size that no item has
        for size in grid or ():
            execution.layout(*size)
        if grid:
            return
    for size in {(item.width, item.height) for item in request.items if item.model == model}:
        execution.layout(*size)


class Loader:
    """Holds the engine of the one model that is loaded, at first perhaps one that the caller has started."""

    def __init__(self, request: Request, stop: Stop, engine: Engine | None, start: Start = start) -> None:
        self._request, self._stop, self._start = request, stop, start
        self._engine, self._model = engine, next(iter(request.models))

    def load(self, model: Model) -> Engine:
        """The model's engine; the one of another model is closed first, since two may not fit."""
        if self._engine is None or model != self._model:
            if self._engine:
                self._engine.close()
                self._engine = None
            self._model = model
            with self._stop.harmless():
                self._engine = self._start(self._request, model)
        return self._engine
