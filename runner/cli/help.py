"""The help texts, made from the table of verbs and from `conf/`, so that they can't go stale. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from runner.cli.verbs import VERBS
from runner.settings import conf_folder

FLAGS = """
  runner VERB --help    what a verb does, and its settings
  -m, --multirun        Hydra's multirun: unet_bs=2,4 runs once for each value
  --cfg job             print the whole configuration
  --version
"""


def usage() -> str:
    """The help of the program."""
    lines = [f"  {' '.join([name, verb.target]):17} {verb.summary}\n" for name, verb in VERBS.items()]
    return "usage: runner VERB [TARGET] [key=value ...]\n\n" + "".join(lines) + FLAGS


def help_of(name: str) -> str:
    """The help of a verb. The settings, their defaults and what they mean are read from `conf/`."""
    verb = VERBS[name]
    usage = " ".join(filter(None, ["usage: runner", name, verb.target, "[key=value ...]"]))
    lines = "".join(f"  {line}\n" for line in _settings_lines([*verb.uses.split(), "debug"]))
    return f"{usage}\n\n{verb.help.strip()}\n\nSettings, and their defaults:\n\n{lines}"


def _settings_lines(keys: Sequence[str]) -> list[str]:
    conf = conf_folder()
    lines = {line.partition(":")[0]: line for line in _lines_with_values(conf / "config.yaml")}
    lines["model"] = "model: emoji          # a file of conf/model/; or model.path= a folder, .safetensors or .ckpt"
    lines["defaults"] = "defaults.KEY: null    # replaces the manifest's default of an item key, e.g. defaults.steps=4"
    lines["bench"] = "bench: emoji          # a file of conf/bench/; the values of emoji:"
    nested = _nested(conf / "config.yaml")
    shown = [line for key in keys for line in (nested.get(key) or [lines[key]])]
    return shown + [f"bench.{line}" for line in _lines_with_values(conf / "bench/emoji.yaml") if "bench" in keys]


def _nested(file: Path) -> dict[str, list[str]]:
    """The lines of settings inside settings, by the outer one's key."""
    found: dict[str, list[str]] = {}
    outer = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"(\w+):\s*$", line):
            outer = match[1]
        elif outer and (match := re.match(r"  (\w+: *[^ #].*)", line)):
            found.setdefault(outer, []).append(f"{outer}.{match[1]}")
    return found


def _lines_with_values(file: Path) -> list[str]:
    """The lines of a file of `conf/` that set a value, with the comments that explain them."""
    return [line for line in file.read_text(encoding="utf-8").splitlines() if re.match(r"\w+: *[^ #]", line)]
