"""A run renders what is missing, in any order and company; one that was stopped goes on, and nobody is overwritten."""

import dataclasses
import hashlib
import json
import os
import shutil
import threading
from functools import partial

import numpy as np
import pytest
from fake_engine import FakeEngine
from PIL import Image
from small_runs import MANIFEST, hashes, paint, small

from runner import settings
from runner.device import memory
from runner.errors import FolderUnwritable, ModelError, RunFolderHeld, SettingError
from runner.events import ItemDone, RunFinished, RunStarted, StepDone, WaveStarted
from runner.files import writing_to
from runner.folder.ledger import Ledger, iterate_records
from runner.folder.store import LocalStore
from runner.folder.writer import Writer
from runner.images.codec import encode
from runner.report import progress
from runner.request import read_request
from runner.verbs.run import run as running
from runner.verbs.run import turns


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """The hashes of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "m.yaml").write_text(MANIFEST)
    given = [f"model.path={model}", f"out={folder / 'out'}", "unet_bs=4"]
    list(running.run(read_request(folder / "m.yaml", settings.compose(given))))
    return hashes(folder / "out")


def test_a_run_folder_has_everything(ask):
    request = ask()
    events = list(running.run(request))
    assert events[0].missing == events[0].wanted == 20
    assert events[-1].done == 20
    assert not events[-1].failed
    names = {path.name for path in request.store.folder.iterdir()}
    assert names >= {"manifest.yaml", "run.json", "records.jsonl", "images", "gallery.html", "grid.png"}
    assert (request.store.folder / "manifest.yaml").read_text() == MANIFEST
    for record in iterate_records(request.store):
        file = request.store.folder / record["image"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == record["sha256"]
        assert file.stat().st_size == record["bytes"]
        picture = np.asarray(Image.open(file).convert("RGB"))
        if record["item"]["format"] == "png":
            assert hashlib.sha256(picture.tobytes()).hexdigest() == record["pixels"]
        assert record["run"]["unet_bs"] == 4
        assert record["item"]["model"] == "tiny"
        assert set(record["model"]["fingerprints"]) == {"text_encoder", "unet_encode", "unet_decode", "vae"}
        assert record["env"]["torch"]
        assert record["item"]["axes"]
    assert (request.store.folder / "images/cat/seed_1_00000.png").exists()


def test_a_second_run_renders_nothing(ask):
    paint(ask())
    events = list(running.run(ask(), start=lambda *_: pytest.fail("the model was loaded")))
    assert [type(event) for event in events] == [RunStarted, RunFinished]
    assert events[0].missing == 0


@pytest.mark.some(2)
@pytest.mark.parametrize(
    "overrides", [["shuffle=3"], ["turbo=false"], ["shuffle=8", "limit=7"], ["turbo=false", "shuffle=2", "limit=5"]]
)
def test_pictures_do_not_depend_on_order_mode_or_company(ask, whole, overrides):
    request = ask(*overrides)
    list(running.run(request))
    made = hashes(request.store.folder)
    assert len(made) == request.count()
    assert made.items() <= whole.items()


def test_two_halves_are_the_whole(ask, whole):
    text = MANIFEST.replace("seeds: 1-4", "seeds: 3-4").replace(
        "matrix: {sampler: [euler_a, plms]", "matrix: {sampler: [plms]"
    )
    request = ask(text=text)
    list(running.run(request))
    assert hashes(request.store.folder).items() <= whole.items()
    assert len(hashes(request.store.folder)) == 10


def test_a_run_stopped_between_waves_goes_on(ask, whole):
    events = running.run(ask())
    waves = 0
    for event in events:
        waves += isinstance(event, WaveStarted)
        if waves == 2:
            break
    events.close()
    folder = ask().store.folder
    assert 0 < len(hashes(folder)) < 20
    rest = list(running.run(ask()))
    assert rest[0].missing == 20 - rest[0].wanted + rest[-1].done
    assert hashes(folder) == whole


def test_pictures_that_are_being_written_when_a_run_is_stopped_are_recorded(ask):
    gate = threading.Event()
    slow = partial(Writer, encode=lambda *given: gate.wait(60) and encode(*given))
    events = running.run(ask(text=MANIFEST.replace("1-4", "1-9")), FakeEngine(), make_writer=slow)
    for event in events:
        if isinstance(event, WaveStarted):
            rendered = len(event.items)
        if isinstance(event, StepDone) and event.step == event.steps:
            break
    next(events)
    gate.set()
    events.close()
    assert len(hashes(ask().store.folder)) == rendered


def test_what_a_picture_was_made_of_makes_it_again(ask, whole):
    request = ask()
    list(running.run(request))
    records = (request.store.folder / "records.jsonl").read_text()
    again = ask(text=records, name="records.jsonl", out="again")
    list(running.run(again))
    assert hashes(again.store.folder) == whole


def test_a_picture_that_was_lost_or_cut_is_made_again(ask, whole):
    request = ask()
    list(running.run(request))
    files = sorted((request.store.folder / "images").rglob("*.png"))
    before = files[0].read_bytes()
    files[0].unlink()
    files[1].write_bytes(b"cut")
    events = list(running.run(ask()))
    assert events[0].missing == 2
    assert files[0].read_bytes() == before
    assert hashes(request.store.folder) == whole


def test_deep_looks_into_the_files(ask):
    paint(ask(text=small("cat", "1-3")))
    file = ask().store.folder / "images/cat/seed_2_00001.png"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + b"?")
    assert paint(ask(text=small("cat", "1-3")))[0].missing == 0
    assert paint(ask("deep=true", text=small("cat", "1-3")))[0].missing == 1
    assert file.read_bytes() == before
    file.unlink()
    assert paint(ask("deep=true", text=small("cat", "1-3")))[-1].done == 1


def test_new_items_of_a_changed_manifest_overwrite_nobody(ask):
    text = "version: 1\njobs: [{prompts: [cat], seeds: 1, matrix: {scale: [3, 5]}, width: 64, height: 64, steps: 2}]\n"
    request = ask(text=text)
    list(running.run(request))
    before = {path: path.read_bytes() for path in (request.store.folder / "images").rglob("*.png")}
    request = ask(text=text.replace("[3, 5]", "[1, 3, 5]"))
    events = list(running.run(request))
    assert events[0].missing == 1
    assert all(path.read_bytes() == data for path, data in before.items())
    assert len(list((request.store.folder / "images").rglob("*.png"))) == 3


def test_an_item_that_occurs_twice_is_made_once(ask):
    request = ask(text="version: 1\njobs: [{prompts: [cat, cat], seeds: [1, 1], width: 64, height: 64, steps: 2}]\n")
    events = list(running.run(request))
    assert sum(isinstance(event, ItemDone) for event in events) == 1
    assert next(running.run(request)).missing == 0


def test_pictures_that_nobody_asks_for_any_more_are_kept_and_named(ask):
    request = ask(text=small("cat, dog", "1-2"))
    assert paint(request)[-1].unwanted == ()
    old = set((request.store.folder / "images").rglob("*.png"))
    events = paint(ask(text=small("cat, owl", "1-2")))
    assert events[0].missing == 2
    assert set(events[-1].unwanted) == {"images/dog/seed_1_00002.png", "images/dog/seed_2_00003.png"}
    assert all(path.exists() for path in old)
    lines = progress.summary(events[-1], request.store)
    assert any("2 pictures are no longer in the manifest and were kept: images/dog/seed_1" in line for line in lines)
    assert paint(ask("limit=1", text=small("owl", "1-2")))[-1].unwanted == ()


def test_pictures_that_vanish_during_a_run_are_told_at_its_end(ask):
    request = ask()
    events = running.run(request, FakeEngine())
    for event in events:
        if isinstance(event, ItemDone):
            (request.store.folder / event.record.image).unlink()
            break
    finished = list(events)[-1]
    assert len(finished.lost) == 1
    assert "1 pictures of this run are gone again" in "".join(progress.summary(finished, request.store))
    assert paint(ask())[0].missing == 1


def test_nothing_is_written_where_nothing_can_be_rendered(ask, model, tmp_path):
    with pytest.raises(SettingError):
        list(running.run(ask("device=cuda:7")))
    assert not (tmp_path / "out").exists()
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    config = json.loads((broken / "unet/config.json").read_text())
    (broken / "unet/config.json").write_text(json.dumps(config | {"block_out_channels": [32, 64, 96]}))
    with pytest.raises(ModelError, match="don't fit"):
        list(running.run(ask(f"model.path={broken}")))
    assert not (tmp_path / "out").exists()


def test_a_held_folder_is_refused(ask):
    request = ask()
    with Ledger(request.store), pytest.raises(RunFolderHeld):
        list(running.run(request))


def test_a_full_disk_stops_the_run_and_keeps_what_is_finished(ask):
    paint(ask(out="whole"))
    written = []

    class NearlyFull(LocalStore):
        def put(self, name, data):
            written.append(name)
            with writing_to(self.folder):
                if sum(name.startswith("images/") for name in written) > 6:
                    raise OSError(28, os.strerror(28), name)
            super().put(name, data)

    request = ask()
    with pytest.raises(FolderUnwritable, match="the disk is full"):
        paint(dataclasses.replace(request, store=NearlyFull(request.store.folder)))
    done = hashes(request.store.folder)
    assert 0 < len(done) <= 6
    paint(ask())
    assert hashes(request.store.folder) == hashes(ask(out="whole").store.folder)


def test_devices_of_this_machine():
    assert memory.available_devices()[-1] == "cpu"
    assert memory.device_name("cpu")
    memory.reset_peak("cpu")
    assert memory.peak_bytes("cpu") >= 0


def test_skip_save_renders_and_writes_nothing(ask, tmp_path):
    events = list(running.run(ask("skip_save=true", "limit=5")))
    assert sum(isinstance(event, ItemDone) for event in events) == events[-1].done == 5
    assert not (tmp_path / "out").exists()


def test_skip_grid_builds_no_report(ask):
    request = ask("skip_grid=true", "limit=2")
    list(running.run(request))
    assert not {path.name for path in request.store.folder.iterdir()} & {"gallery.html", "grid.png"}
    assert len(hashes(request.store.folder)) == 2


def test_a_ceiling_that_a_size_needs_more_than_is_an_error_before_anything_is_made(ask):
    sizes = "version: 1\njobs:\n  - prompts: [cat]\n    seeds: 1\n    steps: 1\n    matrix: {width: [64, 2048]}\n"
    with pytest.raises(SettingError, match="2048x512 need at least memory="):
        list(running.run(ask("memory=700MiB", "turbo=true", text=sizes)))


class Fussy:
    """An execution that has memory for all sizes but one."""

    def __init__(self, *size):
        self.size = size

    def layout(self, *size):
        if size == self.size:
            raise SettingError("too large")


def test_a_ceiling_is_not_about_sizes_that_no_item_has(ask):
    sizes = "version: 1\njobs:\n  - {prompts: [cat], seeds: 1, steps: 1, zip: {width: [64, 128], height: [128, 64]}}\n"
    request = ask(text=sizes)
    assert (128, 128) in request.grid_sizes()
    turns.check_ceiling(request, *request.models, Fussy(128, 128))
    with pytest.raises(SettingError):
        turns.check_ceiling(request, *request.models, Fussy(128, 64))
