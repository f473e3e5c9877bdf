"""The CUDA path on a fake device: the same bytes resident and streamed, no race, and no waiting within a step."""

from __future__ import annotations

import gc
import hashlib

import pytest
import tiny
import tiny_xl
import torch
from builders import make_item
from fake_cuda import fake_cuda, fake_mps

from runner.device import memory
from runner.device.component import Component
from runner.engine.executor import Executor
from runner.errors import DeviceLost
from runner.events import ItemFailed, MemoryShort, Rendered, StepDone
from runner.machine import describe
from runner.model import files
from runner.model.modules import build_module
from runner.planning import costs, layouts, waves
from runner.planning.layouts import Execution
from runner.sampler_names import SAMPLERS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return files.find_model(str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")))


def make_executor(model, *, turbo, device="cuda:0", **changes):
    made = costs.model_costs(model, device, "float32")
    return Executor(model, Execution(costs=made, dtype="float32", turbo=turbo, unet_bs=4, **changes))


def make_items(samplers=tuple(SAMPLERS)):
    return [
        make_item(number=n, seed=n, prompt=f"cat {n % 3}", sampler=sampler, steps=2 + n % 2, scale=(7.5, 1.0)[n % 2])
        for n, sampler in enumerate(samplers)
    ]


def render(executor, items, told=None):
    """SHA-256 of each picture's pixels by its item's number; what is said of memory goes into `told`."""
    found = {}
    for wave in waves.group(items, executor.execution):
        for event in executor.run(wave):
            assert not isinstance(event, ItemFailed), event.error.trace
            if isinstance(event, Rendered):
                found[event.item.number] = hashlib.sha256(event.pixels.tobytes()).hexdigest()
            elif isinstance(event, MemoryShort) and told is not None:
                told.append(event.message)
    return found


@pytest.fixture(scope="module")
def resident(model):
    with fake_cuda():
        return render(make_executor(model, turbo=True), make_items(("ddim", "euler")))


def test_every_sampler_gives_the_same_bytes_in_both_modes_without_a_race(model):
    found = []
    for turbo in (True, False):
        with fake_cuda() as device:
            found.append(render(make_executor(model, turbo=turbo), make_items()))
        assert not device.violations
        assert len(device.streams) > 3  # one for each component beside the one that computes
    assert len(found[0]) == len(SAMPLERS) and found[0] == found[1]


def test_stable_diffusion_xl_gives_the_same_bytes_in_both_modes_without_a_race(tmp_path):
    """In half precision, with an autoencoder in float32."""
    large, found = files.find_model(str(tiny_xl.save_folder(tmp_path / "xl"))), []
    for turbo in (True, False):
        with fake_cuda() as device:
            made = costs.model_costs(large, "cuda:0", "float16")
            executor = Executor(large, Execution(costs=made, dtype="float16", turbo=turbo, unet_bs=4))
            found.append(render(executor, make_items(("ddim", "euler"))))
        assert not device.violations
    assert found[0] == found[1] and len(found[0]) == 2


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
@pytest.mark.some(3)
def test_the_host_waits_for_no_step(model, sampler, turbo):
    with fake_cuda() as device:
        executor = make_executor(model, turbo=turbo)
        items = [make_item(number=n, seed=n, sampler=sampler, steps=6) for n in range(2)]
        render(executor, items)  # weights are read from their files in the first wave
        [wave] = waves.group(items, executor.execution)
        counts = [len(device.waits) for event in executor.run(wave) if isinstance(event, StepDone)]
    assert len(counts) == 6 and counts[-1] == counts[0], device.waits[counts[0] :]


def test_what_the_ceiling_leaves_stays_on_the_device_and_no_more(model, resident, limit):
    """Between the least and all of it: the same bytes, and never more than the ceiling."""
    limit(layouts, LEAST_KEPT=0)
    least = list(make_executor_plan(model).layouts(64, 64))[-1].peak
    weights, kept = costs.model_costs(model, "cuda:0", "float32").weights["unet"], []
    for ceiling in range(least, least + weights, weights // 4):
        with fake_cuda() as device:
            executor = make_executor(model, turbo=False, limit=ceiling)
            assert render(executor, make_items(("ddim", "euler"))) == resident
            kept.append(executor.components["unet"].kept)
            assert device.peak <= ceiling
        assert not device.violations
    assert kept == sorted(kept) and kept[0] == 0 and weights / 2 < kept[-1] < weights


def make_executor_plan(model):
    return Execution(costs=costs.model_costs(model, "cuda:0", "float32"), dtype="float32", turbo=False, unet_bs=4)


def test_units_whose_weights_are_used_least_stay(model):
    with fake_cuda():
        unet = make_unet(model)
        unet.change("walks", kept=unet.parking.size("", unet.module) // 2)
        with torch.inference_mode():
            for _ in range(2):
                unet.call_all(list(calls(2)))
    assert unet.walk.loads["conv_in"] == 2 and "conv_in" not in unet.walk.kept  # all pixels pass it
    assert any(name.startswith("mid_block") for name in unet.walk.kept)
    assert any(name.startswith("time_embedding") for name in unet.walk.kept)


@pytest.mark.some(1)
@pytest.mark.parametrize("most", ["weights", "steps"])
def test_running_out_of_memory_leaves_nothing_behind(model, resident, limit, most):
    """While weights are brought, and within a step: the next layout has all of the memory, and the same bytes."""
    limit(layouts, LEAST_KEPT=0)
    with fake_cuda() as device:
        executor = make_executor(model, turbo=None)
        held = costs.model_costs(model, "cuda:0", "float32").weights
        device.most = held["unet"] * (1 if most == "weights" else 2)
        told = []
        assert render(executor, make_items(("ddim", "euler")), told) == resident
        assert all("out of memory" in each for each in told) and told
    assert not device.violations


def test_a_wave_that_is_given_up_leaves_no_copy_on_its_way(model, resident):
    """As when Ctrl-C comes between two steps, or within one."""
    with fake_cuda() as device:
        executor = make_executor(model, turbo=False)
        [wave] = waves.group(make_items(("ddim", "euler")), executor.execution)
        for step, event in enumerate(run := executor.run(wave)):
            if step == 2:
                run.close()
                break
            assert not isinstance(event, ItemFailed)
        for component in executor.components.values():
            component.drop()
        hook = executor.components["unet"].module.mid_block.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            render(executor, make_items(("ddim", "euler")))
        hook.remove()
        assert render(executor, make_items(("ddim", "euler"))) == resident
    assert not device.violations


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.some(1)
@pytest.mark.parametrize("turbo", [True, False])
def test_a_kernel_for_want_of_memory_is_not_taken_in_silence(model, resident, turbo):
    """A library that had too little memory for one kernel takes another one, and only a counter tells of it."""
    with fake_cuda() as device:
        executor = make_executor(model, turbo=None if turbo else False)

        def fall_back(*_):
            device.stats["num_ooms"] += 1

        hook = executor.components["unet"].module.conv_in.register_forward_pre_hook(fall_back)
        told = []
        assert render(executor, make_items(("ddim", "euler")), told) == resident
        hook.remove()
    assert "rounded otherwise" in told[-1]
    assert any("going on with the UNet streamed" in each for each in told)


def test_what_is_streamed_is_pinned_and_given_back(model, resident):
    with fake_cuda() as device:
        executor = make_executor(model, turbo=True)
        render(executor, make_items(("ddim",)))
        assert not device.pinned
        executor = make_executor(model, turbo=False)
        assert render(executor, make_items(("ddim", "euler"))) == resident
        assert len(device.pinned) > len(executor.components["unet"].walk.units)
        del executor
        gc.collect()
        assert not device.pinned
    assert not device.violations


def test_where_nothing_can_be_pinned_weights_come_all_the_same(model, resident):
    with fake_cuda() as device:
        device.most_pinned = 0
        assert render(make_executor(model, turbo=False), make_items(("ddim", "euler"))) == resident
        assert not device.pinned and any("isn't pinned" in wait for wait in device.waits)
    assert not device.violations


@torch.inference_mode()
def test_memory_that_is_unpinned_too_early_is_found(model):
    with fake_cuda() as device:
        unet = make_unet(model)
        unet.call_all(list(calls(1)))
        unet.call_all(list(calls(1)))
        device.streams[1].synchronize = lambda: None
        del unet
        gc.collect()
    assert any(violation.startswith("unpinned while") for violation in device.violations)


def test_a_ceiling_holds_for_what_torch_has_free_as_well(model):
    with fake_cuda() as device:
        make_executor(model, turbo=None, limit=1 << 30)
        make_executor(model, turbo=None, limit=1 << 30, advice=True)
        assert device.shares == [1 / 8, 1.0]  # a page may ask for another ceiling, or none


def test_a_device_that_failed_ends_the_run(model):
    with fake_cuda():
        executor = make_executor(model, turbo=True)

        def fail(*_):
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

        executor.components["unet"].module.conv_in.register_forward_pre_hook(fail)
        with pytest.raises(DeviceLost, match=r"cuda:0: the device failed \(CUDA error: an illegal memory access"):
            render(executor, make_items(("ddim",)))


def test_records_name_the_libraries_of_a_card(model, monkeypatch, tmp_path, limit):
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n")
    limit(describe, NVIDIA_DRIVER=tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with fake_cuda():
        found = dict(make_executor(model, turbo=True).describe().env)
    wanted = {"cuda": "12.8", "driver": "550.54.15", "NVIDIA_TF32_OVERRIDE": "0"}
    assert wanted.items() <= found.items()
    assert not {"cuda", "driver"} & dict(memory.versions("cpu")).keys()


def test_mps_has_no_float64_and_pictures_in_strips(model):
    """A picture above 256x256 is decoded in strips, and normalized by sums that are exact elsewhere."""
    item = make_item(width=320, height=320, steps=1)
    assert item.width * item.height > costs.decoded_pixels("mps")
    found = []
    for turbo in (True, False):
        with fake_mps() as device:
            found.append(render(make_executor(model, turbo=turbo, device="mps"), [item]))
        assert not device.violations
    assert found[0] == found[1] and len(found[0]) == 1


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["stays", "walks"])
def test_weights_may_lie_with_their_channels_last(model, mode):
    """As compiled kernels want them."""
    with fake_cuda() as device:
        plain, unet = make_unet(model), make_unet(model, channels_last=True)
        unet.change(mode)
        orders = []
        unet.module.conv_in.register_forward_hook(
            lambda conv, *_: orders.append(conv.weight.is_contiguous(memory_format=torch.channels_last))
        )
        for found, wanted in zip(unet.call_all(list(calls(2))), plain.call_all(list(calls(2))), strict=True):
            torch.testing.assert_close(found, wanted)
    assert orders == [True, True] and not device.violations


def make_unet(model, **changes):
    return Component(
        build_module(model, "unet"), model.tensors["unet"], device=torch.device("cuda:0"), dtype=torch.float32,
        mode="walks", **changes,
    )  # fmt: skip


def calls(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        latents, prompts = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 16, generator=generator)
        sent = latents.to("cuda:0"), torch.full((2,), 9.0, device="cuda:0"), prompts.to("cuda:0")
        yield lambda unet, sent=sent: unet(sent[0], sent[1], encoder_hidden_states=sent[2]).sample


def walk(model, device, *, deaf=None, times=2):
    """A UNet's weights walk through the device; the stream with this number doesn't wait for anything."""
    unet = make_unet(model)
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
    ("deaf", "found"),
    [
        (0, "read before it is written"),
        (0, "given back while"),
        (1, "overwritten while it is read"),
        (1, "new memory before"),
    ],
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
        unet = make_unet(model)
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


@pytest.mark.parametrize("waits", [True, False])
def test_two_streams_that_write_are_told_apart(waits):
    with fake_cuda() as device:
        numbers, stream = torch.zeros(4, device="cuda:0"), torch.cuda.Stream()
        if waits:
            stream.wait_event(torch.cuda.current_stream().record_event())
        with torch.cuda.stream(stream):
            numbers.fill_(1)
        torch.cuda.current_stream().wait_stream(stream)
        del numbers
    assert waits == (not any(each.startswith("written by two at once") for each in device.violations))
    assert waits == (not device.violations)
