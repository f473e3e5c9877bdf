"""A refused file is told for what it seems to be."""

import pytest
import torch
from safetensors.torch import save_file

from runner.errors import ModelError
from runner.model import files


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"], "a LoRA"),
        (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "a LoRA"),
        (["emb_params"], "an embedding"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "an autoencoder"),
        (["text_model.embeddings.token_embedding.weight"], "a text encoder alone"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a UNet alone"),
        (["control_model.input_hint_block.0.weight"], "a ControlNet"),
        (["conditioner.embedders.1.model.ln_final.weight"], "a Stable Diffusion XL model"),
        (["double_blocks.0.img_attn.qkv.weight"], "a Flux model"),
        (["joint_blocks.0.x"], "a Stable Diffusion 3 model"),
    ],
)
def test_weights_of_another_kind(tmp_path, names, words):
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=f"it seems to be {words}"):
        files.find_model(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'{"error": "Unauthorized"}', "a text in JSON"),
        (b"GGUF\3\0\0\0", "a GGUF file"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"", "is empty"),
        (b"what is this", "is neither"),
    ],
)
def test_bytes_of_another_kind(tmp_path, content, words):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ModelError, match=words):
        files.find_model(str(tmp_path / "x.ckpt"))


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000, "nul\0nul", "~nobody-of-this-name/m"])
def test_paths_that_the_system_refuses(path):
    with pytest.raises(ModelError, match=r"model\.path="):
        files.find_model(path)


def test_a_pipe_is_no_model(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="is not a file"):
        files.find_model(str(tmp_path / "pipe"))
