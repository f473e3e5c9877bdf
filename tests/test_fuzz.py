"""Whatever is done to a file that people hand in, it ends with an answer: no fault of the runner, no traceback."""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest
import tiny
import torch
from builders import make_item, record
from PIL import Image
from safetensors.torch import load_file

from runner import cli

TURNS = int(os.environ.get("RUNNER_FUZZ", "8"))  # of each kind of file
MANIFEST = """\
version: 1
name: fuzz
models: {mine: {path: tiny}}
lists: {sizes: &sizes [64, 128]}
defaults: {width: 64, height: 64, steps: 2, sampler: dpmpp_2m, scale: 3.5, negative: "ugly, \\x41"}
jobs:
  - prompts: [a cat:0.5 dog:0.5, {id: x, parts: [a, b], weights: [[1, 2], [3, 4]]}, {file: p.txt, comments: "#"}]
    seeds: 1-3, 7
    matrix: {scale: {start: 1, stop: 3, count: 3}, width: *sizes}
    exclude: [{scale: 2, width: 64}]
  - {prompt: b, seed: 5, init: i.png, strength: 0.5, crop: [0, 0, 64, 64], model: mine}
"""
WORDS = ["null", "[]", "{}", "-1", "1e400", "NaN", "\\ud800", "\x00", "\x1b[31m", "\u202e", "<<: *x", "&a *a",
         "9" * 40, "{file: ..}", '"\\ud800"', "true", "[" * 300, "!!python/object:os.system", "~", "%YAML 1.1", "---",
         "? ", "1:30:00"]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with all that the runner reads."""
    place = tmp_path_factory.mktemp("fuzz")
    model = tiny.save_model(place / "tiny")
    (place / "m.yaml").write_text(MANIFEST)
    (place / "p.txt").write_text("# animals\na dog\na bird:0.3 nest:0.7\n")
    Image.new("RGB", (96, 96), "teal").save(place / "i.png")
    weights = {name: load_file(next((model / name).glob("*.safetensors"))) for name in ("vae", "unet")}
    torch.save({"state_dict": weights["vae"]}, place / "vae.ckpt")
    lines = [record(make_item(number=n, seed=n, steps=2)) for n in range(4)]
    (place / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (place / "items.jsonl").write_text('{"prompt": "a cat", "seed": 1, "width": 64, "height": 64, "steps": 2}\n' * 3)
    return place


def mutate(content: bytes, chosen: random.Random) -> bytes:
    """A file with a few changes: bytes, pieces that are cut out, doubled or moved, and words that mean something."""
    data = bytearray(content)
    for _ in range(chosen.randint(1, 4)):
        place = chosen.randrange(len(data) + 1)
        piece = data[place : place + chosen.randrange(1, 40)]
        match chosen.randrange(5):
            case 0 if place < len(data):
                data[place] = chosen.randrange(256)
            case 1:
                del data[place : place + len(piece)]
            case 2:
                data[place:place] = piece
            case 3:
                data[place:place] = chosen.choice(WORDS).encode("utf-8", "surrogatepass")
            case _:
                data[place : place + len(piece)] = chosen.choice(WORDS).encode("utf-8", "surrogatepass")
    return bytes(data)


CASES = {
    "m.yaml": [["plan", "m.yaml"], ["plan", "m.yaml", "json=true"]],
    "p.txt": [["plan", "m.yaml"]],
    "i.png": [["plan", "m.yaml"], ["extract", "i.png"]],
    "items.jsonl": [["plan", "items.jsonl"]],
    "records.jsonl": [["plan", "records.jsonl", "model.path=tiny"], ["plan", "m.yaml", "out=."], ["gallery", "."]],
    "run.json": [["plan", "m.yaml", "out=."]],
    "vae.ckpt": [["plan", "m.yaml", "model.path=vae.ckpt"]],
    "tiny/unet/config.json": [["plan", "items.jsonl", "model.path=tiny"]],
    "tiny/scheduler/scheduler_config.json": [["plan", "items.jsonl", "model.path=tiny"]],
    "tiny/vae/diffusion_pytorch_model.safetensors": [["plan", "items.jsonl", "model.path=tiny"]],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.some(5)
def test_a_mutated_file_is_read_or_refused(source, tmp_path, monkeypatch, capsys, name):
    for seed in range(TURNS):
        chosen, here = random.Random(f"{name} {seed}"), tmp_path / str(seed)
        shutil.copytree(source, here)
        monkeypatch.chdir(here)
        content = (here / name).read_bytes() if (here / name).exists() else b'{"drawn_seeds": {"0": 5}, "models": []}'
        # A file of weights says what it is at its beginning, a zip archive at its end.
        at_end = name.endswith(".ckpt") and seed % 2
        cut = len(content) - 3000 if at_end else 6000
        head, rest = content[:cut], content[cut:]
        (here / name).write_bytes(head + mutate(rest, chosen) if at_end else mutate(head, chosen) + rest)
        for words in CASES[name]:
            code = cli.main(words)
            printed = capsys.readouterr()
            assert code in (0, 2, 4, 10, 12), f"RUNNER_FUZZ seed {seed}: {words}: {printed.err}"
            assert "Traceback" not in printed.err
            assert not any(char in printed.out + printed.err for char in "\x00\x1b\u202e")
        shutil.rmtree(here)
