import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import builders
import pytest
import tiny

from runner import __version__, cli, settings
from runner.cli.verbs import VERBS

MANIFEST = "version: 1\nname: small\njobs: [{prompts: [cat, dog], seeds: 1-3, width: 64, height: 64, steps: 2}]\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.yaml").write_text(MANIFEST)
    return "m.yaml"


def test_help_names_every_verb(capsys):
    assert cli.main(["--help"]) == cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_verbs_help_shows_its_own_settings(capsys, verb):
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: runner {verb} ")
    assert "\n  debug: false " in text
    assert ("\n  unet_bs: auto " in text) == ("unet_bs" in VERBS[verb].uses)


def test_every_setting_is_used_by_a_verb_and_a_verb_uses_only_settings():
    used = {key for verb in VERBS.values() for key in verb.uses.split()} | {"debug"}
    assert used == {field.name for field in dataclasses.fields(settings.Settings)}


def test_the_help_of_bench_lists_the_values_of_its_file(capsys):
    assert cli.main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  bench.{field.name}: " in text for field in dataclasses.fields(settings.BenchSettings))


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"runner {__version__}\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["rnu", "m.yaml"], 2, "did you mean 'run'?"),
        (["run"], 2, "needs a target"),
        (["run", "a.yaml", "b.yaml"], 2, "two targets: a.yaml and b.yaml"),
        (["run", "m.yaml", "--dry"], 2, "'--dry' is not an option"),
        (["run", "m.yaml", "unetbs=4"], 2, "did you mean 'unet_bs'?"),
        (["run", "m.yaml", "model.path=nowhere"], 2, "there is nothing at nowhere"),
        (["run", "m.yaml", "device=cuda:9"], 2, "this machine has no such device"),
        (["run", "missing.yaml"], 4, "missing.yaml: there is no such file"),
        (["run", "wrong.yaml"], 4, "wrong.yaml:2:3: "),
        (["plan", "wrong.yaml"], 4, "did you mean 'prompts'?"),
        (["gallery", "nowhere"], 10, "no run folder"),
        (["extract"], 2, "needs a target"),
        (["extract", "-m", "a.png"], 2, "runs once"),
        (["extract", "nowhere.png"], 4, "nowhere.png: can't be read: No such file"),
        (["extract", "m.yaml"], 4, "m.yaml: is not a PNG, JPEG, WebP or AVIF picture"),
        (["extract", "a=b.png"], 2, "needs a target"),
        (["bench", "m.yaml"], 2, "takes settings only"),
        (["bench", "limit=3"], 2, "'limit' is a setting of run, plan"),
        (["bench", "model.path=nowhere"], 2, "there is nothing at nowhere"),
        (["bench", "bench.contenders=[runer]"], 2, "did you mean 'runner'?"),
    ],
)
def test_a_user_error_is_one_message_and_its_code(manifest, tmp_path, capsys, words, code, said):
    (tmp_path / "wrong.yaml").write_text("jobs:\n- promts: [cat]\n  seeds: 1\nversion: 1\n")
    assert cli.main(words) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == (3 if "wrong.yaml:2:" in error else 1)  # the line of the file, and a caret below it
    assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.yaml", "wrong.yaml"]


def test_debug_shows_where(manifest, capsys):
    assert cli.main(["run", "missing.yaml", "debug=true"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_the_runner_is_code_1(manifest, monkeypatch, capsys):
    def broken(call):
        raise RuntimeError("unexpected")

    monkeypatch.setitem(VERBS, "run", dataclasses.replace(VERBS["run"], run=broken))
    assert cli.main(["run", "m.yaml"]) == 1
    assert "RuntimeError: unexpected; debug=true" in capsys.readouterr().err


def test_plan_as_a_table_and_as_json(manifest, capsys):
    assert cli.main(["plan", "m.yaml"]) == 0
    assert "6 pictures: 0 done, 6 to render" in capsys.readouterr().out
    assert cli.main(["plan", "m.yaml", "json=true", "defaults.steps=9"]) == 0
    out = capsys.readouterr()
    answer = json.loads(out.out)
    assert answer["images"] == answer["missing"] == 6
    group = {"model": "emoji", "size": "64x64", "sampler": "ddim", "steps": 2, "unet_bs": 32, "images": 6}
    assert answer["groups"] == [group]
    assert answer["memory_bytes"] > answer["disk_bytes"] > 0
    assert answer["prompts"] == {"different": 2, "weighted": 0, "read_as": []}
    assert out.err == ""


A1111 = r"""
version: 1
name: editing
defaults: {width: 64, height: 64, steps: 4, prompt_syntax: a1111, negative: '(bad:1.4)'}
jobs:
- prompts: ["a (cat:1.3), [dog]", "[cat:dog:0.5] BREAK \\(x\\)", "[a|b]"]
  seeds: 1-2
"""


def test_prompts_in_automatic1111s_syntax_are_rendered_and_extracted(manifest, model, capsys):
    (Path.cwd() / "m.yaml").write_text(A1111)
    assert cli.main(["run", "m.yaml", f"model.path={model}"]) == 0
    assert cli.main(["run", "m.yaml", f"model.path={model}"]) == 0
    assert "nothing to render: all pictures are in outputs/editing" in capsys.readouterr().err
    assert cli.main(["extract", "outputs/editing"]) == 0
    Path("again.yaml").write_text(capsys.readouterr().out.replace("version: 1\n", "version: 1\nname: editing\n"))
    assert cli.main(["plan", "again.yaml", "json=true", f"model.path={model}"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["images"], answer["done"]) == (6, 6)
    assert cli.main(["verify", "outputs/editing", f"model.path={model}"]) == 0


def test_a_wrong_prompt_in_automatic1111s_syntax_is_named_before_anything_is_loaded(manifest, capsys):
    (Path.cwd() / "m.yaml").write_text(A1111.replace("[dog]", "AND dog").replace("[a|b]", "a <lora:ink:1>"))
    assert cli.main(["run", "m.yaml", "model.path=nowhere"]) == 4
    error = capsys.readouterr().err
    assert "m.yaml:6:13: AND composes prompts in AUTOMATIC1111" in error
    assert "the manifest lists no LoRA 'ink', and its folder 'loras' holds none (character 3 of the prompt)" in error


def test_run_then_plan_then_gallery(manifest, model, tmp_path, capsys):
    assert cli.main(["run", "m.yaml", f"model.path={model}"]) == 0
    error = capsys.readouterr().err
    assert "6 of 6 pictures to render" in error
    assert re.search(
        r"6 pictures in [\d.]+ s \([\d.]+ a second\), at most [\d.]+ [MG]iB of memory, see outputs/small/gallery.html",
        error,
    )
    assert "finished: 6 done, 0 failed" in (tmp_path / "outputs/small/runner.log").read_text()
    assert cli.main(["plan", "m.yaml", f"model.path={model}", "json=true"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == 0
    assert cli.main(["run", "m.yaml", f"model.path={model}"]) == 0
    assert "nothing to render: all pictures are in outputs/small" in capsys.readouterr().err
    (tmp_path / "outputs/small/gallery.html").unlink()
    assert cli.main(["gallery", "outputs/small"]) == 0
    assert (tmp_path / "outputs/small/gallery.html").exists()


def test_extract_takes_many_files_and_names_those_that_it_cannot_read(manifest, tmp_path, capsysbinary):
    folder = builders.run_folder(tmp_path / "run", [builders.make_item(prompt="é"), builders.make_item(seed=3)])
    first, second = sorted(folder.rglob("seed*.png"))
    (tmp_path / "steps=3.png").write_bytes(first.read_bytes())
    assert cli.main(["extract", "steps=3.png", str(second), "debug=false"]) == 0
    out, error = capsysbinary.readouterr()
    assert (out.decode("utf-8").splitlines()[0], error) == ("# from 2 pictures", b"")
    assert cli.main(["extract", str(folder), "m.yaml"]) == 4
    again, error = capsysbinary.readouterr()
    assert again == out
    assert error.startswith(b"runner: m.yaml: is not a PNG") and error.count(b"\n") == 1
    (tmp_path / "again.yaml").write_bytes(out)
    assert cli.main(["plan", "again.yaml", "json=true"]) == 0
    assert json.loads(capsysbinary.readouterr().out)["images"] == 2


def test_failed_items_are_named_and_are_code_3(manifest, model, no_noise, capsys):
    no_noise()
    assert cli.main(["run", "m.yaml", f"model.path={model}", "limit=2"]) == 3
    error = capsys.readouterr().err
    assert "2 failed" in error
    assert "  1: cat, seed 2" in error


def test_multirun_makes_a_folder_for_each_value(manifest, model, tmp_path, capsys):
    assert cli.main(["run", "m.yaml", "-m", f"model.path={model}", "unet_bs=2,4", "limit=2"]) == 0
    folders = sorted(path.name for path in (tmp_path / "outputs/small-multirun").iterdir())
    assert len(folders) == 2
    assert "unet_bs=2" in folders[0]
    assert "unet_bs=4" in folders[1]
    assert not (tmp_path / "multirun").exists()
    assert not (tmp_path / ".hydra").exists()
    assert cli.main(["run", "m.yaml", "-m", "uent_bs=2,4"]) == 2
    assert cli.main(["run", "m.yaml", "-m", f"model.path={model}", "device=cuda:8,cpu", "limit=1"]) == 2


def test_cfg_job_shows_the_whole_configuration(manifest, capsys):
    assert cli.main(["run", "m.yaml", "--cfg", "job", "unet_bs=4"]) == 0
    text = capsys.readouterr().out
    assert "unet_bs: 4" in text
    assert "path: builtin:emoji" in text


@pytest.mark.some(1)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_a_run_and_keep_what_is_finished(manifest, model, tmp_path, number, code):
    (tmp_path / "m.yaml").write_text(MANIFEST.replace("seeds: 1-3", "seeds: 1-500").replace("steps: 2", "steps: 20"))
    command = [sys.executable, "-m", "runner", "run", "m.yaml", f"model.path={model}", "unet_bs=4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ)
    records = tmp_path / "outputs/small/records.jsonl"
    deadline = time.monotonic() + 60
    while not (records.exists() and records.stat().st_size > 2000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code, error
    assert "Traceback" not in error
    for line in records.read_text().splitlines():
        record = json.loads(line)
        assert (tmp_path / "outputs/small" / record["image"]).stat().st_size == record["bytes"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_gallery_is_watched_until_a_signal(tmp_path, number, code):
    items = [builders.make_item(number=place, seed=place) for place in range(2)]
    folder = builders.run_folder(tmp_path / "run", items[:1])
    command = [sys.executable, "-m", "runner", "gallery", str(folder), "--watch"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)

    def wait_for(said):
        deadline = time.monotonic() + 60
        while said not in (folder / "gallery/state.js").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)

    assert process.stdout.readline().decode() == f"{folder}/gallery.html\n"
    wait_for('"running":true')
    builders.run_folder(folder, items)
    wait_for('"rows":2')
    process.send_signal(number)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code and error == ""
    assert '"running":false' in (folder / "gallery/state.js").read_text()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("out", "outputs/josé", "outputs/josé"),
        ("out", "a=b", "a=b"),
        ("out", "[x], (y) {z}", "[x], (y) {z}"),
        ("out", 'it\'s "here"', 'it\'s "here"'),
        ("out", "'quoted, all of it'", "quoted, all of it"),
        ("out", "${oc.env:HOME}\\${x}", "${oc.env:HOME}\\${x}"),
        ("out", "123", "123"),
        ("out", "true", "true"),
        ("out", "C:\\new\\", "C:\\new\\"),
        ("model.path", "~/w.ckpt", "~/w.ckpt"),
        ("model.path", "weights/epoch=3.ckpt", "weights/epoch=3.ckpt"),
        ("model.path", "single/v1-5 (1).safetensors", "single/v1-5 (1).safetensors"),
        ("defaults.negative", "(ugly:1.2)", "(ugly:1.2)"),
        ("defaults.negative", "blurry, low quality", "blurry, low quality"),
        ("defaults.negative", "1984", "1984"),
        ("defaults.negative", "null", None),
        ("defaults.init", "a,b.png", "a,b.png"),
        ("defaults.crop", "[0, 0, 64, 64]", [0, 0, 64, 64]),
        ("defaults.scale", "1e1", 10.0),
        ("defaults.steps", "4", 4),
    ],
)
def test_a_value_may_be_any_text(key, text, value):
    made = settings.compose([f"{key}={text}"])
    for name in key.split("."):
        made = made[name] if isinstance(made, dict) else getattr(made, name)
    assert made == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "m.yaml", "steps=4"], "write defaults.steps="),
        (["run", "m.yaml", "W=64"], "write defaults.width="),
        (["run", "m.yaml", "prompt=cat"], "prompts are set by the manifest"),
        (["run", "m.yaml", "seeds=1-4"], "defaults.seed="),
        (["run", "m.yaml", "bench.steps=3"], "'bench.steps' is a setting of bench; runner run doesn't use it"),
        (["run", "m.yaml", "sample=1"], "'sample' is a setting of verify"),
        (["gallery", "x", "limit=3"], "'limit' is a setting of run, plan"),
        (["run", "m.yaml", "--watch"], "'watch' is a setting of gallery"),
        (["verify", "x", "defaults.steps=3"], "'defaults.steps' is a setting of run, plan, web"),
    ],
)
def test_settings_that_are_none_or_another_verbs_are_answered_with_the_right_ones(manifest, capsys, words, said):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_default_without_effect_is_told(manifest, model, tmp_path, capsys):
    (tmp_path / "m.yaml").write_text(
        "version: 1\njobs: [{prompts: [cat], seeds: 1, steps: 2, width: 64, height: 64}]\n"
    )
    assert cli.main(["plan", "m.yaml", "defaults.steps=4", "defaults.scale=4"]) == 0
    printed = capsys.readouterr().out
    assert "defaults.steps" in printed and "has no effect" in printed and "defaults.scale" not in printed
    assert cli.main(["run", "m.yaml", f"model.path={model}", "defaults.steps=4"]) == 0
    assert "note: defaults.steps has no effect" in capsys.readouterr().err


def test_a_target_may_have_an_equals_sign(manifest, tmp_path, capsys):
    (tmp_path / "m.yaml").rename(tmp_path / "epoch=3.yaml")
    assert cli.main(["plan", "epoch=3.yaml"]) == 0
