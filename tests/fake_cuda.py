"""A CUDA that isn't there: tensors are the CPU's, streams and events are clocks, and each access of memory is checked.

What a stream does is ordered after what it waited for, and nothing else. Three rules of CUDA and of torch's caching
allocator are held:

- two accesses of a memory by two streams, of which one writes, are ordered by events or by the host's waiting;
- a stream other than the one that allocated a memory begins after all that the allocating stream had to do by then:
  what it had in the memory before may still be running;
- a memory is given back after all that other streams do in it, and the host's is unpinned after all that reads it.

A stream that is `deaf` doesn't wait: so a test plants a fault and sees it found. Kernels are the CPU's, and workspaces
are not seen. `fake_mps` is a device that has no streams, and no numbers in float64.

    with fake_cuda() as device:
        ...  # torch.device("cuda:0")
    assert not device.violations
"""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = 8 << 30
ALIGNMENT = 512
# These hand out memory and start no kernel.
ALLOCATIONS = {"empty.memory_format", "empty_strided.default", "empty_like.default", "new_empty.default"}
WHERE = torch.Tensor.device.__get__
READ_BY_THE_HOST = {"cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__"}


def join(clock, other):
    for name, time in other.items():
        clock[name] = max(time, clock.get(name, 0))


class Stream:
    """What the device does in order. Its clock says which work of each stream is done before what comes next."""

    def __init__(self, device, name):
        self.device, self.name, self.clock, self.deaf = device, name, {}, False

    @property
    def time(self):
        return self.clock.get(self.name, 0)

    def work(self):
        """One kernel more, which can't be given to it before the host is there."""
        join(self.clock, self.device.host)
        self.clock[self.name] = self.time + 1

    def knows(self, name, time):
        """Whether work of another stream is done before what comes next here."""
        return name == self.name or self.clock.get(name, 0) >= time

    def record_event(self):
        event = Event(self.device)
        event.clock = dict(self.clock)
        return event

    def wait_event(self, event):
        if not self.deaf:
            join(self.clock, event.clock)

    def wait_stream(self, other):
        if not self.deaf:
            join(self.clock, other.clock)

    def synchronize(self):
        join(self.device.host, self.clock)


class Event:
    def __init__(self, device):
        self.device, self.clock = device, {}

    def synchronize(self):
        join(self.device.host, self.clock)


@dataclass(slots=True)
class Memory:
    """A storage: who allocated it and when, and when each stream read and wrote it last."""

    alive: StorageWeakRef
    size: int
    owner: Stream
    born: int
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)


class Device:
    """The fake device; `violations` are texts, `waits` the places in the program where the host waited for it."""

    def __init__(self, kind="cuda"):
        self.kind, self.host, self.memories = kind, {}, {}
        self.pinned, self.most_pinned = {}, None  # what reads it, by address; bytes that the system pins at most
        self.stats = {"num_ooms": 0}
        self.streams = [Stream(self, "compute")]
        self.current = self.streams[0]
        self.violations, self.waits = [], []
        self.held = self.peak = self.asking = 0
        self.shares = []  # of the card that the process may take
        self.most = None  # bytes that there are

    def stream(self, *_, **__):
        self.streams.append(Stream(self, f"stream {len(self.streams)}"))
        return self.streams[-1]

    def has(self, tensor):
        """Whether a tensor is the device's."""
        if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cpu" or tensor.is_mkldnn:
            return False
        memory = self.memories.get(key_of(tensor))
        return memory is not None and not memory.alive.expired()

    def wait(self, why):
        """The host waits until all that was given to the current stream is done."""
        self.waits.append(f"{why} in {place()}")
        self.current.synchronize()

    def accuse(self, what, memory):
        self.violations.append(f"{what}: {self.current.name} in memory of {memory.owner.name}, {place()}")

    def allocate(self, tensor):
        storage = tensor.untyped_storage()
        size = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        if self.most is not None and self.held + size > self.most:
            self.stats["num_ooms"] += 1
            raise torch.OutOfMemoryError(f"the device has {self.most - self.held} bytes left, not {size}")
        memory = Memory(StorageWeakRef(storage), size, self.current, self.current.time)
        self.memories[key_of(tensor)] = memory
        self.held += size
        self.peak = max(self.peak, self.held)

    def collect(self):
        """Gives back what nobody has any more."""
        for key, memory in [each for each in self.memories.items() if each[1].alive.expired()]:
            del self.memories[key]
            self.held -= memory.size
            for name in memory.reads.keys() | memory.writes.keys():
                time = max(memory.reads.get(name, 0), memory.writes.get(name, 0))
                if not memory.owner.knows(name, time) and self.host.get(name, 0) < time:
                    self.accuse(f"given back while {name} is in it", memory)

    def touch(self, tensor, *, write):
        memory, here = self.memories[key_of(tensor)], self.current
        if not here.knows(memory.owner.name, memory.born):
            self.accuse("new memory before its allocating stream is done with it", memory)
        if any(not here.knows(name, time) for name, time in memory.writes.items()):
            self.accuse("written by two at once" if write else "read before it is written", memory)
        if write and any(not here.knows(name, time) for name, time in memory.reads.items()):
            self.accuse("overwritten while it is read", memory)
        (memory.writes if write else memory.reads)[here.name] = here.time

    def pin(self, address, size, _):
        if self.most_pinned is not None and size > self.most_pinned:
            return 2
        self.pinned[address] = {}
        return 0

    def unpin(self, address):
        if any(self.host.get(name, 0) < time for name, time in self.pinned.pop(address).items()):
            self.violations.append(f"unpinned while a copy reads it, {place()}")
        return 0

    def copy_from_host(self, source):
        """A copy to the device: of pinned memory at some time, of other memory before the host goes on."""
        if (reads := self.pinned.get(source.data_ptr())) is not None:
            reads[self.current.name] = self.current.time
        else:
            self.wait("a copy of memory that isn't pinned")


def key_of(tensor):
    return tensor.untyped_storage()._cdata


def place():
    """The line of the program that is under way."""
    frames = [frame for frame in traceback.extract_stack() if "/runner/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/runner/')[2]}:{frames[-1].lineno}" if frames else "?"


def is_there(value):
    """Whether this names the device."""
    return str(value).startswith(("cuda", "mps")) if isinstance(value, str | torch.device) else False


class Kernels(TorchDispatchMode):
    """Sees each operation that reaches a kernel, and checks those that have to do with the device."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        named, device = named or {}, self.device
        made = operation(*arguments, **named)
        given = [each for each in tree_leaves((arguments, named)) if device.has(each)]
        if not given and not device.asking:
            return made
        device.collect()
        outputs = [each for each in tree_leaves(made) if is_plain(each)]
        inside = {key_of(each) for each in tree_leaves((arguments, named)) if is_plain(each)}
        written = {key_of(each) for each in self._written(operation, arguments, named) if is_plain(each)}
        is_view = bool(outputs) and not written and all(key_of(each) in inside for each in outputs)
        only_allocates = str(operation).removeprefix("aten.") in ALLOCATIONS
        if not is_view and not only_allocates:
            device.current.work()
            for each in given:
                device.touch(each, write=key_of(each) in written)
        if str(operation) == "aten.copy_.default" and device.has(arguments[0]) and not device.has(arguments[1]):
            device.copy_from_host(arguments[1])
        if device.kind == "mps" and any(each.dtype == torch.float64 for each in [*given, *outputs]):
            device.violations.append(f"float64 on MPS in {place()}")
        for each in outputs:
            # What `torch.tensor` makes is lifted, and so is its own input.
            new = key_of(each) not in inside or (device.asking and not device.has(each))
            if new and each.untyped_storage().nbytes():
                device.allocate(each)
                if not only_allocates:
                    device.touch(each, write=True)
        return made

    @staticmethod
    def _written(operation, arguments, named):
        schema = operation._schema.arguments
        by_name = dict(zip([each.name for each in schema], arguments, strict=False)) | named
        writing = [each.name for each in schema if each.alias_info is not None and each.alias_info.is_write]
        return tree_leaves([by_name.get(name) for name in writing])


def is_plain(value):
    return isinstance(value, torch.Tensor) and value.device.type == "cpu" and not value.is_mkldnn


class Placement(TorchFunctionMode):
    """Makes on the CPU what is asked for on CUDA, and notes it as the device's."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, function, types, arguments=(), named=None):
        named, name, device = dict(named or {}), getattr(function, "__name__", ""), self.device
        first = arguments[0] if arguments else None
        if function == WHERE:
            return torch.device(device.kind, 0) if device.has(first) else function(first)
        if name == "to" and any(map(is_there, [*arguments[1:], named.get("device")])):
            return self._bring(function, first, arguments[1:], named)
        if (
            name == "to"
            and device.has(first)
            and any(str(each) == "cpu" for each in [*arguments[1:], named.get("device")])
        ):
            name = "cpu"
        if name in READ_BY_THE_HOST and device.has(first):
            device.wait(name)
            if name == "cpu":
                return torch.from_numpy(first.detach().numpy().copy())
        if name == "__getitem__" and device.has(first) and self._is_slow(arguments[1]):
            device.wait("an index of the host")
        if not is_there(named.get("device")):
            return function(*arguments, **named)
        named["device"] = torch.device("cpu")
        with self._asking():
            made = function(*arguments, **named)
        if name in ("tensor", "as_tensor"):
            device.wait(name)
        return made

    def _bring(self, function, tensor, rest, named):
        named.pop("device", None)
        waits = not named.pop("non_blocking", False) and not self.device.has(tensor)
        if not self.device.has(tensor):
            with self._asking():
                tensor = tensor.clone(memory_format=torch.preserve_format)
        if waits:
            self.device.wait("to")
        rest = [each for each in rest if not is_there(each)]
        return function(tensor, *rest, **named) if rest or named else tensor

    def _is_slow(self, index):
        """Whether an index has to be copied to the device first."""
        parts = index if isinstance(index, tuple) else (index,)
        return any(
            isinstance(part, list) or (isinstance(part, torch.Tensor) and part.numel() and not self.device.has(part))
            for part in parts
        )

    @contextlib.contextmanager
    def _asking(self):
        self.device.asking += 1
        try:
            yield
        finally:
            self.device.asking -= 1


@contextlib.contextmanager
def fake_cuda(*, processors=64):
    """Within it `cuda:0` is there."""
    device = Device()

    @contextlib.contextmanager
    def use(stream):
        before, device.current = device.current, stream or device.current
        try:
            yield
        finally:
            device.current = before

    functions = {
        "Stream": device.stream,
        "Event": lambda *_, **__: Event(device),
        "current_stream": lambda *_: device.current,
        "stream": use,
        "mem_get_info": lambda *_: (FREE, FREE),
        "reset_peak_memory_stats": lambda *_: setattr(device, "peak", device.held),
        "max_memory_allocated": lambda *_: device.peak,
        "get_device_name": lambda *_: "no card",
        "empty_cache": lambda: None,
        "cudart": lambda: SimpleNamespace(cudaHostRegister=device.pin, cudaHostUnregister=device.unpin),
        "memory_stats": lambda *_: device.stats,
        "get_device_properties": lambda *_: SimpleNamespace(multi_processor_count=processors, total_memory=FREE),
        "set_per_process_memory_fraction": lambda share, *_: device.shares.append(share),
        "synchronize": lambda *_: [stream.synchronize() for stream in device.streams],
    }
    before = {name: getattr(torch.cuda, name) for name in functions}
    vars(torch.cuda).update(functions)
    try:
        with Kernels(device), Placement(device):
            yield device
            device.collect()
    finally:
        vars(torch.cuda).update(before)


@contextlib.contextmanager
def fake_mps():
    """Within it `mps` is there."""
    device = Device("mps")
    with Kernels(device), Placement(device):
        yield device
