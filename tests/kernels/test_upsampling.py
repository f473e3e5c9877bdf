"""Upsampling and the convolution after it in one give what the two give."""

import pytest
import tiny
import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn

from runner.kernels import upsampling
from runner.kernels.replace import SUPPORTED, replace_layers

TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def make_upsampler(dtype=torch.float32, **changes):
    torch.manual_seed(3)
    return Upsample2D(12, **{"use_conv": True, "out_channels": 20} | changes).to(dtype)


def merge(upsampler):
    module = nn.ModuleList([upsampler])
    upsampling.merge_upsampling(module)
    return module


def pack(module, dtype):
    if not SUPPORTED[dtype]():
        pytest.skip(f"this CPU has no {dtype}")
    replace_layers(module, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_a_merged_upsampler_is_the_plain_one_for_any_size_it_meets(dtype, bias, packed):
    plain, merged = (make_upsampler(dtype, bias=bias) for _ in range(2))
    module = merge(merged)
    if packed:
        pack(module, dtype)
    for shape in [(2, 12, 8, 8), (2, 12, 8, 8), (1, 12, 5, 3), (32, 12, 1, 2), (2, 12, 8, 8)]:
        sent = random(*shape).to(dtype).contiguous(memory_format=torch.channels_last)
        made = merged(sent)
        assert made.is_contiguous(memory_format=torch.channels_last)
        wanted = plain.to(torch.float32)(sent.float())
        rounding = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
        torch.testing.assert_close(made.float(), wanted, atol=rounding, rtol=rounding)
    assert merged.conv.weight.is_meta == packed


@pytest.mark.parametrize("dtype", TYPES)
def test_packing_changes_no_bit(dtype):
    plain, packed = make_upsampler(dtype), make_upsampler(dtype)
    merge(plain)
    pack(merge(packed), dtype)
    sent = random(2, 12, 8, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain(sent), packed(sent))


def test_each_copy_of_a_pixel_has_its_own_sums():
    weight = torch.tensor([[1.0, 2, 4], [8, 16, 32], [64, 128, 256]]).view(1, 1, 3, 3)
    assert upsampling.sum_weights(weight).tolist() == [
        [[[1, 6], [72, 432]]],
        [[[3, 4], [216, 288]]],
        [[[9, 54], [64, 384]]],
        [[[27, 36], [192, 256]]],
    ]


def test_few_channels_at_a_time_give_the_same_sums():
    weight = random(2 * upsampling.CHANNELS_AT_ONCE + 3, 5, 3, 3).bfloat16()
    assert torch.equal(upsampling.sum_weights_sparingly(weight), upsampling.sum_weights(weight))


def test_sums_are_rounded_once():
    weight = torch.tensor([[0, 0, 0], [0, 1.0, 2**-8], [0, 2**-8, 2**-8]]).view(1, 1, 3, 3).bfloat16()
    assert upsampling.sum_weights(weight).flatten().tolist()[3] == 1 + 2**-6  # 1 + 3 / 256, one of it after another: 1


def test_a_unet_and_a_decoder_make_the_same_without_repeating_pixels(monkeypatch):
    _, unet, vae = tiny.components()
    latents, prompts = random(2, 4, 16, 24), random(2, 77, 16)

    def predict():
        return unet(latents, 500, encoder_hidden_states=prompts).sample, vae.decode(latents).sample

    wanted = predict()
    for module in (unet, vae):
        upsampling.merge_upsampling(module)
    monkeypatch.setattr(nn.functional, "interpolate", lambda *_, **__: pytest.fail("pixels are repeated"))
    for made, plain in zip(predict(), wanted, strict=True):
        torch.testing.assert_close(made, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_conv": False},
        {"norm_type": "ln_norm", "eps": 1e-5, "elementwise_affine": True},
        {"kernel_size": 1, "padding": 0},
        {"use_conv_transpose": True},
    ],
)
def test_other_upsamplers_are_left_alone(changes):
    upsampler = make_upsampler(**changes)
    sent = random(1, 12, 4, 4).contiguous(memory_format=torch.channels_last)
    wanted = upsampler(sent)
    merge(upsampler)
    assert torch.equal(upsampler(sent), wanted)


def test_a_unet_of_so_many_levels_that_sizes_become_odd_is_left_alone():
    module = nn.ModuleList([make_upsampler() for _ in range(4)])
    upsampling.merge_upsampling(module)
    assert all(type(part.conv) is nn.Conv2d and part.interpolate for part in module)
    assert module[0](random(1, 12, 3, 3), output_size=(5, 5)).shape[2:] == (5, 5)
