"""Reads the pickle inside a file of `torch.save`, without torch, and without running anything of it.

A pickle is a program that may call anything. The interpreter here follows its stack but calls nothing: a global is a
name, only the few names that describe tensors have a meaning, those that old checkpoints bring along become inert
objects, and any other is refused.

    document = interpret(pickle)  # {"state_dict": {"model.diffusion_model.out.2.bias": PickledTensor(...), ...}, ...}
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runner.text import shorten

INSTRUCTION_LIMIT = 2_000_000  # Stable Diffusion with its moving averages has about 55,000
MOST_DIMENSIONS = 8
LARGEST_NUMBER = 1 << 48  # of a tensor's shape, strides and offset


class Meant:
    """The globals that describe a table of tensors."""

    TENSOR = "torch._utils._rebuild_tensor_v2"
    TYPED_TENSOR = "torch._utils._rebuild_tensor_v3"
    PARAMETER = "torch._utils._rebuild_parameter"
    PARAMETERS = "torch.nn.modules.container.ParameterDict"
    DICT = "collections.OrderedDict"
    SIZE = "torch.Size"


MEANT = {Meant.TENSOR, Meant.TYPED_TENSOR, Meant.PARAMETER, Meant.PARAMETERS, Meant.DICT, Meant.SIZE}
STORAGES = {
    "torch.DoubleStorage": "F64", "torch.FloatStorage": "F32", "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16", "torch.LongStorage": "I64", "torch.IntStorage": "I32", "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8", "torch.ByteStorage": "U8", "torch.BoolStorage": "BOOL",
}  # fmt: skip
UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")  # what a typed tensor lies in
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
PLAIN_TYPES = (
    "set", "frozenset", "dict", "list", "tuple", "int", "float", "complex", "bool", "str", "bytes", "bytearray",
    "slice", "range", "xrange", "object", "long", "unicode", "basestring",
)  # fmt: skip
INERT = {
    *(f"torch.{name}" for name in DTYPES), *UNTYPED, "torch.device", "_codecs.encode", "argparse.Namespace",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in PLAIN_TYPES),
    "types.SimpleNamespace", "numpy.dtype", "numpy.ndarray",
    *(f"numpy.{module}.multiarray.{name}" for module in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{name}" for name in ("bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64")),
}  # fmt: skip
# What Lightning, OmegaConf and training scripts keep beside the weights.
INERT_PACKAGES = (
    "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "omegaconf", "typing", "collections",
    "pathlib", "datetime", "decimal", "fractions", "uuid", "enum", "diffusers", "transformers", "ldm", "torchmetrics",
)  # fmt: skip
# What a pickle has no honest use for: it runs programs, opens files, fetches or builds code.
HOSTILE_PACKAGES = (
    "os", "posix", "nt", "subprocess", "sys", "socket", "shutil", "importlib", "runpy", "ctypes", "pty", "signal",
    "webbrowser", "urllib", "http", "requests", "pickle", "_pickle", "marshal", "code", "io", "_io", "builtins",
    "__builtin__", "pip", "asyncio", "multiprocessing", "threading", "tempfile", "operator", "_operator", "timeit",
    "functools", "cProfile", "pdb", "bdb", "commands", "torch.hub",
)  # fmt: skip
KNOWN = {*MEANT, *STORAGES, *INERT}

LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
WITH_VALUE = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip


class Damaged(ValueError):
    """The file isn't what torch.save writes; the message says how."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle asks for; nothing is looked up."""

    name: str


class Inert:
    """Stands for an object of no interest, and takes anything that is done to it."""


class Parameters(dict[str, Any]):
    """A module that holds parameters by name; they are in its state."""


EMPTY: Mapping[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": Inert}


@dataclass(frozen=True, slots=True)
class Storage:
    """The numbers of one or several tensors: an entry `data/KEY` of the archive."""

    dtype: str
    key: str


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor as a pickle describes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.shape) == len(self.strides) <= MOST_DIMENSIONS:
            raise Damaged("a tensor's shape and strides don't agree")
        numbers = (self.offset, *self.shape, *self.strides)
        if not all(type(number) is int and 0 <= number < LARGEST_NUMBER for number in numbers):
            raise Damaged("a tensor's shape, strides or offset are not numbers that a tensor can have")

    def is_contiguous(self) -> bool:
        """Whether its numbers lie one after the other."""
        if not math.prod(self.shape):
            return True
        step = 1
        wanted: list[int] = []
        for length in reversed(self.shape):
            wanted.insert(0, step)
            step *= length
        pairs = zip(self.shape, self.strides, wanted, strict=True)
        return all(length == 1 or found == right for length, found, right in pairs)


def interpret(pickle: bytes) -> Any:
    """The object that a pickle describes: dictionaries, lists, tuples, plain values and the classes above.

    Raises:
        Damaged: it isn't what torch.save writes, or asks for anything that weights don't need.
    """
    try:
        return _Interpreter().run(pickle)
    except Damaged:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise Damaged(f"its pickle is damaged ({shorten(str(error))})") from error


class _Interpreter:
    """A pickle's stack machine that calls nothing and looks nothing up."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        for number, (instruction, value, _) in enumerate(pickletools.genops(pickle)):
            if number >= INSTRUCTION_LIMIT:
                raise Damaged(f"its pickle has more than {INSTRUCTION_LIMIT:,} instructions")
            self._step(instruction.name, value)
        return self.stack[-1]

    def _step(self, instruction: str, value: Any) -> None:
        """Does what an instruction does to the stack and the memo; `pickletools` explains each of them."""
        push, pop = self.stack.append, self.stack.pop
        match instruction:
            case _ if instruction in LITERALS:
                push(LITERALS[instruction])
            case _ if instruction in WITH_VALUE:
                push(value)
            case _ if instruction in EMPTY:
                push(EMPTY[instruction]())
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "POP":
                pop()
            case "BUILD":
                state = pop()
                _set_state(self.stack[-1], state)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[value] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[value])
            case "TUPLE":
                push(tuple(self._pop_marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple([pop() for _ in range(int(instruction[-1]))][::-1]))
            case "APPEND":
                _extend(self.stack[-2], [pop()])
            case "SETITEM":
                values = [pop(), pop()][::-1]
                _set_items(self.stack[-1], values)
            case "APPENDS" | "ADDITEMS" | "SETITEMS":
                fill = _set_items if instruction == "SETITEMS" else _extend
                values = self._pop_marked()
                fill(self.stack[-1], values)
            case _:
                push(self._construct(instruction, value))

    def _construct(self, instruction: str, value: Any) -> Any:
        """The class, the object or the storage that an instruction asks for."""
        pop = self.stack.pop
        match instruction:
            case "GLOBAL":
                return find_global(*value.split(" ", 1))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                return find_global(module, name)
            case "INST":
                return make(find_global(*value.split(" ", 1)), tuple(self._pop_marked()))
            case "OBJ":
                wanted, *arguments = self._pop_marked()
                return make(wanted, tuple(arguments))
            case "REDUCE" | "NEWOBJ":
                arguments, wanted = pop(), pop()
                return make(wanted, arguments)
            case "NEWOBJ_EX":
                _, arguments, wanted = pop(), pop(), pop()
                return make(wanted, arguments)
            case "FROZENSET":
                self._pop_marked()
                return Inert()
            case "BINPERSID":
                return find_storage(pop())
        raise Damaged(f"its pickle has the instruction {instruction}, which torch.save doesn't write")

    def _pop_marked(self) -> list[Any]:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values


def find_global(module: Any, name: Any) -> Global:
    """A global by its name, if it is one that checkpoints have."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise Damaged("its pickle asks for a global whose name is not text")
    full = f"{module}.{name}"
    hostile = "__" in full or any(f"{full}.".startswith(f"{package}.") for package in HOSTILE_PACKAGES)
    if full in KNOWN or (full.partition(".")[0] in INERT_PACKAGES and not hostile):
        return Global(full)
    if hostile:
        raise Damaged(
            f"its pickle asks for {shorten(full)}, which no weights need; it may be hostile, and nothing of it was run"
        )
    raise Damaged(
        f"its pickle holds an object of {shorten(full)}, which is not known here, and nothing of it was run; save the "
        "weights alone, best as safetensors"
    )


def find_storage(key: Any) -> Storage:
    """A storage by its persistent id: `("storage", type, key, device, length)`."""
    match key:
        case ("storage", Global(name), str(entry), _, int()) if name in STORAGES or name in UNTYPED:
            return Storage(STORAGES.get(name, "U8"), entry)
    raise Damaged("a tensor's storage is described in an unknown way")


def make(wanted: Any, arguments: Any) -> Any:
    """What calling a global would have given, made here."""
    if not isinstance(wanted, Global) or not isinstance(arguments, tuple):
        raise Damaged("its pickle calls something that is not a global")
    match wanted.name, arguments:
        case Meant.TENSOR, (Storage() as storage, offset, tuple(shape), tuple(strides), *_):
            return PickledTensor(storage, offset, shape, strides)
        case Meant.TYPED_TENSOR, (Storage() as storage, offset, tuple(shape), tuple(strides), _, _, Global(dtype), *_):
            kind = DTYPES.get(dtype.removeprefix("torch."))
            return PickledTensor(Storage(kind, storage.key), offset, shape, strides) if kind else Inert()
        case Meant.PARAMETER, (PickledTensor() as tensor, *_):
            return tensor
        case Meant.DICT, ():
            return {}
        case Meant.PARAMETERS, ():
            return Parameters()
        case Meant.SIZE, (tuple(shape),):
            return shape
        case name, _ if name not in MEANT:
            return Inert()
    raise Damaged(f"its pickle calls {wanted.name} with wrong arguments")


def _set_state(target: Any, state: Any) -> None:
    """Keeps the parameters of those that hold any; no other object's state matters here."""
    found = state.get("_parameters") if isinstance(target, Parameters) and isinstance(state, dict) else None
    if isinstance(found, dict):
        target.update({key: value for key, value in found.items() if isinstance(value, PickledTensor)})


def _extend(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Inert):
        raise Damaged("its pickle appends to something that is not a list")


def _set_items(target: Any, values: list[Any]) -> None:
    """Keeps what has a plain key: others name no tensor, and to hash a deeply nested one would overflow the C stack."""
    if isinstance(target, dict):
        pairs = zip(values[::2], values[1::2], strict=True)
        target.update({key: value for key, value in pairs if isinstance(key, str | int)})
    elif not isinstance(target, Inert):
        raise Damaged("its pickle sets items of something that is not a dictionary")
