import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.device import memory
from runner.machine import describe
from runner.machine import memory as machine_memory


def test_reading_needs_no_torch():
    calls = "speeds.recall('cpu'), describe.describe()"
    code = f"import sys; from runner.machine import describe, speeds; {calls}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_is_there(tmp_path, monkeypatch):
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = describe.describe(extras=("pytest", "no-such-thing"))
    assert found["compiler"] == str(compiler)
    assert found["threading"]["OMP_NUM_THREADS"] == "3"
    assert found["extras"] == {"pytest": pytest.__version__, "no-such-thing": None}
    assert found["memory_bytes"] >= (machine_memory.free_main_memory() or 0)
    assert set(found["instruction_sets"]) <= set(describe.TELLING_SETS)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "")
    assert describe.describe()["compiler"] is None


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
    tmp_path, monkeypatch, system, environment, siblings, threads
):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for cpu, text in enumerate(siblings):
        (tmp_path / str(cpu)).write_text(text)
    system(os, sched_getaffinity=lambda _: {0, 1, 2, 3})
    assert describe.threads(siblings=f"{tmp_path}/{{}}") == threads
