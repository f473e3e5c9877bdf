"""What other programs write into their pictures, read as an item in the form of a record, as `infotext` reads its own.

ComfyUI writes its graph, from which the sampler that made the picture is followed to its prompts, size and model.
InvokeAI, NovelAI, Fooocus and SwarmUI write JSON of their own. What has no counterpart here is named in notes.

    program, record, notes, model = read({"prompt": '{"3": {"class_type": "KSampler", "inputs": {...}}}'}, (512, 512))
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from runner.images.infotext import fit_size
from runner.sampler_names import SAMPLERS

Texts = Mapping[str, str]
DEEPEST = 64  # nodes of a graph that are followed one behind the other
SHOWN = 120  # characters of a value in a note
# Other programs' names for samplers; each may begin with k_ and end in _gpu.
SAMPLER_NAMES = {
    "euler_ancestral": "euler_a", "dpm_2": "dpm2", "dpm_2_ancestral": "dpm2_a", "k_lms": "lms", "uni_pc": "unipc",
    "uni_pc_bh2": "unipc", "ddim_v3": "ddim", "pndm": "plms", "dpmpp_2s_ancestral": "dpmpp_sde", "dpm_fast": "dpmpp_2m",
}  # fmt: skip
NOISE = "from another program, whose noise may be another: similar pictures, not the same"


class Found(NamedTuple):
    """What a picture says: the program, a record of an item, notes on what it leaves out, and the model's name."""

    program: str
    record: dict[str, Any]
    notes: list[str]
    model: str


class Wish(NamedTuple):
    """What the programs have in common. `rest` is what else they say, by its names."""

    prompt: Any = ""
    negative: Any = ""
    seed: Any = None
    steps: Any = None
    scale: Any = None
    sampler: Any = ""
    schedule: Any = ""
    strength: Any = None
    size: Any = None
    model: Any = ""
    rest: Mapping[str, Any] = {}


def read(texts: Texts, size: tuple[int, int]) -> Found | None:
    """What the texts of a picture of this size say; None where they are no program's that is known.

    Raises:
        ValueError: a program is known by them, and what it wrote can't be read.
    """
    for program, knows, reader in PROGRAMS:
        for key in knows:
            if key in texts and texts[key].lstrip().startswith("{"):
                wish = reader(_json(texts[key], program), texts)
                if wish is not None:
                    return _found(program, wish, size)
    return None


def _found(program: str, wish: Wish, size: tuple[int, int]) -> Found:
    notes = [f"{program}: {NOISE}"]
    prompt = _text(wish.prompt)
    if not prompt:
        raise ValueError(f"what {program} wrote has no prompt that can be followed")
    record: dict[str, Any] = {"prompt": prompt, "parts": [{"text": prompt, "weight": 1}]}
    record["negative"] = _text(wish.negative)
    for key, value in (("seed", wish.seed), ("steps", wish.steps), ("scale", wish.scale)):
        if isinstance(value, int | float) and not isinstance(value, bool):
            record[key] = int(value) if float(value).is_integer() else value
    record["steps"] = max(1, int(record.get("steps", 20)))
    if "seed" not in record:
        raise ValueError(f"what {program} wrote has no seed")
    record["sampler"] = _sampler(_text(wish.sampler), _text(wish.schedule), notes)
    wanted = wish.size if isinstance(wish.size, tuple) else size
    record |= fit_size(wanted, notes)
    if isinstance(wish.strength, int | float) and 0 <= wish.strength < 1:
        notes.append("begun with a picture that isn't in the file: add 'init: ...' to the job, or it begins with noise")
        record["strength"] = wish.strength
    record["long_prompts"] = "chunk"
    notes += [
        f"not carried over: {key}: {_shown(value)}" for key, value in wish.rest.items() if value not in (None, "")
    ]
    return Found(program, record, notes, _text(wish.model))


def _sampler(name: str, schedule: str, notes: list[str]) -> str:
    plain = name.lower().removeprefix("k_").removesuffix("_gpu")
    karras = schedule.lower() == "karras" or plain.endswith("_k")
    plain = plain.removesuffix("_k").removesuffix("_karras")
    plain = SAMPLER_NAMES.get(plain, plain)
    if karras and f"{plain}_karras" in SAMPLERS:
        return f"{plain}_karras"
    whole = f"{name} {schedule}".strip()
    if plain in SAMPLERS:
        if karras or schedule.lower() not in ("", "normal", "default", "native"):
            notes.append(f"not carried over: the noise levels of '{whole}'; {plain} has its usual ones")
        return plain
    notes.append(f"not carried over: the sampler '{whole}'; ddim stands in for it")
    return "ddim"


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _json(text: str, program: str) -> Any:
    try:
        return json.loads(re.sub(r"\bNaN\b", "null", text))
    except (ValueError, RecursionError):
        raise ValueError(f"what {program} wrote can't be read") from None


def _pair(width: Any, height: Any) -> tuple[int, int] | None:
    sides = (width, height)
    return (int(width), int(height)) if all(type(each) in (int, float) and 1 <= each < 1e6 for each in sides) else None


def _rest(given: Mapping[str, Any], *known: str) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in known}


# ---- ComfyUI


def _comfy(graph: Any, texts: Texts) -> Wish | None:
    """The last sampler of the graph in ComfyUI's API format: that whose output no other sampler goes on with."""
    if not isinstance(graph, dict):
        return None
    nodes = {str(key): node for key, node in graph.items() if isinstance(node, dict)}
    samplers = [key for key, node in nodes.items() if "Sampler" in str(node.get("class_type")) and _follows(node)]
    if not samplers:
        return None
    before = {key for name in samplers for key in _behind(nodes, nodes[name], ("latent_image", "samples"))}
    last = next((key for key in reversed(samplers) if key not in before), samplers[-1])
    given = _inputs(nodes[last])
    latent = _first(nodes, given.get("latent_image"), ("width", "height"))
    return Wish(
        prompt=_prompt(nodes, given.get("positive")),
        negative=_prompt(nodes, given.get("negative")),
        seed=_value(nodes, given.get("seed", given.get("noise_seed"))),
        steps=_value(nodes, given.get("steps")),
        scale=_value(nodes, given.get("cfg")),
        sampler=_value(nodes, given.get("sampler_name")),
        schedule=_value(nodes, given.get("scheduler")),
        strength=_value(nodes, given.get("denoise")),
        size=_pair(*(_value(nodes, latent.get(key)) for key in ("width", "height"))) if latent else None,
        model=_value(nodes, _first(nodes, given.get("model"), ("ckpt_name",)).get("ckpt_name")),
        rest={"loras": [_inputs(n).get("lora_name") for n in nodes.values() if "lora_name" in _inputs(n)] or None}
        | {"other samplers": len(samplers) - 1 or None},
    )


def _inputs(node: Any) -> dict[str, Any]:
    found = node.get("inputs") if isinstance(node, dict) else None
    return found if isinstance(found, dict) else {}


def _follows(node: Any) -> bool:
    return {"positive", "negative"} <= _inputs(node).keys()


def _linked(nodes: Mapping[str, Any], value: Any) -> Any:
    """The node that an input comes from; None where it is a value."""
    return nodes.get(str(value[0])) if isinstance(value, list) and len(value) == 2 else None


def _chain(nodes: Mapping[str, Any], value: Any) -> Iterator[dict[str, Any]]:
    """The inputs of the node that a value comes from, and of all that stand behind it, the nearest first."""
    waiting, seen = [value], list[int]()
    while waiting and len(seen) < DEEPEST:
        node = _linked(nodes, waiting.pop(0))
        if node is None or id(node) in seen:
            continue
        seen.append(id(node))
        given = _inputs(node)
        yield given
        waiting += [each for each in given.values() if isinstance(each, list)]


def _behind(nodes: Mapping[str, Any], node: Any, keys: tuple[str, ...]) -> Iterator[str]:
    names = {id(each): key for key, each in nodes.items()}
    for key in keys:
        value = _inputs(node).get(key)
        for _ in range(DEEPEST):
            found = _linked(nodes, value)
            if found is None:
                break
            yield names[id(found)]
            given = _inputs(found)
            value = next((given[each] for each in ("samples", "latent_image", "latent") if each in given), None)


def _first(nodes: Mapping[str, Any], value: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    return next((given for given in _chain(nodes, value) if all(key in given for key in keys)), {})


def _value(nodes: Mapping[str, Any], value: Any) -> Any:
    """A value, or the plain one of the primitive node that it comes from."""
    if not isinstance(value, list):
        return value
    for given in _chain(nodes, value):
        for key in ("value", "int", "float", "string", "text", "seed", "noise_seed"):
            if key in given and not isinstance(given[key], list):
                return given[key]
    return None


def _prompt(nodes: Mapping[str, Any], value: Any) -> str:
    """The texts of the encoders behind a conditioning, each once."""
    found = dict[str, None]()
    for given in _chain(nodes, value):
        for key in ("text", "text_g", "prompt", "positive_prompt"):
            text = _value(nodes, given.get(key))
            if isinstance(text, str) and text.strip():
                found[text.strip()] = None
                break
    return ", ".join(found)


# ---- programs that write JSON of their own


def _swarm(given: Any, texts: Texts) -> Wish | None:
    own = given.get("sui_image_params") if isinstance(given, dict) else None
    if not isinstance(own, dict):
        return None
    known = (
        "prompt",
        "negativeprompt",
        "seed",
        "steps",
        "cfgscale",
        "sampler",
        "scheduler",
        "width",
        "height",
        "model",
    )
    return Wish(
        prompt=own.get("prompt"), negative=own.get("negativeprompt"), seed=own.get("seed"), steps=own.get("steps"),
        scale=own.get("cfgscale"), sampler=own.get("sampler"), schedule=own.get("scheduler"),
        strength=own.get("initimagecreativity"), size=_pair(own.get("width"), own.get("height")),
        model=own.get("model"),
        rest=_rest(own, *known, "initimagecreativity"),
    )  # fmt: skip


def _fooocus(given: Any, texts: Texts) -> Wish | None:
    if not isinstance(given, dict) or ("base_model" not in given and "Base Model" not in given):
        return None
    given = {key.lower().replace(" ", "_"): value for key, value in given.items()}
    numbers = re.findall(r"\d+", str(given.get("resolution", "")))
    seed = given.get("seed")
    known = (
        "prompt", "negative_prompt", "seed", "steps", "guidance_scale", "sampler", "scheduler", "resolution",
        "base_model",
    )  # fmt: skip
    return Wish(
        prompt=given.get("prompt"), negative=given.get("negative_prompt"),
        seed=int(seed) if str(seed).isdigit() else seed, steps=given.get("steps"), scale=given.get("guidance_scale"),
        sampler=given.get("sampler"), schedule=given.get("scheduler"),
        size=_pair(*map(int, numbers[:2])) if len(numbers) >= 2 else None, model=given.get("base_model"),
        rest=_rest(given, *known),
    )  # fmt: skip


def _novelai(given: Any, texts: Texts) -> Wish | None:
    if not isinstance(given, dict) or "NovelAI" not in texts.get("Software", "") + texts.get("Title", "") + str(
        given.get("request_type", "")
    ):
        return None
    known = ("prompt", "uc", "seed", "steps", "scale", "sampler", "noise_schedule", "strength", "width", "height")
    return Wish(
        prompt=given.get("prompt") or texts.get("Description"), negative=given.get("uc"), seed=given.get("seed"),
        steps=given.get("steps"), scale=given.get("scale"), sampler=given.get("sampler"),
        schedule=given.get("noise_schedule"), strength=given.get("strength"),
        size=_pair(given.get("width"), given.get("height")), model=texts.get("Source"), rest=_rest(given, *known),
    )  # fmt: skip


def _invoke(given: Any, texts: Texts) -> Wish | None:
    if not isinstance(given, dict):
        return None
    model = given.get("model")
    image = given.get("image")
    if isinstance(image, dict):  # as version 2 wrote it
        prompt = image.get("prompt")
        first = prompt[0] if isinstance(prompt, list) and prompt else {}
        text = str(first.get("prompt", "") if isinstance(first, dict) else prompt)
        negative = " ".join(re.findall(r"\[([^\[\]]*)\]", text))
        own = image | {"positive_prompt": re.sub(r"\[[^\[\]]*\]", "", text), "negative_prompt": negative}
        own |= {"scheduler": image.get("sampler"), "model": given.get("model_weights")}
        model = own["model"]
    else:
        own = given
    known = (
        "positive_prompt", "negative_prompt", "seed", "steps", "cfg_scale", "scheduler", "strength", "width", "height",
        "model", "prompt", "sampler",
    )  # fmt: skip
    return Wish(
        prompt=own.get("positive_prompt"), negative=own.get("negative_prompt"), seed=own.get("seed"),
        steps=own.get("steps"), scale=own.get("cfg_scale"), sampler=own.get("scheduler"), strength=own.get("strength"),
        size=_pair(own.get("width"), own.get("height")),
        model=(model.get("name") or model.get("model_name")) if isinstance(model, dict) else model,
        rest=_rest(own, *known),
    )  # fmt: skip


PROGRAMS: tuple[tuple[str, tuple[str, ...], Callable[[Any, Texts], Wish | None]], ...] = (
    ("SwarmUI", ("parameters", "comment"), _swarm),
    ("Fooocus", ("parameters", "comment", "Comment"), _fooocus),
    ("InvokeAI", ("invokeai_metadata", "sd-metadata"), _invoke),
    ("NovelAI", ("Comment",), _novelai),
    ("ComfyUI", ("prompt",), _comfy),
)
