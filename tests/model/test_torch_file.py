import collections
import datetime
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from runner.errors import ModelError
from runner.model import modules, torch_file
from runner.model.torch_file import read_table


def save(file: Path, document: object, **options: object) -> Path:
    torch.save(document, file, **options)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_table(file)
    assert str(file) in str(caught.value)
    return str(caught.value)


def rewrite(file: Path, compression: int = zipfile.ZIP_STORED, **changed: bytes) -> Path:
    """The same archive with other entries, `data_pkl` for `data.pkl`."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    root = next(iter(entries)).partition("/")[0]
    entries |= {f"{root}/{name.replace('_', '.')}": data for name, data in changed.items()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_are_read_as_they_were_saved(tmp_path, dtype, protocol):
    written = {"a": torch.randn(3, 5).to(dtype), "b": torch.randn(7).to(dtype), "c": torch.zeros(0, 4).to(dtype),
               "d": torch.nn.Parameter(torch.randn(2, 2).to(dtype)), "e": torch.tensor(3.0).to(dtype)}  # fmt: skip
    table = read_table(save(tmp_path / "x.ckpt", written, pickle_protocol=protocol))
    assert list(table) == list(written)
    for name, stored in table.items():
        assert torch.equal(modules.read_tensor(stored, dtype), written[name])


@pytest.mark.parametrize(
    "wrap", [dict, OrderedDict, lambda s: {"state_dict": s}, lambda s: {"state_dict": OrderedDict(s)}]
)
def test_the_dictionary_may_stand_in_another(tmp_path, wrap):
    file = save(tmp_path / "x.ckpt", wrap({"a": torch.ones(3), "b": 5, "c": torch.arange(4)}))
    assert {name: tensor.dtype for name, tensor in read_table(file).items()} == {"a": "F32", "c": "I64"}


def test_tensors_that_share_a_storage_are_found_in_it(tmp_path):
    whole = torch.arange(12.0)
    table = read_table(save(tmp_path / "x.ckpt", {"whole": whole, "part": whole[4:10].view(2, 3), "same": whole}))
    assert torch.equal(modules.read_tensor(table["part"], torch.float32), whole[4:10].view(2, 3))
    assert table["same"] == table["whole"]


@pytest.mark.parametrize("view", [lambda t: t.t(), lambda t: t[:, ::2], lambda t: t[:, :1].expand(4, 6)])
def test_tensors_that_are_not_contiguous_are_refused(tmp_path, view):
    message = refusal(save(tmp_path / "x.ckpt", {"bent": view(torch.randn(4, 6))}))
    assert "bent" in message and ".contiguous()" in message


def test_a_module_of_a_training_run_is_read(tmp_path):
    """As old trainers save it: with numpy's scalars, an optimizer's state, and settings."""
    import argparse

    import numpy as np

    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    document = {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": 7,
                "best": np.float64(0.5), "best_array": np.arange(3), "hyper_parameters": argparse.Namespace(lr=1),
                "dtype": torch.float16, "size": torch.Size([3])}  # fmt: skip
    assert set(read_table(save(tmp_path / "x.ckpt", document))) == {"weight", "bias"}


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_hostile_file_is_refused_by_name_and_nothing_runs(tmp_path):
    mark = tmp_path / "ran"
    message = refusal(save(tmp_path / "x.ckpt", {"state_dict": {"a": torch.ones(2), "b": Hostile(f"touch {mark}")}}))
    assert "posix.system" in message
    assert not mark.exists()


def test_a_pickle_of_before_zip_is_refused_with_the_way_out(tmp_path):
    from runner.model.files import read_tensors

    files = [save(tmp_path / "old.ckpt", {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)]
    files.append(tmp_path / "bare.ckpt")
    files[1].write_bytes(pickle.dumps(Hostile("touch ran")))
    for file in files:
        with pytest.raises(ModelError, match=r"if you trust.*torch\.save"):
            read_tensors(file)


def test_the_contents_tell_the_kind_and_not_the_name(tmp_path):
    from runner.model.files import read_tensors

    save(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    save_file({"a": torch.ones(2)}, tmp_path / "x.ckpt")
    assert set(read_tensors(tmp_path / "x.safetensors")) == set(read_tensors(tmp_path / "x.ckpt")) == {"a"}
    for begin in (b"PK", b"\x80\x02"):  # a length of the header that looks like another kind of file
        length = int.from_bytes(begin, "little")
        header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'.ljust(length)
        (tmp_path / "like.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
        assert set(read_tensors(tmp_path / "like.safetensors")) == {"a"}


def test_every_cut_is_refused(tmp_path):
    whole = save(tmp_path / "x.ckpt", {"a": torch.ones(100), "b": torch.ones(10)}).read_bytes()
    for length in [0, 1, 4, 30, *range(50, len(whole), 97), len(whole) - 1]:
        (tmp_path / "cut.ckpt").write_bytes(whole[:length])
        assert "cut off" in refusal(tmp_path / "cut.ckpt")


def test_compressed_entries_are_refused(tmp_path):
    file = save(tmp_path / "x.ckpt", {"a": torch.ones(1000)})
    assert "compressed" in refusal(rewrite(file, zipfile.ZIP_DEFLATED))


def test_a_zip_bomb_is_refused_unopened(tmp_path):
    file = tmp_path / "x.ckpt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"]" * 200_000_000)
    assert "compressed" in refusal(file)


def test_a_huge_pickle_is_refused_unread(tmp_path):
    file = tmp_path / "x.ckpt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"]" * (torch_file.PART_LIMIT + 1))
    assert "larger than" in refusal(file)


def test_a_tensor_beyond_its_entry_is_refused(tmp_path):
    file = save(tmp_path / "x.ckpt", {"a": torch.ones(100), "b": torch.ones(100)})
    with zipfile.ZipFile(file) as archive:
        program = archive.read("x/data.pkl")
    longer = program.replace(b"Kd\x85", b"Ke\x85")
    assert longer != program
    assert "a lies outside its place" in refusal(rewrite(file, data_pkl=longer))


def test_a_missing_entry_is_refused(tmp_path):
    file = save(tmp_path / "x.ckpt", {"a": torch.ones(100)})
    with zipfile.ZipFile(file) as archive:
        program = archive.read("x/data.pkl")
    elsewhere = program.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009")
    assert "no entry x/data/9" in refusal(rewrite(file, data_pkl=elsewhere))


def test_big_endian_numbers_are_refused(tmp_path):
    assert "big-endian" in refusal(rewrite(save(tmp_path / "x.ckpt", {"a": torch.ones(3)}), byteorder=b"big"))


@pytest.mark.parametrize("document", [[torch.ones(2)], 5, {"state_dict": [1]}])
def test_what_is_no_dictionary_is_refused(tmp_path, document):
    assert "no dictionary" in refusal(save(tmp_path / "x.ckpt", document))


def test_another_zip_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("a/b.txt", "hello")
    assert "not one of torch.save" in refusal(tmp_path / "x.ckpt")


def change_directory(file: Path, entry: bytes, change) -> Path:
    """Changes the entry's line in the archive's directory, given as a bytearray that begins with its signature."""
    data = bytearray(file.read_bytes())
    at = data.rindex(entry) - 46
    assert data[at : at + 4] == b"PK\1\2"
    line = data[at:]
    change(line)
    file.write_bytes(data[:at] + line)
    return file


def put(line: bytearray, offset: int, form: str, value: int) -> None:
    struct.pack_into(form, line, offset, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda line: put(line, 8, "<H", struct.unpack_from("<H", line, 8)[0] | 1), "encrypted"),
        (lambda line: put(line, 10, "<H", zipfile.ZIP_DEFLATED), "compressed"),
        (lambda line: put(line, 24, "<I", 1 << 30), "compressed"),
        (lambda line: (put(line, 20, "<I", 1 << 30), put(line, 24, "<I", 1 << 30)), "outside the file"),
        (lambda line: put(line, 42, "<I", 0), "not where the archive's directory says"),
        (lambda line: put(line, 42, "<I", 7), "not where the archive's directory says"),
        (lambda line: put(line, 42, "<I", 1 << 30), "cut off"),
        (lambda line: (put(line, 20, "<I", 500), put(line, 24, "<I", 500)), "overlap"),
    ],
)
def test_a_lying_directory_is_refused(tmp_path, change, words):
    file = save(tmp_path / "x.ckpt", {"a": torch.ones(100), "b": torch.ones(100)})
    assert words in refusal(change_directory(file, b"x/data/0", change))


def test_two_entries_of_one_name_are_refused(tmp_path):
    file = tmp_path / "x.ckpt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, 2))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x/data.pkl", pickle.dumps({}, 2))
    assert "two entries" in refusal(file)


def test_the_long_form_of_zip_is_read(tmp_path, monkeypatch, limit):
    """That of archives above 4 GiB, written here for a small one."""
    written = {"a": torch.randn(100), "b": torch.randn(50)}
    file = save(tmp_path / "x.ckpt", written)
    limit(zipfile, ZIP64_LIMIT=10)
    rewrite(file)
    monkeypatch.undo()
    assert b"PK\6\6" in file.read_bytes()
    for name, stored in read_table(file).items():
        assert torch.equal(modules.read_tensor(stored, torch.float32), written[name])


def test_any_damage_is_seen_or_harmless(tmp_path):
    whole = save(tmp_path / "x.ckpt", {"a": torch.ones(20), "b": torch.ones(5)}).read_bytes()
    file = tmp_path / "damaged.ckpt"
    generator = random.Random(0)
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(generator.choice((1, 1, 2, 5))):
            data[generator.randrange(len(data))] = generator.randrange(256)
        file.write_bytes(data)
        try:
            for stored in read_table(file).values():
                assert 0 <= stored.start <= stored.end <= len(data)
        except ModelError:
            continue


def test_what_training_leaves_beside_the_weights_is_left_alone(tmp_path):
    weights = {"a": torch.randn(3, 4)}
    beside = {
        "hyper_parameters": {"config": OmegaConf.create({"a": [1], "b": {"c": None}}), "path": Path("x")},
        "counts": collections.defaultdict(list, {"a": [1]}),
        "order": collections.OrderedDict(a=1),
        "when": datetime.datetime(2024, 1, 1),
        "plain": [set(), frozenset({1}), slice(1), 1j, bytearray(b"x")],
        "dtype": torch.float8_e4m3fn,
    }
    file = save(tmp_path / "x.ckpt", {"state_dict": weights, **beside})
    assert torch.equal(modules.read_tensor(read_table(file)["a"], torch.float32), weights["a"])


@pytest.mark.parametrize(
    "nest", [lambda s: {"model": s}, lambda s: {"epoch": 3, "module": s}, lambda s: {"state_dict": s}]
)
def test_weights_that_lie_one_level_deeper_are_found(tmp_path, nest):
    file = save(tmp_path / "x.ckpt", nest({"a": torch.ones(2)}))
    assert list(read_table(file)) == ["a"]


def test_float8_is_said(tmp_path):
    file = save(tmp_path / "x.ckpt", {"a": torch.ones(4).to(torch.float8_e4m3fn)})
    table = read_table(file)
    assert table["a"].dtype == "F8_E4M3"


def test_an_unknown_object_is_no_accusation(tmp_path):
    file = save(tmp_path / "x.ckpt", {"state_dict": {"a": torch.ones(2)}, "callback": Unknown()})
    with pytest.raises(ModelError, match=r"holds an object of .*Unknown, which is not known here") as caught:
        read_table(file)
    assert "hostile" not in str(caught.value)


class Unknown:
    """Some training script's own."""


def test_an_entry_at_an_impossible_place_is_refused(tmp_path):
    """The long form of zip has room for a place that no file has."""
    content = rewrite(save(tmp_path / "x.ckpt", {"a": torch.ones(3)})).read_bytes()
    begin, end = content.index(b"PK\1\2"), content.rindex(b"PK\5\6")
    extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)
    entry, close = bytearray(content[begin:end]), bytearray(content[end:])
    name_length, old_extra = struct.unpack_from("<HH", entry, 28)
    struct.pack_into("<H", entry, 30, len(extra))
    struct.pack_into("<L", entry, 42, 0xFFFFFFFF)
    rest = entry[46 + name_length + old_extra :]
    struct.pack_into("<L", close, 12, len(entry) + len(extra) - old_extra)
    changed = content[:begin] + entry[: 46 + name_length] + extra + rest + close
    (tmp_path / "x.ckpt").write_bytes(changed)
    with pytest.raises(ModelError, match=r"is not a file of torch\.save, or was cut off"):
        read_table(tmp_path / "x.ckpt")
