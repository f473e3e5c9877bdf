"""LoRAs from a manifest to the records, and back from records and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file
from schemas import complaints

from runner import cli
from runner.errors import ManifestError
from runner.item import item_id
from runner.manifest import items as manifest_items
from runner.manifest.read import load
from runner.model.loras import read_lora
from runner.request import read_request
from runner.settings import compose

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
HEAD = """version: 1
name: l
models: {it: {path: model}}
loras:
  ink: {path: loras/ink.safetensors}
  sharp: loras/sharp.safetensors
defaults: {width: 64, height: 64, steps: 2, model: it, sampler: euler}
jobs:
"""
SWEEP = (
    HEAD
    + """
- prompts: [a castle, a cat]
  seed: 1
  loras: {ink: 0.8}
  matrix:
    loras.sharp: [0, 0.5, 1]
- prompts: [a castle]
  seed: 1
  matrix:
    loras: [{}, {ink: 1}, {ink: {unet: 1, text: 0.5}, sharp: 0.5}, {ink: 0.8}]
"""
)


def write_lora(path: Path, seed: int, layer: str = LAYER, **more: torch.Tensor) -> Path:
    path.parent.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(4, 64, generator=generator), torch.randn(64, 4, generator=generator)
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up} | more, path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.save_model(tmp_path / "model")
    write_lora(tmp_path / "loras/ink.safetensors", 1)
    write_lora(tmp_path / "loras/sharp.safetensors", 2)
    (tmp_path / "l.yaml").write_text(SWEEP)
    return tmp_path


def records(folder: str = "outputs/l") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "records.jsonl").read_text().splitlines()]


def items(text: str, name: str = "m.yaml"):
    Path(name).write_text(text)
    assert complaints(text) == []
    return list(manifest_items.Items(load(Path(name), overrides={}, allow_outside=False), {}))


def sets(text: str) -> list[dict[str, tuple[float, float]]]:
    return [{lora.name: (lora.unet, lora.text) for lora in item.loras} for item in items(text)]


def refused(text: str) -> str:
    Path("m.yaml").write_text(text)
    with pytest.raises(ManifestError) as caught:
        read_request(Path("m.yaml"), compose([]))
    message = str(caught.value)
    assert "\n" not in message and message.startswith("m.yaml:")
    return message


# ---- what is asked for


def test_weights_as_keys_and_as_sets(folder: Path) -> None:
    assert sets(HEAD + "- {prompt: a, seed: 1, loras: {ink: 0.8, sharp: {unet: 1}}}") == [
        {"ink": (0.8, 0.8), "sharp": (1, 0)}
    ]
    span = "{start: 0, stop: 1, step: 0.5}"
    assert sets(HEAD + f"- {{prompt: a, seed: 1, loras: {{ink: 1}}, matrix: {{loras.sharp: {span}}}}}") == [
        {"ink": (1, 1)}, {"ink": (1, 1), "sharp": (0.5, 0.5)}, {"ink": (1, 1), "sharp": (1, 1)}
    ]  # fmt: skip
    assert sets(HEAD + "- {prompt: a, seed: 1, loras.ink: 0.3, zip: {steps: [1, 2], loras.sharp: [0, {text: 2}]}}") == [
        {"ink": (0.3, 0.3)}, {"ink": (0.3, 0.3), "sharp": (0, 2)}
    ]  # fmt: skip
    assert sets(HEAD.replace("steps: 2", "steps: 2, loras: {ink: 1}") + "- {prompt: a, seed: 1, loras.ink: 0}") == [{}]
    assert sets(HEAD + "- {prompt: a, seed: 1, loras: {ink: 1}, include: [{seed: 2, loras: {}}, {seed: 3}]}") == [
        {"ink": (1, 1)}, {}, {"ink": (1, 1)}
    ]  # fmt: skip


def test_axes_name_what_they_chose(folder: Path) -> None:
    made = items(SWEEP)
    assert dict(made[0].axes) == {"prompt": "a castle", "loras.sharp": 0.0}
    assert [dict(item.axes)["loras"] for item in made[-4:]] == [
        "none", "ink 1", "ink unet 1, text 0.5, sharp 0.5", "ink 0.8"
    ]  # fmt: skip


def test_items_are_left_out_by_a_weight(folder: Path) -> None:
    job = "- {prompt: a, seed: 1, loras: {ink: 1}, matrix: {steps: [1, 2], loras.sharp: [0, 1]}, exclude: [%s]}"
    assert len(items(HEAD + job % "{loras.sharp: 1, steps: 2}")) == 3
    assert len(items(HEAD + job % "{loras.ink: 1, steps: 2}")) == 2
    sweep = "- {prompt: a, seed: 1, matrix: {loras: [{}, {ink: 1}]}, exclude: [{loras: {ink: 1}}]}"
    assert sets(HEAD + sweep) == [{}]


def test_ids_are_made_of_tensors_and_weights(folder: Path) -> None:
    [plain] = items(HEAD + "- {prompt: a, seed: 1}")
    [nothing] = items(HEAD + "- {prompt: a, seed: 1, loras: {ink: 0, sharp: {unet: 0, text: 0}}}")
    one, other = items(HEAD + "- {prompt: a, seed: 1, matrix: {loras: [{ink: 1, sharp: 0.5}, {sharp: 0.5, ink: 1}]}}")
    assert item_id(plain) == item_id(nothing) and item_id(one) == item_id(other) != item_id(plain)
    Path("loras/ink.safetensors").rename("loras/renamed.safetensors")
    renamed = HEAD.replace("ink: {path: loras/ink", "pen: {path: loras/renamed")
    [called] = items(renamed + "- {prompt: a, seed: 1, loras: {pen: 1, sharp: 0.5}}")
    assert item_id(called) == item_id(one)
    [stronger] = items(renamed + "- {prompt: a, seed: 1, loras: {pen: 1, sharp: 0.6}}")
    assert item_id(stronger) != item_id(one)


def test_what_is_refused(folder: Path) -> None:
    job = "- {prompt: a, seed: 1, %s}"
    tiny_xl_lora = write_lora(Path("loras/xl.safetensors"), 3, "lora_te2_text_model_encoder_layers_0_mlp_fc1")
    write_lora(Path("loras/nan.safetensors"), 3, **{f"{LAYER}.alpha": torch.tensor(torch.nan)})
    write_lora(Path("loras/odd.safetensors"), 3, **{f"{LAYER}.something": torch.zeros(2)})
    Path("loras/page.safetensors").write_text("<html>")
    listed = HEAD.replace("loras:\n", f"loras:\n  xl: {tiny_xl_lora}\n" + "".join(
        f"  {name}: loras/{name}.safetensors\n" for name in ("nan", "odd", "page", "gone")
    ))  # fmt: skip
    for text, said in (
        (HEAD + job % "loras: {in: 1}", "lists no LoRA 'in', did you mean 'ink'"),
        (HEAD + job % "loras.shrap: 1", "unknown key 'loras.shrap', did you mean 'loras.sharp'"),
        (HEAD + job % "loras: [ink]", "expected names of LoRAs with their weights"),
        (HEAD + job % "loras: {ink: strong}", "loras.ink: 'strong' is not a number from -100 to 100"),
        (HEAD + job % "loras: {ink: .nan}", "is not a number from -100 to 100"),
        (HEAD + job % "loras: {ink: 101}", "is not a number from -100 to 100"),
        (HEAD + job % "loras: {ink: {unt: 1}}", "unknown key 'unt', did you mean 'unet'"),
        (HEAD + job % "loras: {ink: 1, ink: 2}", "twice"),
        (HEAD + job % "loras: {ink: 1}, matrix: {loras.ink: [0, 1]}", "'matrix.loras.ink' can't stand together"),
        (HEAD + job % "matrix: {loras.ink: [0, 1], loras: [{ink: 1}]}", "can't stand together with another weight of"),
        (HEAD + job % "loras: {ink: 1}, matrix: {loras: [{}]}", "'loras' and 'matrix.loras' can't stand together"),
        (HEAD + job % "loras.ink: 1, exclude: [{loras.sharp: 1}]", "the job has no loras.sharp"),
        (HEAD.replace("ink: {path", "'i n': {path") + job % "steps: 1", "can't name a LoRA"),
        (HEAD.replace("loras/ink", "../ink") + job % "steps: 1", "leaves the manifest's folder"),
        (HEAD.replace("{path: loras/ink.safetensors}", "{file: x}") + job % "steps: 1", "unknown key 'file'"),
        (HEAD.replace("ors}", f"ors, sha256: {'0' * 64}}}") + job % "loras: {ink: 1}", "other tensors"),
        (listed + job % "loras: {gone: 1}", "there is no such file"),
        (listed + job % "loras: {nan: 1}", "alpha holds numbers that are not finite"),
        (listed + job % "loras: {odd: 1}", "something"),
        (listed + job % "loras: {page: 1}", "is a web page"),
        (listed + job % "loras: {xl: 1}", "it seems to be a LoRA of Stable Diffusion XL"),
    ):  # fmt: skip
        assert said in refused(text), said
    assert (
        read_request(Path("m.yaml"), compose([])) if Path("m.yaml").write_text(listed + job % "loras: {ink: 1}") else 0
    )


def test_a_wrong_file_is_told_once(folder: Path) -> None:
    Path("loras/ink.safetensors").unlink()
    said = refused(HEAD + "- {prompt: a, seed: 1, matrix: {loras.ink: [0.1, 0.2, 0.3, 0.4]}}")
    assert said == "m.yaml:5:15: the LoRA 'ink': loras/ink.safetensors: there is no such file"


def test_a_file_that_nobody_asks_for_needn_t_be_there(folder: Path) -> None:
    Path("loras/ink.safetensors").unlink()
    assert sets(HEAD + "- {prompt: a, seed: 1, loras: {sharp: 1}}") == [{"sharp": (1, 1)}]


# ---- a run


def test_a_sweep_applies_each_set_once(folder: Path) -> None:
    request = read_request(Path("l.yaml"), compose([]))
    order = [item.weights for item in request.wanted()]
    changes = [one for one, other in zip(order, [None, *order], strict=False) if one != other]
    assert len(changes) == len(set(order)) == 6
    assert sorted(item.number for item in request.wanted()) == list(range(len(request.items)))


def test_records_and_pictures_make_the_pictures_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "l.yaml"]) == 0
    found = records()
    assert len(found) == 9  # the last one has been wanted before
    whole = next(each for each in found if each["item"]["number"] == 8)["item"]
    ink = read_lora(Path("loras/ink.safetensors"))
    assert whole["loras"]["ink"] == {
        "path": str(ink.path.resolve()), "sha256": ink.sha256, "unet": 1.0, "text": 0.5
    }  # fmt: skip
    assert {len({each["pixels"] for each in found})} == {9}
    text = Image.open(Path("outputs/l", found[-1]["image"])).text["parameters"]
    assert "<lora:ink:0.5:1> <lora:sharp:0.5>" in text and f'Lora hashes: "ink: {ink.file_hash}, sharp: ' in text
    assert cli.main(["run", "l.yaml"]) == 0 and len(records()) == 9
    assert cli.main(["verify", "outputs/l"]) == 0
    assert cli.main(["run", "outputs/l/records.jsonl", "out=again"]) == 0
    assert {each["id"]: each["sha256"] for each in records("again")}.keys() == {each["id"] for each in found}
    assert {each["pixels"] for each in records("again")} == {each["pixels"] for each in found}
    capsys.readouterr()
    assert cli.main(["extract", "outputs/l"]) == 0
    extracted = capsys.readouterr().out
    assert complaints(extracted) == []
    Path("extracted.yaml").write_text(extracted)
    assert cli.main(["run", "extracted.yaml", "out=third", "model.path=model"]) == 0
    assert {each["id"]: each["pixels"] for each in records("third")} == {each["id"]: each["pixels"] for each in found}


def test_a_sweep_has_the_bytes_of_single_runs(folder: Path) -> None:
    assert cli.main(["run", "l.yaml"]) == 0
    for number in (4, 8):
        [record] = [each for each in records() if each["item"]["number"] == number]
        Path("one.jsonl").write_bytes(orjson.dumps(record))
        assert cli.main(["run", "one.jsonl", f"out=one{number}", "memory=auto", "turbo=false"]) == 0
        assert records(f"one{number}")[0]["pixels"] == record["pixels"]


def test_lines_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"prompt": "a", "seed": 1, "width": 64, "height": 64, "steps": 1,
            "loras": {"ink": {"path": "loras/ink.safetensors", "weight": 0.5}}}  # fmt: skip
    Path("x.jsonl").write_bytes(orjson.dumps(line))
    assert cli.main(["run", "x.jsonl", "out=x", "model.path=model"]) == 0
    assert records("x")[0]["item"]["loras"]["ink"]["text"] == 0.5
    for changes, said in (
        ({"path": "loras/gone.safetensors", "weight": 1}, "no such file"),
        ({"weight": 1}, "needs a 'path'"),
        ({"path": "loras/ink.safetensors"}, "needs a 'weight'"),
        ({"path": "loras/ink.safetensors", "weight": 1, "sha256": "0" * 64}, "has other tensors"),
        ({"path": "../ink.safetensors", "weight": 1}, "leaves the manifest's folder"),
    ):
        Path("x.jsonl").write_bytes(orjson.dumps(line | {"loras": {"ink": changes}}))
        assert cli.main(["run", "x.jsonl", "out=x", "model.path=model"]) == 4
        assert said in capsys.readouterr().err


def test_two_files_of_one_name_are_told_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = "- {prompt: a, seed: 1, loras: {ink: 1}}"
    Path("m.yaml").write_text(HEAD + job)
    assert cli.main(["run", "m.yaml", "out=one"]) == 0
    Path("m.yaml").write_text(HEAD.replace("ink.safe", "sharp.safe") + job)
    assert cli.main(["run", "m.yaml", "out=two"]) == 0
    capsys.readouterr()
    assert cli.main(["extract", "one", "two"]) == 0
    extracted = capsys.readouterr().out
    for name in ("ink", "sharp"):
        mark = read_lora(Path(f"loras/{name}.safetensors")).sha256[:8]
        assert f"loras/ink-{mark}.safetensors" in extracted


# ---- tags in prompts


def test_tags_name_what_is_listed_or_lies_in_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lora(folder / "loras/beside.safetensors", 4)
    prompts = "a (castle:1.2) <lora:ink:0.5:1>", "a castle <lora:beside>", "a castle <lora:ink:0>"
    jobs = f"""
- prompts: {json.dumps(prompts)}
  seed: 1
  prompt_syntax: a1111
  loras: {{sharp: 0.5}}
- {{prompt: a castle, seed: 1, prompt_syntax: a1111, loras: {{sharp: 0.5}}}}
"""
    assert sets(HEAD + jobs) == [
        {"sharp": (0.5, 0.5), "ink": (1, 0.5)}, {"sharp": (0.5, 0.5), "beside": (1, 1)},
        {"sharp": (0.5, 0.5)}, {"sharp": (0.5, 0.5)},
    ]  # fmt: skip
    *_, nothing, plain = items(HEAD + jobs)
    assert item_id(nothing) == item_id(plain)
    assert cli.main(["run", "m.yaml", "out=one"]) == 0
    found = {each["id"]: each["pixels"] for each in records("one")}
    assert len(set(found.values())) >= 3
    text = next(each for each in records("one") if "beside" in each["item"]["prompt"])
    shown = Image.open(Path("one", text["image"])).text["parameters"]
    assert shown.startswith("a castle <lora:beside> <lora:sharp:0.5>\n") and "beside: " in shown
    assert cli.main(["run", "one/records.jsonl", "out=two"]) == 0
    assert {each["id"]: each["pixels"] for each in records("two")} == found
    assert cli.main(["verify", "one"]) == 0
    capsys.readouterr()
    assert cli.main(["extract", "one"]) == 0
    extracted = capsys.readouterr().out
    assert complaints(extracted) == [] and "prompt_syntax: a1111" in extracted
    Path("x.yaml").write_text(extracted)
    assert cli.main(["run", "x.yaml", "out=three", "model.path=model"]) == 0
    assert {each["id"]: each["pixels"] for each in records("three")} == found


def test_tags_and_words_that_are_not_there(folder: Path) -> None:
    job = "- {prompt: %s, seed: 1, prompt_syntax: a1111}"
    for prompt, said in (
        ("'a <lora:inc:1>'", "lists no LoRA 'inc', did you mean 'ink'? (character 3 of the prompt)"),
        ("'a <lora:../ink:1>'", "lists no LoRA '../ink'"),
        ("'a <hypernet:x:1>'", "'hypernet' is no kind of tag that is known"),
        ("'a <lora:ink:1> <lora:ink:2>'", "stands here twice"),
        ("'a <toy>'", "toy"),
        ("{text: a, negative: 'b <lora:ink:1>'}", "can't stand in a negative prompt"),
    ):
        assert said in refused(HEAD + job % prompt), said
    write_lora(folder / "loras/xl.safetensors", 3, "lora_te2_text_model_encoder_layers_0_mlp_fc1")
    assert "a LoRA of Stable Diffusion XL" in refused(HEAD + job % "'a <lora:xl:1>'")


def test_lines_with_tags(folder: Path) -> None:
    line = {"prompt": "a <lora:ink:0.5>", "seed": 1, "width": 64, "height": 64, "steps": 1, "prompt_syntax": "a1111"}
    Path("x.jsonl").write_bytes(orjson.dumps(line))
    assert cli.main(["run", "x.jsonl", "out=x", "model.path=model"]) == 0
    assert records("x")[0]["item"]["loras"]["ink"]["unet"] == 0.5
