"""Learnt words in the text encoders: the same as transformers' and diffusers' own ways of learning them give."""

from __future__ import annotations

import dataclasses
import json
import math

import diffusers
import numpy as np
import pytest
import tiny
import tiny_xl
import torch
from builders import make_item
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from fake_cuda import fake_cuda
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from runner.engine.executor import Executor
from runner.engine.text import Texts, Way
from runner.events import ItemFailed, Rendered, StepDone
from runner.item import Embedding, Part
from runner.manifest.embeddings import named
from runner.model import files
from runner.model.embeddings import read_embedding
from runner.model.tokens import SHIPPED, tokenizers
from runner.planning import choices, costs, waves
from runner.planning.costs import STAYS, VISITS, WALKS
from runner.planning.layouts import Execution
from runner.settings import compose

STEPS, LEAST = 5, 60.0
WIDTHS = {"v1": (16,), "xl": (tiny_xl.WIDTH, tiny_xl.WIDTH_2)}
SIDES = {"v1": 64, "xl": 128}
FIRST = tiny.VOCABULARY


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    made = {"v1": tiny.save_model(place / "tiny"), "xl": tiny_xl.save_folder(place / "xl")}
    # What stock pipelines would do to the latents, and this runner doesn't.
    for folder in made.values():
        file = folder / "scheduler/scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"clip_sample": False}))
    return made


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """By family and name: the vectors of each text encoder, and the embedding whose file has them."""
    place, found = tmp_path_factory.mktemp("embeddings"), {}
    for family, widths in WIDTHS.items():
        for seed, (name, count) in enumerate((("toy", 3), ("bad-2", 1), ("long", 75))):
            generator = torch.Generator().manual_seed(seed)
            vectors = [torch.randn(count, width, generator=generator) for width in widths]
            names = ["clip_l", "clip_g"] if len(widths) > 1 else ["emb_params"]
            file = place / f"{family}-{name}.safetensors"
            save_file(dict(zip(names, vectors, strict=True)), file)
            found[family, name] = vectors, Embedding(name, str(file), read_embedding(file, name).sha256)
    return found


def listed(learnt, family):
    return {name: embedding for (own, name), (_, embedding) in learnt.items() if own == family}


def item_of(learnt, family, **changes):
    item = make_item(seed=27, steps=STEPS, width=SIDES[family], height=SIDES[family], **changes)
    return item._replace(embeddings=named(item.texts(), listed(learnt, family)))


def make_executor(folder, device="cpu", **changes):
    model = files.find_model(str(folder))
    if device == "cpu":
        return Executor(model, choices.decide(compose(["precision=full", "unet_bs=2"]), model, "cpu", None))
    made = costs.model_costs(model, device, "float32")
    return Executor(model, Execution(costs=made, dtype="float32", unet_bs=2, **changes))


def render(executor, items):
    """Each item's pixels, by its number."""
    made = {}
    for wave in waves.group(items, executor.execution):
        for event in executor.run(wave):
            assert not isinstance(event, ItemFailed), event.error.trace
            if isinstance(event, Rendered):
                made[event.item.number] = event.pixels
    return made


def ours(folder, item):
    return render(make_executor(folder), [item])[item.number]


# ---- beside the stock pipelines


def stock_pipeline(family, folder, learnt, names):
    """diffusers' own, which has learnt these words in its own way."""
    tokenizer = CLIPTokenizer.from_pretrained(str(SHIPPED))
    parts = {
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "tokenizer": tokenizer,
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
        "scheduler": diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"),
    }
    if family == "v1":
        made = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    else:
        second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        other = CLIPTokenizer.from_pretrained(str(SHIPPED), pad_token="!")
        made = StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=other, add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    for name in names:
        vectors, _ = learnt[family, name]
        encoders = [(made.text_encoder, tokenizer)]
        encoders += [(made.text_encoder_2, made.tokenizer_2)] if family == "xl" else []
        for each, (encoder, own) in zip(vectors, encoders, strict=True):
            made.load_textual_inversion({f"<{name}>": each}, token=f"<{name}>", text_encoder=encoder, tokenizer=own)
    return made


def stock(family, folder, learnt, names, prompt, **how):
    pipeline, side = stock_pipeline(family, folder, learnt, names), SIDES[family]
    noise = torch.randn((1, 4, side // 8, side // 8), generator=torch.Generator().manual_seed(27))
    usual = {"num_inference_steps": STEPS, "guidance_scale": 7.5, "height": side, "width": side, "output_type": "np"}
    return pipeline(prompt, latents=noise, **usual | how).images[0] * 255


def psnr(one, other):
    error = np.square(one.astype(np.float64) - other).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def close(found, wanted, plain):
    """Whether a picture is the stock one, and isn't the one that would be made otherwise."""
    return psnr(found, wanted.round()) >= LEAST and psnr(found, plain) < LEAST


@pytest.mark.some(2)
@pytest.mark.parametrize("family", WIDTHS)
@pytest.mark.parametrize(
    ("prompt", "negative", "names"),
    [
        ("a <toy> on a mat", "", ["toy"]),
        ("white duck", "<bad-2>, red", ["bad-2"]),
        ("two<toy>,<toy> ducks", "<bad-2>", ["toy", "bad-2"]),
        ("<toy>", "<toy> <bad-2>", ["toy", "bad-2"]),
    ],
)
def test_pictures_are_those_of_diffusers_own_textual_inversion(folders, learnt, family, prompt, negative, names):
    item = item_of(learnt, family, prompt=prompt, negative=negative)
    assert sorted(names) == [each.name for each in item.embeddings]
    wanted = stock(family, folders[family], learnt, names, prompt, negative_prompt=negative or None)
    plain = ours(folders[family], item._replace(embeddings=()))
    assert close(ours(folders[family], item), wanted, plain)


def test_another_layer_of_the_text_encoder(folders, learnt):
    """The stock pipeline counts layers from the one before the last."""
    item, plain = (item_of(learnt, "xl", prompt="a <toy>", extra=extra) for extra in ((("clip_skip", 3),), ()))
    wanted = stock("xl", folders["xl"], learnt, ["toy"], "a <toy>", clip_skip=1)
    assert close(ours(folders["xl"], item), wanted, ours(folders["xl"], plain))


def test_weighted_parts_have_words_of_their_own(folders, learnt):
    pipeline = stock_pipeline("v1", folders["v1"], learnt, ["toy", "bad-2"])
    one, other, empty = (pipeline.encode_prompt(text, "cpu", 1, False)[0] for text in ("a <toy>", "<bad-2> dog", ""))
    wanted = stock(
        "v1", folders["v1"], learnt, [], None, prompt_embeds=one * 0.75 + other * 0.25, negative_prompt_embeds=empty
    )
    parts = (Part("a <toy>", 0.75), Part("<bad-2> dog", 0.25))
    item = item_of(learnt, "v1", prompt="a <toy>:3 <bad-2> dog:1", parts=parts)
    assert close(ours(folders["v1"], item), wanted, ours(folders["v1"], item._replace(parts=parts[:1])))


# ---- the encoders


def texts_of(executor):
    return Texts(executor.model.family.texts, executor.components, tokenizers(executor.model))


def with_new_rows(encoder, vectors):
    encoder.resize_token_embeddings(FIRST + len(vectors), mean_resizing=False)
    encoder.get_input_embeddings().weight.data[FIRST:] = vectors
    return encoder


@pytest.mark.parametrize("family", WIDTHS)
@torch.inference_mode()
def test_the_embedding_is_that_of_a_table_with_more_rows(folders, learnt, family):
    executor = make_executor(folders[family])
    embeddings = tuple(listed(learnt, family).values())
    text = "a <toy> and a <bad-2>"
    made = texts_of(executor).encode([text], way=Way(words=tuple(embeddings)))[text]
    tables = [
        torch.cat(vectors) for vectors in zip(*(learnt[family, each.name][0] for each in embeddings), strict=True)
    ]
    words, start = {}, FIRST
    for each in embeddings:
        words[each.name] = range(start, start + len(learnt[family, each.name][0][0]))
        start = words[each.name].stop
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    contexts = []
    for (name, tokenizer), vectors in zip(tokenizers(executor.model).items(), tables, strict=True):
        ids = torch.tensor([tokenizer.encode(text, words).ids])
        assert (ids >= FIRST).sum() == 4
        stock = with_new_rows(kinds[name].from_pretrained(folders[family] / name), vectors).eval()
        said = stock(ids, output_hidden_states=True)
        contexts.append(said.last_hidden_state if family == "v1" else said.hidden_states[-2])
    torch.testing.assert_close(made.context, torch.cat(contexts, -1)[0], rtol=1e-4, atol=1e-5)
    if family == "xl":  # at the end token, behind which there is nothing, whatever numbers stand before it
        torch.testing.assert_close(made.pooled, said.text_embeds[0], rtol=1e-4, atol=1e-5)
        other = texts_of(executor).encode(["a and a"])["a and a"]
        assert not torch.allclose(made.pooled, other.pooled, atol=1e-3)


@pytest.mark.some(1)
@pytest.mark.parametrize("family", WIDTHS)
@torch.inference_mode()
def test_weights_that_walk_give_the_same(folders, learnt, family):
    executor, texts = make_executor(folders[family]), ["a <toy>", "<bad-2>", "a cat", "<long> <toy>", "<toy> <toy> x"]
    embeddings, found = tuple(listed(learnt, family).values()), []
    for mode in (STAYS, VISITS, WALKS):
        for name in executor.model.family.texts:
            executor.components[name].change(mode)
        encoder = texts_of(executor)
        for _ in range(2):  # the first walk finds out in which order units come
            found.append(encoder.encode(texts, way=Way(chunked=True, words=tuple(embeddings))))
        encoder.rest()
    for other in found[1:]:
        for text in texts:
            assert torch.equal(other[text].context, found[0][text].context)
            assert family == "v1" or torch.equal(other[text].pooled, found[0][text].pooled)
    assert found[0]["<long> <toy>"].context.shape[0] == 2 * 77


@torch.inference_mode()
def test_a_text_without_words_is_encoded_as_ever_beside_others(folders, learnt):
    executor = make_executor(folders["v1"])
    texts, embeddings = texts_of(executor), tuple(listed(learnt, "v1").values())
    plain = texts.encode(["a cat", "<toy>"])
    mixed = texts.encode(["a cat", "<toy>"], way=Way(words=tuple(embeddings)))
    assert torch.equal(plain["a cat"].context, mixed["a cat"].context)
    assert not torch.allclose(plain["<toy>"].context, mixed["<toy>"].context, atol=1e-3)
    assert torch.equal(texts.encode(["<toy>"])["<toy>"].context, plain["<toy>"].context)


# ---- the executor


def many_items(learnt, family):
    """With and without words, several, and one name for two embeddings."""
    prompts = ["a <toy>", "a cat", "<bad-2> cat", "<toy> <bad-2>", "<toy> cat", "<long> cat"]
    made = [
        item_of(
            learnt, family, prompt=prompt, negative="<bad-2>" if number % 2 else "", scale=(7.5, 1.0)[number % 3 == 2]
        )
        for number, prompt in enumerate(prompts)
    ]
    _, other = learnt[family, "bad-2"]
    made[4] = made[4]._replace(embeddings=(other._replace(name="toy"),))
    made.append(made[0]._replace(embeddings=()))
    return [
        item._replace(number=number, seed=number, steps=2, long_prompts="chunk" if number % 2 else "truncate")
        for number, item in enumerate(made)
    ]


@pytest.mark.some(1)
@pytest.mark.parametrize("family", WIDTHS)
def test_items_of_a_wave_may_name_different_words(folders, learnt, family):
    items = many_items(learnt, family)
    together = render(make_executor(folders[family]), items)
    for item in items[::2]:
        assert np.array_equal(render(make_executor(folders[family]), [item])[item.number], together[item.number])
    assert len({pixels.tobytes() for pixels in together.values()}) == len(items)


def test_what_is_remembered_of_a_text_is_known_by_its_words(folders, learnt):
    executor = make_executor(folders["v1"])
    item = item_of(learnt, "v1", prompt="a <toy>")
    other = item._replace(embeddings=(learnt["v1", "bad-2"][1]._replace(name="toy"),))
    plain = item._replace(embeddings=())
    found = [render(executor, [each])[0].tobytes() for each in (item, other, plain, item, other, plain)]
    assert found[:3] == found[3:] and len(set(found)) == 3


def test_a_file_is_read_once_by_an_executor(folders, learnt, tmp_path):
    file = tmp_path / "toy.safetensors"
    save_file({"emb_params": torch.ones(2, 16)}, file)
    word = Embedding("toy", str(file), read_embedding(file, "toy").sha256)
    executor = make_executor(folders["v1"])
    items = [make_item(prompt=prompt, steps=2, embeddings=(word,)) for prompt in ("a <toy>", "two <toy>")]
    render(executor, items[:1])
    file.unlink()
    assert render(executor, items[1:]).keys() == {items[1].number}


@pytest.mark.parametrize("what", ["gone", "other", "wide"])
def test_a_file_that_is_not_there_any_more_fails_the_pictures_that_name_it(folders, tmp_path, what):
    file = tmp_path / "toy.safetensors"
    save_file({"emb_params": torch.ones(2, 16)}, file)
    word = Embedding("toy", str(file), read_embedding(file, "toy").sha256)
    if what == "wide":
        save_file({"emb_params": torch.ones(2, 17)}, file)
        word = word._replace(sha256=read_embedding(file, "toy").sha256)
    elif what == "other":
        save_file({"emb_params": torch.zeros(2, 16)}, file)
    else:
        file.unlink()
    items = [make_item(steps=2), make_item(number=1, prompt="a <toy>", steps=2, embeddings=(word,))]
    executor = make_executor(folders["v1"])
    [wave] = waves.group(items, dataclasses.replace(executor.execution, unet_bs=4))
    events = list(executor.run(wave))
    [failed] = [event for event in events if isinstance(event, ItemFailed)]
    assert [event.item.number for event in events if isinstance(event, Rendered)] == [0]
    said = {"gone": "there is nothing", "other": "holds another embedding", "wide": "no vectors of 16 numbers"}[what]
    assert failed.item.number == 1 and said in str(failed.error)


@pytest.mark.parametrize(("family", "turbo"), [("v1", True), ("v1", False), ("xl", False)])
@pytest.mark.some(1)
def test_a_card_never_waits_for_words_within_a_step(folders, learnt, family, turbo):
    items = many_items(learnt, family)[:1] + many_items(learnt, family)[3:5]
    wanted = render(make_executor(folders[family]), items)
    with fake_cuda() as device:
        executor, found = make_executor(folders[family], "cuda:0", turbo=turbo), {}
        for wave in waves.group(items, executor.execution):
            waits = None
            for event in executor.run(wave):
                assert not isinstance(event, ItemFailed), event.error.trace
                if isinstance(event, StepDone):
                    within = [] if waits is None or event.step == 1 else device.waits[waits:]
                    assert not within
                    waits = len(device.waits)
                if isinstance(event, Rendered):
                    found[event.item.number] = event.pixels
    assert not device.violations
    for number, pixels in wanted.items():
        assert np.abs(found[number].astype(int) - pixels).max() <= 1
