"""A form of the page as a manifest, and a manifest as a form. Nothing here knows what the page looks like.

text = to_manifest(usual_form(settings, model) | {"prompt": "a red apple"}, settings, name="0001-a-red-apple")
from_manifest(text)["prompt"]
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from runner.a1111.tags import read_tags
from runner.errors import Location, ManifestError
from runner.folder.names import MANIFEST
from runner.images.inits import Crop
from runner.item import EXTRA, MASK
from runner.keys import A1111, KEYS, RANDOM_SEEDS
from runner.manifest import weighted
from runner.manifest.nodes import wrap
from runner.manifest.rules import DEFAULTS, check
from runner.model import files
from runner.model.files import ModelFiles
from runner.request import LARGEST_DRAWN_SEED
from runner.settings import Settings, compose, given_defaults
from runner.web import axes
from runner.web.fitting import CROP

PICTURE, MASK_PICTURE = "init.png", "mask.png"
# Of a model that ships with the package; those of others are the manifest's.
SHIPPED = {"scale": 5.0}
GOOD = {"steps": 20, "sampler": "dpmpp_2m", "strength": 0.75, "seed": "", "n_samples": 4, "n_iter": 1}
ITEM_FIELDS = (
    "prompt", "negative", "width", "height", "steps", "scale", "sampler", "eta", "format", "long_prompts",
)  # fmt: skip
MANY_SEEDS = re.compile(r"\s*\d+(\s*-\s*\d+)?(\s*,\s*\d+(\s*-\s*\d+)?)*\s*")
LONGEST_READ = 1 << 20  # characters of a manifest
TXT2IMG, IMG2IMG, INPAINT, MATRIX = KINDS = ("txt2img", "img2img", "inpaint", "matrix")  # of forms
TOLD_BY = {"matrix": MATRIX, "mask": INPAINT, "init": IMG2IMG}  # the keys of a job that tell what kind its form was


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What lies beside a form's manifest or is named in it: an init picture, a mask, a crop, and files of LoRAs."""

    picture: bool = False
    masked: bool = False
    crop: Crop | None = None
    loras: Mapping[str, Path] = field(default_factory=dict)


def usual_form(settings: Settings, model: ModelFiles) -> dict[str, Any]:
    """What a form shows at first: the model's own size, what suits it, and what `defaults.KEY=` says."""
    size = model.native_size
    shipped = SHIPPED if settings.model.path.startswith(files.BUILTIN) else {}
    own = {"prompt": "", "width": size, "height": size, "fit": CROP, "loras": {}, "axes": []}
    made = {
        "device": settings.device,
        "precision": settings.precision,
        "turbo": word(settings.turbo),
        "unet_bs": word(settings.unet_bs),
    }
    return {**DEFAULTS, **GOOD, **shipped, **own, **made, **given_defaults(settings)}


def asked_for(settings: Settings) -> dict[str, str]:
    """The settings that may change a picture's rounding, as overrides."""
    return {
        "model.path": settings.model.path,
        "model.prediction": settings.model.prediction,
        "model.vae": settings.model.vae,
        "device": settings.device,
        "precision": settings.precision,
        "turbo": word(settings.turbo),
        "compile": word(settings.compile),
        "unet_bs": word(settings.unet_bs),
        "memory": word(settings.memory),
    }


def word(value: object) -> str:
    """A setting's value as an override says it."""
    return "auto" if value is None else str(value).lower()


@cache
def _usual() -> dict[str, str]:
    return asked_for(compose([]))


# ---- to a manifest


def to_manifest(form: Mapping[str, Any], settings: Settings, *, name: str, beside: Beside | None = None) -> str:
    """The form as a manifest that says everything, headed by the command that renders it with the same settings."""
    beside = beside or Beside()
    job = {key: form[key] for key in ITEM_FIELDS}
    job |= {key: _parsed(form[key]) for key in EXTRA if form.get(key) not in (None, "", KEYS[key].default)}
    job["prompt"] = " ".join(str(form["prompt"]).split())
    job |= _seeds(form)
    if beside.picture:
        job |= {"init": PICTURE, "strength": form["strength"]}
        job |= {"crop": list(beside.crop)} if beside.crop else {}
    if beside.masked:
        job |= {MASK: MASK_PICTURE}
    job |= {"loras": dict(form["loras"])} if form.get("loras") else {}
    axes.put_into(job, form.get("axes") or ())
    listed = {"loras": {key: str(path) for key, path in beside.loras.items()}} if beside.loras else {}
    changed = [shlex.quote(f"{key}={value}") for key, value in asked_for(settings).items() if value != _usual()[key]]
    outside = ["allow_outside=true"] if beside.loras else []
    document = yaml.safe_dump(
        {"version": 1, "name": name, **listed, "jobs": [job]}, sort_keys=False, allow_unicode=True, width=2**30
    )
    return f"# {' '.join(['runner run', MANIFEST, *changed, *outside])}\n{document}"


def loras_of(form: Mapping[str, Any]) -> list[str]:
    """The LoRAs that a form names, in its rows, in its prompt's tags and on its axes."""
    tagged = list[str]()
    if form.get("prompt_syntax") == A1111:
        try:
            tagged = [tag.name for tag in read_tags(str(form["prompt"]))[1]]
        except ValueError:
            tagged = []  # the manifest's own rules say what is wrong
    return list(dict.fromkeys([*form.get("loras", {}), *tagged, *axes.loras(form.get("axes") or ())]))


def _seeds(form: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that say the seeds: one that the pictures count up from, or all of them in the manifest's own way.

    An empty text, -1 and `random` draw one. What is none of these is left for the manifest's own rules to refuse.
    """
    text = str(form["seed"] if form["seed"] is not None else "").strip()
    counts = {"n_samples": form["n_samples"], "n_iter": form["n_iter"]}
    if not text or text.lower() in RANDOM_SEEDS:
        return {"seed": secrets.randbelow(LARGEST_DRAWN_SEED), **counts}
    if text.isascii() and text.isdigit():
        return {"seed": int(text), **counts}
    if text.isascii() and MANY_SEEDS.fullmatch(text):
        spans = [re.sub(r"\s", "", each) for each in text.split(",")]
        return {"seeds": [int(span) if span.isdigit() else span for span in spans]}
    parsed = _parsed(text)
    return {"seeds": parsed} if isinstance(parsed, dict | list) else {"seed": text, **counts}


def _parsed(text: Any) -> Any:
    """A text as YAML reads it; one that isn't YAML is left for the manifest's own rules to refuse."""
    try:
        return yaml.safe_load(str(text))
    except axes.NOT_YAML:
        return str(text)


# ---- from a manifest


def from_manifest(text: str) -> dict[str, Any]:
    """The values of a form that a manifest's first job has, as far as a form can say them; the others are left out.

    Also reads the manifests of `runner extract`. A value that the manifest's rules refuse is left out.
    """
    job = _first_job(text)
    if not job:
        return {}
    form = {key: job[key] for key in (*ITEM_FIELDS, *EXTRA, "strength") if _is_valid(key, job.get(key))}
    form |= {key: _written(form[key]) for key in EXTRA if key in form and not isinstance(form[key], str)}
    form |= {key: job[key] for key in ("n_samples", "n_iter") if type(job.get(key)) is int and job[key] > 0}
    form |= _prompt_of(job) | _settings_of(text)
    seeds = job.get("seeds", job.get("seed"))
    if seeds is not None:
        form["seed"] = _written(seeds)
    if isinstance(job.get("loras"), dict):
        form["loras"] = {str(name): weight for name, weight in job["loras"].items() if type(weight) in (int, float)}
    form["axes"] = axes.read_from(job.get("matrix"))
    return form


def kind_of(text: str) -> str:
    """The kind of form that a manifest of the page was made by."""
    return _kind(_first_job(text))


def headline(text: str) -> tuple[str, str]:
    """The first prompt of a manifest, and what `kind_of` says of it."""
    job = _first_job(text)
    return str(_prompt_of(job)["prompt"]) if job else "", _kind(job)


def _kind(job: Mapping[str, Any]) -> str:
    return next((kind for key, kind in TOLD_BY.items() if key in job), TXT2IMG)


def _first_job(text: str) -> dict[str, Any]:
    """A manifest's first job over its defaults; empty where it can't be read."""
    try:
        document = yaml.safe_load(text[:LONGEST_READ])
        return {**(document.get("defaults") or {}), **document["jobs"][0]}
    except axes.NOT_YAML:  # or no manifest
        return {}


def _is_valid(key: str, value: Any) -> bool:
    if value is None or key == "prompt":
        return False
    try:
        check(key, wrap(value, Location(Path(MANIFEST))))
    except ManifestError:
        return False
    return True


def _prompt_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """The first prompt, in a way that reads the same: what is not weighted has its colons escaped."""
    several = job.get("prompts") or (job.get("matrix") or {}).get("prompt") or [""]
    prompt = job.get("prompt", several[0] if isinstance(several, list) else "")
    if not isinstance(prompt, dict):
        return {"prompt": str(prompt)}
    text = str(prompt.get("text", ""))
    negative = {"negative": str(prompt["negative"])} if "negative" in prompt else {}
    return {"prompt": text if prompt.get("weighted", True) else weighted.to_text([text], [1.0]), **negative}


def _settings_of(text: str) -> dict[str, str]:
    """The settings that the command in the first line of a manifest of the page names."""
    first = text.partition("\n")[0]
    try:
        words = shlex.split(first.removeprefix("# ")) if first.startswith("# runner run") else []
    except ValueError:
        return {}
    given = dict(word.split("=", 1) for word in words if "=" in word)
    return {**_usual(), **given} if words else {}


def _written(value: Any) -> str:
    """A value as a field of the form has it, and as it is read again."""
    if isinstance(value, list) and all(isinstance(each, int | str) for each in value) and value:
        spans = ", ".join(map(str, value))
        return spans if MANY_SEEDS.fullmatch(spans) and len(value) != 2 else f"[{spans}]"
    if isinstance(value, list | dict):
        return str(yaml.safe_dump(value, default_flow_style=True, width=2**30)).strip()
    return str(value)
