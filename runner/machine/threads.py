"""How torch's threads wait for their next layer: they spin for a moment, then sleep. Never imports torch.

GNU OpenMP, which torch uses on Linux, reads this from the environment when torch is imported. By default its threads
spin for milliseconds, which starves every other process on a busy machine. Threads that sleep at once take a third
longer for a small model, whose layers are about as short as the time to wake a thread.

    settle()
    import torch
"""

from __future__ import annotations

import os

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # in the environment
SPINS = 2000  # some 50 microseconds


def settle() -> None:
    """Sets how threads wait, unless the environment sets it already. Must be called before torch is imported."""
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def environment() -> str:
    """The settings of the environment that decide it."""
    return " ".join(f"{name}={os.environ[name]}" for name in WAITING if name in os.environ)
