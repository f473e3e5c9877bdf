"""Builds a model's modules from its configurations, and reads its tensors: plain reads, no pickle, no network.

The modules are diffusers' and transformers', built without weights; `device.component` fills them in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from io import FileIO
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from runner.errors import ModelError
from runner.model.deltas import read_changed
from runner.model.files import ModelFiles
from runner.model.safetensors import StoredTensor
from runner.text import name_some

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
STAGED = 1 << 15  # numbers converted at once: so few that torch starts no threads for them, and caches hold them


def build_module(model: ModelFiles, component: str) -> nn.Module:
    """A component's module, its parameters on the meta device.

    Raises:
        ModelError: the weights are not the ones that the configuration asks for.
    """
    try:
        with torch.device("meta"):
            module = _construct(component, model.configs[component])
    except Exception as error:  # numbers that don't fit each other raise almost anything
        raise ModelError(f"{model.path}: the {component}'s configuration doesn't describe a model ({error})") from error
    _restore_buffers(module)
    _check_tensors(model, component, module)
    return module.eval().requires_grad_(False)


def read_tensor(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """A tensor from its file."""
    tensor = torch.empty(stored.shape, dtype=dtype)
    read_tensor_into(stored, tensor)
    return tensor


def read_tensor_into(stored: StoredTensor, target: Tensor) -> None:
    """Reads a tensor from its file into memory that is there, contiguous and on the CPU, as that memory's type."""
    if stored.changes:
        read_changed(stored, target, partial(read_tensor, dtype=torch.float32))
        return
    if stored.transposed:
        read_tensor_into(
            replace(stored, transposed=False), there := torch.empty(stored.shape[::-1], dtype=target.dtype)
        )
        target.copy_(there.T)
        return
    flat, source = target.view(-1), DTYPES[stored.dtype]
    with stored.file.open("rb", buffering=0) as stream:
        stream.seek(stored.start)
        if source == target.dtype:
            _read_bytes(stream, flat, stored)
            return
        staging = torch.empty(min(STAGED, flat.numel()), dtype=source)
        exact = torch.empty(len(staging), dtype=torch.float32)
        for piece in torch.split(flat, STAGED):
            read, between = staging[: len(piece)], exact[: len(piece)]
            _read_bytes(stream, read, stored)
            piece.copy_(between.copy_(read))  # from one half to the other directly takes torch five times as long


def _read_bytes(stream: FileIO, target: Tensor, stored: StoredTensor) -> None:
    view = target.view(torch.uint8).numpy().data
    while len(view):
        if not (read := stream.readinto(view)):
            raise ModelError(f"{stored.file}: ends too early; was it changed while it was in use?")
        view = view[read:]


def _construct(component: str, config: Mapping[str, Any]) -> nn.Module:
    if text := {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}.get(component):
        made: nn.Module = text(CLIPTextConfig(**config, attn_implementation="sdpa"))
        return made
    made = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[component].from_config(dict(config))
    return made


def _restore_buffers(module: nn.Module) -> None:
    """Buffers are made on the meta device too; CLIP's only one counts positions."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if name != "position_ids":
                raise ModelError(f"a model with a buffer {name} is not known")
            owner.register_buffer(name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)


def _check_tensors(model: ModelFiles, component: str, module: nn.Module) -> None:
    wanted = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    found = {name: stored.shape for name, stored in model.tensors[component].items()}
    problems = [
        f"{title}: {name_some(names)}"
        for title, names in (
            ("missing", sorted(wanted.keys() - found.keys())),
            ("unexpected", sorted(found.keys() - wanted.keys())),
            ("of another shape", sorted(n for n in wanted.keys() & found.keys() if wanted[n] != found[n])),
        )
        if names
    ]
    if problems:
        raise ModelError(f"{model.path}: the {component}'s weights don't fit its configuration; {'; '.join(problems)}")
