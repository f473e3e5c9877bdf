"""The JSON schema of a record, draft 7, made from `runner.record` and from the rules of item keys.

python -m runner.folder.schema > runner/schema/record.v1.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runner.item import MASK_SHA256, Item
from runner.keys import KEYS, Schema
from runner.manifest.lines import NULLABLE
from runner.record import DONE, FAILED, KINDS, VERSION, Making

TYPES: Mapping[type, str] = {int: "integer", str: "string", bool: "boolean"}
HASH: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT: Schema = {"type": "integer", "minimum": 0}
PLACED: Schema = {"required": ["path", "sha256"]}
HELP = {
    "version": "The version of this format; a line without it is of version 1.",
    "id": "SHA-256 over what defines the picture: the resolved item and the fingerprints of the weights.",
    "status": "Whether the item became a picture.",
    "item": "The item, every key resolved; `axes` is what the matrix chose.",
    "model": "The model's name, where it was found, and the SHA-256 of each fragment's weights.",
    "run": "How the picture was made.",
    "env": "The versions of what has a say in the picture's bytes.",
    "rerendered": "Why the picture was made again in float32.",
    "image": "The picture's path in the run folder.",
    "sha256": "SHA-256 of the picture's file.",
    "pixels": "SHA-256 of the decoded RGB bytes, row by row.",
    "bytes": "The size of the picture's file.",
    "seconds": "The picture's share of the time of each stage.",
    "peak_bytes": "The peak of memory in the picture's wave, in bytes.",
    "error": "Why the item failed.",
    "made": "When the record was written, in ISO 8601 with the offset from UTC.",
}


def make_schema() -> dict[str, Any]:
    """The schema as a JSON document."""
    properties: dict[str, Any] = {
        "version": {"const": VERSION},
        "id": HASH,
        "status": {"enum": [DONE, FAILED]},
        "item": _item(),
        "model": _object(
            {"name": TYPES[str], "path": TYPES[str]},
            fingerprints=TEXTS,
            vae={"type": "string"},
            family={"type": "string"},
        ),
        "run": _object({key: [TYPES[kind] for kind in KINDS[key]] for key in KINDS}, dtypes=TEXTS),
        "env": TEXTS,
        "rerendered": {"type": "string"},
        "image": {"type": "string"},
        "sha256": HASH,
        "pixels": HASH,
        "bytes": COUNT,
        "seconds": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
        "peak_bytes": COUNT,
        "error": _object({"class": TYPES[str], "message": TYPES[str]}),
        "made": {"type": "string", "format": "date-time"},
    }
    done = {"properties": {"status": {"const": DONE}}, "required": ["image", "sha256", "pixels", "bytes"]}
    failed = {"properties": {"status": {"const": FAILED}}, "required": ["error"]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": f"A record of runner, version {VERSION}",
        "type": "object",
        "properties": {key: {"description": HELP[key], **schema} for key, schema in properties.items()},
        "required": ["id", "status", "item", "model", *Making().to_dict()],
        "anyOf": [done, failed],
    }


def _item() -> dict[str, Any]:
    own: dict[str, Schema] = {
        "number": COUNT,
        "parts": {"type": "array", "items": {"type": "object", "required": ["text", "weight"]}},
        "init_sha256": HASH,
        "fixed_code": KEYS["seed"].schema,
        "loras": {"type": "object", "additionalProperties": {"type": "object", "required": ["sha256", "unet", "text"]}},
        "embeddings": {
            "type": "object",
            "additionalProperties": {**_object({"path": "string"}, sha256=HASH), **PLACED},
        },
        "mask_sha256": HASH,
        "axes": {"type": "object"},
    }
    names = dict.fromkeys([*Item._fields, *KEYS, MASK_SHA256])
    rules = {key: own.get(key) or KEYS[key].schema for key in names if key != "extra"}
    nullable = {key: {"anyOf": [rules[key], {"type": "null"}]} for key in NULLABLE}
    return {
        "type": "object",
        "properties": rules | nullable,
        "required": ["prompt", "parts", "seed", "width", "height"],
    }


def _object(types: Mapping[str, str | list[str]], **more: Schema) -> dict[str, Any]:
    return {"type": "object", "properties": {key: {"type": kind} for key, kind in types.items()} | more}


def to_text() -> str:
    """The shipped file's content."""
    return json.dumps(make_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(to_text(), end="")
