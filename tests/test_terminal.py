"""Nothing that is printed steers the terminal, no screen ends a run, and JSON stays JSON."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny

from runner import terminal
from runner.text import visible

STEERING = "\x1b]0;X\x07\x1b[31m\u202ered\x9b\ud800\u2028\ufeff"
TEXT = "version: 1\ndefaults: {width: 64, height: 64, steps: 2}\njobs: [{prompts: [a cat ☕ 猫], seeds: 1-2}]\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


def runner(here, *words, **given):
    """The program in a process of its own, its output as bytes."""
    environment = os.environ | given.pop("env", {})
    command = [sys.executable, "-m", "runner", *words]
    return subprocess.run(command, cwd=here, env=environment, capture_output=True, timeout=120, **given)


@pytest.fixture
def here(tmp_path):
    (tmp_path / "m.yaml").write_text(TEXT, encoding="utf-8")
    return tmp_path


def test_what_steers_is_visible_and_what_people_write_stays():
    shown = visible(STEERING)
    assert shown == r"\u001b]0;X\u0007\u001b[31m\u202ered\u009b\ud800\u2028\ufeff"
    assert json.loads(f'"{shown}"') == STEERING
    for text in ("plain", "Ünï 猫 ☕ \u3000 \xa0", "👩\u200d💻", "tab\tand\nline"):
        assert visible(text) == text


def test_a_screen_makes_all_visible_and_writes_what_an_encoding_lacks_in_escapes():
    raw = io.BytesIO()
    screen = terminal.Screen(io.TextIOWrapper(raw, encoding="cp1252"))
    print(json.dumps("é☕🙂\x9b", ensure_ascii=False), file=screen, flush=True)
    assert json.loads(raw.getvalue().decode("cp1252")) == "é☕🙂\x9b"


def test_a_standard_error_that_is_gone_takes_everything():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    screen = terminal.Screen(Gone(), lenient=True)
    for _ in range(3):
        print("x", file=screen, flush=True)
    with pytest.raises(BrokenPipeError):
        print("x", file=terminal.Screen(Gone()))


def test_a_hostile_name_does_not_reach_the_terminal(here):
    name = "\x1b]0;X\x07\x1b[31m.yaml"
    (here / name).write_text("jobs: 1")
    for words in ((name,), ("m.yaml", f"model.path={STEERING[:-4]}"), ("m.yaml", f"out=\x1b[31m{'x' * 9}")):
        done = runner(here, "plan", *words)
        assert b"\x1b" not in done.stdout + done.stderr and b"\x07" not in done.stdout + done.stderr
        assert done.returncode != 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_encoding_will_do(here, encoding):
    for words in (("plan", "m.yaml"), ("plan", "m.yaml", "json=true")):
        done = runner(here, *words, env={"PYTHONIOENCODING": encoding})
        assert done.returncode == 0, done.stderr
    assert "a cat ☕ 猫" in json.loads(done.stdout.decode(encoding))["axes"].get("prompt", {"a cat ☕ 猫": 1})


@pytest.mark.some(1)
@pytest.mark.parametrize("env", [{"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"FORCE_COLOR": "3", "TTY_COMPATIBLE": "1"}])
def test_a_file_gets_plain_lines(here, model, env):
    done = runner(here, "run", "m.yaml", f"model.path={model}", env=env)
    assert done.returncode == 0
    assert b"\x1b" not in done.stderr and b"2 of 2 pictures to render" in done.stderr
    assert b"\x1b" not in runner(here, "plan", "m.yaml", env=env).stdout


def test_a_reader_that_goes_away_does_not_end_the_run(here, model):
    (here / "m.yaml").write_text(TEXT.replace("1-2", "1-12"), encoding="utf-8")
    script = (
        f"{sys.executable} -m runner run m.yaml model.path={model} unet_bs=2 2>&1 | head -c 1; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", script], cwd=here, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1].endswith("0"), done
    assert len(list((here / "outputs/m/images").rglob("*.png"))) == 12


def test_a_run_may_have_no_standard_streams(here, model):
    script = f"exec {sys.executable} -m runner run m.yaml model.path={model} >&- 2>&- <&-"
    assert subprocess.run(["bash", "-c", script], cwd=here, timeout=120).returncode == 0
    assert len(list((here / "outputs/m/images").rglob("*.png"))) == 2


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.some(1)
def test_a_closed_terminal_stops_a_run_like_sigterm_unless_it_is_ignored(here, model, ignored):
    (here / "m.yaml").write_text(TEXT.replace("1-2", "1-24").replace("steps: 2", "steps: 10"), encoding="utf-8")
    command = [sys.executable, "-m", "runner", "run", "m.yaml", f"model.path={model}", "unet_bs=4"]
    before = (lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if ignored else None
    process = subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, preexec_fn=before)
    records = here / "outputs/m/records.jsonl"
    end = time.monotonic() + 60
    while not (records.exists() and records.stat().st_size > 2000):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == (0 if ignored else 129)
    pictures = len(list((here / "outputs/m/images").rglob("*.png")))
    assert len(records.read_bytes().splitlines()) == pictures
    assert (pictures == 24) == ignored


def test_failed_items_are_listed_with_their_reasons(here, model, capsys, monkeypatch, no_noise):
    from runner import cli

    monkeypatch.chdir(here)
    no_noise(2)
    assert cli.main(["run", "m.yaml", f"model.path={model}", "attempts=1"]) == 3
    assert "seed 2: no noise today" in capsys.readouterr().err
    assert cli.main(["run", "m.yaml", f"model.path={model}", "attempts=1"]) == 3
    assert "1 skipped" in (error := capsys.readouterr().err) and "seed 2: no noise today" in error
