"""Where weights wait, and how they come to the device: the two ways that a machine has.

On a CPU the device is the memory itself, and weights wait in the model's file. Plain reads (mapped pages would count as
the process's own) bring them into buffers that are used again; packed weights come from a file of their own. On other
devices weights that come again wait in the host's memory, pinned where that speeds the copy up, and come on a stream of
their own. `component` decides what is brought, and when it leaves.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from runner.device.packed_file import PackedFile, aligned
from runner.device.slots import Piece
from runner.kernels.packed import Packed
from runner.model.modules import read_tensor_into
from runner.model.safetensors import StoredTensor

Tensors = Mapping[str, Tensor | Packed]


class Parking(Protocol):
    """Weights that wait; `name` is the part of the model that `part` is."""

    tensors: Mapping[str, StoredTensor]
    by_layer: bool  # whether what stays is brought layer by layer, or unit by unit

    def size(self, name: str, part: nn.Module) -> int:
        """The most bytes that a part's weights take on the device."""

    def bring(self, name: str, part: nn.Module, piece: Piece, *, again: bool) -> Tensors:
        """The weights of a part, on the device, by their names in it; `again` says that they will be brought again."""

    def bring_ahead(self, name: str, part: nn.Module, piece: Piece) -> Future[Tensors]:
        """The same in the background; they will be brought again."""

    def keep(self, name: str, part: nn.Module) -> None:
        """The weights of a part are there as the device uses them, so that next time they may come like this."""

    def replace(self, tensors: Mapping[str, StoredTensor], changed: Collection[str]) -> None:
        """From now on the weights are these; those whose names have `changed` are others. None is on its way."""


def make_parking(
    tensors: Mapping[str, StoredTensor], device: torch.device, dtype: torch.dtype, *, channels_last: bool = False
) -> Parking:
    """The parking place that suits a device; `channels_last` is how convolutions' weights lie there."""
    if device.type == "cpu":
        return FileParking(tensors, dtype)
    return HostParking(tensors, device, dtype, channels_last=channels_last)


class FileParking:
    """Weights wait in their file and are read by a thread that runs ahead."""

    by_layer = True  # a layer that has packed its weight gives the memory back that it came in

    def __init__(self, tensors: Mapping[str, StoredTensor], dtype: torch.dtype) -> None:
        self.tensors, self._dtype, self._layouts = tensors, dtype, _Layouts(dtype)
        self._packed = PackedFile(sum(math.prod(tensor.shape) for tensor in tensors.values()) * dtype.itemsize)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="weights")

    def size(self, name: str, part: nn.Module) -> int:
        """The most bytes that a part's weights take, plain or packed."""
        return aligned(max(self._layouts.of(name, part)[1], self._packed.size(name)))

    def bring(self, name: str, part: nn.Module, piece: Piece, *, again: bool) -> Tensors:
        """The weights of a part, read."""
        if again and (packed := self._packed.bring(name, piece.allocate)):
            return packed
        starts, size = self._layouts.of(name, part)
        brought = _views(part, starts, self._dtype, piece.allocate(size))
        for own, tensor in brought.items():
            read_tensor_into(self.tensors[_full(name, own)], tensor)
        return brought

    def bring_ahead(self, name: str, part: nn.Module, piece: Piece) -> Future[Tensors]:
        """The same, by the thread."""
        return self._reader.submit(self.bring, name, part, piece, again=True)

    def keep(self, name: str, part: nn.Module) -> None:
        """Writes them down."""
        self._packed.keep(name, part)

    def replace(self, tensors: Mapping[str, StoredTensor], changed: Collection[str]) -> None:
        """Takes others; what is written down of those is of no use any more."""
        self.tensors = tensors
        self._packed.forget(changed)


class HostParking:
    """Weights that come again wait in the host's memory, a part's in one slab, and are copied in one go.

    On CUDA slabs are pinned, as far as the system allows that, and copied on a stream of their own.
    """

    by_layer = False

    def __init__(
        self, tensors: Mapping[str, StoredTensor], device: torch.device, dtype: torch.dtype, *, channels_last: bool
    ) -> None:
        self.tensors, self._device, self._dtype, self._channels_last = tensors, device, dtype, channels_last
        self._layouts = _Layouts(dtype)
        self._slabs: dict[str, _Slab] = {}
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def size(self, name: str, part: nn.Module) -> int:
        """The bytes that a part's weights take."""
        return self._layouts.of(name, part)[1]

    def bring(self, name: str, part: nn.Module, piece: Piece, *, again: bool) -> Tensors:
        """The weights of a part, copied; work that is given to the device from now on finds them there."""
        brought = self._copy(name, part, piece, again=again)
        if self._stream:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return brought

    def bring_ahead(self, name: str, part: nn.Module, piece: Piece) -> Future[Tensors]:
        """The same, while the device works."""
        return _Arriving(self._copy(name, part, piece, again=True), self._device, self._stream)

    def keep(self, name: str, part: nn.Module) -> None:
        """They wait as the device uses them already."""

    def replace(self, tensors: Mapping[str, StoredTensor], changed: Collection[str]) -> None:
        """Takes others, into the slabs that are there."""
        self.tensors = tensors
        if self._stream:
            self._stream.synchronize()  # nothing reads a slab while it is written
        for name, slab in self._slabs.items():
            self._read(name, {own: view for own, view in slab.views.items() if _full(name, own) in changed})

    def _copy(self, name: str, part: nn.Module, piece: Piece, *, again: bool) -> Tensors:
        slab = self._slabs.get(name) or self._fill(name, part, again=again)
        memory = piece.allocate(slab.bytes.numel())
        with torch.cuda.stream(self._stream):  # without one, this does nothing
            if self._stream and piece.free:
                self._stream.wait_event(piece.free)
            memory.copy_(slab.bytes, non_blocking=slab.pinned)
        if piece.made is None:
            starts, _ = self._layouts.of(name, part)
            piece.made = _views(part, starts, self._dtype, memory, channels_last=self._channels_last)
        made: Tensors = piece.made
        return made

    def _fill(self, name: str, part: nn.Module, *, again: bool) -> _Slab:
        """A part's weights in the host's memory; those that come again stay there."""
        starts, size = self._layouts.of(name, part)
        memory = torch.empty(size, dtype=torch.uint8)
        slab = _Slab(memory, _views(part, starts, self._dtype, memory, channels_last=self._channels_last))
        self._read(name, slab.views)
        if again:
            if self._stream and pin(slab.bytes, self._device):
                slab = slab._replace(pinned=True)
                weakref.finalize(self, unpin, slab.bytes, self._stream, torch.cuda.cudart()).atexit = False
            self._slabs[name] = slab
        return slab

    def _read(self, name: str, views: Mapping[str, Tensor]) -> None:
        """Reads weights of a part into the host's memory."""
        for own, tensor in views.items():
            stored = self.tensors[_full(name, own)]
            if tensor.is_contiguous():
                read_tensor_into(stored, tensor)
            else:
                read_tensor_into(stored, plain := torch.empty(tensor.shape, dtype=self._dtype))
                tensor.copy_(plain)


class _Slab(NamedTuple):
    """A part's weights in the host's memory, uint8, and each of them in it."""

    bytes: Tensor
    views: Mapping[str, Tensor]
    pinned: bool = False


def pin(memory: Tensor, device: torch.device) -> bool:
    """Lets a card read the host's memory by itself; False where the system has no more of that to give.

    torch's own pinned memory would be rounded up to a power of two, and kept until the process ends.
    """
    with contextlib.suppress(AssertionError, AttributeError):  # a torch without these functions
        if int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) == 0:
            return True
    with contextlib.suppress(RuntimeError):  # CUDA tells the next kernel of it, whosever that is
        torch.zeros(1, device=device)
    return False


def unpin(memory: Tensor, stream: Any, cudart: Any) -> None:
    """Takes that back, once the copies that were given to a stream are done."""
    stream.synchronize()
    cudart.cudaHostUnregister(memory.data_ptr())


class _Arriving(Future[Tensors]):
    """Weights whose copy has been given to a stream; who takes them makes the device's work wait for it."""

    def __init__(self, tensors: Tensors, device: torch.device, stream: Any) -> None:
        super().__init__()
        self._device, self._copies = device, stream.record_event() if stream else None
        self.set_result(tensors)

    def result(self, timeout: float | None = None) -> Tensors:
        """The weights, for work that is given to the device from now on."""
        if self._copies:
            torch.cuda.current_stream(self._device).wait_event(self._copies)
        return super().result(timeout)


class _Layouts:
    """Where each weight of a part begins, one behind the other, and the bytes of all; worked out once for each part."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._known: dict[str, tuple[dict[str, int], int]] = {}

    def of(self, name: str, part: nn.Module) -> tuple[Mapping[str, int], int]:
        if name not in self._known:
            starts, end = dict[str, int](), 0
            for own, parameter in part.named_parameters():
                starts[own], end = end, end + aligned(parameter.numel() * self._dtype.itemsize)
            self._known[name] = starts, end
        return self._known[name]


def _views(
    part: nn.Module, starts: Mapping[str, int], dtype: torch.dtype, memory: Tensor, *, channels_last: bool = False
) -> dict[str, Tensor]:
    """A part's weights over memory, uint8."""
    return {
        name: _view(memory[starts[name] : starts[name] + parameter.numel() * dtype.itemsize].view(dtype),
                    parameter.shape, channels_last)
        for name, parameter in part.named_parameters()
    }  # fmt: skip


def _view(numbers: Tensor, shape: torch.Size, channels_last: bool) -> Tensor:
    if channels_last and len(shape) == 4:
        return numbers.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    return numbers.view(shape)


def _full(name: str, own: str) -> str:
    return f"{name}.{own}" if name else own
