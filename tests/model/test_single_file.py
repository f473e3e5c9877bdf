import json
from pathlib import Path

import pytest
import single_file
import torch
from diffusers.loaders import single_file_utils as stock
from safetensors.torch import save_file
from transformers import CLIPTextModel

from runner.errors import ModelError
from runner.model import files, modules
from runner.model import single_file as model_single_file
from runner.model.safetensors import StoredTensor

COMPONENTS = ("text_encoder", "unet", "vae")
COUNTS = {1: (196, 686, 248), 2: (372, 686, 248)}  # tensors of the released models


def table_of(state, file=Path("x.ckpt")):
    """A table of tensors that have no bytes."""
    return {
        name: StoredTensor(file=file, dtype="F32", shape=tuple(tensor.shape), start=0, end=4 * tensor.numel())
        for name, tensor in state.items()
    }


def read(state):
    return model_single_file.read_single_file(Path("x.ckpt"), table_of(state))


@pytest.fixture(scope="module", params=[1, 2])
def released(request):
    """A model of full size: its version, its parts, the same by CompVis' names."""
    parts = single_file.full(request.param)
    state = single_file.to_compvis(parts)
    return request.param, parts, single_file.with_last_layer(state) if request.param == 2 else state


def test_the_released_models_are_read_whole(released):
    version, parts, state = released
    found = read(state)
    assert tuple(len(found.tensors[name]) for name in COMPONENTS) == COUNTS[version]
    model = files.ModelFiles(name="x", path=Path("x.ckpt"), configs=found.configs, tensors=found.tensors)
    for name, part in zip(COMPONENTS, parts, strict=True):
        built = modules.build_module(model, name)  # compares names and shapes
        wanted = {name: tuple(tensor.shape) for name, tensor in part.named_parameters()}
        assert {name: tuple(tensor.shape) for name, tensor in built.named_parameters()} == wanted
    assert model.latent_factor == 8


def test_the_released_models_have_their_own_configurations(released):
    version, parts, state = released
    found = read(state)
    for name, part in zip(COMPONENTS, parts, strict=True):
        for key, value in found.configs[name].items():
            wanted = getattr(part.config, key)
            assert wanted == (tuple(value) if isinstance(wanted, tuple) else value), key
    assert found.configs["scheduler"]["prediction_type"] == {1: "epsilon", 2: "auto"}[version]
    assert found.family.text.pad_token == {1: None, 2: "!"}[version]


def convert_by_diffusers(version, parts, state):
    """The same by diffusers' own converters, less what they keep and today's models don't have."""
    text, unet, vae = parts
    by_clip = stock.convert_ldm_clip_checkpoint, stock.convert_open_clip_checkpoint
    texts = by_clip[0](state) if version == 1 else by_clip[1](text, state)
    unets, vaes = (
        stock.convert_ldm_unet_checkpoint(state, unet.config),
        stock.convert_ldm_vae_checkpoint(state, vae.config),
    )
    leftover = ("embeddings.position_ids", "text_projection.weight")
    named = ({files.current_name(key): tensor for key, tensor in each.items()} for each in (texts, unets, vaes))
    return [{key: tensor for key, tensor in each.items() if key not in leftover} for each in named]


def test_the_names_are_those_of_the_stock_converters(released):
    found = read(released[2]).tensors
    for name, converted in zip(COMPONENTS, convert_by_diffusers(*released), strict=True):
        wanted = {key: tuple(tensor.shape) for key, tensor in converted.items()}
        assert {key: tensor.shape for key, tensor in found[name].items()} == wanted


@pytest.mark.parametrize("version", [1, 2])
def test_small_models_are_read_by_their_shapes(version):
    parts = single_file.small(version)
    found = read(single_file.to_compvis(parts))
    for name, part in zip(COMPONENTS, parts, strict=True):
        wanted = {key: tuple(tensor.shape) for key, tensor in part.named_parameters()}
        assert {key: tensor.shape for key, tensor in found.tensors[name].items()} == wanted
    assert found.configs["unet"]["block_out_channels"] == [64, 64, 128]
    assert found.configs["text_encoder"]["num_hidden_layers"] == 2


@pytest.mark.parametrize("version", [1, 2])
def test_the_tensors_are_the_folders_own(version, tmp_path):
    parts = single_file.small(version)
    file = tmp_path / "x.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in single_file.to_compvis(parts).items()}, file)
    model = files.find_model(str(file))
    converted = convert_by_diffusers(version, parts, single_file.to_compvis(parts))
    for name, part, same in zip(COMPONENTS, parts, converted, strict=True):
        for key, parameter in part.named_parameters():
            read_here = modules.read_tensor(model.tensors[name][key], torch.float32)
            assert torch.equal(read_here, parameter) and torch.equal(read_here, same[key]), key


def test_the_text_encoder_is_the_stock_one_to_the_bit(tmp_path):
    """Of v2, whose tensors are cut in three."""
    text = single_file.small(2)[0]
    config = read(single_file.to_compvis(single_file.small(2))).configs["text_encoder"]
    made = CLIPTextModel(type(text.config)(**config)).eval()
    made.load_state_dict(text.state_dict())
    tokens = torch.arange(77)[None] * 7
    with torch.inference_mode():
        assert torch.equal(made(tokens).last_hidden_state, text(tokens).last_hidden_state)


def drop(prefix):
    return lambda state: [state.pop(name) for name in list(state) if name.startswith(prefix)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("cond_stage_model."), ["no text encoder (cond_stage_model.transformer.*)"]),
        (drop("first_stage_model."), ["no autoencoder (first_stage_model.*)"]),
        (drop("model.diffusion_model."), ["no UNet"]),
        (drop(""), ["no text encoder", "no UNet", "no autoencoder"]),
        (lambda s: s.update({"control_model.a": torch.zeros(1)}), ["unexpected: control_model.a"]),
        (lambda s: (drop("cond_stage_model.")(s), s.update({"conditioner.embedders.1.x": torch.zeros(1)})),
         ["a Stable Diffusion XL model"]),
        (lambda s: s.pop("first_stage_model.encoder.conv_in.weight"), ["missing: encoder.conv_in.weight"]),
        (
            lambda s: s.update({"cond_stage_model.transformer.final_layer_norm.bias": torch.zeros(64)}),
            ["final_layer_norm.bias twice"],
        ),
        (
            lambda s: s.update({"model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight":
                                torch.zeros(3)}),
            ["shape"],
        ),
    ],
)  # fmt: skip
def test_what_is_no_stable_diffusion_is_refused(change, words):
    state = single_file.to_compvis(single_file.small(1))
    change(state)
    with pytest.raises(ModelError) as caught:
        read(state)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_weights_that_do_not_fit_are_listed():
    state = single_file.to_compvis(single_file.small(1))
    state.pop("model.diffusion_model.output_blocks.1.1.proj_in.bias", None)
    state.pop("model.diffusion_model.out.2.bias")
    state["model.diffusion_model.label_emb.0.0.weight"] = torch.zeros(3)
    found = read(state)
    model = files.ModelFiles(name="x", path=Path("x.ckpt"), configs=found.configs, tensors=found.tensors)
    with pytest.raises(ModelError) as caught:
        modules.build_module(model, "unet")
    assert "x.ckpt: the unet's weights" in str(caught.value)
    assert "missing: conv_out.bias" in str(caught.value)
    assert "unexpected: add_embedding.linear_1.weight" in str(caught.value)


def test_a_projection_that_cannot_be_cut_in_three_is_refused():
    state = single_file.to_compvis(single_file.small(2))
    state["cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"] = torch.zeros(65, 64)
    with pytest.raises(ModelError, match="three equal parts"):
        read(state)


@pytest.mark.parametrize("version", [1, 2])
def test_an_inpainting_model_has_the_latents_of_its_autoencoder(tmp_path, version):
    state = single_file.to_compvis(single_file.small(version))
    state["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(64, 9, 3, 3)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "x.safetensors")
    model = files.find_model(str(tmp_path / "x.safetensors"))
    assert (model.configs["unet"]["in_channels"], model.latent_channels, model.inpaints) == (9, 4, True)


@pytest.mark.parametrize("channels", [5, 7, 8])
def test_models_for_depth_and_upscaling_are_refused(tmp_path, channels):
    state = single_file.to_compvis(single_file.small(1))
    state["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(64, channels, 3, 3)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=rf"takes {channels} channels .* models for depth, upscaling"):
        files.find_model(str(tmp_path / "x.safetensors"))


def test_configurations_are_plain_json():
    found = read(single_file.to_compvis(single_file.small(2)))
    assert json.loads(json.dumps(found.configs)) == found.configs


@pytest.mark.parametrize(
    ("markers", "said"),
    [
        (["v_pred"], {"prediction_type": "v_prediction", "rescale_betas_zero_snr": False}),
        (["ztsnr"], {"prediction_type": "epsilon", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
        (["v_pred", "ztsnr"], {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ],
)
def test_comfyuis_marks_say_what_a_model_was_trained_for(markers, said):
    state = single_file.to_compvis(single_file.small(1)) | {name: torch.zeros(0) for name in markers}
    scheduler = read(state).configs["scheduler"]
    assert scheduler | said == scheduler
