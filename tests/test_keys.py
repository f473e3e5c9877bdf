"""A key that is added to the table is everywhere: one row is enough."""

import json
import subprocess
import sys

import orjson
from builders import make_item

from runner.item import EXTRA, Item
from runner.keys import KEYS
from runner.settings import REPLACEABLE

ADDED = """
import json, sys
from pathlib import Path
from runner import keys
keys.KEYS["tilt"] = keys.whole_number(-9, 9, "How far the horizon tilts.", default=0, infotext="Tilt")
from runner import cli, settings
from runner.images.infotext import parameters_text
from runner.item import item_id
from runner.manifest import lines, schema, write
from runner.manifest.rules import DEFAULTS
from runner.request import read_request
from runner.web.forms import ITEM_FIELDS, to_manifest

def items(text, *overrides):
    Path("m.yaml").write_text("version: 1\\n" + text)
    return list(read_request(Path("m.yaml"), settings.compose(overrides)).items)

job = "prompts: [cat], seeds: 1, width: 64, height: 64"
found = {
    "plain": item_id(items(f"jobs: [{{{job}}}]")[0]),
    "zero": item_id(items(f"jobs: [{{{job}, tilt: 0}}]")[0]),
    "defaults": [item.value("tilt") for item in items(f"defaults: {{tilt: 3}}\\njobs: [{{{job}}}]")],
    "override": [item.value("tilt") for item in items(f"jobs: [{{{job}}}]", "defaults.tilt=4")],
    "matrix": [item.value("tilt") for item in items(f"jobs: [{{{job}, matrix: {{tilt: [0, 5]}}}}]")],
    "zip": [item.value("tilt") for item in items(f"jobs: [{{{job}, zip: {{tilt: [1, 2], steps: [3, 4]}}}}]")],
    "exclude": len(items(f"jobs: [{{{job}, matrix: {{tilt: [0, 5]}}, exclude: [{{tilt: 5}}]}}]")),
    "include": [item.value("tilt") for item in items(f"jobs: [{{{job}, include: [{{tilt: 7}}]}}]")],
    "schema": schema.make_schema()["definitions"]["tilt"]["description"],
}
[item] = items(f"jobs: [{{{job}, tilt: 6}}]")
found |= {"id": item_id(item), "record": item.to_dict()["tilt"], "infotext": "Tilt: 6" in parameters_text(item)}
again = lines.read_item(item.to_dict(), number=0, location=lines.NOWHERE, model=item.model)
found["line"] = item_id(again)
found["extract"] = "tilt: 6" in write.to_yaml([item])
form = {key: DEFAULTS.get(key, 1) for key in ITEM_FIELDS} | {"prompt": "cat", "seed": "1", "tilt": "8"}
form |= {"n_samples": 1, "n_iter": 1}
found["page"] = "tilt: 8" in to_manifest(form, settings.compose([]), name="m")
print(json.dumps(found))
"""


def test_a_new_row_is_known_everywhere(tmp_path):
    done = subprocess.run([sys.executable, "-c", ADDED], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["plain"] == found["zero"] != found["id"] == found["line"]
    values = {key: found[key] for key in ("defaults", "override", "matrix", "zip", "exclude", "include", "record")}
    assert values == {
        "defaults": [3], "override": [4], "matrix": [0, 5], "zip": [1, 2], "exclude": 1, "include": [0, 7], "record": 6,
    }  # fmt: skip
    assert found["schema"] == "How far the horizon tilts."
    assert found["infotext"] and found["extract"] and found["page"]


def test_keys_with_a_field_of_their_own_are_the_fields_of_an_item():
    others = {"number", "parts", "init_sha256", "extra", "embeddings", "axes"}
    assert set(Item._fields) - others == set(KEYS) - set(EXTRA)
    assert set(REPLACEABLE) == set(KEYS) - {"prompt"}


def test_an_item_without_extra_keys_is_written_as_before():
    written = orjson.loads(orjson.dumps(make_item().to_dict()))
    assert "extra" not in written and "model" not in written
    assert list(written)[-1] == "axes"
