"""The CUDA path on a fake device: the same bytes resident and streamed, no race, and no waiting within a step."""

from __future__ import annotations

import hashlib

import pytest
import tiny
import torch
from builders import make_item
from fake_cuda import fake_cuda

from runner.device import memory
from runner.device.component import Component
from runner.engine.executor import Executor
from runner.events import ItemFailed, Rendered, StepDone
from runner.model import files
from runner.planning import costs, waves
from runner.planning.layouts import Execution
from runner.sampler_names import SAMPLERS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return files.find_model(str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")))


def make_executor(model, *, turbo):
    made = costs.model_costs(model, "cuda:0", "float32")
    return Executor(model, Execution(costs=made, dtype="float32", turbo=turbo, unet_bs=4))


def make_items(samplers=tuple(SAMPLERS)):
    return [
        make_item(number=n, seed=n, prompt=f"cat {n % 3}", sampler=sampler, steps=2 + n % 2, scale=(7.5, 1.0)[n % 2])
        for n, sampler in enumerate(samplers)
    ]


def render(executor, items):
    found = {}
    for wave in waves.group(items, executor.execution):
        for event in executor.run(wave):
            assert not isinstance(event, ItemFailed), event.error.trace
            if isinstance(event, Rendered):
                found[event.item.number] = hashlib.sha256(event.pixels.tobytes()).hexdigest()
    return found


def test_every_sampler_gives_the_same_bytes_in_both_modes_without_a_race(model):
    found = []
    for turbo in (True, False):
        with fake_cuda() as device:
            found.append(render(make_executor(model, turbo=turbo), make_items()))
        assert not device.violations
        assert len(device.streams) > 3  # one for each component beside the one that computes
    assert len(found[0]) == len(SAMPLERS) and found[0] == found[1]


def test_float32_is_float32(model):
    torch.backends.cudnn.allow_tf32 = True
    with fake_cuda():
        make_executor(model, turbo=True)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    "text",
    ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"],
)
def test_libraries_that_got_no_memory_are_out_of_memory(text):
    assert memory.is_out_of_memory(RuntimeError(text))
    assert not memory.is_out_of_memory(RuntimeError("CUDNN_STATUS_EXECUTION_FAILED"))


def test_streaming_holds_less_than_being_resident(model):
    peaks = []
    for turbo in (True, False):
        with fake_cuda() as device:
            render(make_executor(model, turbo=turbo), make_items(("ddim", "euler")))
            peaks.append(device.peak)
    assert peaks[1] < peaks[0]


@pytest.mark.parametrize("turbo", [True, False])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
def test_the_host_waits_for_no_step(model, sampler, turbo):
    with fake_cuda() as device:
        executor = make_executor(model, turbo=turbo)
        items = [make_item(number=n, seed=n, sampler=sampler, steps=6) for n in range(2)]
        render(executor, items)  # weights are read from their files in the first wave
        [wave] = waves.group(items, executor.execution)
        counts = [len(device.waits) for event in executor.run(wave) if isinstance(event, StepDone)]
    assert len(counts) == 6 and counts[-1] == counts[0], device.waits[counts[0] :]


def calls(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        latents, prompts = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 16, generator=generator)
        sent = latents.to("cuda:0"), torch.full((2,), 9.0, device="cuda:0"), prompts.to("cuda:0")
        yield lambda unet, sent=sent: unet(sent[0], sent[1], encoder_hidden_states=sent[2]).sample


def walk(model, device, *, deaf=None, times=2):
    """A UNet's weights walk through the device; the stream with this number doesn't wait for anything."""
    from runner.model.modules import build_module

    unet = Component(
        build_module(model, "unet"), model.tensors["unet"], device=torch.device("cuda:0"), dtype=torch.float32,
        mode="walks",
    )  # fmt: skip
    if deaf is not None:
        device.streams[deaf].deaf = True
    for _ in range(times):
        unet.call_all(list(calls(2)))
    unet.rest()


@torch.inference_mode()
def test_a_walk_is_ordered_by_events(model):
    with fake_cuda() as device:
        walk(model, device)
    assert not device.violations


@torch.inference_mode()
@pytest.mark.parametrize(
    ("deaf", "found"), [(0, "read before it is written"), (1, "overwritten while it is read"), (1, "new memory before")]
)
def test_a_stream_that_does_not_wait_is_found(model, deaf, found):
    """0 computes, 1 copies the weights: neither may go on alone."""
    with fake_cuda() as device:
        walk(model, device, deaf=deaf)
    assert any(violation.startswith(found) for violation in device.violations)


@torch.inference_mode()
def test_an_error_within_a_walk_leaves_no_copy_on_its_way(model):
    def broken(unet):
        raise ValueError("no prediction today")

    with fake_cuda() as device:
        from runner.model.modules import build_module

        unet = Component(
            build_module(model, "unet"), model.tensors["unet"], device=torch.device("cuda:0"), dtype=torch.float32,
            mode="walks",
        )  # fmt: skip
        unet.call_all(list(calls(1)))
        hook = unet.module.mid_block.register_forward_hook(lambda *_: broken(None))
        with pytest.raises(ValueError, match="no prediction today"):
            unet.call_all(list(calls(1)))
        hook.remove()
        unet.rest()
        unet.call_all(list(calls(1)))
        unet.rest()
    assert not device.violations
    assert all(parameter.is_meta for parameter in unet.module.parameters())
