"""The JSON schema: it is the one that ships, it knows every key, and it agrees with what reads a manifest.

That it accepts every manifest that is read, `tests/test_manifest.py` checks with each one of its own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from schemas import complaints

from runner.errors import ManifestError
from runner.manifest import read
from runner.manifest import schema as manifest_schema
from runner.manifest.rules import ALIASES, ITEM_KEYS

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "runner/schema/manifest.v1.json"
MANIFESTS = sorted((ROOT / "manifests").rglob("*.yaml"))


def test_the_shipped_schema_is_the_one_that_is_made() -> None:
    assert SHIPPED.read_text(encoding="utf-8") == manifest_schema.to_text(), "make schema"


def test_it_is_a_schema_of_draft_7() -> None:
    schema = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    Draft7Validator.check_schema(schema)


def test_every_key_is_described() -> None:
    schema = manifest_schema.make_schema()
    definitions = schema["definitions"]

    def described(property: dict[str, Any]) -> bool:
        return bool(property.get("description") or definitions[property["$ref"].rpartition("/")[2]]["description"])

    assert set(definitions["job"]["properties"]) == {*read.JOB_KEYS, *ALIASES}
    assert set(definitions["matrix"]["properties"]) == {*ITEM_KEYS, *ALIASES}
    for mapping in (schema, *(definitions[key] for key in ("job", "defaults", "matrix", "zip", "range"))):
        assert all(map(described, mapping["properties"].values()))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_shipped_manifest_is_accepted_and_names_the_schema(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert complaints(text) == []
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", text.splitlines()[0])
    assert (path.parent / named).resolve() == SHIPPED


JOB = "version: 1\njobs: [{{prompt: a, {}}}]"


@pytest.mark.parametrize(
    "text",
    [
        "- 1",
        "jobs: [{prompt: a}]",
        "version: 1",
        "version: 2\njobs: [{prompt: a}]",
        "version: 1\njobs: []",
        "version: 1\njobs:",
        "version: 1\njob: []\njobs: [{prompt: a}]",
        "version: 1\nname: ../x\njobs: [{prompt: a}]",
        "version: 1\nlists: {a: b}\njobs: [{prompt: a}]",
        "version: 1\nlists: [a]\njobs: [{prompt: a}]",
        "version: 1\nmodels: [a]\njobs: [{prompt: a}]",
        "version: 1\nmodels: {a: weights/a}\njobs: [{prompt: a}]",
        "version: 1\nmodels: {a: {prediction: auto}}\njobs: [{prompt: a}]",
        "version: 1\nmodels: {a: {path: x, prediction: v}}\njobs: [{prompt: a}]",
        "version: 1\ndefaults: {prompts: [a]}\njobs: [{}]",
        "version: 1\ndefaults: {steps: [1]}\njobs: [{}]",
        "version: 1\njobs: [{prompt: a, prompts: [a]}]",
        "version: 1\njobs: [{prompts: []}]",
        "version: 1\njobs: [{prompts: [[a]]}]",
        "version: 1\njobs: [{prompts: [{id: x}]}]",
        "version: 1\njobs: [{prompts: [{text: a, prompt: b}]}]",
        "version: 1\njobs: [{prompts: [{text: a, weights: [1]}]}]",
        "version: 1\njobs: [{prompts: [{file: a.txt, id: x}]}]",
        "version: 1\njobs: [{prompts: [{text: a, weighted: no}]}]",
        "version: 1\njobs: [{prompts: [{parts: [a, b]}]}]",
        "version: 1\njobs: [{prompts: [{parts: [a, b], weights: [x, 1]}]}]",
        *(
            JOB.format(body)
            for body in (
                "width: 500",
                "width: 64.5",
                "W: 32",
                "height: 4160",
                "width: 512px",
                "steps: 0",
                "steps: true",
                "steps: '20'",
                "steps: 501",
                "scale: -0.5",
                "eta: 1.5",
                "strength: 2",
                "sampler: k_lms",
                "format: jpeg",
                "long_prompts: cut",
                "fixed_code: 'yes'",
                "crop: [1, 2, 3]",
                "crop: [0, 0, -1, 64]",
                "seed: -1",
                f"seed: {2**63}",
                "negative: [a]",
                "init: []",
                "init: [[a.png]]",
                "mask: {file: a.png}",
                "mask_blur: 257",
                "matrix: {init: []}",
                "exclude: [{init: [a.png]}]",
                "include: [{mask: [a.png]}]",
                "model: [emoji]",
                "stesp: 5",
                "seeds: 27-",
                "seeds: 1.5",
                "seeds: []",
                "seeds: {start: 0}",
                "seeds: {start: 0, stop: 3, count: 4, step: 1}",
                "seeds: {start: 0, stop: 3.5}",
                "seeds: {start: 0, end: 3}",
                "seeds: 1, seed: 1",
                "seeds: 1, n_samples: 2",
                "n_samples: 0",
                "n_iter: x",
                "matrix: []",
                "matrix: {sampler: ddim}",
                "matrix: {sampler: {start: 0, stop: 1}}",
                "matrix: {steps: []}",
                "matrix: {seeds: [1]}",
                "matrix: {scale: {start: 1}}",
                "zip: {}",
                "zip: {steps: 1}",
                "exclude: {scale: 7.5}",
                "exclude: [{}]",
                "exclude: [{scale: [7.5]}]",
                "exclude: [{matrix: {scale: 7.5}}]",
                "include: [b]",
                "include: [{matrix: {steps: [1]}}]",
                "include: [{n_iter: 2}]",
                "include: [{steps: 0}]",
            )
        ),
    ],
)
def test_what_it_can_see_is_refused_as_in_a_run(tmp_path: Path, text: str) -> None:
    assert complaints(text)
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ManifestError):
        read.load(tmp_path / "m.yaml", overrides={}, allow_outside=False)
