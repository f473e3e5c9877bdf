"""`engine=ray` from the command line, on this machine: the pictures of the local engine, whatever is killed."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import tiny

from runner import cli
from runner.folder.ledger import iterate_records
from runner.folder.store import LocalStore

KILLS = int(os.environ.get("RUNNER_KILLS", "0")) // 4  # and one more
DEADLINE = 180  # seconds
SEEDS = 16 + 8 * KILLS  # enough for something to be left at each kill
MANIFEST = f"""
version: 1
name: small
defaults: {{width: 64, height: 64, steps: 4, sampler: dpmpp_2m}}
jobs:
  - prompts: [cat, dog, a red apple]
    seeds: 1-{SEEDS}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def words(tmp_path, model):
    (tmp_path / "m.yaml").write_text(MANIFEST)
    return ["run", str(tmp_path / "m.yaml"), f"model.path={model}", "unet_bs=2"]


def until(holds):
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def recorded(folder):
    file = folder / "records.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def disturb(words, folder, number):
    """Runs on workers until some more pictures are recorded, then sends a signal; its exit code."""
    before = recorded(folder)
    command = [sys.executable, "-m", "runner", *words, f"out={folder}", "engine=ray", "ray.cpus=1", "ray.workers=2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        until(lambda: recorded(folder) > before or run.poll() is not None)
        started = psutil.Process(run.pid).children(recursive=True)
        workers = [process for process in started if "Worker" in process.name()]  # Ray's own agents take a minute
        run.send_signal(number)
        code = run.wait(DEADLINE)
    assert workers
    until(lambda: not any(process.is_running() and process.status() != "zombie" for process in workers))
    return code


def pictures(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "images").rglob("*.png")
    }


def test_runs_that_are_stopped_and_killed_come_to_the_local_engines_pictures(words, tmp_path):
    folder, plain = tmp_path / "out", tmp_path / "plain"
    for number, code in [(signal.SIGKILL, -signal.SIGKILL), *KILLS * [(signal.SIGINT, 130), (signal.SIGKILL, -9)]]:
        assert disturb(words, folder, number) == code
    assert {record["run"]["engine"] for record in iterate_records(LocalStore(folder))} == {"ray"}
    for place in (folder, plain):
        assert cli.main([*words, f"out={place}"]) == 0
    assert pictures(folder) == pictures(plain)
    assert len(pictures(plain)) == 3 * SEEDS


def test_plan_counts_the_workers(words, capsys):
    assert cli.main(["plan", *words[1:], "engine=ray", "ray.cpus=1", "ray.workers=1"]) == 0
    assert "1, by Ray" in capsys.readouterr().out


def test_workers_that_no_machine_could_have_are_refused_before_anything_is_written(words, tmp_path, capsys):
    assert cli.main([*words, f"out={tmp_path / 'out'}", "engine=ray", "ray.cpus=999"]) == 2
    assert "ray.cpus=999" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
