"""The bytes of tensors that oneDNN has packed: where they lie, what they mean, and tensors made over them again.

torch lets nobody see into such a tensor but its own compiled models, which keep packed weights in a file. This uses
what they use: three operators, and a function of the C interface that they are linked with.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}  # in the C interface
FUNCTIONS = ("create_tensor_from_blob_v2", "layout__mkldnn", "device_type_cpu", "dtype_float32")


class Form(NamedTuple):
    """What a tensor's bytes mean; `order` is oneDNN's description of a packed one, None of a plain contiguous one."""

    shape: torch.Size
    dtype: torch.dtype
    order: bytes | None = None


def form_of(tensor: Tensor) -> Form:
    """What the bytes of a packed or a contiguous tensor mean."""
    if not tensor.is_mkldnn:
        return Form(tensor.shape, tensor.dtype)
    return Form(tensor.shape, tensor.dtype, torch.ops.mkldnn._get_mkldnn_serialized_md(tensor).numpy().tobytes())


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes themselves, as long as the tensor is there."""
    operators: Any = torch.ops.mkldnn
    packed = tensor.is_mkldnn
    size = operators._nbytes(tensor) if packed else tensor.nbytes
    address = operators.data_ptr(tensor) if packed else tensor.data_ptr()
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def can_be_made() -> bool:
    """Whether this torch makes packed tensors over memory that is there."""
    return _interface() is not None


def make_over(memory: Tensor, form: Form) -> Tensor:
    """A tensor over memory, uint8; a packed one does not keep the memory alive.

    Raises:
        RuntimeError: torch refuses it.
    """
    if form.order is None:
        return memory.view(form.dtype).view(form.shape)
    library = _interface()
    assert library, "asked for where it can't be made"
    sizes = (ctypes.c_int64 * len(form.shape))(*form.shape)
    made = ctypes.c_void_p()
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(memory.data_ptr()),
        ctypes.c_int64(len(form.shape)),
        sizes,
        (ctypes.c_int64 * len(form.shape))(),  # strides, which a packed tensor doesn't have
        ctypes.c_int64(0),
        getattr(library, f"aoti_torch_dtype_{DTYPE_NAMES[form.dtype]}")(),
        library.aoti_torch_device_type_cpu(),
        0,
        ctypes.byref(made),
        library.aoti_torch_layout__mkldnn(),
        form.order,
        ctypes.c_int64(len(form.order)),
    )
    if failed:
        raise RuntimeError(f"torch makes no packed tensor of {form.shape}")
    tensor: Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(_capsule(made.value))
    return tensor


def _capsule(address: int | None) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(address, None, None)


@cache
def _interface() -> Any:
    """torch's C interface for compiled models, if it is there and does what is needed."""
    try:
        library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))))
        needed: list[tuple[Any, str]] = [(library, f"aoti_torch_{name}") for name in FUNCTIONS]
        needed += [(torch.ops.mkldnn, name) for name in ("_get_mkldnn_serialized_md", "_nbytes", "data_ptr")]
        needed += [(torch._C._aoti, "alloc_tensor_by_stealing_from_void_ptr")]
    except (OSError, AttributeError, StopIteration):
        return None
    return library if all(hasattr(owner, name) for owner, name in needed) else None
