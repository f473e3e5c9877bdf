"""The JSON schema of a manifest, draft 7, made from the tables that the manifest is read by; editors check with it.

It accepts every manifest that the runner accepts, and refuses what can be seen without files and sums. YAML's plain
scalars reach it as numbers and truth values where the runner takes them as texts, so a text may be any of these.

    python -m runner.manifest.schema > runner/schema/manifest.v1.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from runner.keys import KEYS, STRENGTH, TEXT, Schema
from runner.manifest.loras import ONE
from runner.manifest.places import MODEL_KEYS, PICTURES, SHA256
from runner.manifest.prompts import PROMPT_KEYS
from runner.manifest.read import CONFLICTS, INCLUDE_KEYS, JOB_KEYS, LONGEST_NAME, TOP_KEYS
from runner.manifest.rules import ALIASES, ITEM_KEYS, MOST_ITEMS, SEEDS
from runner.manifest.weighted import LARGEST_WEIGHT
from runner.settings import PREDICTIONS

COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": MOST_ITEMS}
FILE: Mapping[str, Schema] = {  # of a LoRA, of an embedding
    "path": {"description": "A .safetensors, a .pt or a .bin; relative to this file.", **TEXT},
    "sha256": {
        "description": "The SHA-256 that its tensors must have, as a record says it.",
        "type": "string",
        "pattern": f"^{SHA256.pattern}$",
    },
}
HELP = {
    "version": "The version of this format.",
    "name": "Names the run folder; by default the file's own name.",
    "models": "Models by names of their own, for a job that names or sweeps over them: `name: {path: ...}`.",
    "lora_strength": "How strong a LoRA is: one number, or {unet: 0.8, text: 0.4}.",
    "lora_files": "LoRAs by names of their own: `name: loras/file.safetensors`, or `name: {path: ..., sha256: ...}`.",
    "path": "A diffusers folder, a .safetensors or a .ckpt; relative to this file.",
    "prediction": "What the model predicts; auto: as its files say.",
    "embeddings": "Words that were learnt (textual inversion), by the names that texts have for them, <name>: "
    "`name: path`, or `name: {path: ..., sha256: ...}`.",
    "vae": "Another autoencoder: a diffusers folder or a single file; relative to this file.",
    "lists": "A place for lists that are used more than once: `name: &name [...]` here, `*name` there.",
    "defaults": "One value for each key, for every job.",
    "jobs": "What is wanted; each job is every combination of what it lists.",
    "prompts": "What the pictures show: texts, weighted prompts, or files of them.",
    "seeds": "`7`, `27-46`, `[1, 5, 9]`, `{start: 27, count: 20}` or `{start: 0, stop: 100, step: 5}`.",
    "n_samples": "Pictures in an iteration, the seeds counting up from `seed`.",
    "n_iter": "Iterations: n_samples x n_iter pictures, the seeds counting up from `seed`.",
    "zip": "Lists of one length, walked together; they vary slower than the matrix.",
    "matrix": "Lists or ranges of which every combination is made, the last one varying fastest.",
    "exclude": "Every item that matches all values of one of these is left out.",
    "include": "Single items more, over the job's own values; nothing is combined with them.",
    "text": "The prompt.",
    "parts": "The texts of a weighted prompt.",
    "weights": "A weight for each part, or a list of such lists to sweep over.",
    "file": "A text file with one prompt a line; relative to this file.",
    "comments": "Lines of the file that begin with this are left out.",
    "weighted": "false: `words:number` is plain text.",
    "id": "What the prompt is called where pictures are compared.",
    "start": "The first value.",
    "stop": "The last value, included.",
    "step": "The distance of two values; 1 without it.",
    "count": "The number of values.",
}


def make_schema() -> dict[str, Any]:
    """The whole schema."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A manifest of pictures, version 1",
        **_mapping(TOP_KEYS, {"loras": _ref("lora_files")}, required=["version", "jobs"]),
        "definitions": {key: {"description": _help(key), **schema} for key, schema in _keys().items()} | _structures(),
    }


def to_text() -> str:
    """The schema as it stands in the file."""
    return json.dumps(make_schema(), indent=1, ensure_ascii=False) + "\n"


def _help(key: str) -> str:
    return KEYS[key].help if key in KEYS else HELP[key]


def _keys() -> dict[str, Schema]:
    """What may stand behind each key."""
    weights = _list({"type": "number", "minimum": -LARGEST_WEIGHT, "maximum": LARGEST_WEIGHT})
    spans = {"type": "string", "pattern": f"^{SEEDS.pattern}(,{SEEDS.pattern})*$"}
    return {
        **{key: rule.schema for key, rule in KEYS.items()},
        "prompt": {"anyOf": [TEXT, *(_prompt(kind) for kind in PROMPT_KEYS)]},
        "version": {"enum": [1, "1"]},
        "name": {**TEXT, "minLength": 1, "maxLength": LONGEST_NAME, "pattern": r"^[^\s./\\-]"},
        "models": {"type": "object", "additionalProperties": _mapping(MODEL_KEYS, required=["path"])},
        "lora_files": {"type": "object", "additionalProperties": _file()},
        "embeddings": {
            "type": "object",
            "propertyNames": {"pattern": r"^[^\s<>:/]+$"},  # what a letter is, engines of patterns don't agree on
            "additionalProperties": _file(),
        },
        "path": TEXT,
        "prediction": {"enum": list(PREDICTIONS)},
        "vae": TEXT,
        "lists": {"type": "object", "additionalProperties": {"type": ["array", "object"]}},
        "lora_strength": STRENGTH,
        "defaults": _with_ones(_mapping(ITEM_KEYS)),
        "jobs": _list(_ref("job")),
        "prompts": _list(_ref("prompt")),
        "seeds": {"anyOf": [_ref("seed"), spans, _list(_ref("seeds")), _span({"type": "integer"})]},
        "n_samples": COUNT,
        "n_iter": COUNT,
        "zip": {**_columns(), "minProperties": 1},
        "matrix": _columns(),
        "exclude": _list({**_with_ones(_mapping(ITEM_KEYS, {"prompt": TEXT})), "minProperties": 1}),
        "include": _list(_with_ones(_mapping(INCLUDE_KEYS))),
        "text": TEXT,
        "file": TEXT,
        "comments": {"type": "string", "minLength": 1},
        "parts": _list(TEXT),
        "weights": {"anyOf": [weights, _list(weights)]},
        "weighted": {"type": "boolean"},
        "id": TEXT,
    }


def _structures() -> dict[str, Schema]:
    conflicts = [{"required": list(pair)} for pair in CONFLICTS if {*pair} <= {*JOB_KEYS}]
    job = _with_ones(_mapping(JOB_KEYS, {key: {"description": _help(key), **_column(key)} for key in PICTURES}))
    return {"job": {**job, "not": {"anyOf": conflicts}}, "range": _span({"type": "number"})}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of, "minItems": 1}


def _mapping(
    keys: Iterable[str], others: Mapping[str, Schema] = MappingProxyType({}), required: Iterable[str] = ()
) -> dict[str, Any]:
    """A mapping of these keys, under all their names; `others` are not what they are elsewhere."""
    properties = {key: others.get(key) or _ref(key) for key in keys}
    properties |= {alias: properties[real] for alias, real in ALIASES.items() if real in properties}
    return {"type": "object", "properties": properties, "additionalProperties": False, "required": list(required)}


def _with_ones(mapping: Mapping[str, Any], of: Schema | None = None) -> dict[str, Any]:
    """A mapping that may have keys of single LoRAs too."""
    return {**mapping, "patternProperties": {rf"^{re.escape(ONE)}": of or _ref("lora_strength")}}


def _file() -> Schema:
    return {"anyOf": [TEXT, _mapping(FILE, FILE, ["path"])]}


def _prompt(kind: str) -> Schema:
    required = [kind, "weights"] if kind == "parts" else [kind]
    return _mapping((kind, *PROMPT_KEYS[kind]), {"prompt": TEXT}, required)


def _columns() -> dict[str, Any]:
    columns = {key: {"description": _help(key), **_column(key)} for key in ITEM_KEYS}
    return _with_ones(_mapping(ITEM_KEYS, columns), {"anyOf": [_list(_ref("lora_strength")), _ref("range")]})


def _column(key: str) -> Schema:
    if key == "seed":
        return {"allOf": [_ref("seeds")]}  # what stands beside a reference is overlooked in draft 7
    if key in PICTURES:
        return {"anyOf": [_ref(key), _list(_ref(key))]}  # a text may be a pattern
    ranged = KEYS[key].schema.get("type") in ("integer", "number")
    return {"anyOf": [_list(_ref(key)), _ref("range")]} if ranged else _list(_ref(key))


def _span(number: Schema) -> Schema:
    """A range: its start, and its stop or its count or both; then without a step."""
    kinds = {"start": number, "stop": number, "step": number, "count": COUNT}
    properties = {key: {"description": HELP[key], **kind} for key, kind in kinds.items()}
    either = [{"required": ["stop"]}, {"required": ["count"]}]
    all_three = {"required": ["stop", "count", "step"]}
    return {**_mapping(properties, properties, ["start"]), "anyOf": either, "not": all_three}


if __name__ == "__main__":
    print(to_text(), end="")
