"""Commands that are killed after some seconds, by SIGKILL; what they import is imported once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import runner

KILLS = int(os.environ.get("RUNNER_KILLS", "4"))
# Forks a command for each delay that it is told; says how the command ended.
FORKER = """
import os, signal, sys, time
sys.argv[0] = "runner"
from hydra import compose
from runner import cli
for line in sys.stdin:
    folder, delay, *words = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(cli.main(words))
    begun = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() - begun < float(delay):
        time.sleep(0.002)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(ended[1]), time.monotonic() - begun, flush=True)
"""


@contextmanager
def forker(words: Sequence[str], imports: str) -> Iterator[Callable[[Path, float], tuple[int, float]]]:
    """A function that runs a command in a folder and kills it after some seconds: exit code and seconds it took.

    `imports` are the modules that the command needs.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(runner.__file__).parents[1])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", f"import {imports}\n{FORKER}"], env=environment, **pipes) as process:

        def run(folder: Path, delay: float) -> tuple[int, float]:
            process.stdin.write("\t".join([str(folder), str(delay), *words]) + "\n")
            code, seconds = process.stdout.readline().split()
            return int(code), float(seconds)

        yield run
        process.stdin.close()
