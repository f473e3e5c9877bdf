import gc

import pytest
import tiny
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from runner import fragments, layers, machine, upsampling, weights
from runner.checkpoint import build_module
from runner.costs import STAYS, VISITS, WALKS

TYPES = [torch.float32, torch.bfloat16]
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def needs(dtype):
    if not layers.SUPPORTED[dtype]():
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
    layers.replace_layers(packed, dtype)
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
    layers.replace_layers(packed, dtype)
    for shape in [(2, 64, 48), (2, 64, 48), (77, 48), (1, 48)]:
        torch.testing.assert_close(packed(random(*shape, dtype=dtype)), plain(random(*shape, dtype=dtype)))
        assert packed.weight.is_meta


def test_memory_of_a_weight_that_was_packed_is_given_back():
    layer = nn.Linear(512, 512)
    whole = torch.zeros(512 * 513)  # as a part of a model arrives
    layer.weight = nn.Parameter(whole[: 512 * 512].view(512, 512), requires_grad=False)
    layer.bias = nn.Parameter(whole[512 * 512 :], requires_grad=False)
    assert layer.bias.untyped_storage().nbytes() == 512 * 513 * 4
    layers.replace_layers(layer, torch.float32)
    layer(random(2, 512))
    assert layer.bias.untyped_storage().nbytes() == 512 * 4  # nothing else keeps what arrived


def test_layers_of_another_kind_are_left_alone():
    padded = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    normed = Attention(query_dim=16, heads=2, dim_head=8, norm_num_groups=4, residual_connection=True)
    module = nn.ModuleList([padded, nn.GroupNorm(2, 4), normed])
    layers.replace_layers(module, torch.float32)
    assert type(padded) is nn.Conv2d
    assert isinstance(normed.processor, AttnProcessor2_0)


def attention(dtype, by_products=False, tokens=16, context_tokens=77):
    torch.manual_seed(1)
    layer = Attention(query_dim=32, cross_attention_dim=24, heads=4, dim_head=8).to(dtype).eval()
    image, prompts = random(2, tokens, 32, dtype=dtype), random(2, context_tokens, 24, dtype=dtype, seed=2)
    wanted = layer(image, encoder_hidden_states=prompts)
    layer.processor = layers.KeepingAttention(by_products=by_products)
    return layer, image, prompts, wanted


@pytest.mark.parametrize("tokens", [16, 100])
def test_what_a_prompt_becomes_is_kept_where_the_image_has_fewer_tokens(tokens):
    layer, image, prompts, wanted = attention(torch.float32, tokens=tokens)
    calls = []
    layer.to_k.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        assert torch.equal(layer(image, encoder_hidden_states=prompts), wanted)
    assert len(calls) == (1 if tokens <= 77 else 3)
    others = prompts.flip(0)
    assert not torch.equal(layer(image, encoder_hidden_states=others), wanted)
    del prompts, others
    gc.collect()
    assert len(layer.processor._kept) == 0  # nothing outlives the prompts


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scores", [1 << 21, 2000, 50])
def test_attention_by_products_is_attention(monkeypatch, dtype, scores):
    monkeypatch.setattr(layers, "SCORES", scores)
    query = random(2, 4, 40, 16, dtype=dtype)
    for tokens in (40, 77):
        key, value = (random(2, 4, tokens, 16, dtype=dtype, seed=seed) for seed in (3, 4))
        found = layers.attend_by_products(query, key, value)
        exact = nn.functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
        allowed = 1e-5 if dtype == torch.float32 else 0.02
        assert float((found.double() - exact).norm() / exact.norm()) < allowed
        swapped = layers.attend_by_products(query.flip(0), key.flip(0), value.flip(0)).flip(0)
        assert torch.equal(found, swapped)


@pytest.mark.parametrize(
    ("sets", "dtype", "products"),
    [(("avx2", "avx512_bf16"), torch.bfloat16, True), (("avx512_bf16", "amx_bf16"), torch.bfloat16, False),
     (("avx512_bf16",), torch.float32, False), ((), torch.bfloat16, False)],
)  # fmt: skip
def test_which_cpus_multiply_instead(monkeypatch, sets, dtype, products):
    monkeypatch.setattr(machine, "instruction_sets", lambda: sets)
    layer, *_ = attention(torch.float32)
    layers.replace_layers(layer, dtype)
    assert layer.processor._by_products == products


@pytest.mark.parametrize("dtype", TYPES)
def test_a_unet_gives_the_same_bits_in_every_mode_and_size(tmp_path, dtype):
    needs(dtype)
    model = weights.find_model(str(tiny.save_model(tmp_path / "tiny")))
    found = {}
    for mode in (STAYS, VISITS, WALKS):
        module = build_module(model, "unet")
        upsampling.merge_upsampling(module)
        layers.replace_layers(module, dtype)
        unet = fragments.Component(module, model.tensors["unet"], device=torch.device("cpu"), dtype=dtype, mode=mode)
        found[mode] = []
        for size in (8, 16, 8):
            latents = random(4, 4, size, size, dtype=dtype, seed=size)
            prompts, times = random(4, 77, 16, dtype=dtype), torch.full((4,), 500.0)
            call = [lambda unet, x=latents, c=prompts, t=times: unet(x, t, encoder_hidden_states=c).sample]
            found[mode] += unet.call_all(call * 2) + unet.call_all(call)
    assert all(torch.equal(*pair) for mode in (VISITS, WALKS) for pair in zip(found[STAYS], found[mode], strict=True))
    assert torch.equal(found[STAYS][0], found[STAYS][6])
