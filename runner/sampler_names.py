"""The samplers: what there is to know of each without torch. How they compute is in `engine.samplers`.

SAMPLERS["heun"].calls(20)  # 39
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampler:
    """A row of the table.

    `shown` is AUTOMATIC1111's name for it. `calls` gives the predictions that it asks the model for in n steps (n > 0),
    `step` the step that such a call belongs to, both counted from 0.
    With fewer than `fewest` steps the first embedded model's pictures differ from those of 100 steps by more than 15
    levels of 255 (RMS; 40 for plms and lms, which converge unevenly: 20 steps may be worse than 4). `eta` says whether
    the item key of that name counts, `original` whether Optimized Stable Diffusion has it.
    """

    shown: str
    calls: Callable[[int], int] = lambda n: n
    fewest: int = 6
    eta: bool = False
    original: bool = False
    step: Callable[[int], int] = lambda call: call


def _twice(n: int) -> int:
    return 2 * n


def _twice_but_once(n: int) -> int:
    return 2 * n - 1


def _after_two(call: int) -> int:
    return max(0, call - 1)


def _half(call: int) -> int:
    return call // 2


SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIM", eta=True, original=True),
    "plms": Sampler("PLMS", lambda n: n + 1 if n > 1 else n, fewest=20, original=True, step=_after_two),
    "heun": Sampler("Heun", _twice_but_once, fewest=8, original=True, step=_half),
    "euler": Sampler("Euler", original=True),
    "euler_a": Sampler("Euler a", original=True),
    "dpm2": Sampler("DPM2", _twice, fewest=8, original=True, step=_half),
    "dpm2_a": Sampler("DPM2 a", _twice, fewest=10, original=True, step=_half),
    "lms": Sampler("LMS", fewest=20, original=True),
    "dpmpp_2m": Sampler("DPM++ 2M"),
    "dpmpp_2m_karras": Sampler("DPM++ 2M Karras"),
    "dpmpp_2m_sde": Sampler("DPM++ 2M SDE"),
    "dpmpp_2m_sde_karras": Sampler("DPM++ 2M SDE Karras"),
    "dpmpp_sde": Sampler("DPM++ SDE", _twice_but_once, step=_half),
    "dpmpp_sde_karras": Sampler("DPM++ SDE Karras", _twice_but_once, step=_half),
    "unipc": Sampler("UniPC"),
    "lcm": Sampler("LCM", fewest=2),
    "tcd": Sampler("TCD", fewest=1, eta=True),
}
WITH_ETA = tuple(name for name, sampler in SAMPLERS.items() if sampler.eta)


def model_calls(sampler: str, steps: int) -> int:
    """How many predictions a sampler asks the model for in a number of steps."""
    return SAMPLERS[sampler].calls(steps) if steps else 0


def step_of(sampler: str, call: int) -> int:
    """The step that a sampler's call of the model belongs to, both counted from 0."""
    return SAMPLERS[sampler].step(call)
