"""Commands that are killed after some seconds, by SIGKILL; what they import is imported once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import runner

KILLS = int(os.environ.get("RUNNER_KILLS", "2"))
# What a child process does with its words; all that is imported here is there already when it begins.
COMMAND = """
from hydra import compose
from runner import cli
command = cli.main
"""
# Forks a child for each delay that it is told; says how the child ended.
FORKER = """
import os, signal, sys, time
sys.argv[0] = "runner"
for line in sys.stdin:
    folder, delay, *words = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(command(words))
    begun = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() - begun < float(delay):
        time.sleep(0.002)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(ended[1]), time.monotonic() - begun, flush=True)
"""


@contextmanager
def forker(words: Sequence[str] = (), imports: str = "os", code: str = COMMAND) -> Iterator[Callable[..., Any]]:
    """A function that runs a command in a folder and kills it after some seconds: exit code and seconds it took.

    It takes the folder, the seconds, and more words. `imports` are the modules that the command needs; `code` defines
    the function `command`, which is given all words.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(runner.__file__).parents[1]), *sys.path])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    script = f"import {imports}\n{code}\n{FORKER}"
    with subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes) as process:

        def run(folder: Path, delay: float, *more: str) -> tuple[int, float]:
            process.stdin.write("\t".join([str(folder), str(delay), *words, *more]) + "\n")
            code, seconds = process.stdout.readline().split()
            return int(code), float(seconds)

        yield run
        process.stdin.close()
