"""All that is printed goes through here: nothing that came from outside steers the terminal, and no screen ends a run.

Within `screens()` whatever is printed has its control characters and direction marks written as escapes, and what an
encoding lacks as well, so that JSON stays JSON. A standard error that can't be written to is left alone: a closed pipe
or terminal is no reason to stop. `console()` is the same for what has a style.

    with screens():
        print(path)
        console().print("bold", style="bold")
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

import orjson

from runner.text import escape, visible

if TYPE_CHECKING:
    from rich.console import Console


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(escape, error.object[error.start : error.end])), error.end


codecs.register_error("runner.escape", _escaped)


class Screen(io.TextIOBase):
    """A standard stream in whose place it stands. With `styled` control sequences pass, which a console wrote.

    With `lenient` a stream that can't be written to any more takes everything in silence.
    """

    def __init__(self, stream: Any, *, styled: bool = False, lenient: bool = False) -> None:
        self.stream, self._styled, self._lenient = stream, styled, lenient

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(getattr(self.stream, "encoding", None) or "utf-8")

    @property
    def buffer(self) -> BinaryIO:
        return cast(BinaryIO, self.stream.buffer)

    def write(self, text: str) -> int:
        shown = text if self._styled else visible(text)
        shown = shown.encode(self.encoding, "runner.escape").decode(self.encoding)
        with self._gone():
            self.stream.write(shown)
        return len(text)

    def flush(self) -> None:
        with self._gone():
            self.stream.flush()

    def isatty(self) -> bool:
        try:
            return bool(self.stream.isatty())
        except ValueError:  # it was closed
            return False

    def fileno(self) -> int:
        return int(self.stream.fileno())

    def writable(self) -> bool:
        return True

    @contextlib.contextmanager
    def _gone(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            if not self._lenient:
                raise
            self.stream = io.StringIO()


@contextlib.contextmanager
def screens() -> Iterator[None]:
    """Within it standard output and standard error are screens."""
    before = sys.stdout, sys.stderr
    # A process may be started without them.
    out, err = (stream if stream is not None else io.StringIO() for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, Screen(out)), cast(TextIO, Screen(err, lenient=True))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def console(*, stderr: bool = True, width: int | None = None) -> Console:
    """A console of rich on a standard stream; a file, a pipe or a dumb terminal gets plain text, whatever is set."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    bare = stream.stream if isinstance(stream, Screen) else stream
    screen = Screen(bare, styled=True, lenient=stderr)
    steers = screen.isatty() and os.environ.get("TERM") != "dumb"
    return Console(file=cast(TextIO, screen), force_terminal=steers, width=width, highlight=False)


def say(shown: Console, lines: Iterable[str]) -> None:
    """Prints lines as they are, but visibly: no markup, and not folded."""
    for line in lines:
        shown.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Prints a value as one JSON document; a text that is no Unicode, as a file's name may be, in escapes."""
    try:
        print(orjson.dumps(value).decode())
    except TypeError:  # half of a surrogate pair
        print(json.dumps(value, separators=(",", ":")))
