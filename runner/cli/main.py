"""The command line: `runner VERB [TARGET] [key=value ...]`.

Every user error ends here, as one message and an exit code. What each verb does is in `verbs`.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from runner import __version__
from runner.cli.help import help_of, usage
from runner.cli.verbs import VERBS, Call
from runner.engine.stops import Stopped
from runner.errors import EXIT_FAULT, RunnerError, SettingError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line, taken apart."""

    verb: str
    targets: tuple[Path, ...]
    overrides: tuple[str, ...]
    multirun: bool
    show_config: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "debug=true" in words
    try:
        return _main(words)
    except RunnerError as error:
        if debug:
            traceback.print_exc()
        print(f"runner: {error.report()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Stopped as stopped:
        return stopped.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAULT
    except Exception as error:
        if debug:
            traceback.print_exc()
        hint = "" if debug else "; debug=true shows where"
        print(f"runner: a fault of the runner itself: {type(error).__name__}: {error}{hint}", file=sys.stderr)
        return EXIT_FAULT


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if words[0] == "--version":
        print(f"runner {__version__}")
        return 0
    if words[0] not in VERBS:
        raise SettingError(f"'{words[0]}' is not a verb: {did_you_mean(words[0], VERBS)}")
    if "-h" in words or "--help" in words:
        print(help_of(words[0]), end="")
        return 0
    command = parse(words)
    if command.show_config:
        return _show_config(command)
    _check_target(command)
    signal.signal(signal.SIGTERM, _stop)
    return _run_all(command) if command.multirun else _run_one(command)


def parse(words: Sequence[str]) -> Command:
    """Takes a command line apart.

    Raises:
        SettingError: it has two targets or an unknown flag.
    """
    verb, rest = words[0], list(words[1:])
    multirun = any(flag in rest for flag in ("-m", "--multirun"))
    show_config = any(rest[i : i + 2] in (["--cfg", "job"], ["-c", "job"]) for i in range(len(rest)))
    rest = [word for word in rest if word not in ("-m", "--multirun", "--cfg", "-c")]
    if show_config:
        rest.remove("job")
    for word in rest:
        if word.startswith("-") and "=" not in word:
            raise SettingError(
                f"'{word}' is not an option: {did_you_mean(word, ('--help', '--multirun', '--cfg job'))}"
            )
    many = VERBS[verb].takes_many
    targets = [word for word in rest if "=" not in word or (many and Path(word).exists())]
    if len(targets) > 1 and not many:
        raise SettingError(f"two targets: {' and '.join(targets[:2])}; write a setting as key=value")
    return Command(
        verb=verb,
        targets=tuple(map(Path, targets)),
        overrides=tuple(word for word in rest if word not in targets),
        multirun=multirun,
        show_config=show_config,
    )


def _check_target(command: Command) -> None:
    verb, see = VERBS[command.verb], f"see runner {command.verb} --help"
    if not verb.target and (command.targets or command.multirun):
        raise SettingError(f"runner {command.verb} takes settings only; {see}")
    if verb.target and not command.targets:
        raise SettingError(f"runner {command.verb} needs a target, {verb.target}; {see}")
    if verb.once and command.multirun:
        raise SettingError(f"runner {command.verb} runs once, without -m; {see}")


def _run_one(command: Command) -> int:
    from runner import settings

    chosen = settings.compose(command.overrides)
    return VERBS[command.verb].run(Call(targets=command.targets, settings=chosen, overrides=command.overrides))


def _run_all(command: Command) -> int:
    """Hydra's multirun; each job has a run folder of its own, named by what differs."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from runner import settings

    settings.check_overrides(command.overrides)
    settings.register_defaults()
    codes = list[int]()

    def job(config: Any) -> None:
        chosen = settings.to_settings(config)
        differs = HydraConfig.get().job.override_dirname.replace("/", "_")
        chosen.out = f"{chosen.out or f'outputs/{command.targets[0].stem}-multirun'}/{differs}"
        print(f"runner: {differs}", file=sys.stderr)
        call = Call(targets=command.targets, settings=chosen, overrides=command.overrides)
        codes.append(_code_of(lambda: VERBS[command.verb].run(call)))

    quiet = ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
    nowhere = ["hydra.sweep.dir=.", "hydra.sweep.subdir=.", "hydra.job.chdir=false"]
    sys.argv = ["runner", "--multirun", *command.overrides, *quiet, *nowhere]
    conf = str(settings.conf_folder().resolve())
    hydra.main(config_path=conf, config_name="config", version_base="1.3")(job)()
    return next((code for code in codes if code), 0)


def _code_of(verb: Callable[[], int]) -> int:
    try:
        return verb()
    except RunnerError as error:
        print(f"runner: {error.report()}", file=sys.stderr)
        return error.exit_code


def _show_config(command: Command) -> int:
    from omegaconf import OmegaConf

    from runner import settings

    config = settings.compose_config(command.overrides)
    settings.to_settings(config)
    print(OmegaConf.to_yaml(config), end="")
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
