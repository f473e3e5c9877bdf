"""The command line: `runner VERB [TARGET] [key=value ...]`.

Every user error ends here, as one message and an exit code. What each verb does is in `verbs`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from runner import __version__, settings
from runner.cli.help import help_of, usage
from runner.cli.verbs import VERBS, Call
from runner.engine.stops import ENDS, Stopped
from runner.errors import EXIT_FAULT, RunnerError, SettingError, did_you_mean, fault
from runner.files import expanded
from runner.terminal import screens

OPTIONS = ("--to",)  # settings that may be written as options
SHOWN = ("--help", "--multirun", "--cfg job")
FLAGS = {"--watch": "watch=true"}  # settings that may be written as flags
NO_MEMORY = ("failed to map segment", "annot allocate memory", "can't allocate memory", "can't start new thread")


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
    with screens():
        return _answer(words)


def _answer(words: list[str]) -> int:
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
    except BrokenPipeError:  # who read the answer has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAULT
    except Exception as error:
        if debug:
            traceback.print_exc()
        if _is_short_of_memory(error):
            print("runner: this process may not have enough memory; is there a limit (ulimit -v)?", file=sys.stderr)
            return SettingError.exit_code
        hint = "" if debug else "; debug=true shows where"
        print(f"runner: {fault(error)}{hint}", file=sys.stderr)
        return EXIT_FAULT


def _is_short_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is that the system gives no more memory or threads."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or any(each in text for each in NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_environment() -> None:
    """Refuses what would break the libraries in ways that say nothing."""
    if sys.flags.optimize > 1:
        raise SettingError("PYTHONOPTIMIZE=2 (python -OO) leaves out texts that transformers needs; unset it")
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")  # a library's warning is no error of ours


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
    _check_environment()
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _stop)
    return _run_all(command) if command.multirun else _run_one(command)


def parse(words: Sequence[str]) -> Command:
    """Takes a command line apart.

    Raises:
        SettingError: it has two targets or an unknown flag.
    """
    verb, rest = words[0], _with_options(words[1:])
    multirun = any(flag in rest for flag in ("-m", "--multirun"))
    show_config = any(rest[i : i + 2] in (["--cfg", "job"], ["-c", "job"]) for i in range(len(rest)))
    rest = [FLAGS.get(word, word) for word in rest if word not in ("-m", "--multirun", "--cfg", "-c")]
    if show_config:
        rest.remove("job")
    for word in rest:
        if word.startswith("-") and "=" not in word:
            raise SettingError(f"'{word}' is not an option: {did_you_mean(word, (*SHOWN, *OPTIONS, *FLAGS))}")
    many = VERBS[verb].takes_many
    targets = [word for word in rest if _is_target(word)]
    if len(targets) > 1 and not many:
        raise SettingError(f"two targets: {' and '.join(targets[:2])}; write a setting as key=value")
    return Command(
        verb=verb,
        targets=tuple(map(expanded, targets)),
        overrides=tuple(word for word in rest if word not in targets),
        multirun=multirun,
        show_config=show_config,
    )


def _with_options(words: Sequence[str]) -> list[str]:
    """The words with `--to webdataset` and `--to=webdataset` as the setting that they are."""
    found = list[str]()
    for word in words:
        if found and found[-1] in OPTIONS:
            found[-1] = f"{found[-1][2:]}={word}"
        else:
            found.append(word[2:] if word.startswith(tuple(f"{option}=" for option in OPTIONS)) else word)
    if found and found[-1] in OPTIONS:
        raise SettingError(f"{found[-1]} needs a value: write {found[-1]} VALUE, or {found[-1][2:]}=VALUE")
    return found


def _is_target(word: str) -> bool:
    """Whether a word is no setting: it has no `=`, or there is such a file and no such setting."""
    key, equals, _ = word.partition("=")
    if not equals or key in settings.known_keys() or key.startswith(("+", "~")):
        return not equals and (not word.startswith("~") or "/" in word)
    try:
        return Path(word).exists()
    except (OSError, ValueError):
        return False


def _check_target(command: Command) -> None:
    verb, see = VERBS[command.verb], f"see runner {command.verb} --help"
    if not verb.target and (command.targets or command.multirun):
        raise SettingError(f"runner {command.verb} takes settings only; {see}")
    if verb.target and not command.targets:
        raise SettingError(f"runner {command.verb} needs a target, {verb.target}; {see}")
    if verb.once and command.multirun:
        raise SettingError(f"runner {command.verb} runs once, without -m; {see}")


def check_uses(name: str, overrides: Sequence[str]) -> None:
    """Refuses settings that the verb doesn't read: they would change nothing, in silence."""
    for key in sorted(settings.given_keys(overrides)):
        root = key.partition(".")[0]
        if root in (*VERBS[name].uses.split(), "debug"):
            continue
        users = [other for other, verb in VERBS.items() if root in verb.uses.split()]
        raise SettingError(f"'{key}' is a setting of {', '.join(users)}; runner {name} doesn't use it")


def _run_one(command: Command) -> int:
    chosen = settings.compose(command.overrides)
    check_uses(command.verb, command.overrides)
    return VERBS[command.verb].run(Call(targets=command.targets, settings=chosen, overrides=command.overrides))


def _run_all(command: Command) -> int:
    """One run for each combination of the values; a wrong setting of any of them ends all before the first."""
    from runner.cli.sweep import plan_jobs

    jobs = plan_jobs(command.overrides)
    check_uses(command.verb, command.overrides)
    codes, drawn = list[int](), dict[int, int]()
    for job in jobs:
        if len(jobs) > 1:
            print(f"runner: {job.name or ' '.join(job.overrides)}", file=sys.stderr)
        call = Call(
            targets=command.targets, settings=job.settings, overrides=job.overrides, job=job.name,
            drawn=drawn,
        )  # fmt: skip
        codes.append(_code_of(partial(VERBS[command.verb].run, call)))
    return next((code for code in codes if code), 0)


def _code_of(verb: Callable[[], int]) -> int:
    try:
        return verb()
    except RunnerError as error:
        print(f"runner: {error.report()}", file=sys.stderr)
        return error.exit_code


def _show_config(command: Command) -> int:
    from omegaconf import OmegaConf

    config = settings.compose_config(command.overrides)
    settings.to_settings(config)
    print(OmegaConf.to_yaml(config), end="")
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
