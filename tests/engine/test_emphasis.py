"""Prompts in AUTOMATIC1111's syntax: weights on embeddings, by hand, and what the UNet is told at each step."""

import hashlib
import itertools
from dataclasses import replace

import pytest
import tiny
import tiny_xl
import torch
from builders import make_item
from PIL import Image

from runner.a1111.emphasis import fragments
from runner.engine.executor import Executor
from runner.engine.text import Texts, Way
from runner.events import ItemFailed, Rendered
from runner.model import files
from runner.model.pieces import cut
from runner.model.tokens import LENGTH, tokenizers
from runner.planning.costs import model_costs
from runner.planning.layouts import Execution
from runner.planning.waves import Wave, group
from runner.sampler_names import SAMPLERS, model_calls, step_of

SYNTAX = ("prompt_syntax", "a1111")
STEPS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return files.find_model(str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    return files.find_model(str(tiny_xl.save_folder(tmp_path_factory.mktemp("models") / "xl", index=index)))


def make_executor(model, **changes):
    settings = {"dtype": "float32", "turbo": True, "unet_bs": 4} | changes
    return Executor(model, Execution(costs=model_costs(model, "cpu", settings["dtype"]), **settings))


def one_wave(executor, items):
    return Wave(items=tuple(items), layout=replace(executor.execution.layout(64, 64), wave_rows=100))


def render(executor, items):
    """SHA-256 of each item's pixels, by the item's number."""
    hashes = {}
    for wave in group(items, executor.execution):
        for event in executor.run(wave):
            assert not isinstance(event, ItemFailed), event.error
            if isinstance(event, Rendered):
                hashes[event.item.number] = hashlib.sha256(event.pixels.tobytes()).hexdigest()
    assert set(hashes) == {item.number for item in items}
    return hashes


def item(prompt, *extra, **changes):
    return make_item(prompt=prompt, extra=(*extra, SYNTAX), **({"steps": STEPS} | changes))


def encode(model, text, layer=None, **way):
    executor = make_executor(model)
    texts = Texts(model.family.texts, executor.components, tokenizers(model))
    with torch.inference_mode():
        return texts.encode([text], way=Way(layer=layer, **way))[text]


def by_hand(context, pieces):
    """The embedding [77 * n, C] with each token's weight, each piece brought back to its mean."""
    made = []
    for z, piece in zip(context.split(LENGTH), pieces, strict=True):
        weighed = z * torch.tensor(piece.weights).reshape(-1, 1)
        made.append(weighed * (z.mean() / weighed.mean()))
    return torch.cat(made)


def unweighted(text):
    return "".join(fragment.text for fragment in fragments(text))


@pytest.mark.parametrize("layer", [None, 1, 2])
@pytest.mark.parametrize("text", ["a (tabby cat:1.3), [dog]", "((masterpiece)), a (cat:0.5)", "(all of it:1.2)"])
def test_emphasis_is_the_arithmetic_by_hand(model, text, layer):
    [tokenizer] = tokenizers(model).values()
    plain = encode(model, unweighted(text), layer)
    wanted = by_hand(plain.context, cut(fragments(text), tokenizer))
    made = encode(model, text, layer, a1111=True).context
    assert torch.equal(made, wanted)
    assert (made - plain.context).abs().max() > 1e-2


def test_emphasis_is_by_encoder_and_leaves_the_whole_text_alone(xl):
    text, width = "a (tabby cat:1.3), [dog]", tiny_xl.WIDTH
    plain, made = encode(xl, unweighted(text)), encode(xl, text, a1111=True)
    for encoder, part in zip(tokenizers(xl).values(), (slice(width), slice(width, None)), strict=True):
        wanted = by_hand(plain.context[:, part].contiguous(), cut(fragments(text), encoder))
        assert torch.allclose(made.context[:, part], wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(made.pooled, plain.pooled)


def test_a_long_text_is_weighed_piece_by_piece(xl):
    text = "a (cat:1.5) " + "dog " * 80 + "BREAK (bird:0.5)"
    made = encode(xl, text, a1111=True)
    pieces = ["a (cat:1.5)" + " dog" * 73, "dog " * 7, "(bird:0.5)"]
    alone = [encode(xl, piece, a1111=True) for piece in pieces]
    assert torch.equal(made.context, torch.cat([each.context for each in alone]))
    assert torch.equal(made.pooled, alone[0].pooled)


@pytest.mark.parametrize("prompt", ["white duck", "", "a cat, a (dog:1), 3 < 4"])
def test_without_weights_a_picture_is_that_of_the_plain_syntax(model, prompt):
    plain = make_item(prompt=prompt.replace("(dog:1)", "dog"), negative="blurry", steps=3)
    made = item(prompt, negative="blurry", steps=3)
    assert render(make_executor(model), [made]) == render(make_executor(model), [plain])


# ---- what holds at which step


def told(executor, items):
    """The contexts [77, C] of the first item's prompt, and of the negative one's if it is guided, of each call."""
    calls = []

    def note(_, given, more):
        calls.append(more["encoder_hidden_states"])

    hook = executor.components["unet"].module.register_forward_pre_hook(note, with_kwargs=True)
    done = [event for event in executor.run(one_wave(executor, items)) if isinstance(event, Rendered)]
    hook.remove()
    assert len(done) == len(items)
    return calls


def said(calls, model, texts, row=0):
    """Which of the texts each call was told in a row."""
    known = [encode(model, text, a1111=True).context for text in texts]
    found = [[n for n, context in enumerate(known) if torch.equal(call[row], context)] for call in calls]
    assert all(len(each) == 1 for each in found)
    return [texts[each[0]] for each in found]


STEPS_OF_CALLS = {  # written out, as the samplers make them
    **{name: [0, 1, 2, 3, 4, 5] for name in SAMPLERS},
    "plms": [0, 0, 1, 2, 3, 4, 5],
    "heun": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5],
    "dpm2": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5],
    "dpm2_a": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5],
    "dpmpp_sde": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5],
    "dpmpp_sde_karras": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5],
}


@pytest.mark.some(3)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_change_comes_at_its_step_with_every_sampler(model, sampler):
    steps = STEPS_OF_CALLS[sampler]
    assert len(steps) == model_calls(sampler, STEPS)
    assert [step_of(sampler, call) for call in range(len(steps))] == steps
    calls = told(make_executor(model, unet_bs=1), [item("[cat:dog:0.5]", sampler=sampler, scale=1.0)])
    assert said(calls, model, ["cat", "dog"]) == ["cat" if step <= 3 else "dog" for step in steps]


@pytest.mark.some(2)
@pytest.mark.parametrize("sampler", ["heun", "dpm2", "dpmpp_sde", "plms", "euler"])
def test_a_step_of_two_calls_has_both_at_its_own_noise(model, sampler):
    """The first call of a step is less noisy than the first one of the step before."""
    times = []
    executor = make_executor(model, unet_bs=1)
    hook = executor.components["unet"].module.register_forward_pre_hook(lambda _, given: times.append(float(given[1])))
    list(executor.run(one_wave(executor, [item("cat", sampler=sampler, scale=1.0)])))
    hook.remove()
    steps = [step_of(sampler, call) for call in range(len(times))]
    firsts = [times[steps.index(step)] for step in range(STEPS)]
    assert firsts == sorted(firsts, reverse=True) and len(set(firsts)) == STEPS


def test_both_texts_change_and_take_turns(model):
    prompt, negative = "[cat|dog]", "bad [ugly:3]"
    calls = told(make_executor(model, unet_bs=2), [item(prompt, negative=negative)])
    # As there the first entry of the list serves for the steps 0 and 1.
    assert said(calls, model, ["cat", "dog"]) == ["cat", "cat", "dog", "cat", "dog", "cat"]
    assert said(calls, model, ["bad ", "bad ugly"], row=1) == ["bad "] * 4 + ["bad ugly"] * 2


def test_texts_of_one_schedule_have_as_many_pieces(model):
    calls = told(make_executor(model, unet_bs=1), [item("[cat:a BREAK dog:2]", scale=1.0)])
    assert [len(call[0]) for call in calls] == [2 * LENGTH] * STEPS
    empty = encode(model, "", a1111=True).context
    assert torch.equal(calls[0][0][LENGTH:], empty) and not torch.equal(calls[-1][0][LENGTH:], empty)


def test_calls_are_set_up_anew_only_where_something_changes(model):
    executor = make_executor(model, unet_bs=4)
    calls = told(executor, [item("[cat:dog:2]", seed=1), item("(cat:1.2)", seed=2)])
    assert [before is after for before, after in itertools.pairwise(calls)] == [True, True, False, True, True]
    calls = told(executor, [make_item(prompt="cat", steps=STEPS), item("[cat]", seed=2)])
    assert len({id(call) for call in calls}) == 1


# ---- pictures


def mixed_items():
    prompts = [
        "a (cat:1.3)", "[cat:dog:0.5] on grass", "[cat|dog]", "a cat " + "word " * 90, "a BREAK b", "plain",
        "[a:" + "long " * 80 + ":2]",
    ]  # fmt: skip
    made = [
        item(
            prompt, seed=number, number=number, steps=3 + number % 2, scale=(7.5, 1.0)[number % 3 == 2],
            sampler=("euler", "heun", "dpm2_a")[number % 3], negative=("", "(bad:1.2)", "[x:y:1]")[number % 3],
        )
        for number, prompt in enumerate(prompts)
    ]  # fmt: skip
    return [*made, make_item(prompt="a (cat:1.3)", seed=0, number=len(made), steps=3, sampler="euler")]


@pytest.fixture(scope="module")
def whole(model):
    return render(make_executor(model), mixed_items())


def test_a_picture_does_not_depend_on_its_neighbours(model, whole):
    assert len(set(whole.values())) == len(mixed_items())
    executor = make_executor(model)
    for each in mixed_items():
        assert render(executor, [each]) == {each.number: whole[each.number]}


def test_a_streamed_model_draws_the_same(model, whole):
    assert render(make_executor(model, turbo=False), mixed_items()) == whole


@pytest.mark.some(1)
@pytest.mark.parametrize("turbo", [True, False])
def test_xl_draws_them_too(xl, turbo):
    items = [each._replace(width=64, height=64) for each in mixed_items()[:3]]
    found = render(make_executor(xl, turbo=turbo), items)
    assert len(set(found.values())) == 3
    alone = render(make_executor(xl), items[1:2])
    assert alone == {1: found[1]}


def test_an_empty_negative_prompt_of_xl_is_zeros(xl):
    calls = told(make_executor(xl, unet_bs=2), [item("(cat:1.2)", steps=2)])
    assert not calls[0][1].any()
    calls = told(make_executor(xl, unet_bs=2), [item("(cat:1.2)", steps=2, negative="(bad:1.2)")])
    assert torch.equal(calls[0][1], encode(xl, "(bad:1.2)", a1111=True).context)


def test_steps_are_counted_among_those_that_are_made(model, tmp_path):
    Image.new("RGB", (64, 64), (200, 30, 90)).save(tmp_path / "init.png")
    sha256 = hashlib.sha256((tmp_path / "init.png").read_bytes()).hexdigest()
    img2img = item(
        "[cat:dog:0.5]", steps=12, strength=0.5, init=str(tmp_path / "init.png"), init_sha256=sha256, scale=1.0,
        sampler="euler",
    )  # fmt: skip
    calls = told(make_executor(model, unet_bs=1), [img2img])
    assert said(calls, model, ["cat", "dog"]) == ["cat"] * 4 + ["dog"] * 2


def test_both_syntaxes_of_one_text_are_remembered_apart(model):
    executor = make_executor(model)
    plain = make_item(prompt="a (cat:1.3)", steps=2, number=0)
    made = item("a (cat:1.3)", steps=2, number=1)
    together = render(executor, [plain, made])
    assert together[0] != together[1]
    assert render(make_executor(model), [made]) == {1: together[1]}
