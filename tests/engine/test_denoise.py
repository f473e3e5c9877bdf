import numpy as np
import pytest
import tiny
import torch
from builders import make_item

from runner.device.component import Component
from runner.device.lanes import Lanes
from runner.engine import autoencoder, denoise, samplers
from runner.engine import text as engine_text
from runner.errors import ModelError
from runner.item import Part
from runner.model import files
from runner.model.architecture import V1
from runner.model.modules import build_module
from runner.model.tokens import SHIPPED, ClipTokenizer
from runner.planning import costs


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    model = files.find_model(str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")))
    settings = {"device": torch.device("cpu"), "dtype": torch.float32, "mode": "stays"}
    return {name: Component(build_module(model, name), model.tensors[name], **settings) for name in model.tensors}


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer(SHIPPED)


def encode(components, tokenizer, texts):
    return engine_text.Texts(V1.texts, components, {"text_encoder": tokenizer}).encode(texts)


@torch.inference_mode()
def test_a_text_is_the_same_bits_among_any_others(components, tokenizer):
    texts = ["cat", "white duck", "", "alps", "tiger face on a blue background"]
    together = encode(components, tokenizer, texts)
    for text in texts:
        assert torch.equal(together[text].context, encode(components, tokenizer, [text])[text].context)
    assert together["cat"].context.shape == (77, 16) and together["cat"].pooled is None


@torch.inference_mode()
def test_the_texts_are_those_of_the_stock_encoder(components, tokenizer):
    text = tiny.components()[0]
    wanted = text(torch.tensor([tokenizer.encode("white duck").ids])).last_hidden_state[0]
    made = encode(components, tokenizer, ["white duck"])["white duck"].context
    assert (made - wanted).abs().max() < 1e-5


def test_the_first_noise_is_that_of_the_original():
    items = [make_item(seed=27), make_item(seed=28)]
    noise, generators = denoise.draw_noise(items, 8, 4)
    torch.manual_seed(28)
    assert torch.equal(noise[1:], torch.randn((1, 4, 8, 8)))
    assert torch.equal(torch.randn(3, generator=generators[1]), torch.randn(3))


def test_a_fixed_code_replaces_the_first_noise_only():
    own, of_own = denoise.draw_noise([make_item(seed=9)], 8, 4)
    fixed, of_fixed = denoise.draw_noise([make_item(seed=9, fixed_code=7)], 8, 4)
    assert torch.equal(fixed, denoise.draw_noise([make_item(seed=7)], 8, 4)[0])
    assert not torch.equal(fixed, own)
    assert torch.equal(torch.randn(3, generator=of_fixed[0]), torch.randn(3, generator=of_own[0]))


def test_a_weighted_prompt_is_the_sum_of_its_parts():
    said = {"cat": 1.0, "dog": 5.0}
    embeddings = {
        text: engine_text.Encoded(torch.full((77, 2), number), torch.full((3,), number))
        for text, number in said.items()
    }
    parts = (Part(text="cat", weight=0.75), Part(text="dog", weight=0.25))
    combined = engine_text.combine(make_item(parts=parts), embeddings)
    assert torch.equal(combined.context, torch.full((77, 2), 2.0))
    assert torch.equal(combined.pooled, torch.full((3,), 2.0))


def trajectory(items, components, tokenizer):
    texts = [text for item in items for text in item.texts()]
    embeddings = encode(components, tokenizer, texts)
    return denoise.start_trajectory(items, samplers.NoiseSchedule(), embeddings, [], components["unet"], 8)


@torch.inference_mode()
def test_only_guided_images_have_a_second_row(components, tokenizer):
    items = [make_item(scale=1.0), make_item(seed=2, scale=3.0), make_item(seed=3, scale=0.0)]
    started = trajectory(items, components, tokenizer)
    latents, times = started.rows()
    assert latents.shape == (5, 4, 8, 8)
    assert times.shape == (5,)
    assert torch.equal(latents[3:], latents[1:3])
    predicted = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 4, 8, 8)
    guided = started.guide(predicted)[:, 0, 0, 0].tolist()
    assert guided == [0.0, 3 + 3 * (1 - 3), 4.0]


@torch.inference_mode()
@pytest.mark.parametrize("unet_bs", [1, 2, 3, 8])
def test_every_call_of_the_unet_has_the_same_shape(components, tokenizer, unet_bs):
    items = [make_item(seed=seed, steps=2 + seed % 2, scale=[1.0, 7.5][seed % 2]) for seed in range(5)]
    started = [trajectory([item], components, tokenizer) for item in items]
    shapes = set()
    hook = components["unet"].module.conv_in.register_forward_pre_hook(lambda _, given: shapes.add(given[0].shape))
    steps = len(list(denoise.denoise(components["unet"], started, unet_bs)))
    hook.remove()
    assert shapes == {(unet_bs, 4, 8, 8)}
    assert steps == 3
    assert all(trajectory.latents is not None and trajectory.call is None for trajectory in started)


@torch.inference_mode()
def test_pictures_are_rounded_and_the_same_among_others(components):
    latents = torch.randn((18, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    batches = list(autoencoder.decode(components["vae"], latents))
    together = np.concatenate([pictures for pictures, _ in batches])
    assert [good for _, finite in batches for good in finite] == [True] * len(latents)
    assert together.shape == (18, 64, 64, 3)
    for index in (0, 7, 17):
        [(alone, _)] = autoencoder.decode(components["vae"], latents[index : index + 1])
        assert (alone[0] == together[index]).all()
    vae = tiny.components()[2]
    exact = (vae.decode(latents[:1] / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1) * 255
    difference = torch.from_numpy(together[:1]).permute(0, 3, 1, 2) - exact
    assert difference.abs().max() <= 0.51


@torch.inference_mode()
@pytest.mark.parametrize("width", [64, 1088])
def test_pictures_that_are_decoded_side_by_side_are_the_same(components, monkeypatch, width):
    latents = torch.randn((3 if width > 64 else 18, 4, 8, width // 8), generator=torch.Generator().manual_seed(0))
    wanted = list(autoencoder.decode(components["vae"], latents))
    monkeypatch.setattr(components["vae"], "place", Lanes(2))
    found = list(autoencoder.decode(components["vae"], latents))
    assert len(found) == -(-len(wanted) // 2)
    assert (np.concatenate([pictures for pictures, _ in found]) == np.concatenate([each for each, _ in wanted])).all()
    assert [good for _, finite in found for good in finite] == [True] * len(latents)


def test_large_pictures_are_decoded_one_at_a_time():
    assert costs.decode_rows(512, 512, "cpu") == costs.decode_rows(2048, 2048, "cpu") == 1
    assert costs.decode_rows(64, 64, "cpu") == costs.decode_rows(128, 128, "cuda:0") == 4


class FakeUnet:
    """A UNet that answers the probe with a mixture of its input, and of a picture."""

    device, dtype, config = torch.device("cpu"), torch.float32, {"in_channels": 4, "cross_attention_dim": 8}

    def __init__(self, noise, picture):
        self.noise, self.picture = noise, picture

    def call_all(self, calls, *, once=False):
        return [call(self) for call in calls]

    def __call__(self, latents, times, encoder_hidden_states, return_dict):
        assert (latents.shape, times.tolist()) == ((1, 4, 32, 32), [999.0])
        assert encoder_hidden_states.shape == (1, 77, 8)
        picture = torch.linspace(-1, 1, 32).expand_as(latents) * 2 + 0.3
        return [latents * self.noise + picture * self.picture]


@pytest.mark.parametrize(
    ("noise", "picture", "prediction"),
    [(1.0, 0.0, "epsilon"), (0.95, 0.07, "epsilon"), (1.0, 0.3, "epsilon"),
     (0.068, -1.0, "v_prediction"), (0.068, -0.3, "v_prediction"), (0.0, -1.0, "v_prediction"),
     (-0.2, -0.1, "v_prediction")],
)  # fmt: skip
def test_what_a_unet_predicts_is_seen_from_its_answer_to_noise(noise, picture, prediction):
    assert denoise.probe_prediction(FakeUnet(noise, picture)) == prediction


def test_a_unet_that_overflows_is_not_guessed():
    with pytest.raises(ModelError, match=r"model\.prediction="):
        denoise.probe_prediction(FakeUnet(float("nan"), 0))
