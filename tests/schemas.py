"""What the JSON schema says about the text of a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

from runner.manifest.nodes import Node, parse
from runner.manifest.schema import make_schema

VALIDATOR = Draft7Validator(make_schema())


def to_values(node: Node) -> Any:
    """A node as an editor's YAML reader passes it to a schema."""
    if isinstance(node.value, list):
        return [to_values(entry) for entry in node.value]
    if isinstance(node.value, dict):
        return {key.written: to_values(value) for key, value in node.value.items()}
    return node.value


def complaints(text: str) -> list[str]:
    """Where and why the schema refuses a manifest; nothing if it accepts it."""
    return [
        f"{error.json_path}: {error.message}"
        for error in VALIDATOR.iter_errors(to_values(parse(text, Path("manifest.yaml"))))
    ]
