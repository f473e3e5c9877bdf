"""What happens in a run, as typed events: the progress bar, the log and the tests are readers of one stream of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.item import Item, Model
from runner.record import Encoded, Making, Record, Written

if TYPE_CHECKING:
    import numpy as np

Preview = Callable[[], "Sequence[np.ndarray[Any, Any]]"]  # uint8 [h, w, 3] for each picture of a wave


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """`missing` of `wanted` images are to be rendered, in long runs an estimate."""

    wanted: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoaded:
    """The pictures of a model come next. `notes` are sentences about them that people should read."""

    model: Model
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveStarted:
    """A wave's images go through their stages together."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveDone:
    """All pictures of the wave in hand are rendered or have failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """The pictures of the wave went one model call further, to `step` of the longest one's `steps`.

    `preview` makes small pictures of what they are about to become; it may be called until the next event, by whoever
    wants to see them. It is None where the pictures are in another process.
    """

    step: int
    steps: int
    preview: Preview | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A finished picture, uint8 [height, width, 3]; `seconds` are its share of each stage's time.

    One that was made in another process comes without pixels: `finished` is its file then, or says where it is, and
    `worker` names the machine. `rerendered` says why it was made again in float32, if it was.
    """

    item: Item
    pixels: np.ndarray[Any, Any] | None = None
    finished: Encoded | Written | None = None
    worker: str = ""
    seconds: Mapping[str, float]
    peak_bytes: int
    making: Making
    rerendered: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryShort:
    """There was less memory than the plan counted on; the run goes on with a plan that needs less."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersChanged:
    """Workers came or went; `message` says which, and why."""

    message: str
    working: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception as plain text, so that it can be sent to another process: its class, message and traceback."""

    kind: str
    message: str
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The texts of an exception."""
        return cls(kind=type(error).__name__, message=str(error), trace="".join(traceback.format_exception(error)))

    def to_dict(self) -> dict[str, str]:
        """The record's `error`."""
        return {"class": self.kind, "message": self.message}

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFailed:
    """A picture that can't be made; the run goes on without it. `making` is None where nothing is known of it."""

    item: Item
    error: Failure
    seconds: Mapping[str, float] = field(default_factory=dict)
    making: Making | None = None
    rerendered: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemDone:
    """A picture in its file, whose record is in the ledger; `worker` is the machine, if another process made it."""

    item: Item
    record: Record
    worker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """`failed` are the items without a picture; among them those that were `given_up` before and not tried again.
    `lost` are paths of pictures that this run made and that are gone at its end: something else removed them.

    `unwanted` are paths of pictures that nobody asks for any more. `hopeless` says why a run ended before its time.
    """

    done: int
    failed: tuple[Item, ...]
    seconds: float
    peak_bytes: int = 0
    given_up: tuple[Item, ...] = ()
    unwanted: tuple[str, ...] = ()
    hopeless: str = ""
    lost: tuple[str, ...] = ()


WaveEvent = WaveStarted | StepDone | Rendered | MemoryShort | WorkersChanged | ItemFailed | WaveDone
RunEvent = (
    RunStarted | ModelLoaded | WaveStarted | StepDone | MemoryShort | WorkersChanged | WaveDone | ItemDone | ItemFailed
    | RunFinished
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What has become of a run so far; `hopeless` says why it ended early, if it did."""

    done: int = 0
    failed: list[Item] = field(default_factory=list)
    hopeless: str = ""
    peak_bytes: int = 0
