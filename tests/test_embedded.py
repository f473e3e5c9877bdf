"""End to end on the model that ships: what is asked for is drawn, and the same bytes come out however a run goes."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from runner import settings
from runner.events import WaveStarted
from runner.folder.ledger import iterate_records
from runner.request import read_request
from runner.verbs.run import run as running

MANIFEST = """
version: 1
name: embedded
defaults: {width: 64, height: 64, steps: 6, scale: 3, sampler: dpmpp_2m}
jobs:
  - prompts: [penguin on a blue background, "tiger face:1 panda face:1", mushroom]
    seeds: 1-12
  - prompts: [red apple on a green background]
    seeds: 3
    matrix: {sampler: [ddim, euler_a], scale: [1, 4]}
"""
# The system counts what a process held before it became this one, too: that is this small program, and not all tests.
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
COLOURS = {"blue": (50, 100, 220), "green": (50, 160, 70), "white": (255, 255, 255)}


@pytest.fixture
def ask(tmp_path):
    (tmp_path / "m.yaml").write_text(MANIFEST)

    def read(*overrides, out="out"):
        return read_request(tmp_path / "m.yaml", settings.compose([f"out={tmp_path / out}", *overrides]))

    return read


def hashes(request):
    return {record["id"]: record["sha256"] for record in iterate_records(request.store)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "m.yaml").write_text(MANIFEST)
    request = read_request(folder / "m.yaml", settings.compose([f"out={folder / 'out'}"]))
    list(running.run(request))
    return request


def test_the_background_that_was_asked_for_is_there(whole):
    records = [record for record in iterate_records(whole.store) if record["item"]["sampler"] == "dpmpp_2m"]
    assert len(records) == 36
    for record in records:  # six steps are too few for ddim
        prompt = record["item"]["prompt"]
        colour = next((name for name in COLOURS if name in prompt), "white")
        picture = np.asarray(Image.open(whole.store.folder / record["image"]).convert("RGB")).astype(int)
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert np.abs(np.median(border, axis=0) - COLOURS[colour]).max() < 60, prompt


@pytest.mark.parametrize("overrides", [["shuffle=5"], ["turbo=false", "limit=10"], ["shuffle=2", "limit=9"]])
@pytest.mark.some(1)
def test_the_same_files_in_any_order_grouping_and_mode(ask, whole, overrides):
    request = ask(*overrides)
    list(running.run(request))
    made = hashes(request)
    assert len(made) == request.count()
    assert made.items() <= hashes(whole).items()


def test_the_same_files_after_an_interruption_between_two_waves(ask, whole):
    events = running.run(ask())
    waves = 0
    for event in events:
        waves += isinstance(event, WaveStarted)
        if waves == 2:
            break
    events.close()
    assert 0 < len(hashes(ask())) < 40
    list(running.run(ask()))
    assert hashes(ask()) == hashes(whole)


def test_another_number_of_rows_changes_no_more_than_the_rounding(ask, whole):
    request = ask("unet_bs=6", "limit=6")
    list(running.run(request))
    for record in iterate_records(request.store):
        ours, other = (
            np.asarray(Image.open(run.store.folder / record["image"])).astype(int) for run in (request, whole)
        )
        assert np.abs(ours - other).max() <= 2


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux, which says what a process holds")
def test_a_ceiling_is_kept_by_the_whole_process_or_the_least_one_is_named(ask, whole, tmp_path):
    def call(ceiling):
        command = [sys.executable, "-m", "runner", "run", "m.yaml", f"memory={ceiling}MiB", f"out={tmp_path / 'out'}"]
        launched = [sys.executable, "-c", LAUNCHER, *command]
        done = subprocess.run(launched, cwd=tmp_path, capture_output=True, text=True, check=True)
        code, held = map(int, done.stdout.split())
        return code, done.stderr, held >> 10

    code, said, _ = call(100)
    assert code == 2
    least = int(re.search(r"at least memory=(\d+)MiB", said)[1])
    code, said, held = call(least + 32)
    assert (code, hashes(ask())) == (0, hashes(whole)), said
    assert held <= least + 32
