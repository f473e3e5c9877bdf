import pytest
import tiny
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from runner.device import component
from runner.kernels import upsampling
from runner.kernels.replace import SUPPORTED, replace_layers
from runner.model import files
from runner.model.modules import build_module
from runner.planning.costs import STAYS, VISITS, WALKS

TYPES = [torch.float32, torch.bfloat16]
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def needs(dtype):
    if not SUPPORTED[dtype]():
        pytest.skip(f"this CPU has no {dtype}")


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_a_packed_convolution_is_the_plain_one_for_any_size_it_meets(dtype, kernel, stride):
    needs(dtype)
    plain = nn.Conv2d(24, 40, kernel, stride, kernel // 2).to(dtype)
    packed = nn.Conv2d(24, 40, kernel, stride, kernel // 2).to(dtype)
    packed.load_state_dict(plain.state_dict())
    replace_layers(packed, dtype)
    for rows, height, width in [(2, 16, 16), (2, 16, 16), (1, 8, 24), (32, 2, 2), (2, 16, 16)]:
        sent = random(rows, 24, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(packed(sent), plain(sent))
        assert packed(sent).is_contiguous(memory_format=torch.channels_last)
        assert packed.weight.is_meta and not packed.bias.is_meta
    restored = packed.packed.weight.to_dense()
    assert torch.equal(restored, plain.weight)  # however often it was packed anew


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_layer_is_the_plain_one(dtype, bias):
    needs(dtype)
    plain, packed = (nn.Linear(48, 80, bias=bias).to(dtype) for _ in range(2))
    packed.load_state_dict(plain.state_dict())
    replace_layers(packed, dtype)
    for shape in [(2, 64, 48), (2, 64, 48), (77, 48), (1, 48)]:
        torch.testing.assert_close(packed(random(*shape, dtype=dtype)), plain(random(*shape, dtype=dtype)))
        assert packed.weight.is_meta


def test_memory_of_a_weight_that_was_packed_is_given_back():
    layer = nn.Linear(512, 512)
    whole = torch.zeros(512 * 513)  # as a part of a model arrives
    layer.weight = nn.Parameter(whole[: 512 * 512].view(512, 512), requires_grad=False)
    layer.bias = nn.Parameter(whole[512 * 512 :], requires_grad=False)
    assert layer.bias.untyped_storage().nbytes() == 512 * 513 * 4
    replace_layers(layer, torch.float32)
    layer(random(2, 512))
    assert layer.bias.untyped_storage().nbytes() == 512 * 4  # nothing else keeps what arrived


def test_layers_of_another_kind_are_left_alone():
    padded = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    normed = Attention(query_dim=16, heads=2, dim_head=8, norm_num_groups=4, residual_connection=True)
    unscaled = nn.GroupNorm(2, 4, affine=False)
    replace_layers(nn.ModuleList([padded, unscaled, normed]), torch.float32)
    assert (type(padded), type(unscaled), type(normed)) == (nn.Conv2d, nn.GroupNorm, Attention)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_group_normalization_is_the_plain_one(dtype, size):
    plain, short = (nn.GroupNorm(8, 24, eps=1e-6).to(dtype) for _ in range(2))
    for number, parameter in enumerate(plain.parameters()):
        parameter.copy_(random(24, dtype=dtype, seed=number))
    short.load_state_dict(plain.state_dict())
    replace_layers(short, dtype)
    sent = 3 + random(5, 24, size, size, dtype=dtype)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        given = sent.contiguous(memory_format=memory_format)
        torch.testing.assert_close(short(given), plain(given))
        assert short(given).is_contiguous(memory_format=memory_format)
        assert torch.equal(short(given.flip(0)).flip(0), short(given))
    for given in (sent.flatten(2), sent.flatten(2).mT.contiguous().mT):  # as attention has it
        torch.testing.assert_close(short(given), plain(given))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_unet_gives_the_same_bits_in_every_mode_and_size(tmp_path, dtype):
    needs(dtype)
    model = files.find_model(str(tiny.save_model(tmp_path / "tiny")))
    found = {}
    for mode in (STAYS, VISITS, WALKS):
        module = build_module(model, "unet")
        upsampling.merge_upsampling(module)
        replace_layers(module, dtype)
        unet = component.Component(module, model.tensors["unet"], device=torch.device("cpu"), dtype=dtype, mode=mode)
        found[mode] = []
        for size in (8, 16, 8):
            latents = random(4, 4, size, size, dtype=dtype, seed=size)
            prompts, times = random(4, 77, 16, dtype=dtype), torch.full((4,), 500.0)
            call = [lambda unet, x=latents, c=prompts, t=times: unet(x, t, encoder_hidden_states=c).sample]
            found[mode] += unet.call_all(call * 2) + unet.call_all(call)
    assert all(torch.equal(*pair) for mode in (VISITS, WALKS) for pair in zip(found[STAYS], found[mode], strict=True))
    assert torch.equal(found[STAYS][0], found[STAYS][6])
