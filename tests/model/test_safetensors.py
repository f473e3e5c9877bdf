import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from runner.errors import ModelError
from runner.model.safetensors import read_header


def test_a_table_says_where_the_bytes_are(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(6, dtype=torch.float32).view(2, 3), "b": torch.arange(4)}, file, metadata={"c": "d"})
    table = read_header(file)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in table.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("I64", (4,)),
    }
    data = file.read_bytes()[table["a"].start : table["a"].end]
    assert struct.unpack("<6f", data) == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 1000]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-8, 8]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0]},
        {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]},
        {"dtype": "F32"},
        [],
        None,
    ],
)
def test_a_damaged_table_is_refused(tmp_path, entry):
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(ModelError, match="damaged"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("header", [b"{", b"[1]", b"\xff\xff", b"[" * 100_000])
def test_what_is_no_table_is_refused(tmp_path, header):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match="damaged"):
        read_header(tmp_path / "x.safetensors")
