"""A stage of the training: what it has learnt, its time, its learning rate, its checkpoints and what it prints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from muon import Muon

SAVE_SECONDS = 200
PRINT_STEPS = 100


class Stateful(Protocol):
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> object: ...


class Training:
    """Trains a module for some minutes, from its checkpoint on where there is one.

    `averaged` is what is kept in the end. `others` are what the stage trains besides: they are saved and loaded too.
    `upon` says what the stage builds upon: a checkpoint of a stage that built upon something else isn't gone on from.
    """

    def __init__(
        self, file: Path, clock: Clock, rate: float, trained: torch.nn.Module, upon: int = 0, **others: Stateful
    ) -> None:
        named = [(name, parameter) for name, parameter in trained.named_parameters() if parameter.requires_grad]
        self.file, self.rate, self.upon = file, rate, upon
        self.trained, self.averaged = trained, copy.deepcopy(trained).requires_grad_(False)
        self.parameters = [parameter for _, parameter in named]
        self.optimizer = Muon(named, lr=rate, weight_decay=1e-2)
        self.parts = {"trained": trained, "averaged": self.averaged, "optimizer": self.optimizer, **others}
        self.clock, self.step = clock, 0
        self.losses: dict[str, float] = {}
        if file.exists() and (state := load(file))["upon"] == upon:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.clock.before, self.step = state["spent"], state["step"]
        self.first = self.step
        torch.manual_seed(self.step)  # other noise than in the sitting before

    def steps(self) -> Iterator[float]:
        """The fraction of the time that is spent, once before each step; `learn` belongs into each."""
        for done in self.clock.steps():
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.rate, done)
            yield done
            if self.clock.time_to_save():
                self.save()
        self.save()

    def learn(self, loss: torch.Tensor, /, **shown: torch.Tensor) -> None:
        """One step down this loss. What is shown are numbers for who watches."""
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            weight = max(1e-3, 9 / (self.step + 10))
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.trained.parameters()), weight)
        weight = max(0.01, 1 / (self.step - self.first))
        for name, value in shown.items():
            self.losses[name] = (1 - weight) * self.losses.get(name, 0.0) + weight * value.item()
        if self.step % PRINT_STEPS == 0:
            numbers = " ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
            print(f"{self.file.stem} {self.step} {self.clock.spent:.1f}min {numbers}", flush=True)

    def save(self) -> None:
        states = {name: part.state_dict() for name, part in self.parts.items()}
        save(self.file, **states, upon=self.upon, spent=self.clock.spent, step=self.step)


class Clock:
    """Minutes of this process's own computing, of all its threads: they don't pass while it waits or is stopped."""

    def __init__(self, minutes: float = math.inf) -> None:
        self.minutes, self.begun = minutes, time.process_time()
        self.before = 0.0  # minutes of earlier processes
        self.saved = self.begun

    @property
    def spent(self) -> float:
        return self.before + (time.process_time() - self.begun) / 60

    def steps(self) -> Iterator[float]:
        """The fraction of the budget that is spent, once before each step, until all of it is."""
        while self.spent < self.minutes:
            yield self.spent / self.minutes

    def time_to_save(self) -> bool:
        if due := time.process_time() - self.saved > SAVE_SECONDS:
            self.saved = time.process_time()
        return due


def learning_rate(peak: float, done: float) -> float:
    """A short warm-up, then a half cosine to nothing; `done` runs from 0 to 1."""
    return peak * min(1.0, done / 0.01 + 1e-2) * 0.5 * (1 + math.cos(math.pi * min(done, 1)))


def load(file: Path) -> dict:
    """A stage's checkpoint."""
    if not file.exists():
        raise SystemExit(f"{file} is missing: run the stage '{file.stem}' first")
    return torch.load(file, weights_only=True)


def save(file: Path, **state: object) -> None:
    """Replaces a checkpoint whole."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)
