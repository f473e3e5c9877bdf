"""The training of the embedded model, in what can be known without it: what is exported, how a stage goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

EMOJI = Path(__file__).parents[1] / "tools/emoji"


@pytest.fixture
def tools(monkeypatch):
    """Lets a test import the modules of `tools/emoji`, which are no package."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EMOJI))
    yield
    for name in set(sys.modules) - before:
        if (EMOJI / f"{name}.py").exists():
            del sys.modules[name]


@torch.no_grad()
def test_an_exported_autoencoder_takes_and_gives_latents_of_unit_deviation(tools):
    import networks

    torch.manual_seed(0)
    vae, pixels = networks.build_vae().eval(), torch.rand(2, 3, 32, 32) * 2 - 1
    before = vae.encode(pixels).latent_dist
    _, mean, deviation = networks.scaled_latents(before.mean.half())
    decoded = vae.decode(before.mean).sample
    networks.absorb(vae, mean, deviation)
    after = vae.encode(pixels).latent_dist
    wide = [values[None, :, None, None] for values in (mean, deviation)]
    torch.testing.assert_close(after.mean, (before.mean - wide[0]) / wide[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.std, before.std / wide[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vae.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-4)
    assert vae.config.scaling_factor == 1


def test_a_stage_goes_on_from_its_checkpoint(tools, tmp_path):
    """In two sittings as in one, to the bit: weights, their average, momentum and the learning rate."""
    import progress

    class Steps(progress.Clock):
        """Each step is a minute."""

        @property
        def spent(self):
            return self.before

        def steps(self):
            while self.spent < self.minutes:
                yield self.spent / 8
                self.before += 1

    def train(file, minutes):
        torch.manual_seed(0)
        training = progress.Training(file, Steps(minutes), 1e-2, torch.nn.Linear(4, 4))
        for _ in training.steps():
            wanted = torch.full((4,), float(training.step))
            training.learn((training.trained(torch.ones(4)) - wanted).square().mean())
        return training

    train(tmp_path / "two", 4)
    twice, once = train(tmp_path / "two", 8), train(tmp_path / "one", 8)
    assert twice.step == once.step == 8
    for name in ("trained", "averaged"):
        assert_same(twice.parts[name].state_dict(), once.parts[name].state_dict())
    moved = (once.trained.weight - once.averaged.weight).abs().max()
    assert moved > 0  # the average lags behind


def test_the_step_of_muon_is_nearly_orthogonal(tools):
    import muon

    torch.manual_seed(0)
    for shape in ((8, 40), (40, 8)):
        values = torch.linalg.svdvals(muon.orthogonal(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.3


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name])
