import json
import os
import struct
from pathlib import Path

import pytest
import single_file
import tiny
import torch
from safetensors.torch import load_file, save_file

from runner.errors import ModelError
from runner.model import architecture, files, fingerprints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


def copy_of(folder: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, target))


def test_a_diffusers_folder_is_found_whole(folder):
    model = files.find_model(str(folder))
    assert model.name == "tiny"
    assert model.latent_factor == 8
    assert set(model.tensors) == {"text_encoder", "unet", "vae"}
    unet = tiny.components()[1]
    assert model.parameters("unet") == sum(p.numel() for p in unet.parameters())


def test_fingerprints_are_of_the_weights_and_not_of_the_files(folder, tmp_path):
    before = fingerprints.fingerprints(files.find_model(str(folder)))
    moved = copy_of(folder, tmp_path / "moved")
    file = moved / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    half = len(tensors) // 2
    shards = {"a.safetensors": dict(list(tensors.items())[half:]), "b.safetensors": dict(list(tensors.items())[:half])}
    for name, part in shards.items():
        save_file(part, moved / "unet" / name, metadata={"format": "pt", "note": "another header"})
    index = {"weight_map": {tensor: name for name, part in shards.items() for tensor in part}}
    (moved / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert fingerprints.fingerprints(files.find_model(str(moved))) == before


def test_old_names_are_the_same_weights(folder, tmp_path):
    old = copy_of(folder, tmp_path / "old")
    text = old / "text_encoder/model.safetensors"
    renamed = {f"text_model.{name}": tensor for name, tensor in load_file(text).items()}
    save_file(renamed | {"text_model.embeddings.position_ids": torch.arange(77)}, text)
    vae = old / "vae/diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(vae).items():
        for new, older in names.items():
            name = name.replace(f".{new}.", f".{older}.")
        tensors[name] = tensor
    assert any(".query." in name for name in tensors)
    save_file(tensors, vae)
    assert fingerprints.fingerprints(files.find_model(str(old))) == fingerprints.fingerprints(
        files.find_model(str(folder))
    )


@pytest.mark.parametrize(
    ("tensor", "fragment"),
    [
        ("unet/up_blocks.2.resnets.0.conv1.weight", "unet_decode"),
        ("unet/mid_block.resnets.0.conv1.weight", "unet_encode"),
        ("unet/conv_in.weight", "unet_encode"),
        ("vae/decoder.conv_out.bias", "vae"),
        ("text_encoder/final_layer_norm.weight", "text_encoder"),
    ],
)
def test_one_changed_number_changes_one_fingerprint(folder, tmp_path, tensor, fragment):
    changed = copy_of(folder, tmp_path / "changed")
    component, name = tensor.split("/")
    file = next((changed / component).glob("*.safetensors"))
    tensors = load_file(file)
    tensors[name].view(-1)[0] += 1
    save_file(tensors, file)
    before = fingerprints.fingerprints(files.find_model(str(folder)))
    after = fingerprints.fingerprints(files.find_model(str(changed)))
    assert {key for key in before if before[key] != after[key]} == {fragment}


def test_fingerprints_of_large_models_are_remembered_until_a_file_changes(folder, tmp_path, monkeypatch, limit):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    limit(fingerprints, CACHED_SIZE=0)
    large = copy_of(folder, tmp_path / "large")
    first = fingerprints.fingerprints(files.find_model(str(large)))
    file = large / "vae/diffusion_pytorch_model.safetensors"
    content, stat = file.read_bytes(), file.stat()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprints.fingerprints(files.find_model(str(large))) == first  # not a byte is read
    tensors = load_file(file)
    tensors["decoder.conv_out.bias"] += 1
    save_file(tensors, file)
    assert fingerprints.fingerprints(files.find_model(str(large)))["vae"] != first["vae"]


def damage_header(file: Path) -> None:
    header = b'{"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1000000]}}'
    file.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "unet/config.json").unlink(), ["unet/config.json", "is missing"]),
        (lambda f: (f / "unet/config.json").write_text("{"), ["unet/config.json", "can't be read"]),
        (lambda f: (f / "unet/config.json").write_text("[]"), ["JSON object"]),
        (lambda f: (f / "vae/config.json").write_text('{"_class_name": "VQModel"}'), ["VQModel", "AutoencoderKL"]),
        (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(), ["vae", "no weights"]),
        (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").rename(f / "vae/x.safetensors"), ["no weights"]),
        (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"PK\3\4" + b"x" * 90), ["cut off"]),
        (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_bytes(b""), ["is empty"]),
        (lambda f: damage_header(f / "vae/diffusion_pytorch_model.safetensors"), ["outside the file"]),
        (lambda f: (f / "scheduler/scheduler_config.json").unlink(), ["scheduler_config.json", "is missing"]),
    ],
)
def test_a_damaged_folder_is_refused_by_name(folder, tmp_path, harm, words):
    damaged = copy_of(folder, tmp_path / "damaged")
    harm(damaged)
    with pytest.raises(ModelError) as caught:
        files.find_model(str(damaged))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("path", ["/nowhere/at/all", "builtin:emojy", str(Path(__file__).parent)])
def test_what_is_no_model_is_refused(path):
    with pytest.raises(ModelError, match=r"model\.path="):
        files.find_model(path)


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "x.pt"])
def test_what_is_no_file_of_weights_is_refused(tmp_path, name):
    for content in (b"", b"hello", b"import os\n" * 50, b"PK", b"\x80", b"{}"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            files.find_model(str(tmp_path / name))


def test_a_folder_called_like_a_file_is_a_folder(tmp_path):
    (tmp_path / "x.ckpt").mkdir()
    with pytest.raises(ModelError, match="is not a diffusers folder"):
        files.find_model(str(tmp_path / "x.ckpt"))


def save_forms(folder: Path, version: int, dtype: torch.dtype) -> dict[str, Path]:
    """One model in every form that people have."""
    parts = single_file.small(version)
    forms = {"folder": single_file.save_folder(folder / "folder", parts, dtype)}
    state = {name: tensor.detach().clone() for name, tensor in single_file.to_compvis(parts).items()}
    forms |= {name: folder / name for name in ("x.ckpt", "bare.ckpt", "x.safetensors")}
    torch.save({"state_dict": state, "global_step": 470000, "pytorch-lightning_version": "1.4.2"}, forms["x.ckpt"])
    torch.save({name: torch.nn.Parameter(t, requires_grad=False) for name, t in state.items()}, forms["bare.ckpt"])
    save_file(state, forms["x.safetensors"], metadata={"format": "pt"})
    forms["bins"] = copy_of(forms["folder"], folder / "bins")
    for file in forms["bins"].rglob("*.safetensors"):
        name = "pytorch_model" if file.parent.name == "text_encoder" else "diffusion_pytorch_model"
        torch.save(load_file(file), file.parent / f"{name}.bin")
        file.unlink()
    return forms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("version", [1, 2])
def test_one_model_has_one_fingerprint_in_every_form(tmp_path, version, dtype):
    forms = save_forms(tmp_path, version, dtype)
    found = {name: fingerprints.fingerprints(files.find_model(str(path))) for name, path in forms.items()}
    assert all(each == found["folder"] for each in found.values())
    assert set(found["folder"]) == set(architecture.V1.fragments)


def test_nothing_is_written_beside_the_weights_or_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forms = save_forms(tmp_path / "models", 1, torch.float16)
    before = sorted(tmp_path.rglob("*"))
    fingerprints.fingerprints(files.find_model(str(forms["x.ckpt"])))
    assert sorted(tmp_path.rglob("*")) == before


def test_bins_in_shards_and_halves_are_found(tmp_path):
    folder = save_forms(tmp_path, 1, torch.float32)["bins"]
    before = fingerprints.fingerprints(files.find_model(str(folder)))
    whole = folder / "unet/diffusion_pytorch_model.bin"
    tensors = list(torch.load(whole, weights_only=True).items())
    whole.unlink()
    shards = {"a.bin": dict(tensors[:9]), "b.bin": dict(tensors[9:])}
    for name, part in shards.items():
        torch.save(part, folder / "unet" / name)
    index = {"weight_map": {tensor: name for name, part in shards.items() for tensor in part}}
    (folder / "unet/diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))
    vae = folder / "vae/diffusion_pytorch_model.bin"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.bin"))
    assert fingerprints.fingerprints(files.find_model(str(folder))) == before


@pytest.mark.parametrize(("version", "auto"), [(1, "epsilon"), (2, "auto")])
def test_what_a_model_predicts_can_be_said(tmp_path, version, auto):
    forms = save_forms(tmp_path, version, torch.float16)
    for form, by_itself in (("x.ckpt", auto), ("folder", "epsilon")):
        path = str(forms[form])
        assert files.find_model(path).configs["scheduler"]["prediction_type"] == by_itself
        said = files.find_model(path, "v_prediction")
        assert said.configs["scheduler"]["prediction_type"] == "v_prediction"


def test_weights_of_an_unknown_type_are_refused(tmp_path):
    state = single_file.to_compvis(single_file.small(1))
    state["model.diffusion_model.out.2.bias"] = state["model.diffusion_model.out.2.bias"].double()
    torch.save(state, tmp_path / "x.ckpt")
    with pytest.raises(ModelError, match=r"x\.ckpt: conv_out\.bias is of type F64"):
        files.find_model(str(tmp_path / "x.ckpt"))


def test_a_cut_off_file_is_refused(folder, tmp_path):
    cut = copy_of(folder, tmp_path / "cut")
    file = cut / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut off"):
        files.find_model(str(cut))
