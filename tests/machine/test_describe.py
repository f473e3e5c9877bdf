import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from runner.device import memory
from runner.machine import describe
from runner.machine import memory as machine_memory
from runner.planning import choices
from runner.planning.choices import LARGE_UNET


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "runner/machine.json"


def test_what_is_kept_comes_back(cache):
    assert describe.recall("cpu") == {}
    assert describe.keep("cpu", {"float32": 0.5, "bfloat16": None}) == cache
    assert describe.recall("cpu") == {"float32": 0.5, "bfloat16": math.inf}
    describe.keep("mps", {"float32": 0.1})
    assert describe.recall("cpu") == {"float32": 0.5, "bfloat16": math.inf}


def test_another_machine_or_torch_is_measured_again(monkeypatch):
    describe.keep("cpu", {"float32": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(describe, "version", lambda name: "99.0")
        assert describe.recall("cpu") == {}
    with monkeypatch.context() as patch:
        patch.setattr(describe, "device_name", lambda device: "another one")
        assert describe.recall("cpu") == {}
    with monkeypatch.context() as patch:
        patch.setattr(describe, "instruction_sets", lambda: ("of", "another", "generation"))
        assert describe.recall("cpu") == {}
    assert describe.recall("cpu") == {"float32": 0.5}


def test_a_device_without_a_name_is_not_kept(monkeypatch, cache):
    monkeypatch.setattr(describe, "device_name", lambda device: None)
    assert describe.keep("cuda:0", {"float32": 0.5}) is None
    assert describe.recall("cuda:0") == {}
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert describe.keep("cpu", {"float32": 0.5}) is None
    assert describe.recall("cpu") == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "\x00", "3", "[" * 10**5]
    + [json.dumps({"KEY": value}) for value in (3, [1], {"float32": "fast"}, {"float32": [1]}, {"float32": -1})]
    + ['{"KEY": {"float32": NaN}}'],
)
def test_a_damaged_file_counts_as_none_and_is_replaced(cache, text):
    describe.keep("cpu", {"float32": 0.5})
    (key,) = json.loads(cache.read_text())
    cache.write_text(text.replace("KEY", key))
    assert describe.recall("cpu") == {}
    describe.keep("cpu", {"float32": 0.25})
    assert describe.recall("cpu") == {"float32": 0.25}


def test_a_file_that_is_not_text_counts_as_none(cache):
    describe.keep("cpu", {"float32": 0.5})
    cache.write_bytes(b"\xff\xfe\x00")
    assert describe.recall("cpu") == {}


SLOW, QUICK = 1.0, 0.1


@pytest.mark.parametrize(
    ("device", "seconds", "flags", "wanted"),
    [
        ("cpu", {}, True, "bfloat16"),
        ("cpu", {}, False, "float32"),
        ("cpu", {"float32": QUICK, "bfloat16": SLOW}, True, "float32"),
        ("cpu", {"float32": SLOW, "bfloat16": QUICK}, False, "bfloat16"),
        ("cpu", {"float32": SLOW, "bfloat16": SLOW}, True, "float32"),
        ("cpu", {"float32": SLOW, "bfloat16": None}, True, "float32"),
        ("cpu", {"float32": SLOW}, True, "bfloat16"),  # half a measurement is none
        ("mps", {}, False, "float16"),
        ("mps", {"float32": SLOW, "float16": SLOW}, False, "float16"),  # it takes half the memory
        ("mps", {"float32": QUICK, "float16": SLOW}, False, "float32"),
        ("mps", {"float32": SLOW, "float16": None}, False, "float32"),
    ],
)
def test_the_number_type_is_chosen_by_what_was_measured(monkeypatch, device, seconds, flags, wanted):
    monkeypatch.setattr(describe, "instruction_sets", lambda: ("avx512_bf16",) if flags else ())
    if seconds:
        describe.keep(device, seconds)
    assert choices.choose_dtype("autocast", device, LARGE_UNET) == wanted
    assert choices.choose_dtype("full", device, LARGE_UNET) == "float32"
    if device == "cpu":
        assert choices.choose_dtype("autocast", device, LARGE_UNET - 1) == "float32"
    by_rule = "float16" if device == "mps" else "bfloat16" if flags else "float32"
    assert choices.choose_dtype("autocast", device, LARGE_UNET, measured={}) == by_rule


def test_reading_needs_no_torch():
    calls = "describe.recall('cpu'), describe.describe()"
    code = f"import sys; from runner.machine import describe; {calls}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_is_there(tmp_path, monkeypatch):
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(describe, "EXTRAS", ("pytest", "no-such-thing"))
    found = describe.describe()
    assert found["compiler"] == str(compiler)
    assert found["threading"]["OMP_NUM_THREADS"] == "3"
    assert found["extras"] == {"pytest": pytest.__version__, "no-such-thing": None}
    assert found["memory_bytes"] >= (machine_memory.free_main_memory() or 0)
    assert set(found["instruction_sets"]) <= set(describe.TELLING_SETS)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "")
    assert describe.describe()["compiler"] is None


def test_a_containers_limit_is_told_where_it_is_one(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    used = tmp_path / "memory.current"
    used.write_text("1024\n")
    monkeypatch.setattr(machine_memory, "CGROUPS", ((str(limit), str(used)), (str(tmp_path / "none"), "")))
    for text, wanted in (("1048576\n", 1 << 20), ("max\n", None), ("9223372036854771712\n", None)):
        limit.write_text(text)
        assert describe.describe()["container_limit_bytes"] == wanted


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    disk = describe.free_disk(tmp_path / "not/there")
    assert disk["folder"] == str(tmp_path / "not/there")
    assert disk["free_bytes"] > 0


def test_the_devices_name_is_the_one_that_records_have():
    describe.device_name.cache_clear()
    assert describe.device_name("cpu") in (None, memory.device_name("cpu"))
    assert describe.device_name("mps") == memory.device_name("mps")


def test_one_name_or_none(tmp_path):
    (tmp_path / "0").write_text("Model: \t\t NVIDIA H100\nIRQ: 1\n")
    assert describe._only([tmp_path / "0"], "Model:") == "NVIDIA H100"
    (tmp_path / "1").write_text("Model: NVIDIA T4\n")
    assert describe._only(sorted(tmp_path.iterdir()), "Model:") is None
    assert describe._only([Path("/nowhere")], "Model:") is None


@pytest.mark.parametrize(
    ("environment", "siblings", "threads"),
    [({}, ["0,4", "1,5", "0,4", "1,5"], 2), ({}, ["0", "1", "2", "3"], 4), ({}, [], 4),
     ({"OMP_NUM_THREADS": "3"}, [], 3), ({"MKL_NUM_THREADS": "2"}, [], 2), ({"OMP_NUM_THREADS": "2,1"}, [], 2),
     ({"OMP_NUM_THREADS": "many"}, [], 4)],
)  # fmt: skip
def test_there_is_a_thread_for_each_core_unless_the_environment_says_otherwise(
    tmp_path, monkeypatch, environment, siblings, threads
):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for cpu, text in enumerate(siblings):
        (tmp_path / str(cpu)).write_text(text)
    monkeypatch.setattr(describe, "SIBLINGS", f"{tmp_path}/{{}}")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert describe.threads() == threads
