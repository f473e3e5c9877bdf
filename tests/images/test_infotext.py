"""AUTOMATIC1111's text is read by its own rules, and what it loses on the way is named."""

from __future__ import annotations

import pytest
from builders import make_item

from runner.images.infotext import OTHER_NOISE, parameters_text, read
from runner.sampler_names import SAMPLERS

SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"


def test_a_text_is_read() -> None:
    record, notes, model = read(f"a house, by (a lake)\nin two lines\nNegative prompt: ugly, fat\nblurry\n{SETTINGS}")
    prompt = "a house, by (a lake)\nin two lines"
    assert record == {
        "prompt": prompt,
        "prompt_syntax": "a1111",
        "negative": "ugly, fat\nblurry",
        "steps": 20,
        "scale": 7,
        "seed": 965400086,
        "sampler": "euler_a",
        "width": 512,
        "height": 512,
    }
    assert model == "45dee52b"
    assert notes == [OTHER_NOISE]


@pytest.mark.parametrize(
    ("settings", "sampler", "note"),
    [
        *((f"Sampler: {SAMPLERS[name].shown}", name, None) for name in SAMPLERS),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "dpmpp_2m", None),
        ("Sampler: LMS Karras", "lms", "the noise levels of 'LMS Karras'; lms has its usual ones"),
        ("Sampler: Euler, Schedule type: SGM Uniform", "euler", "the noise levels of 'Euler SGM Uniform'"),
        ("Sampler: DPM adaptive", "ddim", "the sampler 'DPM adaptive'; ddim stands in for it"),
    ],
)
def test_samplers(settings: str, sampler: str, note: str | None) -> None:
    record, notes, _ = read(f"cat\nSteps: 4, {settings}, Seed: 1, Size: 64x64")
    assert record["sampler"] == sampler
    assert notes[1:] == [] if note is None else notes[1].startswith(f"not carried over: {note}")


def test_the_layer_of_the_text_encoder_is_carried_over():
    record, notes, _ = read("cat\nSteps: 4, Sampler: Euler, Seed: 1, Size: 64x64, Clip skip: 2")
    assert (record["clip_skip"], notes) == (2, [OTHER_NOISE])
    item = make_item(prompt="cat", extra=(("clip_skip", 2), ("spacing", "trailing")))
    assert "Clip skip: 2" in parameters_text(item) and read(parameters_text(item))[0]["clip_skip"] == 2


def test_karras_is_a_sampler_of_its_own():
    for settings in ("Sampler: DPM++ 2M Karras", "Sampler: DPM++ 2M, Schedule type: Karras"):
        record, notes, _ = read(f"cat\nSteps: 4, {settings}, Seed: 1, Size: 64x64")
        assert (record["sampler"], notes) == ("dpmpp_2m_karras", [OTHER_NOISE])


@pytest.mark.parametrize(
    ("more", "notes"),
    [
        ("Clip skip: all, Face restoration: CodeFormer", ["Clip skip: all", "Face restoration: CodeFormer"]),
        ('Lora hashes: "a: 12ab, b: 34cd", ENSD: 31337', ["Lora hashes: a: 12ab, b: 34cd", "ENSD: 31337"]),
        (
            "Denoising strength: 0.6, Hires upscale: 2, Hires upscaler: Latent",
            ["Denoising strength: 0.6", "Hires upscale: 2", "Hires upscaler: Latent"],
        ),
        ('X: "never closed, Y: 1', ['X: "never closed', "Y: 1"]),
        ("Version: v1.6.0\nTemplate: {a|b}", ["Version: v1.6.0", "Template: {a|b}"]),
    ],
)
def test_what_has_no_place_here_is_named(more: str, notes: list[str]) -> None:
    record, found, _ = read(f"cat\nSteps: 4, Sampler: DDIM, Seed: 1, Size: 64x64, {more}")
    assert found[1:] == [f"not carried over: {note}" for note in notes]
    assert "strength" not in record


def test_loras_stay_in_the_prompt_and_sizes_become_ours() -> None:
    text = "cat <lora:fur:0.8> <hypernet:y:1>\nNegative prompt: <hypernet:x:1> dog\nSteps: 4, Seed: 1, Size: 520x40"
    record, notes, _ = read(text)
    assert (record["prompt"], record["negative"]) == ("cat <lora:fur:0.8>", "dog")
    assert (record["width"], record["height"]) == (512, 64)
    assert "not carried over: <hypernet:x:1>" in notes and "not carried over: <hypernet:y:1>" in notes
    assert "the size 520x40 becomes 512x64; sizes are multiples of 64 here" in notes


@pytest.mark.parametrize("prompt", ["a (cat:1.2) AND a dog", "a <lora:x:1>cat, 16:9", "(cat:1.2.3)"])
def test_what_is_not_rendered_in_its_syntax_is_plain_text(prompt: str) -> None:
    record, notes, _ = read(f"{prompt}\n{SETTINGS}")
    text = prompt.replace("<lora:x:1>", "")
    assert "prompt_syntax" not in record
    assert (record["prompt"], record["parts"]) == (text, [{"text": text, "weight": 1}])
    assert record["long_prompts"] == "chunk"
    assert any("are plain text here" in note for note in notes)


def test_a_prompt_in_its_syntax_is_written_as_it_is() -> None:
    prompt = r"a (cat:1.2), [dog], \(x\) <lora:fur:0.8> [a:b:0.5]"
    item = make_item(prompt=prompt, negative="(bad:1.4)", extra=(("prompt_syntax", "a1111"),))
    text = parameters_text(item)
    assert text.startswith(f"{prompt}\nNegative prompt: (bad:1.4)\nSteps: ")
    record, _, _ = read(text)
    assert (record["prompt"], record["negative"], record["prompt_syntax"]) == (prompt, "(bad:1.4)", "a1111")


def test_img2img_and_eta() -> None:
    record, notes, _ = read(f"cat\n{SETTINGS}, Denoising strength: 0.6, Eta DDIM: 0.3")
    assert (record["strength"], record["eta"]) == (0.6, 0.3)
    assert "add 'init: ...' to the job" in notes[1]


def test_the_blur_of_a_mask_is_written_with_the_mask_and_told_when_read() -> None:
    mask = (("mask", "m.png"), ("mask_sha256", "0" * 64))
    assert "Mask blur: 4" in parameters_text(make_item(extra=mask))
    assert "Mask blur: 9" in parameters_text(make_item(extra=(*mask, ("mask_blur", 9))))
    assert "Mask blur" not in parameters_text(make_item())
    record, notes, _ = read(f"cat\n{SETTINGS}, Denoising strength: 0.6, Mask blur: 7")
    assert "mask_blur" not in record and any("'mask_blur: 7'" in note for note in notes)


@pytest.mark.parametrize("text", ["", "a cat", "cat\nSteps: 20", "Negative prompt: dog", "{}"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no line with 'Steps"):
        read(text)


@pytest.mark.parametrize("bomb", ["a" * 300_000, "a:" * 150_000, 'a:"' * 100_000, '\\"' * 150_000, " " * 300_000])
def test_long_texts_are_read_once_through(bomb: str) -> None:
    """A reader that starts anew at each character would be at it for many minutes."""
    record, _, _ = read(f"cat\n{bomb}\nSteps: 4, Seed: 1, Size: 64x64, {bomb}")
    assert (record["steps"], record["seed"]) == (4, 1)
