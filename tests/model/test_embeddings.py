"""Learnt words: every form of file that has them, one fingerprint for the same vectors, and bad files by name."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from runner.errors import ModelError
from runner.item import Embedding
from runner.model.architecture import V1, XL
from runner.model.embeddings import check_fits, find_embedding, read_embedding
from runner.model.modules import read_tensor

VECTORS = torch.arange(12, dtype=torch.float32).reshape(3, 4) - 5
WIDER = torch.arange(18, dtype=torch.float32).reshape(3, 6) / 8


def automatic(vectors=VECTORS, parameters=dict, tokens=None):
    return {
        "string_to_token": {"*": 265} if tokens is None else tokens,
        "string_to_param": parameters({"*": vectors}),
        "name": "toy", "step": 500, "sd_checkpoint": "abc", "sd_checkpoint_name": None,
    }  # fmt: skip


def as_parameters(values):
    return torch.nn.ParameterDict({key: torch.nn.Parameter(value) for key, value in values.items()})


def as_inner_parameters(values):
    return {key: torch.nn.Parameter(value) for key, value in values.items()}


def write(file, tensors):
    """A safetensors file, or one of torch.save, by its name."""
    if file.suffix == ".safetensors":
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, file)
    else:
        torch.save(tensors, file)
    return file


FORMS = {
    "a1111.pt": automatic(),
    "dict.pt": automatic(parameters=as_parameters),
    "inner.pt": automatic(parameters=as_inner_parameters),
    "original.pt": automatic(parameters=as_parameters, tokens={"*": torch.tensor(265)}),
    "emb.safetensors": {"emb_params": VECTORS},
    "emb.pt": {"emb_params": VECTORS},
    "learned_embeds.bin": {"<toy>": VECTORS},
    "learned_embeds.safetensors": {"<toy>": VECTORS},
    "x.ckpt": {"toy": torch.nn.Parameter(VECTORS)},
    "lora.safetensors": {
        "lora_unet_x.lora_up.weight": torch.zeros(2, 2),
        "bundle_emb.toy.string_to_param.*": VECTORS,
        "bundle_emb.other.v1.emb_params": WIDER,
    },
    "only.safetensors": {"lora_unet_x.alpha": torch.zeros(()), "bundle_emb.a.b.emb_params": VECTORS},
    "token.safetensors": {"bundle_emb.a.string_to_token.*": torch.zeros(1), "bundle_emb.a.string_to_param.*": VECTORS},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_vectors_and_one_fingerprint(tmp_path, form):
    usual = read_embedding(write(tmp_path / "usual.safetensors", {"emb_params": VECTORS}), "toy")
    learnt = read_embedding(write(tmp_path / form, FORMS[form]), "toy")
    assert torch.equal(read_tensor(learnt.tensors[""], torch.float32), VECTORS)
    assert (learnt.count, learnt.sha256) == (3, usual.sha256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_the_number_type_is_in_the_fingerprint(tmp_path, dtype, ending):
    learnt = read_embedding(write(tmp_path / f"a{ending}", {"<toy>": VECTORS.to(dtype)}), "toy")
    other = read_embedding(write(tmp_path / "b.safetensors", {"emb_params": VECTORS.to(dtype)}), "toy")
    assert torch.equal(read_tensor(learnt.tensors[""], torch.float32), VECTORS)
    plain = read_embedding(write(tmp_path / "c.safetensors", {"emb_params": VECTORS}), "toy")
    assert learnt.sha256 == other.sha256
    assert (learnt.sha256 == plain.sha256) == (dtype == torch.float32)


def test_a_single_vector_without_a_number_is_one_vector(tmp_path):
    one = read_embedding(write(tmp_path / "a.bin", {"<toy>": VECTORS[0].clone()}), "toy")
    same = read_embedding(write(tmp_path / "b.safetensors", {"emb_params": VECTORS[:1]}), "toy")
    assert one.count == 1 and one.sha256 == same.sha256 and one.tensors[""].shape == (1, 4)


@pytest.mark.parametrize("prefix", ["", "bundle_emb.toy."])
def test_the_pair_of_two_text_encoders(tmp_path, prefix):
    pair = {f"{prefix}clip_g": WIDER, f"{prefix}clip_l": VECTORS}
    learnt = read_embedding(write(tmp_path / "a.safetensors", pair), "toy")
    assert torch.equal(read_tensor(learnt.tensors["clip_l"], torch.float32), VECTORS)
    assert torch.equal(read_tensor(learnt.tensors["clip_g"], torch.float32), WIDER)
    other = read_embedding(write(tmp_path / "a.pt", dict(reversed(pair.items()))), "toy")
    assert learnt.count == 3 and learnt.sha256 == other.sha256


def many(number):
    return torch.zeros(number, 4)


def with_value(value):
    changed = VECTORS.clone()
    changed[1, 2] = value
    return changed


@pytest.mark.parametrize(
    ("name", "tensors", "said"),
    [
        ("a.safetensors", {"emb_params": VECTORS.double()}, "emb_params is of type F64; known are: F32, F16, BF16"),
        ("a.pt", automatic(VECTORS.long()), "string_to_param.* is of type I64"),
        ("a.safetensors", {"emb_params": many(76)}, "emb_params has 76 vectors; a prompt has room for 1 to 75"),
        ("a.bin", {"<toy>": many(0)}, "<toy> has 0 vectors"),
        ("a.safetensors", {"emb_params": torch.zeros(1, 3, 4)}, "emb_params has the shape [1, 3, 4]"),
        ("a.bin", {"<toy>": torch.tensor(1.0)}, "<toy> has the shape []"),
        ("a.safetensors", {"emb_params": torch.zeros(3, 0)}, "emb_params has the shape [3, 0]"),
        *(
            (name, {"emb_params": with_value(value).to(dtype)}, "emb_params holds numbers that are not finite")
            for name in ("a.safetensors", "a.pt")
            for value in (float("nan"), float("inf"), -float("inf"))
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
        ),
        ("a.safetensors", {"clip_l": VECTORS}, "has clip_l and no clip_g; both are needed"),
        ("a.safetensors", {"clip_g": WIDER}, "has clip_g and no clip_l; both are needed"),
        ("a.safetensors", {"clip_l": VECTORS, "clip_g": WIDER[:2]}, "has 3 and 2 vectors as clip_l and clip_g"),
        (
            "a.safetensors",
            {"clip_l": VECTORS, "clip_g": WIDER, "clip_l_out": VECTORS},
            "should hold the vectors of one word, and has 3 tensors: clip_g, clip_l, clip_l_out",
        ),
        ("a.bin", {"<a>": VECTORS[0], "<b>": VECTORS[1]}, "the vectors of one word, and has 2 tensors: <a>, <b>"),
        (
            "a.pt",
            {"string_to_param": {"*": VECTORS, "+": VECTORS}},
            "has 2 tensors: string_to_param.*, string_to_param.+",
        ),
        (
            "a.safetensors",
            {"lora_unet_x.lora_up.weight": VECTORS, "lora_unet_x.lora_down.weight": VECTORS},
            "holds no embedding; it seems to be a LoRA",
        ),
        (
            "a.safetensors",
            {"bundle_emb.a.emb_params": VECTORS, "bundle_emb.b.emb_params": VECTORS},
            "brings along the embeddings a, b; call it by one of these names",
        ),
        ("a.pt", {"string_to_param": {}}, "holds no tensors, and so no embedding"),
        ("a.pt", VECTORS, "holds no dictionary, and so no embedding"),
    ],
)
def test_what_can_not_be_used_is_named_with_its_file(tmp_path, name, tensors, said):
    file = write(tmp_path / name, tensors)
    with pytest.raises(ModelError, match=f"^{re.escape(f'{file}: ')}.*{re.escape(said)}"):
        read_embedding(file, "toy")


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.webp", "WEBP"), ("a.safetensors", "PNG")])
def test_a_picture_with_an_embedding_inside_is_refused_as_what_it_is(tmp_path, name, kind):
    Image.new("RGB", (8, 8)).save(tmp_path / name, kind)
    with pytest.raises(ModelError, match="is a picture; an embedding inside one, as AUTOMATIC1111 writes them"):
        read_embedding(tmp_path / name, "toy")


def test_what_is_no_file_at_all(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "text.pt").write_text("hello, this is no file of tensors at all, but long enough")
    (tmp_path / "empty.pt").touch()
    cases = {
        "gone.pt": "there is nothing; give a .safetensors, .pt or .bin",
        "pipe.pt": "is not a file",
        "text.pt": "is neither a safetensors file nor one of torch.save",
        "empty.pt": "is empty",
        "a\0b": "there is nothing|can.t be read",
        "a" * 300: "can't be read",
    }
    for name, said in cases.items():
        with pytest.raises(ModelError, match=said):
            read_embedding(tmp_path / name, "toy")


def test_a_file_of_old_torch_is_refused_with_the_remedy(tmp_path):
    torch.save(automatic(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"is a bare pickle, as torch wrote them before 1\.6"):
        read_embedding(tmp_path / "old.pt", "toy")


class Hostile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("place", ["string_to_param", "string_to_token", "name"])
def test_nothing_in_a_file_is_run(tmp_path, place):
    torch.save(automatic() | {place: {"*": Hostile(tmp_path / "run")}}, tmp_path / "bad.pt")
    with pytest.raises(ModelError, match=r"posix\.system, which no weights need"):
        read_embedding(tmp_path / "bad.pt", "toy")
    state = torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})
    state._parameters["bad"] = Hostile(tmp_path / "run")
    torch.save({"string_to_param": state}, tmp_path / "worse.pt")
    with pytest.raises(ModelError, match=r"posix\.system, which no weights need"):
        read_embedding(tmp_path / "worse.pt", "toy")
    assert not (tmp_path / "run").exists()


def model_of(family, *widths):
    configs = {name: {"hidden_size": width} for name, width in zip(family.texts, widths, strict=True)}
    return SimpleNamespace(family=family, configs=configs, name="draws")


@pytest.mark.parametrize(
    ("tensors", "model", "said"),
    [
        ({"emb_params": many(2)}, model_of(V1, 4), None),
        ({"clip_l": VECTORS, "clip_g": WIDER}, model_of(XL, 4, 6), None),
        (
            {"emb_params": torch.zeros(2, 1024)},
            model_of(V1, 768),
            "emb_params has vectors of 1024 numbers, as Stable Diffusion v2 has; the model draws has 768",
        ),
        (
            {"<toy>": torch.zeros(768)},
            model_of(V1, 1024),
            "<toy> has vectors of 768 numbers, as Stable Diffusion v1 has; the model draws has 1024",
        ),
        ({"<toy>": torch.zeros(7)}, model_of(V1, 768), "<toy> has vectors of 7 numbers; the model draws has 768"),
        (
            {"emb_params": torch.zeros(2, 768)},
            model_of(XL, 768, 1280),
            "is for one text encoder, of widths 768 (emb_params) (Stable Diffusion v1); the model draws has "
            "2 text encoders, of widths 768, 1280",
        ),
        (
            {"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)},
            model_of(V1, 768),
            "is for 2 text encoders, of widths 768 (clip_l), 1280 (clip_g) (Stable Diffusion XL); the model draws has "
            "one text encoder, of widths 768",
        ),
        ({"clip_l": VECTORS, "clip_g": VECTORS}, model_of(XL, 4, 6), "clip_g has vectors of 4 numbers"),
    ],
)
def test_it_fits_a_model_by_its_widths(tmp_path, tensors, model, said):
    learnt = read_embedding(write(tmp_path / "a.safetensors", tensors), "toy")
    if said is None:
        check_fits(learnt, model)
        return
    with pytest.raises(ModelError) as raised:
        check_fits(learnt, model)
    assert said in str(raised.value) and str(raised.value).startswith(f"{tmp_path / 'a.safetensors'}: ")


def test_the_one_that_is_asked_for_is_found_or_both_are_named(tmp_path):
    file = write(tmp_path / "a.safetensors", {"emb_params": VECTORS})
    learnt = find_embedding(Embedding("toy", str(file), ""))
    assert find_embedding(Embedding("toy", str(file), learnt.sha256)) == learnt
    with pytest.raises(ModelError, match=f"is {learnt.sha256[:12]}, and not ffffffffffff"):
        find_embedding(Embedding("toy", str(file), "f" * 64))
    with pytest.raises(ModelError, match="no path is recorded; its SHA-256 is ffff"):
        find_embedding(Embedding("toy", "", "f" * 64))


def test_a_file_is_read_once(tmp_path):
    file = write(tmp_path / "a.safetensors", {"emb_params": VECTORS})
    seen = {}
    first = find_embedding(Embedding("toy", str(file), ""), seen)
    Path(file).unlink()
    assert find_embedding(Embedding("toy", str(file), ""), seen) is first


def test_the_fingerprint_says_what_is_hashed(tmp_path):
    """Of roles, types, shapes and bytes: so that it can be computed elsewhere."""
    learnt = read_embedding(write(tmp_path / "a.safetensors", {"clip_g": WIDER, "clip_l": VECTORS}), "toy")
    data = b"".join(
        f'["{role}", "F32", [3, {len(table[0])}]]'.encode() + np.asarray(table).tobytes()
        for role, table in (("clip_g", WIDER), ("clip_l", VECTORS))
    )
    assert learnt.sha256 == hashlib.sha256(data).hexdigest()
