"""What files of a model may say: anything else is refused with the file, the key and the value, and nothing breaks."""

from __future__ import annotations

import json
import random
import shutil

import hypothesis
import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from runner.engine.samplers import NoiseSchedule
from runner.errors import ModelError
from runner.model import files, modules
from runner.model.tokens import SHIPPED, ClipTokenizer, tokenizers

FILES = ("unet/config.json", "text_encoder/config.json", "vae/config.json", "scheduler/scheduler_config.json")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")
    shutil.copytree(SHIPPED, folder / "tokenizer")
    return folder


@pytest.fixture
def folder(shipped, tmp_path):
    return shutil.copytree(shipped, tmp_path / "tiny")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def use(folder):
    """All that is done with a model's files before a picture is made."""
    model = files.find_model(str(folder))
    for tokenizer in tokenizers(model).values():
        tokenizer.encode("a cat")
    NoiseSchedule.from_config(model.configs["scheduler"])
    return [modules.build_module(model, name) for name in model.family.components]


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet/config.json", "addition_embed_type", "text_time"),
        ("unet/config.json", "class_embed_type", "timestep"),
        ("unet/config.json", "encoder_hid_dim", 4),
        ("unet/config.json", "cross_attention_dim", [16, 16, 16]),
        ("unet/config.json", "attention_type", "gated"),
        ("unet/config.json", "time_embedding_type", "fourier"),
        ("unet/config.json", "quantization_config", {"load_in_8bit": True}),
        ("text_encoder/config.json", "max_position_embeddings", 248),
        ("text_encoder/config.json", "hidden_act", "gelu_new"),
        ("text_encoder/config.json", "quantization_config", {"bits": 4}),
        ("vae/config.json", "shift_factor", 0.1),
        ("vae/config.json", "latents_mean", [0.0]),
        ("scheduler/scheduler_config.json", "prediction_type", "sample"),
        ("scheduler/scheduler_config.json", "prediction_type", "velocity"),
        ("scheduler/scheduler_config.json", "beta_schedule", "laplace"),
        ("scheduler/scheduler_config.json", "beta_start", None),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1, 0.2]),
        ("scheduler/scheduler_config.json", "use_flow_sigmas", True),
        ("scheduler/scheduler_config.json", "thresholding", True),
        ("scheduler/scheduler_config.json", "_class_name", "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_what_would_change_pictures_and_is_not_known_is_refused_by_name(folder, file, key, value):
    change(folder / file, **{key: value})
    with pytest.raises(ModelError) as caught:
        use(folder)
    assert str(folder / file) in str(caught.value) and key in str(caught.value)


def test_a_missing_key_is_named(folder):
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({key: v for key, v in json.loads(file.read_text()).items() if key != "beta_start"}))
    with pytest.raises(ModelError, match=r"scheduler_config\.json: beta_start is missing; it must be a number"):
        use(folder)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_does_not_choose_code(folder, key):
    change(
        folder / "text_encoder/config.json", use_kernels=True, auto_map={"AutoModel": "x.Y"}, **{key: "owner/kernel"}
    )
    encoder = use(folder)[0]
    assert encoder.config._attn_implementation == "sdpa"
    assert not hasattr(encoder.config, "use_kernels") and not hasattr(encoder.config, "auto_map")


def test_components_of_two_models_are_told(folder):
    change(folder / "text_encoder/config.json", hidden_size=32)
    with pytest.raises(ModelError, match=r"texts of 16 numbers \(cross_attention_dim\).*makes 32 \(hidden_size\)"):
        use(folder)


WRONG = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, -1, 2**70, 1e400, float("nan"), "", "\ud800", "x" * 500, 3, 77]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)


@hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
def test_any_value_of_any_key_is_used_or_refused(shipped, tmp_path_factory, data):
    folder = shutil.copytree(shipped, tmp_path_factory.mktemp("m") / "tiny", copy_function=shutil.copy)
    try:
        places = (*FILES, "tokenizer/tokenizer_config.json", "tokenizer/added_tokens.json", "model_index.json")
        file = folder / data.draw(st.sampled_from(places))
        known = json.loads(file.read_text()) if file.exists() else {}
        key = data.draw(st.sampled_from([*known, "added_tokens_decoder", "pad_token", "trained_betas", "<x>"]))
        file.write_text(json.dumps(known | {key: data.draw(WRONG)}), encoding="utf-8", errors="surrogatepass")
        try:
            use(folder)
        except ModelError as error:
            assert str(folder) in str(error)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", b"{}"), ("tokenizer.json", b"\xff"), ("vocab.json", b"[]"), ("merges.txt", b"\xff\xfe"),
     ("tokenizer_config.json", b"[" * 100_000), ("added_tokens.json", b'{"a": "x"}'), ("vocab.json", b'{"a": -1}')],
)  # fmt: skip
def test_a_broken_tokenizer_is_named(folder, name, content):
    if name == "tokenizer.json":
        for other in ("vocab.json", "merges.txt"):
            (folder / "tokenizer" / other).unlink()
    (folder / "tokenizer" / name).write_bytes(content)
    with pytest.raises(ModelError, match="tokenizer"):
        use(folder)


def test_a_tokenizer_without_merges_is_not_whole(folder):
    (folder / "tokenizer/merges.txt").unlink()
    with pytest.raises(ModelError, match=r"merges\.txt: is missing"):
        use(folder)


@pytest.mark.parametrize("variant", [None, "fp16", "ema"])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["10GB", "20KB"])
@pytest.mark.some(4)
def test_every_form_of_save_pretrained_is_read(shipped, tmp_path, variant, safe, size):
    unet = UNet2DConditionModel.from_pretrained(shipped / "unet")
    unet.save_pretrained(tmp_path / "unet", variant=variant, safe_serialization=safe, max_shard_size=size)
    if safe:  # transformers no longer writes pickles
        text = CLIPTextModel.from_pretrained(shipped / "text_encoder")
        text.save_pretrained(tmp_path / "text_encoder", variant=variant, max_shard_size=size)
    else:
        shutil.copytree(shipped / "text_encoder", tmp_path / "text_encoder")
    for name in ("vae", "scheduler", "tokenizer"):
        shutil.copytree(shipped / name, tmp_path / name)
    assert len(list((tmp_path / "unet").iterdir())) > 2 or size == "10GB"
    assert len(use(tmp_path)) == 3


def test_full_precision_comes_before_variants_and_two_unknown_ones_are_a_question(folder):
    whole = folder / "unet/diffusion_pytorch_model.safetensors"
    for variant in ("fp16", "ema", "non_ema"):
        save_file({"x": torch.zeros(1)}, folder / f"unet/diffusion_pytorch_model.{variant}.safetensors")
    use(folder)
    whole.unlink()
    with pytest.raises(ModelError, match="don't fit"):  # fp16 was taken
        use(folder)
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(ModelError, match="has the variants ema, non_ema"):
        use(folder)


@pytest.mark.parametrize(
    "index", ['{"weight_map": ["a"]}', "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "gone"}}']
)
def test_an_index_that_names_no_files_is_told(folder, index):
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"weight_map|is missing, and"):
        use(folder)


@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**32))
def test_a_mutated_file_of_weights_is_read_or_refused(shipped, tmp_path_factory, seed):
    whole = (shipped / "vae/diffusion_pytorch_model.safetensors").read_bytes()
    chosen, place = random.Random(seed), tmp_path_factory.mktemp("w")
    changed = bytearray(whole)
    for _ in range(chosen.randint(1, 6)):
        position = chosen.randrange(min(len(changed), 4000))
        match chosen.randrange(3):
            case 0:
                changed[position] = chosen.randrange(256)
            case 1:
                del changed[position : position + chosen.randrange(40)]
            case _:
                changed[position:position] = bytes(chosen.randrange(256) for _ in range(chosen.randrange(9)))
    (place / "x.safetensors").write_bytes(changed)
    try:
        table = files.read_tensors(place / "x.safetensors")
    except ModelError as error:
        assert str(place) in str(error)
    else:
        assert all(tensor.end <= len(changed) for tensor in table.values())
    finally:
        shutil.rmtree(place)


def test_the_tokenizer_is_transformers_own(folder):
    stock = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))
    ours = ClipTokenizer(folder / "tokenizer")
    for text in ("a cat", "Ünïcode 猫 ☕", "", "a" * 300):
        assert (
            list(ours.encode(text).ids) == stock(text, padding="max_length", truncation=True, max_length=77).input_ids
        )
