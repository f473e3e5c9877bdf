"""Where weights wait, and how they come to the device: the two ways that a machine has.

On a CPU the device is the memory itself, and weights wait in the model's file. Plain reads (mapped pages would count as
the process's own) bring them into buffers that are used again; packed weights come from a file of their own. On other
devices weights wait in the host's memory, pinned where that speeds the copy up, and come on a stream of their own.
`component` decides what is brought, and when it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from runner.device.packed_file import PackedFile, aligned
from runner.kernels.packed import Packed
from runner.machine.heap import process_heap
from runner.model.modules import read_tensor, read_tensor_into
from runner.model.safetensors import StoredTensor

Tensors = Mapping[str, Tensor | Packed]


class Arena:
    """A piece of the device's memory that weights are brought into, again and again.

    It grows to the largest that it has to hold. On CUDA its users follow each other through events: weights are
    copied in when the last kernel that reads the ones before them is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self.released: Any = None  # a torch.cuda.Event

    def allot(self, shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors of these shapes, one after the other."""
        starts, end = {}, 0
        for name, shape in shapes.items():
            starts[name], end = end, end + aligned(shape.numel() * dtype.itemsize)
        memory = self.allocate(end)
        return {
            name: memory[start : start + shapes[name].numel() * dtype.itemsize].view(dtype).view(shapes[name])
            for name, start in starts.items()
        }

    def allocate(self, size: int) -> Tensor:
        """So many bytes of it, uint8."""
        if self._memory.numel() < size:
            self.clear()
            process_heap().check(size)
            self._memory = torch.empty(size, dtype=torch.uint8, device=self._device)
            # It is free in the order of the stream that computes: kernels that wait there may still write into it.
            self.release()
        return self._memory[:size]

    def release(self) -> None:
        """What is in it is no longer needed, once the work that was given to the device so far is done."""
        if self._device.type == "cuda":
            self.released = torch.cuda.current_stream(self._device).record_event()

    def clear(self) -> None:
        """Gives the memory back."""
        self._memory = torch.empty(0, dtype=torch.uint8, device=self._device)


class Parking(Protocol):
    """Weights that wait; `name` is the part of the model that `part` is."""

    def bring(self, name: str, part: nn.Module, arena: Arena) -> Tensors:
        """The weights of a part, on the device, by their names in it."""

    def bring_ahead(self, name: str, part: nn.Module, arena: Arena) -> Future[Tensors]:
        """The same in the background."""

    def keep(self, name: str, part: nn.Module) -> None:
        """The weights of a part are there as the device uses them, so that next time they may come like this."""


def make_parking(tensors: Mapping[str, StoredTensor], device: torch.device, dtype: torch.dtype) -> Parking:
    """The parking place that suits a device."""
    return (FileParking if device.type == "cpu" else HostParking)(tensors, device, dtype)


class FileParking:
    """Weights wait in their file and are read by a thread that runs ahead."""

    def __init__(self, tensors: Mapping[str, StoredTensor], device: torch.device, dtype: torch.dtype) -> None:
        self._tensors, self._dtype = tensors, dtype
        self._packed = PackedFile(sum(math.prod(tensor.shape) for tensor in tensors.values()) * dtype.itemsize)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="weights")

    def bring(self, name: str, part: nn.Module, arena: Arena) -> Tensors:
        """The weights of a part, read."""
        if packed := self._packed.bring(name, arena.allocate):
            return packed
        brought = arena.allot(_shapes(part), self._dtype)
        for own, tensor in brought.items():
            read_tensor_into(self._tensors[_full(name, own)], tensor)
        return brought

    def bring_ahead(self, name: str, part: nn.Module, arena: Arena) -> Future[Tensors]:
        """The same, by the thread."""
        return self._reader.submit(self.bring, name, part, arena)

    def keep(self, name: str, part: nn.Module) -> None:
        """Writes them down."""
        self._packed.keep(name, part)


class HostParking:
    """Weights wait in the host's memory; on CUDA it is pinned, and they are copied on a stream of their own."""

    def __init__(self, tensors: Mapping[str, StoredTensor], device: torch.device, dtype: torch.dtype) -> None:
        self._tensors, self._device, self._dtype = tensors, device, dtype
        self._parked: dict[str, Tensor] = {}
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def bring(self, name: str, part: nn.Module, arena: Arena) -> Tensors:
        """The weights of a part, copied; work that is given to the device from now on finds them there."""
        brought = self._copy(name, part, arena)
        if self._stream:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return brought

    def bring_ahead(self, name: str, part: nn.Module, arena: Arena) -> Future[Tensors]:
        """The same, while the device works."""
        return _Arriving(self._copy(name, part, arena), self._device, self._stream)

    def keep(self, name: str, part: nn.Module) -> None:
        """They wait as the device uses them already."""

    def _copy(self, name: str, part: nn.Module, arena: Arena) -> dict[str, Tensor]:
        brought = arena.allot(_shapes(part), self._dtype)
        with torch.cuda.stream(self._stream):  # without one, this does nothing
            if self._stream and arena.released:
                self._stream.wait_event(arena.released)
            for own, tensor in brought.items():
                tensor.copy_(self._park(_full(name, own)), non_blocking=True)
        return brought

    def _park(self, name: str) -> Tensor:
        if name not in self._parked:
            tensor = read_tensor(self._tensors[name], self._dtype)
            self._parked[name] = tensor.pin_memory() if self._stream else tensor
        return self._parked[name]


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


def _shapes(part: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in part.named_parameters()}


def _full(name: str, own: str) -> str:
    return f"{name}.{own}" if name else own
