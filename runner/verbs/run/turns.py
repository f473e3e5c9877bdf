"""Models take turns: one is loaded at a time, and let go of before the next one."""

from __future__ import annotations

from runner.device.memory import release_memory
from runner.engine.executor import Executor
from runner.engine.start import start_executor
from runner.engine.stops import Stop
from runner.item import Model
from runner.request import Request


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
