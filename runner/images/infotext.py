"""AUTOMATIC1111's text about a picture: written for our own pictures, and read as an item in the form of a record.

What has no counterpart here is named in notes, never dropped in silence. The caller checks the values. The text is:
the prompt; `Negative prompt: ...`, both in any number of lines; then one line of settings, `Steps: 20, Sampler: Euler
a, ...`, a value with commas in JSON's quotes (`modules/infotext_utils.py` in stable-diffusion-webui).

    record, notes, model = read("a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model: sd15")
"""

from __future__ import annotations

import json
import re
from typing import Any

from runner.a1111.check import check_negative, check_prompt
from runner.a1111.tags import PromptError, read_tags
from runner.item import EXTRA, MASK, MASK_BLUR, Item, Lora
from runner.keys import A1111, KEYS, LARGEST_SIZE, SIZE_STEP
from runner.sampler_names import SAMPLERS

PAIR = re.compile(r'\s*+(?:(\w[\w /-]*+):\s*+("(?:\\.|[^"\\])*+"|[^,]*+)|[^,]*+)(?:,|$)')
NEGATIVE = "Negative prompt:"
SETTINGS = re.compile(r"(^|[\s,.])(?=Steps:\s*\d)")
INLINE_NEGATIVE = re.compile(r"(?<![^\s,.])Negative prompt:")
NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
NUMBERS = {name: key.infotext for name, key in KEYS.items() if key.infotext}
NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*+>")
UNKNOWN_TAG = re.compile(r"<(?!(?:lora|lyco):)\w+:[^<>]++>")
OTHER_NOISE = "from AUTOMATIC1111's program, whose noise is another: similar pictures, not the same"


def read(text: str) -> tuple[dict[str, Any], list[str], str]:
    """The record of an item, notes on what it leaves out, and the model's name ("" if there is none).

    Raises:
        ValueError: it is not such a text.
    """
    lines = [line.rstrip("\r") for line in text.strip("\ufeff\0 \n").split("\n")]
    notes = [OTHER_NOISE]
    place, settings, before = _find_settings(lines, notes)
    prompt, negative = _split([*lines[:place], *before])
    texts = _texts(prompt, _without(NETWORK, negative, notes), notes)
    # What many programs don't know is taken for what it says only if that is a number.
    told = {key: name for key, name in NUMBERS.items() if key not in EXTRA or NUMBER.fullmatch(settings.get(name, ""))}
    if told.pop(MASK_BLUR, None):
        blur = settings.pop(NUMBERS[MASK_BLUR])
        notes.append(f"inpainted by a mask that isn't in the file: add 'mask: ...' and 'mask_blur: {blur}' to the job")
    numbers = {key: _number(settings.pop(name)) for key, name in told.items() if name in settings}
    record = {
        **texts,
        **numbers,
        **_sampler(settings, notes),
        **_size(settings, notes),
        **_strength(settings, notes),
    }
    model = " ".join(settings.pop(key) for key in ("Model", "Model hash") if key in settings)
    notes += [f"not carried over: {key}: {value}" for key, value in settings.items()]
    notes += [f"not carried over: {line}" for line in lines[place + 1 :] if line.strip()]
    return record, notes, model


def _find_settings(lines: list[str], notes: list[str]) -> tuple[int, dict[str, str], list[str]]:
    """The last line with settings, these, and what stands before them in the same line: many join all lines to one.

    Extensions may add lines of their own below.
    """
    for place in reversed(range(len(lines))):
        if not (begin := SETTINGS.search(lines[place])):
            continue
        pairs = [match for match in PAIR.finditer(lines[place][begin.end(1) :]) if match[0].strip(" ,")]
        settings = {match[1]: _unquoted(match[2]) for match in pairs if match[1]}
        if "Steps" in settings and "Seed" in settings:
            notes += [f"not carried over: {match[0].strip(' ,')}" for match in pairs if not match[1]]
            before = lines[place][: begin.start()].strip().rstrip(",")
            return place, settings, [before] if before else []
    raise ValueError("it has no line with 'Steps: ..., Seed: ...'")


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value


def _split(lines: list[str]) -> tuple[str, str]:
    starts = (place for place, line in enumerate(lines) if line.strip().startswith(NEGATIVE))
    place = next(starts, None)
    if place is None:
        joined = "\n".join(lines)
        if match := INLINE_NEGATIVE.search(joined):
            return joined[: match.start()].strip().rstrip(","), joined[match.end() :].strip()
        return joined.strip(), ""
    negative = "\n".join(lines[place:]).strip().removeprefix(NEGATIVE)
    return "\n".join(lines[:place]).strip(), negative.strip()


def _texts(prompt: str, negative: str, notes: list[str]) -> dict[str, Any]:
    """The texts in their own syntax; where it has what isn't rendered here, as plain ones without networks."""
    ours = _without(UNKNOWN_TAG, prompt, notes)
    try:
        check_prompt(ours)
        check_negative(negative)
    except PromptError as error:
        notes.append(f"the brackets in its prompt are plain text here, since it can't be read: {error}")
        text = _without(NETWORK, ours, notes)
        plain = {"prompt": text, "parts": [{"text": text, "weight": 1}], "negative": negative}
        return plain | {"long_prompts": "chunk"}  # that program's only way
    return {"prompt": ours, "negative": negative, "prompt_syntax": A1111}


def _without(tags: re.Pattern[str], words: str, notes: list[str]) -> str:
    notes += [f"not carried over: {tag}" for tag in tags.findall(words)]
    return tags.sub("", words).strip()


def _sampler(settings: dict[str, str], notes: list[str]) -> dict[str, str]:
    """By its name; newer versions of the program name the noise levels (Karras) apart from the sampler."""
    known = {sampler.shown.lower(): name for name, sampler in SAMPLERS.items()}
    name, schedule = settings.pop("Sampler", "?"), settings.pop("Schedule type", "Automatic")
    if name.endswith(" Karras"):
        name, schedule = name.removesuffix(" Karras"), "Karras"
    whole = name if schedule == "Automatic" else f"{name} {schedule}"
    if whole.lower() in known:
        return {"sampler": known[whole.lower()]}
    if name.lower() in known:
        notes.append(f"not carried over: the noise levels of '{whole}'; {known[name.lower()]} has its usual ones")
        return {"sampler": known[name.lower()]}
    notes.append(f"not carried over: the sampler '{whole}'; ddim stands in for it")
    return {"sampler": "ddim"}


def _size(settings: dict[str, str], notes: list[str]) -> dict[str, int]:
    written = settings.pop("Size", "")
    if not (match := re.fullmatch(r"(\d{1,6})x(\d{1,6})", written)):
        notes.append(f"not carried over: the size '{written}'; 512x512 stands in for it")
        return {}
    return fit_size((int(match[1]), int(match[2])), notes)


def fit_size(size: tuple[int, int], notes: list[str]) -> dict[str, int]:
    """A size as an item can have it; a note says where it is another one."""
    width, height = (min(LARGEST_SIZE, max(SIZE_STEP, side // SIZE_STEP * SIZE_STEP)) for side in size)
    if size != (width, height):
        notes.append(f"the size {size[0]}x{size[1]} becomes {width}x{height}; sizes are multiples of {SIZE_STEP} here")
    return {"width": width, "height": height}


def _number(written: str) -> int | float | str:
    """The number that a value is; what is none stays as it is written, to be refused with its place later."""
    if not NUMBER.fullmatch(written):
        return written
    return int(written) if written.lstrip("+-").isdigit() else float(written)


def _strength(settings: dict[str, str], notes: list[str]) -> dict[str, Any]:
    """That of img2img; with Hires it is that of its second pass."""
    if "Denoising strength" not in settings or any(key.startswith("Hires") for key in settings):
        return {}
    notes.append("begun with a picture that isn't in the file: add 'init: ...' to the job, or it begins with noise")
    return {"strength": _number(settings.pop("Denoising strength"))}


def parameters_text(item: Item) -> str:
    """The text that AUTOMATIC1111's program writes into its pictures, and many programs read.

    Its last line is `key: value, ...`. Few of its readers know how to unquote a value, so none is quoted here.
    """
    settings = {
        "Steps": item.steps,
        "Sampler": SAMPLERS[item.sampler].shown,
        "CFG scale": int(item.scale) if item.scale == int(item.scale) else item.scale,
        "Seed": item.seed,
        "Size": f"{item.width}x{item.height}",
        "Model": " ".join(re.sub(r'[,:"]', " ", item.model.name).split()),
    }
    if item.strength is not None:
        settings["Denoising strength"] = item.strength
    if item.eta:
        settings["Eta DDIM"] = item.eta
    settings |= {KEYS[key].infotext: value for key, value in item.extra if key in KEYS and KEYS[key].infotext}
    if hashes := ", ".join(f"{lora.name}: {lora.hash}" for lora in item.loras if lora.hash):
        settings["Lora hashes"] = f'"{hashes}"'  # as that program writes it
    if item.value(MASK):
        settings[KEYS[MASK_BLUR].infotext] = item.value(MASK_BLUR)
    negative = [f"Negative prompt: {item.negative}"] if item.negative else []
    said = {tag.name for tag in read_tags(item.prompt)[1]} if item.a1111 else set()
    prompt = " ".join([item.prompt, *(_tag(lora) for lora in item.loras if lora.name not in said)])
    return "\n".join([prompt, *negative, ", ".join(f"{key}: {value}" for key, value in settings.items())])


def _tag(lora: Lora) -> str:
    """A LoRA as that program's prompts have it, the weight for the text encoder first."""
    strength = f"{lora.unet:g}" if lora.unet == lora.text else f"{lora.text:g}:{lora.unet:g}"
    return f"<lora:{lora.name}:{strength}>"
