"""What the process that hands out waves can take: `python tools/scale/check.py` (docs/scale.md has what it printed).

Its workers make nothing; everything else is real: the manifest, waves, Ray, the ledger with its records, and the files
where this process writes them. Prints items a second, and how long this process itself was busy with each.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)  # here, and in the workers

import fakes  # noqa: E402

from runner import settings  # noqa: E402
from runner.engine.fleet import Fleet  # noqa: E402
from runner.engine.ray import RayEngine, start_engine  # noqa: E402
from runner.events import WaveStarted  # noqa: E402
from runner.item import Model  # noqa: E402
from runner.request import Request, read_request  # noqa: E402
from runner.verbs.run.run import run  # noqa: E402

PROMPTS = 20


class Delivered:
    """An engine whose pictures are finished in another way than the run wants."""

    def __init__(self, engine: RayEngine, finish: Callable) -> None:
        self._engine, self._finish = engine, finish

    def run(self, waves, delivery):
        return self._engine.run(waves, dataclasses.replace(delivery, finish=self._finish))

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


def measure(count: int, finish: Callable, workers: int) -> None:
    """Runs so many items through workers that make nothing."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "m.yaml")
        prompts = ", ".join(f"picture {number}" for number in range(PROMPTS))
        manifest.write_text(
            "version: 1\nname: scale\ndefaults: {width: 64, height: 64, steps: 4, sampler: dpmpp_2m}\n"
            f"jobs: [{{prompts: [{prompts}], seeds: 1-{count // PROMPTS}}}]\n"
        )
        asked = ["engine=ray", "ray.cpus=1", f"ray.workers={workers}", "skip_grid=true", "unet_bs=32"]
        request = read_request(manifest, settings.compose([f"out={folder}/out", *asked]))
        with Fleet(request.settings, fakes.start) as fleet:

            def start(request: Request, model: Model) -> Delivered:
                return Delivered(start_engine(fleet, model), finish)

            begun = own = 0.0
            for event in run(request, start=start):
                if not begun and isinstance(event, WaveStarted):
                    begun, own = time.perf_counter(), time.process_time()
            seconds, busy = time.perf_counter() - begun, time.process_time() - own
    print(
        f"{finish.__name__}: {count} items, {workers} workers: {count / seconds:.0f} items a second; this process was "
        f"busy for {busy / count * 1e6:.0f} us with each, so it could take {count / busy:.0f} a second",
        flush=True,
    )


def main() -> None:
    """Measures both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    measure(given.items, fakes.written, given.workers)
    measure(given.items // 10, fakes.encoded, given.workers)


if __name__ == "__main__":
    main()
