"""A run of several models: they take turns, each picture is that of its model alone, and its record names the model."""

import dataclasses
import json
import shutil
import signal
import weakref

import pytest
import tiny
from fake_engine import FakeEngine
from small_runs import hashes

from runner.engine.stops import Stop, Stopped
from runner.errors import SettingError
from runner.events import ModelLoaded, WaveStarted
from runner.folder.ledger import iterate_records
from runner.planning import choices
from runner.verbs.run import run as running
from runner.verbs.run import turns

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
