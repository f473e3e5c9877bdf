"""How the threads that multiply wait for their next layer: awake for a moment, then asleep; never imports torch.

GNU OpenMP, torch's on Linux, reads that from the environment when torch is imported. Its default is to
stay awake for milliseconds, which starves everybody on a busy machine. Asleep at once, threads take a third longer for
a small model, whose layers are as short as it takes to wake them.

    settle()
    import torch
"""

from __future__ import annotations

import os

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # in the environment
SPINS = 2000  # some 50 microseconds


def settle() -> None:
    """Says how threads wait, unless the environment does already; has to be called before torch is imported."""
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def environment() -> str:
    """What the environment says of it."""
    return " ".join(f"{name}={os.environ[name]}" for name in WAITING if name in os.environ)
