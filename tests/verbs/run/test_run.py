import dataclasses
import hashlib
import json
import os
import shutil
import signal
import threading
import weakref
from functools import partial

import numpy as np
import pytest
import tiny
from fake_engine import MAKING, FakeEngine
from PIL import Image
from safetensors.torch import load_file, save_file

from runner import settings
from runner.device import memory
from runner.engine import autoencoder
from runner.engine.start import plan_execution, start_engine
from runner.engine.stops import Stop, Stopped
from runner.errors import FolderUnwritable, ModelError, RunFolderHeld, SettingError
from runner.events import ItemDone, ItemFailed, ModelLoaded, RunFinished, RunStarted, StepDone, WaveStarted
from runner.files import writing_to
from runner.folder.ledger import Ledger, iterate_records
from runner.folder.store import LocalStore
from runner.folder.writer import Writer
from runner.images.codec import encode
from runner.item import item_id
from runner.planning import choices
from runner.report import progress
from runner.request import read_request
from runner.verbs.run import run as running
from runner.verbs.run import turns

MANIFEST = """
version: 1
name: small
defaults: {width: 64, height: 64, steps: 3}
jobs:
  - prompts: [cat, "cat:1 dog:3", a tall tree]
    seeds: 1-4
  - prompts: [dog]
    seeds: 9
    matrix: {sampler: [euler_a, plms], scale: [1, 7.5], format: [png, jpg]}
"""


SMALL = "version: 1\njobs: [{prompts: [PROMPTS], seeds: SEEDS, width: 64, height: 64, steps: 1}]\n"


def small(prompts, seeds):
    return SMALL.replace("PROMPTS", prompts).replace("SEEDS", seeds)


def paint(request, **changes):
    return list(running.run(request, FakeEngine(**changes)))


def paint_with(request, **changes):
    """Paints and writes with a writer that is changed."""
    return list(running.run(request, FakeEngine(), make_writer=partial(Writer, **changes)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def ask(tmp_path, model):
    def read(*overrides, text=MANIFEST, name="m.yaml", out="out"):
        (tmp_path / name).write_text(text)
        given = [f"model.path={model}", f"out={tmp_path / out}", "unet_bs=4", *overrides]
        return read_request(tmp_path / name, settings.compose(given))

    return read


def records_of(folder):
    return iterate_records(LocalStore(folder))


def hashes(folder):
    """What each finished item's id became."""
    return {record["id"]: record["pixels"] for record in records_of(folder) if record["status"] == "done"}


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


def test_a_failure_is_recorded_and_tried_again(ask):
    paint(ask(out="whole"))
    request = ask()
    events = paint(request, refuse=lambda item: ValueError("no noise today") if item.seed == 3 else None)
    failed = [event.item.seed for event in events if isinstance(event, ItemFailed)]
    assert failed == [3, 3, 3]
    assert [item.seed for item in events[-1].failed] == [3, 3, 3]
    records = [record for record in iterate_records(request.store) if record["status"] == "failed"]
    assert [record["error"] for record in records] == [{"class": "ValueError", "message": "no noise today"}] * 3
    assert paint(ask())[-1].done == 3
    assert hashes(request.store.folder) == hashes(ask(out="whole").store.folder)


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


def no_dogs(item):
    return ValueError("no dogs today") if item.prompt == "dog" else None


def failures(folder):
    return [record["error"]["message"] for record in records_of(folder) if record["status"] == "failed"]


def test_an_item_is_tried_three_times_in_all(ask):
    text = small("cat, dog", "1")
    request = ask(text=text)
    for _ in range(3):
        finished = paint(request, refuse=no_dogs)[-1]
        assert [item.prompt for item in finished.failed] == ["dog"]
        assert not finished.given_up
    [started, finished] = paint(request, refuse=no_dogs)
    assert started.missing == 0
    assert finished.failed == finished.given_up == (request.items[1],)
    assert "1 skipped, since they failed" in progress.summary(finished, request.store)[1]
    assert failures(request.store.folder) == ["no dogs today"] * 3
    assert paint(ask("attempts=4", text=text), refuse=no_dogs)[-1].given_up == ()
    assert failures(request.store.folder) == ["no dogs today"] * 4


def test_a_success_forgets_the_failures_before_it(ask):
    request = ask(text=small("dog", "1"))
    paint(request, refuse=no_dogs)
    assert paint(request)[-1].done == 1
    with Ledger(request.store) as ledger:
        assert ledger.failures(item_id(request.items[0])) == 0


def test_many_failures_alike_end_the_run(ask):
    request = ask(text=small("cat, dog, owl", "1-16"))
    finished = paint(request, refuse=no_dogs)[-1]
    assert finished.done == 16
    assert len(finished.failed) == 10
    assert finished.hopeless == "10 items in a row failed alike: ValueError: no dogs today"
    assert "stopped early: 10 items" in progress.summary(finished, request.store)[0]
    assert not finished.unwanted


def test_failures_that_differ_or_are_not_in_a_row_do_not_end_the_run(ask):
    finished = paint(ask(text=small("cat", "1-17")), refuse=lambda item: ValueError(f"not {item.seed // 9}"))[-1]
    assert (len(finished.failed), finished.hopeless) == (17, "")
    every_tenth = paint(
        ask(text=small("owl", "1-22")), refuse=lambda item: ValueError("no") if item.seed % 10 else None
    )
    assert (len(every_tenth[-1].failed), every_tenth[-1].hopeless) == (20, "")


def test_a_picture_that_cannot_be_encoded_fails_alone(ask):
    def encode_some(pixels, item):
        if item.seed == 2:
            raise ValueError("no colours today")
        return encode(pixels, item)

    request = ask(text=small("cat", "1-3"))
    finished = paint_with(request, encode=encode_some)[-1]
    assert finished.done == 2
    assert [item.seed for item in finished.failed] == [2]
    assert failures(request.store.folder) == ["no colours today"]


def test_ten_pictures_in_a_row_that_cannot_be_encoded_end_the_run(ask):
    finished = paint_with(ask(text=small("cat", "1-40")), encode=lambda *_: 1 / 0)[-1]
    assert finished.hopeless == "10 items in a row failed alike: ZeroDivisionError: division by zero"
    assert 10 <= len(finished.failed) < 40


def test_pictures_made_in_two_ways_are_mixed_only_if_that_is_wanted(ask):
    paint(ask(text=small("cat", "1-2")), unet_bs=4)
    with pytest.raises(SettingError, match="unet_bs was 4 and is now 2") as caught:
        paint(ask(text=small("cat", "1-3")), unet_bs=2)
    assert "mixed=true" in str(caught.value)
    _, loaded, *_, finished = paint(ask("mixed=true", text=small("cat", "1-3")), unet_bs=2)
    assert "unet_bs was 4 and is now 2" in loaded.notes[0]
    assert finished.done == 1
    assert paint(ask(text=small("cat", "1-4")), unet_bs=4)[-1].done == 1


def test_a_run_goes_on_after_it_took_a_lower_unet_bs_since_memory_ran_out(ask):
    paint(ask(text=small("cat", "1-2")), made={"unet_bs": 2, "lowered_from": 4})
    records = list(iterate_records(LocalStore(ask().store.folder)))
    assert [record["run"]["lowered_from"] for record in records] == [4, 4]
    _, loaded, *_, finished = paint(ask(text=small("cat", "1-3")), unet_bs=4)
    assert loaded.notes == ("pictures of 64x64 were made with unet_bs=2, since memory was short for 4",)
    assert finished.done == 1
    with pytest.raises(SettingError, match="unet_bs was 2 or 4 and is now 8"):
        paint(ask(text=small("cat", "1-4")), unet_bs=8)


def test_another_version_of_a_library_is_a_note(ask):
    paint(ask(text=small("cat", "1")), making=MAKING._replace(env=(("torch", "2.7"),)))
    loaded = paint(ask(text=small("cat", "1-2")), making=MAKING._replace(env=(("torch", "99.0"),)))[1]
    assert "torch was 2.7 and is now 99.0" in loaded.notes[0]


def overflowing(model, folder, component, tensor, row=slice(None)):
    """The model with some weights that are too large for float16; a norm behind them takes the size out again."""
    shutil.copytree(model, folder)
    [file] = (folder / component).glob("*.safetensors")
    weights = load_file(file)
    weights[tensor][row] *= 1e7
    save_file(weights, file)
    return folder


def run_in_half(request):
    [files] = request.models.values()
    execution = plan_execution(request.settings, files)
    half = dataclasses.replace(execution, dtype="float16", costs=execution.costs.in_dtype("float16"))
    return list(running.run(request, start_engine(request.settings, files, half)))


DOG = 1929  # the token of the word
OVERFLOWS = {
    "text": ("text_encoder", "embeddings.token_embedding.weight", DOG, 2, "the latents are not finite"),
    "unet": ("unet", "conv_in.weight", slice(None), 4, "the latents are not finite"),
    "decoder": ("vae", "decoder.conv_in.weight", slice(None), 4, "the decoded picture is not finite"),
}


@pytest.mark.some(1)
@pytest.mark.parametrize("place", OVERFLOWS)
def test_what_overflows_is_rendered_again_in_full_precision(ask, model, tmp_path, place):
    component, tensor, row, number, why = OVERFLOWS[place]
    broken = overflowing(model, tmp_path / "broken", component, tensor, row)
    text = small("cat, dog", "1-2")
    request = ask(f"model.path={broken}", text=text)
    events = run_in_half(request)
    assert events[-1].done == 4
    assert not any(isinstance(event, ItemFailed) for event in events)
    again = [record for record in iterate_records(request.store) if "rerendered" in record]
    assert len(again) == number
    assert all(record["rerendered"] == f"{why} in float16" for record in again)
    assert all(set(record["run"]["dtypes"].values()) == {"float32"} for record in again)
    in_full = ask(f"model.path={broken}", text=text, out="full")
    list(running.run(in_full))
    assert {record["id"]: record["pixels"] for record in again}.items() <= hashes(in_full.store.folder).items()


def test_what_still_overflows_in_full_precision_has_failed(ask, model, tmp_path):
    broken = overflowing(model, tmp_path / "broken", "unet", "conv_out.weight")
    for _ in range(5):  # beyond float32 as well
        weights = load_file(file := broken / "unet/diffusion_pytorch_model.safetensors")
        weights["conv_out.weight"] *= 1e7
        save_file(weights, file)
    request = ask(f"model.path={broken}", text=small("cat", "1-2"))
    finished = run_in_half(request)[-1]
    assert (finished.done, len(finished.failed)) == (0, 2)
    for record in iterate_records(request.store):
        assert record["error"] == {"class": "NotFinite", "message": "the latents are not finite in float32"}
        assert record["rerendered"] == "the latents are not finite in float16"


def test_a_picture_of_one_colour_is_suspicious_in_half_precision_only(ask, monkeypatch):
    original = autoencoder.decode
    monkeypatch.setattr(autoencoder, "decode", lambda *given: ((made * 0, good) for made, good in original(*given)))
    request = ask(text=small("cat", "1"))
    assert run_in_half(request)[-1].done == 1
    [record] = iterate_records(request.store)
    assert record["rerendered"] == "the picture is of one colour in float16"


def test_another_number_type_is_another_way(ask):
    request = ask(text=small("cat", "1"))
    list(running.run(request))
    with pytest.raises(SettingError, match="dtypes was float32 and is now float16"):
        run_in_half(ask(text=small("cat", "1-2")))


def test_turbo_and_memory_are_not_another_way(ask):
    list(running.run(ask("turbo=true", text=small("cat", "1"))))
    events = list(running.run(ask("turbo=false", "memory=8GiB", text=small("cat", "1-2"))))
    assert events[1].notes == ()
    assert events[-1].done == 1


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


# ---- several models

SWEEP = """
version: 1
models: {one: {path: one}, two: {path: two}}
defaults: {width: 64, height: 64, steps: 2}
jobs: [{prompts: [cat, dog], seeds: 1-2, matrix: {model: [one, two]}}]
"""


@pytest.fixture
def sweep(ask, model, tmp_path):
    """Asks for the pictures of two models, which lie beside the manifest."""
    shutil.copytree(model, tmp_path / "one")
    tiny.save_model(tmp_path / "two", seed=1)
    return lambda *overrides, text=SWEEP, **more: ask(*overrides, text=text, **more)


class Loads(list):
    """The names of the models that were loaded; only one may be there at a time."""

    def __init__(self):
        self.executors = []

    def __call__(self, request, model):
        assert all(executor() is None for executor in self.executors), "the model before is still there"
        self.append(model.name)
        engine = turns.start(request, model)
        self.executors.append(weakref.ref(engine.executor))
        return engine


@pytest.fixture
def loads():
    return Loads()


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "images").rglob("*.*"))}


def test_models_take_turns_and_records_name_their_own(sweep, loads, tmp_path):
    request = sweep()
    events = list(running.run(request, start=loads))
    assert loads == ["one", "two"]
    assert [event.model.name for event in events if isinstance(event, ModelLoaded)] == loads
    waves = [{item.model.name for item in event.items} for event in events if isinstance(event, WaveStarted)]
    assert waves == [{"one"}, {"one"}, {"two"}, {"two"}] or waves == [{"one"}, {"two"}]
    records = list(iterate_records(request.store))
    assert [record["model"]["name"] for record in records] == ["one"] * 4 + ["two"] * 4
    assert len({record["pixels"] for record in records}) == 8
    for record in records:
        name = record["item"]["model"]
        assert record["item"]["axes"]["model"] == record["model"]["name"] == name
        assert record["model"]["path"] == str(tmp_path / name)
    assert [model["name"] for model in json.loads((request.store.folder / "run.json").read_text())["models"]] == loads


def test_a_picture_is_the_same_beside_those_of_another_model(sweep, tmp_path):
    request = sweep()
    list(running.run(request))
    alone = sweep(f"model.path={tmp_path / 'two'}", text=SWEEP.replace("matrix: {model: [one, two]}", ""), out="two")
    list(running.run(alone))
    assert len(hashes(alone.store.folder)) == 4
    assert hashes(alone.store.folder).items() <= hashes(request.store.folder).items()


def test_a_run_that_was_stopped_between_models_goes_on(sweep, loads):
    whole = sweep(out="whole")
    list(running.run(whole))
    events = running.run(sweep(), start=loads)
    for event in events:
        if isinstance(event, ModelLoaded) and event.model.name == "two":
            break
    events.close()
    del events
    assert len(hashes(sweep().store.folder)) == 4
    finished = list(running.run(sweep(), start=loads))[-1]
    assert (finished.done, loads) == (4, ["one", "two", "two"])
    assert files(sweep().store.folder) == files(whole.store.folder)
    assert next(running.run(sweep())).missing == 0


def test_a_signal_stops_between_models(sweep):
    stop = Stop()

    def start(request, model):
        if model.name == "two":
            stop.ask(signal.SIGTERM)
        return FakeEngine()

    with pytest.raises(Stopped):
        list(running.run(sweep(), stop=stop, start=start))
    assert len(hashes(sweep().store.folder)) == 4
    assert list(running.run(sweep(), start=lambda *_: FakeEngine()))[-1].done == 4


def test_records_of_several_models_make_their_pictures_again(sweep):
    for out, text in (
        ("mixed", SWEEP),
        ("apart", SWEEP.replace("prompts: [cat, dog], ", "").replace("]}}", "], PROMPT}}")),
    ):
        request = sweep(text=text.replace("PROMPT", "prompt: [cat, dog]"), out=out)
        list(running.run(request))
        records = (request.store.folder / "records.jsonl").read_text()
        again = sweep("model=emoji", text=records, name="records.jsonl", out=f"{out}-again")
        list(running.run(again))
        assert len(hashes(again.store.folder)) == 8
        assert hashes(again.store.folder) == hashes(request.store.folder)
    # Files hold their items' numbers, which are the lines here: the same where the manifest has model after model.
    assert files(again.store.folder) == files(request.store.folder)


def test_limit_and_shuffle_choose_before_models_take_turns(sweep, loads):
    request = sweep("limit=3", "shuffle=2", text=SWEEP.replace("1-2", "1-9"))
    list(running.run(request, start=loads))
    assert sorted(record["item"]["number"] for record in iterate_records(request.store)) == sorted(
        item.number for item in request.chosen()
    )
    assert len(loads) == len({item.model for item in request.chosen()})


def test_ways_are_those_of_one_model(sweep):
    only_one = SWEEP.replace("[one, two]", "[one]")
    list(running.run(sweep("unet_bs=2", text=only_one)))
    with pytest.raises(SettingError, match="unet_bs was 2 and is now 4"):
        list(running.run(sweep(text=SWEEP.replace("1-2", "1-3"))))
    only_two = SWEEP.replace("[one, two]", "[two]")
    assert list(running.run(sweep(text=only_two)))[-1].done == 4


def test_a_ceiling_that_a_later_model_breaks_is_told_at_the_start(sweep, monkeypatch):

    original = choices.decide

    def decide(settings, files, *rest):
        execution = original(settings, files, *rest)
        return execution if files.name == "one" else dataclasses.replace(execution, limit=1)

    monkeypatch.setattr(choices, "decide", decide)
    with pytest.raises(SettingError, match="need at least"):
        list(running.run(sweep("memory=8GiB")))
    assert not sweep().store.folder.exists()


def test_models_take_turns_where_nothing_is_saved_too(sweep, loads):
    events = list(running.run(sweep("skip_save=true"), start=loads))
    assert (events[-1].done, loads) == (8, ["one", "two"])


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
