import os

import pytest
import tiny
import torch
from torch import nn

from runner.device import component, packed_file, parking, units
from runner.engine import denoise
from runner.kernels import opaque
from runner.kernels.replace import SUPPORTED, replace_layers
from runner.model import files, modules
from runner.planning.costs import STAYS, WALKS

pytestmark = pytest.mark.skipif(not opaque.can_be_made(), reason="this torch makes no packed tensors from bytes")
TYPES = [torch.float32, torch.bfloat16]
ROOM = 1 << 20


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_file, "lies_in_memory", lambda folder: False)  # as the tests' own folder may
    return tmp_path / "cache/runner"


def make_part(dtype=torch.float32):
    if not SUPPORTED[dtype]():
        pytest.skip(f"this CPU has no {dtype}")
    torch.manual_seed(3)
    part = nn.Sequential(nn.Conv2d(4, 40, 3, padding=1), nn.GroupNorm(4, 40), nn.Linear(12, 24, bias=False)).to(dtype)
    replace_layers(part, dtype)
    return part


def picture(side=12, dtype=torch.float32):
    made = torch.randn(2, 4, side, 12, generator=torch.Generator().manual_seed(side)).to(dtype)
    return made.contiguous(memory_format=torch.channels_last)


def allocate(size):
    return torch.full((size,), 255, dtype=torch.uint8)


def bring(file, name, part):
    """Puts a part's weights back as the file has them, after they left; whether it has them."""
    unit = units.Unit(name, part)
    unit.take_away()
    if brought := file.bring(name, allocate):
        unit.put(brought)
    return bool(brought)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_was_kept_comes_back_packed_with_the_same_bits(cache, monkeypatch, dtype):
    part, file = make_part(dtype), packed_file.PackedFile(ROOM)
    assert file.bring("part", allocate) is None
    wanted = part(picture(dtype=dtype))
    weight = part[0].packed.weight.to_dense()
    file.keep("part", part)
    assert bring(file, "part", part)
    brought = part[0].packed
    assert torch.equal(part(picture(dtype=dtype)), wanted)
    assert part[0].packed is brought  # it wasn't packed again
    assert torch.equal(part[0].packed.weight.to_dense(), weight)
    assert part[0].weight.is_meta and part[2].weight.is_meta and not part[1].weight.is_meta


def test_parts_that_were_packed_for_another_size_are_kept_anew_in_the_same_place(cache, monkeypatch):
    part, file = make_part(), packed_file.PackedFile(ROOM)
    wanted = {side: part(picture(side)) for side in (12, 4)}
    file.keep("part", part)
    place = file._places["part"]
    for side in (12, 4, 12):
        assert bring(file, "part", part)
        assert torch.equal(part(picture(side)), wanted[side])
        file.keep("part", part)
    assert place.start == file._places["part"].start
    assert place.packed_for["0.weight"] != file._places["part"].packed_for["0.weight"]
    assert bring(file, "part", part)
    brought = part[0].packed
    assert torch.equal(part(picture(12)), wanted[12])
    assert part[0].packed is brought


def test_what_is_in_the_file_already_is_not_written_again(cache, system):
    part, file = make_part(), packed_file.PackedFile(ROOM)
    part(picture())
    file.keep("part", part)
    assert bring(file, "part", part)
    system(os, pwrite=lambda *_: pytest.fail("written again"))
    part(picture())
    file.keep("part", part)


def test_another_size_with_the_same_order_is_only_noted(cache, monkeypatch, system):
    part, file = make_part(), packed_file.PackedFile(ROOM)
    part(picture())
    file.keep("part", part)
    system(os, pwrite=lambda *_: pytest.fail("written again"))
    other = picture(side=20)
    part[0].packed = part[0].packed._replace(packed_for=other.shape)
    file.keep("part", part)
    assert bring(file, "part", part)
    brought = part[0].packed
    part(other)
    assert part[0].packed is brought


def test_the_file_has_no_name_and_its_room_is_reserved(cache):
    file = packed_file.PackedFile(ROOM)
    part = make_part()
    part(picture())
    file.keep("part", part)
    assert list(cache.iterdir()) == []
    assert os.fstat(file._file).st_blocks * 512 >= ROOM


def fail(*_):
    raise OSError(28, "No space left on device")


def test_without_room_on_the_disk_nothing_is_kept(cache):
    part, file = make_part(), packed_file.PackedFile(1 << 60)
    part(picture())
    file.keep("part", part)
    assert not bring(file, "part", part)
    assert file._file is None


def test_a_folder_in_memory_is_not_written_to(cache, monkeypatch):
    monkeypatch.setattr(packed_file, "lies_in_memory", lambda folder: True)
    part, file = make_part(), packed_file.PackedFile(ROOM)
    part(picture())
    file.keep("part", part)
    assert not bring(file, "part", part)


def test_the_kind_of_a_folders_file_system(tmp_path, limit):
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for kind, optional, wanted in (
        ("tmpfs", "", True),
        ("ext4", "shared:1 master:2 ", False),
        ("ramfs", "shared:1 ", True),
    ):
        mounts = tmp_path / "mountinfo"
        mounts.write_text(f"1 2 0:0 / /a rw - tmpfs a rw\n3 2 {number} / /b\\040c rw {optional}- {kind} b rw\n")
        limit(packed_file, MOUNTS=mounts)
        assert packed_file.lies_in_memory(tmp_path) == wanted
    limit(packed_file, MOUNTS=tmp_path / "missing")
    assert not packed_file.lies_in_memory(tmp_path)


@pytest.mark.parametrize("name", ["form_of", "bytes_of"])
def test_a_torch_that_refuses_ends_only_the_keeping(cache, monkeypatch, name):
    part, file = make_part(), packed_file.PackedFile(ROOM)
    wanted = part(picture())

    def refuse(*_):
        raise RuntimeError("not in this build")

    monkeypatch.setattr(opaque, name, refuse)
    file.keep("part", part)
    assert not file.bring("part", allocate)
    assert torch.equal(part(picture()), wanted)


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate"])
def test_a_disk_that_fills_up_loses_nothing_that_was_kept(cache, monkeypatch, system, call):
    first, second, file = make_part(), make_part(), packed_file.PackedFile(ROOM)
    wanted = first(picture()), second(picture())
    if call == "pwrite":
        file.keep("first", first)
    system(os, **{call: fail})
    opened = len(os.listdir("/proc/self/fd"))
    file.keep("second", second)
    assert len(os.listdir("/proc/self/fd")) == opened
    monkeypatch.undo()
    file.keep("second", second)  # it isn't tried again
    assert not bring(file, "second", second)
    assert bring(file, "first", first) == (call == "pwrite")
    assert call != "pwrite" or torch.equal(first(picture()), wanted[0])


def test_weights_that_cannot_be_read_again_are_taken_from_elsewhere(cache, monkeypatch, system):
    part, file = make_part(), packed_file.PackedFile(ROOM)
    part(picture())
    file.keep("part", part)
    system(os, preadv=lambda *_: 0)
    assert not bring(file, "part", part)
    monkeypatch.undo()
    assert not bring(file, "part", part)
    other = make_part()
    other(picture())
    file.keep("part", other)  # a disk that fails isn't written to in every step
    assert not bring(file, "part", other)


@pytest.fixture
def tiny_folder(tmp_path):
    return tiny.save_model(tmp_path / "tiny")


def walking(folder, mode=WALKS):
    model = files.find_model(str(folder))
    module = modules.build_module(model, "unet")
    replace_layers(module, torch.float32)
    return component.Component(
        module, model.tensors["unet"], device=torch.device("cpu"), dtype=torch.float32, mode=mode
    )


def call(unet, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents, prompts = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 16, generator=generator)
    sent = latents.contiguous(memory_format=torch.channels_last)
    return unet.call_all([lambda it: it(sent, torch.full((2,), 9.0), encoder_hidden_states=prompts).sample])[0]


def test_a_walk_reads_the_models_file_once(cache, tiny_folder, monkeypatch):
    unet, resident = walking(tiny_folder), walking(tiny_folder, STAYS)
    assert torch.equal(call(unet), call(resident))
    monkeypatch.setattr(parking, "read_tensor_into", lambda *_: pytest.fail("read again"))
    for seed in (0, 1, 2):
        assert torch.equal(call(unet, seed), call(resident, seed))
        unet.rest()


def test_a_walk_that_is_the_only_one_of_its_kind_writes_nothing(cache, tiny_folder):
    unet = walking(tiny_folder)
    assert denoise.probe_prediction(unet) in ("epsilon", "v_prediction")
    assert not cache.exists()
    call(unet)
    assert cache.exists()


def test_a_walk_without_a_file_gives_the_same_bits(cache, tiny_folder):
    resident = walking(tiny_folder, STAYS)
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    unet = walking(tiny_folder)
    for seed in (0, 1, 2):
        assert torch.equal(call(unet, seed), call(resident, seed))
