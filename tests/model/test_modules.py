import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from runner.errors import ModelError
from runner.model import files, modules, safetensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_read_as_they_were_written(tmp_path, dtype):
    file = tmp_path / "x.safetensors"
    written = {"a": torch.randn(3, 5).to(dtype), "b": torch.randn(7).to(dtype), "c": torch.zeros(0, 4).to(dtype)}
    save_file(written, file)
    for name, tensor in safetensors.read_header(file).items():
        assert torch.equal(modules.read_tensor(tensor, dtype), written[name])
        assert modules.read_tensor(tensor, torch.float32).dtype == torch.float32


def test_tensors_are_aligned_however_they_lie_in_the_file(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(3), "b": torch.randn(9), "c": torch.randn(64)}, file)
    for tensor in safetensors.read_header(file).values():
        assert modules.read_tensor(tensor, torch.float32).data_ptr() % 64 == 0


def test_a_file_that_became_shorter_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(1000)}, file)
    tensor = safetensors.read_header(file)["a"]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="ends too early"):
        modules.read_tensor(tensor, torch.float32)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae"])
def test_modules_are_made_without_weights(folder, component):
    module = modules.build_module(files.find_model(str(folder)), component)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert not any(buffer.is_meta for buffer in module.buffers())
    assert not module.training


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("conv_in.bias"), ["missing: conv_in.bias"]),
        (lambda t: t.update(extra=torch.zeros(1)), ["unexpected: extra"]),
        (lambda t: t.update({"conv_in.bias": torch.zeros(3)}), ["of another shape: conv_in.bias"]),
        (lambda t: [t.pop(n) for n in list(t)[:20]], ["missing: ", " and 12 more"]),
    ],
)
def test_weights_that_do_not_fit_are_listed(folder, tmp_path, change, words):
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(ModelError) as caught:
        modules.build_module(files.find_model(str(other)), "unet")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_nonsensical_configuration_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"down_block_types": ["NoSuchBlock"]}))
    with pytest.raises(ModelError, match=r"down_block_types is \["):
        files.find_model(str(other))
    config = json.loads(file.read_text()) | {"down_block_types": ["DownBlock2D"] * 2, "norm_num_groups": 7}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="configuration doesn't describe"):
        modules.build_module(files.find_model(str(other)), "unet")
