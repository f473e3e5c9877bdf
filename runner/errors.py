"""The errors that a user can cause or meet. Each has an exit code, and names what is wrong, where, and the remedy.

    RunnerError
        SettingError          2   a wrong command line or setting
            ModelError        2   a model that is missing or can't be used
        ManifestError         4   a wrong manifest, or a wrong file that it names; has a `Location`
            ManifestErrors    4   several of them
        NoRunFolder          10   no run folder where one was named
        RunFolderHeld        11   another process works in the run folder
        FolderUnwritable     12   the disk is full, or the folder can't be written
        DeviceLost            1   the device has failed

Every other exception is a fault of the runner itself (exit code 1).
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

from runner.text import printable, width

EXIT_FAULT = 1
EXIT_ITEMS_FAILED = 3
EXIT_DIFFERENCE = 5
ERRORS_SHOWN = 20
LINE_SHOWN, LONGEST_LINE = 100, 1 << 26  # characters
T = TypeVar("T")
U = TypeVar("U")


class RunnerError(Exception):
    """The root of the user errors. `str(error)` is the whole message."""

    exit_code = EXIT_FAULT

    def report(self) -> str:
        """The message as a terminal shows it."""
        return str(self)


def fault(error: BaseException) -> str:
    """How an exception is told that is no user error."""
    return f"a fault of the runner itself: {type(error).__name__}: {error}"


class SettingError(RunnerError):
    """A wrong command line or setting."""

    exit_code = 2


class Location(NamedTuple):
    """A place in a file. Lines and columns count from 1; 0 is the whole file. A tuple, since there may be millions."""

    path: Path
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}" if self.line else str(self.path)

    def excerpt(self) -> list[str]:
        """The line of the file, cut around the place, and a line with a caret; empty if it can't be read."""
        line = self._read_line().rstrip("\n") if self.line else ""
        place = self.column - 1
        if not line.strip() or place > len(line):
            return []
        start = max(0, place - LINE_SHOWN // 2) if len(line) > LINE_SHOWN else 0
        before, after = printable(line[start:place]), printable(line[place : start + LINE_SHOWN])
        before = ("..." if start else "") + before
        after += "..." if len(line) > start + LINE_SHOWN else ""
        return [f"    {before}{after}", f"    {' ' * width(before)}^"]

    def _read_line(self) -> str:
        """The line; empty if it can't be read, or if it or a line before it is too long, as in a device."""
        line = ""
        with contextlib.suppress(OSError, ValueError), self.path.open(encoding="utf-8-sig", errors="replace") as file:
            for _ in range(self.line):
                if len(line := file.readline(LONGEST_LINE)) == LONGEST_LINE:
                    return ""
        return line


class ManifestError(RunnerError):
    """The manifest, or a file that it names, is wrong."""

    exit_code = 4

    def __init__(self, message: str, location: Location) -> None:
        super().__init__(f"{location}: {message}")
        self.message, self.location = message, location
        self.errors: Sequence[ManifestError] = (self,)
        self.more = 0

    def within(self, key: str) -> ManifestError:
        """The same error with a key before its message."""
        return ManifestError(f"{key}: {self.message}", self.location)

    def report(self) -> str:
        return "\n".join([str(self), *self.location.excerpt()])


class ManifestErrors(ManifestError):
    """Several manifest errors, sorted by file and place. `message` joins theirs in one line, without the places."""

    def __init__(self, errors: Sequence[ManifestError], more: int = 0) -> None:
        paths = list(dict.fromkeys(error.location.path for error in errors))
        errors = sorted(errors, key=lambda error: (paths.index(error.location.path), *error.location[1:]))
        super().__init__("; ".join(error.message for error in errors), errors[0].location)
        self.errors, self.more = errors, more
        self.args = (self._lines(str),)

    def within(self, key: str) -> ManifestErrors:
        return ManifestErrors([error.within(key) for error in self.errors], self.more)

    def report(self) -> str:
        return self._lines(ManifestError.report)

    def _lines(self, shown: Callable[[ManifestError], str]) -> str:
        count = len(self.errors) + self.more
        more = [f"and {self.more} more"] if self.more else []
        return "\n".join([f"{count} errors", *map(shown, self.errors), *more])


class Problems:
    """Collects the manifest errors that are raised under `with`, so that the rest is read too; raises them together.

    with problems:
        steps = check("steps", node)
    problems.raise_all()
    """

    def __init__(self) -> None:
        self._errors: dict[str, ManifestError] = {}  # by their text: a YAML alias repeats an error
        self._more = 0

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, ManifestError):
            return False
        for one in error.errors:
            if str(one) in self._errors or len(self._errors) < ERRORS_SHOWN:
                self._errors.setdefault(str(one), one.with_traceback(None))
            else:
                self._more += 1
        self._more += error.more
        return True

    def __bool__(self) -> bool:
        return bool(self._errors)

    def raise_all(self) -> None:
        errors = list(self._errors.values())
        if len(errors) > 1:
            raise ManifestErrors(errors, self._more)
        if errors:
            raise errors[0]


def every(read: Callable[[T], U], these: Iterable[T]) -> list[U]:
    """What `read` returns for each; the manifest errors of all of them are raised together."""
    found: list[U] = []
    problems = Problems()
    for one in these:
        with problems:
            found.append(read(one))
    problems.raise_all()
    return found


class ModelError(SettingError):
    """The model is missing or can't be used."""


class NoRunFolder(RunnerError):
    """There is no run folder where one was named."""

    exit_code = 10


class RunFolderHeld(RunnerError):
    """Another process works in the run folder."""

    exit_code = 11


class FolderUnwritable(RunnerError):
    """The disk is full, or the run folder can't be written. What was finished is safe."""

    exit_code = 12


class DeviceLost(RunnerError):
    """The device has failed, so that this process can make no more pictures. What was finished is safe."""


def did_you_mean(wrong: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known name, or else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(str(wrong), names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known are: {', '.join(names)}"
