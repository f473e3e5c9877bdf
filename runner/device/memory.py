"""Memory as torch sees it: the devices, what they have free, peaks, and running out of it."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

from runner.machine import describe, memory
from runner.machine.heap import process_heap
from runner.machine.memory import status_bytes

SHORT_OF_MEMORY = (
    "DefaultCPUAllocator", "not enough memory", "out of memory", "bad allocation", "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip

ROUNDING = ("NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG")  # in the environment


def available_devices() -> list[str]:
    """The devices that torch can use, best first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def free_memory(device: str) -> int | None:
    """The device's free memory in bytes, where it is known."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return memory.free_main_memory() if device == "cpu" else None


def held_memory(device: str) -> int | None:
    """What this process holds of the device's memory already; None where that is not counted."""
    return status_bytes("VmRSS") if device == "cpu" else None


def device_name(device: str) -> str:
    """What the device is called by its maker."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return describe.device_name(device) or device


def reset_peak(device: str) -> None:
    """Forgets the highest memory use so far."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """The highest memory use since `reset_peak`, on a CPU the process's own; 0 where it isn't known."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return status_bytes("VmHWM") or 0 if device == "cpu" else 0


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: torch's own, Python's, or one of its allocator for CPUs."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in SHORT_OF_MEMORY)
    )


def is_lost(error: Exception) -> bool:
    """Whether an error says that the device itself has failed, so that this process can do nothing more with it."""
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error") and not is_out_of_memory(error)


def count_failed_allocations(device: str) -> int:
    """How often the device had no memory so far, which nobody else may hear of.

    cuDNN takes another kernel then, which may round otherwise, and goes on.
    """
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0)) if device.startswith("cuda") else 0


def limit_memory(device: str, limit: int | None) -> None:
    """Lets torch hold no more of a card than this, in bytes, with what it has free for itself; None lifts the limit."""
    if device.startswith("cuda"):
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (limit or total) / total), device)


def versions(device: str) -> tuple[tuple[str, str], ...]:
    """What has a say in the bytes of a card's pictures besides torch, by name; nothing on other devices."""
    if not device.startswith("cuda"):
        return ()
    found = {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": describe.driver_version(),
    } | {name: os.environ.get(name) for name in ROUNDING}
    return tuple((name, str(value)) for name, value in found.items() if value is not None)


def compute_exactly(device: str) -> None:
    """Lets CUDA multiply numbers in float32 as such: by itself it rounds a convolution's to 10 bits (TF32)."""
    if device.startswith("cuda"):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def release_memory(device: str) -> None:
    """Gives what is not used any more back to the system."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    process_heap().sweep()
