"""The errors a user can cause or meet. Each knows its exit code, and says what is wrong, where, and what is right.

Anything else that is raised is a fault of the runner itself (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

EXIT_FAULT = 1
EXIT_ITEMS_FAILED = 3
EXIT_DIFFERENCE = 5
NAMES_SHOWN = 8


class RunnerError(Exception):
    """The root of the user errors; `str(error)` is the whole message."""

    exit_code = EXIT_FAULT


class SettingError(RunnerError):
    """A wrong command line or setting."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a file; lines and columns count from 1, and 0 stands for the file as a whole."""

    path: Path
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}" if self.line else str(self.path)


class ManifestError(RunnerError):
    """The manifest, or a file that it names, is wrong."""

    exit_code = 4

    def __init__(self, message: str, location: Location) -> None:
        super().__init__(f"{location}: {message}")
        self.message, self.location = message, location


class ModelError(SettingError):
    """The model is not there, or is not a model that can be used."""


class NoRunFolder(RunnerError):
    """There is no run folder where one was named."""

    exit_code = 10


class RunFolderHeld(RunnerError):
    """Another process works in the run folder."""

    exit_code = 11


class FolderUnwritable(RunnerError):
    """The disk is full, or the run folder can't be written to; what was finished is safe."""

    exit_code = 12


def did_you_mean(wrong: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(str(wrong), names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known are: {', '.join(names)}"


def name_some(names: Sequence[str]) -> str:
    """A list of names for a message, the first few of them."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def shorten(text: str, length: int = 60) -> str:
    """A text cut for a message."""
    return text if len(text) <= length else text[: length - 3] + "..."


def show_size(number: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
