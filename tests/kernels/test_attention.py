import math

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from runner.kernels import attention
from runner.machine import describe

TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make(most=0.0, tokens=16):
    """A layer, what it is called with, and what it returned before it was replaced."""
    torch.manual_seed(1)
    layer = Attention(query_dim=32, cross_attention_dim=24, heads=4, dim_head=8).eval()
    image, prompts = random(2, tokens, 32), random(2, 77, 24, seed=2)
    wanted = layer(image, encoder_hidden_states=prompts)
    attention.put_into_place(layer, most)
    return layer, image, prompts, wanted


@pytest.mark.parametrize(("most", "products"), [(0, 0), (16 * 77, 0), (16 * 77 + 1, 1), (math.inf, 1)])
def test_products_are_for_fewer_scores_than_the_most(monkeypatch, most, products):
    layer, image, prompts, wanted = make(most)
    made, by_products = [], attention.attend_by_products
    monkeypatch.setattr(attention, "attend_by_products", lambda *given: made.append(1) or by_products(*given))
    torch.testing.assert_close(layer(image, encoder_hidden_states=prompts), wanted)
    assert len(made) == products


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [8, 16, 24])
@pytest.mark.parametrize("scores", [1 << 21, 2000, 50])
def test_attention_by_products_is_attention(limit, dtype, channels, scores):
    """For narrow heads and others, in one piece, in pieces of some heads, and of some tokens of one head."""
    limit(attention, SCORES=scores)
    query = random(2, 4, 40, channels, dtype=dtype)
    for tokens in (40, 77):
        key, value = (random(2, 4, tokens, channels, dtype=dtype, seed=seed) for seed in (3, 4))
        found = attention.attend_by_products(query, key, value)
        exact = nn.functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
        assert found.shape == exact.shape
        allowed = 1e-5 if dtype == torch.float32 else 0.02
        assert float((found.double() - exact).norm() / exact.norm()) < allowed
        swapped = attention.attend_by_products(query.flip(0), key.flip(0), value.flip(0)).flip(0)
        assert torch.equal(found, swapped)


@pytest.mark.parametrize(
    ("sets", "dtype", "most"),
    [(("avx2", "avx512_bf16"), torch.bfloat16, math.inf), (("avx512_bf16", "amx_bf16"), torch.bfloat16, 0),
     (("avx512_bf16", "amx_bf16"), torch.float32, 1 << 16), ((), torch.float32, 1 << 16), ((), torch.bfloat16, 0)],
)  # fmt: skip
def test_which_cpus_multiply_instead(monkeypatch, sets, dtype, most):
    monkeypatch.setattr(describe, "instruction_sets", lambda: sets)
    assert attention.most_scores(dtype) == most


@pytest.mark.parametrize(
    "changes", [{"residual_connection": True}, {"norm_num_groups": 4}, {"cross_attention_norm": "layer_norm"}]
)
def test_attention_that_does_more_is_left_alone(changes):
    layer = Attention(query_dim=16, heads=2, dim_head=8, **changes)
    attention.put_into_place(layer, math.inf)
    assert type(layer) is Attention
