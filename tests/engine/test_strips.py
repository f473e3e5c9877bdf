import pytest
import tiny
import torch
from diffusers import AutoencoderKL
from torch import nn

from runner.engine import strips
from runner.machine.heap import process_heap
from runner.planning import costs


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(3)
    settings = dict(tiny.components()[2].config) | {"block_out_channels": (16, 24, 32, 32), "norm_num_groups": 8}
    settings |= {
        f"{way}_block_types": [f"{way.title()}EncoderBlock2D".replace("UpEn", "UpDe")] * 4 for way in ("down", "up")
    }
    return AutoencoderKL.from_config(settings).eval()


@pytest.fixture(params=[1 << 9, 1 << 12, 1 << 15, 1 << 30])
def elements(request, monkeypatch):
    """Numbers in a strip: from the least number of rows to the whole picture."""
    monkeypatch.setitem(costs.STRIP_ELEMENTS, "cpu", request.param)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 4, 24, 40), (1, 4, 40, 16)])
@torch.inference_mode()
def test_a_picture_in_strips_is_the_whole_picture(vae, elements, shape):
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    whole = vae.decode(latents).sample
    in_strips = torch.cat(list(strips.decode(vae, latents)), 2)
    assert in_strips.shape == whole.shape
    assert (in_strips - whole).abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 3, 192, 128)])
@torch.inference_mode()
def test_latents_from_strips_are_those_of_the_whole_picture(vae, elements, shape):
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = vae.encode(pixels).latent_dist.parameters
    assert (strips.encode(vae, pixels) - whole).abs().max() < 1e-4 * whole.abs().max()


@torch.inference_mode()
def test_a_mean_far_from_zero_does_not_harm_the_statistics():
    norm = torch.nn.GroupNorm(4, 8)
    picture = torch.randn((1, 8, 64, 32), generator=torch.Generator().manual_seed(1)) + 30
    found = torch.cat([strips._Norm(norm, list(picture.split(16, 2)))(strip) for strip in picture.split(16, 2)], 2)
    wanted = torch.nn.functional.silu(norm(picture))
    assert (found - wanted).abs().max() < 1e-3


def test_statistics_of_many_strips_look_at_the_ceiling_too(monkeypatch):
    looks = []
    monkeypatch.setattr(process_heap(), "check", lambda: looks.append(1))
    strips._Norm(nn.GroupNorm(2, 4), [torch.ones(1, 4, 4, 8) for _ in range(7)])
    assert len(looks) == 7
