"""Whatever happens to a run, the next one completes its folder, byte for byte as if nothing had happened."""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine
from forker import KILLS, forker
from gallery_data import without_traces

import runner
from runner import settings
from runner.errors import FolderUnwritable
from runner.events import ItemDone, ModelLoaded
from runner.folder.ledger import Ledger, iterate_records
from runner.folder.store import LocalStore
from runner.request import read_request
from runner.verbs.run import run as running

TRACES = {".lock", "runner.log", "records.torn", "records.jsonl"}  # what may tell of a disturbance
MANIFEST = """
version: 1
name: small
defaults: {width: 64, height: 64, steps: 2}
jobs:
  - prompts: [cat, dog]
    seeds: 1-3
"""


TURNS = """
version: 1
name: small
models: {{one: {{path: {one}}}, two: {{path: {two}}}}}
defaults: {{width: 64, height: 64, steps: 2}}
jobs:
  - {{prompts: [cat, dog], seeds: 1, matrix: {{model: [one, two]}}}}
"""


@pytest.fixture(scope="module")
def model():
    return Path(runner.__file__).parent / "models/emoji"


@pytest.fixture
def ask(tmp_path, monkeypatch, model):
    """A request for the manifest in a folder of its own; the paths in it are the same in every such folder."""

    def read(place, *overrides, text=MANIFEST):
        (tmp_path / place).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / place)
        Path("m.yaml").write_text(text)
        return read_request(
            Path("m.yaml"), settings.compose([f"model.path={model}", "out=out", "allow_outside=true", *overrides])
        )

    return read


def paint(request):
    return list(running.run(request, FakeEngine()))


def files(folder):
    """Every file's content, but for those that are traces of how the folder came to be."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in TRACES)
    return without_traces({str(path.relative_to(folder)): path.read_bytes() for path in paths})


def newest_records(folder):
    """The newest record of each id, without what is measured."""
    measured = {"seconds", "peak_bytes", "made"}
    return {
        record["id"]: {key: value for key, value in record.items() if key not in measured}
        for record in iterate_records(LocalStore(folder))
    }


def check_finished_is_true(folder):
    """Every record that says done has the picture that it says."""
    for record in newest_records(folder).values():
        if record["status"] == "done":
            assert hashlib.sha256((folder / record["image"]).read_bytes()).hexdigest() == record["sha256"]


def check_same(folder, undisturbed):
    assert files(folder) == files(undisturbed)
    assert newest_records(folder) == newest_records(undisturbed)


class Fault:
    """From the n-th call on, one of the system's functions fails; a write takes half of the data first."""

    def __init__(self, monkeypatch, function, number):
        self.calls, self.number, self.real = 0, number, getattr(os, function)
        monkeypatch.setattr(os, function, getattr(self, function))

    @property
    def due(self):
        self.calls += 1
        return self.calls >= self.number

    def write(self, descriptor, data):
        if self.due:
            if self.calls == self.number and len(data) > 1:
                return self.real(descriptor, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(descriptor, data)

    def fsync(self, descriptor):
        if self.due:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.real(descriptor)

    def replace(self, source, target):
        if self.due:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self.real(source, target)


@pytest.mark.parametrize("function", ["write", "fsync", "replace"])
def test_any_write_flush_or_rename_may_fail(ask, tmp_path, monkeypatch, function):
    paint(ask("undisturbed"))
    request = ask("disturbed")
    for number in range(1, 100):
        with monkeypatch.context() as patched:
            fault = Fault(patched, function, number)
            if not fails(request):
                assert fault.calls < number
                break
        if Path("out/records.jsonl").exists():
            check_finished_is_true(Path("out"))
        paint(request)
        check_same(Path("out"), tmp_path / "undisturbed/out")
        shutil.rmtree("out")
    assert number > 8  # there are as many pictures and reports


def fails(request):
    """Whether a run ends with the disk's error."""
    try:
        paint(request)
    except FolderUnwritable as error:
        assert error.exit_code == 12
        return True
    return False


@pytest.mark.some(1)
@pytest.mark.parametrize("models", [2, 1])
def test_a_run_may_be_killed_at_any_moment(ask, tmp_path, model, models):
    other = shutil.copytree(model, tmp_path / "other") if models == 2 else None
    if other:  # weights of its own
        [file] = (other / "vae").glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"\0")
    text = TURNS.format(one=model, two=other) if other else MANIFEST
    ask("undisturbed", text=text)
    delays, kills, folder = random.Random(20), Counter(), tmp_path / "0"
    words = ["run", "m.yaml", f"model.path={model}", "out=out", "unet_bs=4", "allow_outside=true"]
    imports = "runner.verbs.run.run, runner.engine.start, runner.request, runner.report.progress, rich.console"
    with forker(words, imports) as run:
        code, whole = run(tmp_path / "undisturbed", 600)
        assert code == 0
        while sum(kills.values()) < KILLS:
            ask(folder.name, text=text)
            code, _ = run(folder, delays.uniform(0, whole))
            if code == 0:
                check_same(folder / "out", tmp_path / "undisturbed/out")
                folder = tmp_path / str(int(folder.name) + 1)
            else:
                assert code == -9
                kills[folder] += 1
                if (folder / "out/records.jsonl").exists():
                    check_finished_is_true(folder / "out")
        for place in kills:
            assert run(place, 600)[0] == 0
            check_same(place / "out", tmp_path / "undisturbed/out")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 192 KiB, and a function that mounts it anew with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, text=True)

    if sys.platform != "linux" or os.geteuid() or (tried := mount("size=192k")).returncode:
        pytest.skip("a disk can't be mounted here: " + (tried.stderr.strip() if not os.geteuid() else "not root"))
    yield SimpleNamespace(path=place, mount=mount)
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_disk_may_become_full(ask, tmp_path, model, small_disk):
    text = MANIFEST.replace("seeds: 1-3", "seeds: 1-8")
    paint(ask("undisturbed", text=text))
    with pytest.raises(FolderUnwritable, match="the disk is full"):
        paint(ask("disk", text=text))
    check_finished_is_true(Path("out"))
    finished = len(newest_records(Path("out")))
    assert 0 < finished < 16
    assert small_disk.mount("remount,size=8m").returncode == 0
    assert sum(isinstance(event, ItemDone) for event in paint(ask("disk", text=text))) == 16 - finished
    check_same(Path("out"), tmp_path / "undisturbed/out")


def test_a_disk_may_become_read_only(ask, tmp_path, model, small_disk):
    assert small_disk.mount("remount,size=8m").returncode == 0
    paint(ask("undisturbed"))
    request = ask("disk")
    paint(ask("disk", "limit=2"))
    assert small_disk.mount("remount,ro").returncode == 0
    with pytest.raises(FolderUnwritable, match="read-only"):
        paint(request)
    assert small_disk.mount("remount,rw").returncode == 0
    check_finished_is_true(Path("out"))
    paint(ask("disk"))
    assert newest_records(Path("out")) == newest_records(tmp_path / "undisturbed/out")


def remove(folder):
    while folder.exists():  # a picture may come into it meanwhile
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("vanish", [remove, lambda folder: folder.rename("moved")], ids=["removed", "moved"])
def test_the_folder_may_vanish(ask, tmp_path, vanish):
    text = MANIFEST.replace("seeds: 1-3", "seeds: 1-40")
    paint(ask("undisturbed", text=text))
    request = ask("disturbed", text=text)
    with pytest.raises(FolderUnwritable, match="the folder has vanished"):
        for event in running.run(request, FakeEngine()):
            if isinstance(event, ItemDone) and request.store.folder.exists():
                vanish(request.store.folder)
    for left in Path().glob("moved"):
        check_finished_is_true(left)
    paint(ask("disturbed", text=text))
    assert newest_records(Path("out")) == newest_records(tmp_path / "undisturbed/out")


def test_the_clock_may_jump(ask, tmp_path, system):
    paint(ask("undisturbed"))
    request, jumps = ask("disturbed"), random.Random(4)
    system(time, time=lambda: jumps.uniform(0, 2**32))
    system(time, time_ns=lambda: int(jumps.uniform(0, 2**62)))
    paint(request)
    check_same(Path("out"), tmp_path / "undisturbed/out")


def test_no_module_asks_for_the_time_of_day_but_to_record_it():
    asked = re.compile(
        r"\btime\.time|\b(?:local|gm)time\b|\bdate(?:time)?\.(?:now|utcnow|today)|^import datetime", re.M
    )
    package = Path(runner.__file__).parent
    found = [str(it.relative_to(package)) for it in package.rglob("*.py") if asked.search(it.read_text())]
    assert found == ["verbs/run/session.py"]


def test_files_that_a_killed_process_left_half_written_are_swept(ask, tmp_path):
    paint(ask("undisturbed"))
    request = ask("disturbed")
    events = running.run(request, FakeEngine())
    next(event for event in events if isinstance(event, ItemDone))
    events.close()
    for path in (".a.part", "images/.b.part", "images/cat/.c.part"):
        (request.store.folder / path).write_bytes(b"half")
    (request.store.folder / "images/cat/mine.part").write_bytes(b"")
    paint(ask("disturbed"))
    assert set(files(Path("out"))) - set(files(tmp_path / "undisturbed/out")) == {"images/cat/mine.part"}


def test_a_report_that_was_not_made_is_made_by_the_next_run(ask, tmp_path, monkeypatch):
    paint(ask("undisturbed"))
    paint(ask("disturbed", "limit=3"))
    with monkeypatch.context() as patched:
        patched.setattr(running.gallery, "build", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            paint(ask("disturbed"))
    assert paint(ask("disturbed"))[0].missing == 0
    assert files(Path("out")) == files(tmp_path / "undisturbed/out")


def test_a_ledger_is_closed_whatever_happens_to_the_run(ask):
    request = ask("one")
    events = running.run(request, FakeEngine())
    while not isinstance(next(events), ModelLoaded):
        pass
    events.close()
    with Ledger(request.store) as ledger:
        assert not ledger.images()
    assert json.loads(Path("out/run.json").read_text())["settings"]["attempts"] == 3


ALONE = """
import sys
from pathlib import Path
from fake_engine import FakeEngine
from forker import KILLS, forker
from gallery_data import without_traces
from runner import settings
from runner.request import read_request
from runner.verbs.run import run
events = list(run.run(read_request(Path("m.yaml"), settings.compose([])), FakeEngine()))
assert events[-1].done == 6, events[-1]
assert "torch" not in sys.modules
"""


def test_a_run_with_another_engine_needs_no_torch(tmp_path):
    (tmp_path / "m.yaml").write_text(MANIFEST)
    places = os.pathsep.join([str(Path(__file__).parent), str(Path(runner.__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": places}
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs/small/images").rglob("*.png"))) == 6
