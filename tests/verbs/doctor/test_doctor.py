import json
import os

import pytest
import tiny
import torch

from runner import __version__, cli, settings
from runner.errors import SettingError
from runner.machine import speeds
from runner.planning import choices
from runner.verbs.doctor import doctor, probes, text
from runner.verbs.doctor.probes import TYPES, Probe


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch, limit):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    limit(probes, LEAST_CALLS=2)
    limit(probes, ENOUGH=0.0)
    limit(probes, CHANNELS=32)
    limit(probes, SIDE=16)
    monkeypatch.chdir(tmp_path)


def examine(model, *overrides, **seconds):
    """A report; `seconds` are those of large layers by number type, 0 where it is not finite."""
    chosen = settings.compose([f"model.path={model}", "device=cpu", *overrides])
    large = [Probe(fragment="large layers", dtype=key, finite=took > 0, seconds=took) for key, took in seconds.items()]
    return doctor.examine(chosen, lambda device: large) if large else doctor.examine(chosen)


def large_dtype(**more):
    return choices.choose_dtype("autocast", "cpu", choices.LARGE_UNET, **more)


def test_the_json_is_one_document_and_true(model, tmp_path, capsys):
    assert cli.main(["doctor", f"model.path={model}", "device=cpu", "json=true"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    found = json.loads(said.out)
    assert set(found) == {"machine", "probes", "choice", "notes", "kept"}
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["versions"]["torch"] == torch.__version__
    assert found["machine"]["devices"][-1]["device"] == "cpu"
    assert found["machine"]["disks"]["outputs"]["folder"] == str(tmp_path / "outputs")
    assert found["kept"] == str(tmp_path / "cache/runner/machine.json")
    places = [(probe["fragment"], probe["dtype"]) for probe in found["probes"]]
    assert places == [
        *((name, dtype) for name in ("text_encoder", "unet", "vae") for dtype in TYPES),
        ("large layers", "float32"),
        ("large layers", "bfloat16"),
    ]
    choice = found["choice"]
    assert (choice["model"], choice["device"], choice["dtype"]) == ("tiny", "cpu", "float32")
    assert [(layout["size"], layout["unet_bs"]) for layout in choice["layouts"]] == [("64x64", 32), ("512x512", 2)]
    assert choice["large_dtype"] == choices.choose_dtype("autocast", "cpu", choices.LARGE_UNET)
    kept = speeds.recall("cpu")
    assert kept == {
        probe["dtype"]: probe["seconds"] for probe in found["probes"] if probe["fragment"] == "large layers"
    }


def test_for_people(model, capsys):
    assert cli.main(["doctor", f"model.path={model}", "device=cpu", "memory=1MB"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"runner {__version__} on this machine\n")
    assert "[ok]  system" in said
    assert "[--]  openvino" in said or "[ok]  openvino" in said
    assert "[!!] memory=977 KiB: pictures of 64x64 need at least" in said
    assert len(said.splitlines()) < 40


def test_what_is_measured_decides_from_then_on_and_is_reported(model):
    rule = large_dtype(measured={})
    other = {"bfloat16": "float32", "float32": "bfloat16"}[rule]
    surprising, changed = examine(model, **{rule: 0.3, other: 0.1}).notes
    assert surprising == f"large models: {other}, as measured; without the measurement it would be {rule}"
    assert changed.startswith(f"large models were made in {rule} until now")
    assert large_dtype() == other
    assert examine(model, **{rule: 0.3, other: 0.1}).notes == [surprising]  # nothing changes any more
    [changed] = examine(model, **{rule: 0.1, other: 0.3}).notes
    assert changed.startswith(f"large models were made in {other} until now")
    assert examine(model, **{rule: 0.1, other: 0.3}).notes == []


def test_what_is_not_finite_is_never_chosen(model):
    assert examine(model, float32=0.3, bfloat16=0).choice["large_dtype"] == "float32"


def test_a_machine_that_cannot_keep_it_says_so(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cli.main(["doctor", f"model.path={model}", "device=cpu"]) == 0
    assert "[--]  kept" in capsys.readouterr().out


def test_precision_full_is_float32_for_all(model):
    choice = examine(model, "precision=full").choice
    assert choice["dtype"] == choice["large_dtype"] == "float32"


def test_a_wrong_device_or_model_is_said(model, tmp_path, capsys):
    with pytest.raises(SettingError, match="device=cuda:99: this machine has no such device"):
        examine(model, "device=cuda:99")
    assert cli.main(["doctor", "model.path=nowhere"]) == cli.main(["doctor", "m.yaml"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_nothing_is_written_but_the_measurement(model, tmp_path):
    examine(model)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "cache/runner/machine.json"
    ]


def test_a_gpu_is_shown_with_its_memory_and_capability():
    card = {"device": "cuda:0", "name": "NVIDIA T4", "memory_bytes": 16 << 30, "capability": "7.5"}
    assert text._device(card | {"memory_free_bytes": 2 << 30}) == ("NVIDIA T4, 16.0 GiB, 2.0 GiB free, capability 7.5")
    assert text._device({"device": "mps", "name": "mps", "memory_free_bytes": None}) == "mps"


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ({"finite": True, "seconds": 0.0012, "relative": 0.004}, "[ok] 1.2 ms, 4.0e-03"),
        ({"finite": True, "seconds": 1.26}, "[ok] 1.3 s"),
        ({"finite": False, "seconds": 0.1}, "[!!] not finite"),
        ({"problem": "no kernel"}, "[--] no kernel"),
    ],
)
def test_a_probe_in_a_few_words(found, shown):
    assert text._probe(Probe(fragment="unet", dtype="float16", **found)) == shown
