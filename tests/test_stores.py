"""A manifest makes the same files in an object store as in a folder, whatever happens to its runs or to the store."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import tiny
from fake_engine import FakeEngine
from faulty_proxy import CUT, DROPPED, Proxy
from forker import KILLS, forker
from gallery_data import without_traces

from runner import cli, settings
from runner.errors import FolderUnwritable, SettingError
from runner.folder.clouds import Patience, read_url
from runner.folder.ledger import iterate_records
from runner.folder.objects import ObjectStore
from runner.folder.store import store_at
from runner.request import read_request
from runner.verbs.run.run import run
from runner.web.studio import Studio

TRACES = {".lock", "runner.log", "records.jsonl"}  # what may tell of a disturbance
MANIFEST = """
version: 1
name: small
defaults: {width: 64, height: 64, steps: 2}
jobs:
  - {prompts: [a cat, "dog #1 at 100%"], seeds: 1-6}
  - {prompts: [猫], seeds: 1-2, matrix: {scale: [1, 2]}}
"""
SHORT = Patience(answer=5.0, all=3.0, first_pause=0.01, tries=3)


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text(MANIFEST)

    def read(out, *overrides):
        return read_request(Path("m.yaml"), settings.compose([f"out={out}", *overrides]))

    return read


def paint(request, engine=None):
    return list(run(request, engine or FakeEngine()))[-1]


def patient(request, patience=SHORT):
    return dataclasses.replace(request, store=ObjectStore(read_url(str(request.store)), patience=patience))


def read(store, name):
    with store.open(name) as file:
        return file.read()


def content(place):
    """All files and the newest records, without traces and measurements."""
    store = store_at(place)
    files = without_traces({name: read(store, name) for name in store.list() if name not in TRACES})
    files["run.json"] = {**json.loads(files["run.json"]), "settings": None}
    measured = {"seconds", "peak_bytes", "made"}
    records = {each["id"]: {k: v for k, v in each.items() if k not in measured} for each in iterate_records(store)}
    return files, records


def test_the_same_manifest_makes_the_same_files(ask, bucket):
    paint(ask("out"))
    url = f"s3://{bucket}/deep/out"
    assert paint(ask(url, "limit=5")).done == 5
    assert (paint(ask(url)).done, paint(ask(url)).done) == (11, 0)
    assert content(url) == content("out")


def test_a_store_that_fails_often_costs_nothing(ask, bucket, s3, monkeypatch):
    paint(ask("out"))
    chances = random.Random(7)
    with Proxy(s3, lambda method, path: chances.choice([DROPPED, CUT, 503, *[None] * 7])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        url = f"s3://{bucket}/out"
        assert paint(patient(ask(url), Patience(all=30, first_pause=0.01))).done == 16
        proxy.fault = lambda method, path: None
        assert content(url) == content("out")


@pytest.mark.parametrize("request_number", [20, 30, 45])
@pytest.mark.some(1)
def test_a_store_that_goes_down_ends_a_run_that_goes_on_later(ask, bucket, s3, monkeypatch, request_number):
    paint(ask("out"))
    with Proxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        url = f"s3://{bucket}/out"
        proxy.fault = lambda method, path: 503 if len(proxy.requests) >= request_number else None
        with pytest.raises(FolderUnwritable, match=r"what was finished is safe, run again") as caught:
            paint(patient(ask(url)), FakeEngine(unet_bs=2))
        assert caught.value.exit_code == 12
        proxy.fault = lambda method, path: None
        store = store_at(url)
        for record in iterate_records(store):
            assert store.size(record["image"]) == record["bytes"]
        paint(dataclasses.replace(ask(url, "lock=false")), FakeEngine(unet_bs=2))  # its lock hasn't run out yet
        files, records = content(url)
        assert (files.keys(), records.keys()) == tuple(each.keys() for each in content("out"))


COMMAND = """
import dataclasses, time
from pathlib import Path
from fake_engine import FakeEngine
from runner import settings
from runner.errors import RunFolderHeld
from runner.folder.clouds import read_url
from runner.folder.objects import ObjectStore
from runner.request import read_request
from runner.verbs.run.run import run
def command(words):
    request = read_request(Path("m.yaml"), settings.compose([f"out={words[0]}"]))
    request = dataclasses.replace(request, store=ObjectStore(read_url(words[0]), lock_seconds=2))
    try:
        list(run(request, FakeEngine(before_wave=lambda: time.sleep(0.05))))
    except RunFolderHeld as held:
        return held.exit_code
    return 0
"""


def test_a_run_may_be_killed_at_any_moment(ask, bucket, tmp_path):
    paint(ask("out"))
    whole, delays, kills, place = content("out"), random.Random(20), 0, 0
    with forker(code=COMMAND) as forked:

        def attempt(delay):
            while True:
                code, seconds = forked(tmp_path, delay, f"s3://{bucket}/{place}/out")
                if code != 11:  # the lock of a killed run has not run out yet
                    return code, seconds

        code, seconds = attempt(600)
        assert code == 0
        place = 1
        while kills < KILLS:
            code, _ = attempt(delays.uniform(0.2, 1.1) * seconds)
            if code == 0:
                assert content(f"s3://{bucket}/{place}/out") == whole
                place += 1
            else:
                assert code == -9
                kills += 1
                store = store_at(f"s3://{bucket}/{place}/out")
                for record in iterate_records(store) if store.size("records.jsonl") >= 0 else ():
                    assert store.size(record["image"]) == record["bytes"]
        assert attempt(600)[0] == 0
        assert content(f"s3://{bucket}/{place}/out") == whole


def test_every_verb_takes_a_url(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text("version: 1\njobs: [{prompts: [cat], seeds: 1-2, width: 64, height: 64, steps: 1}]\n")
    url, model = f"s3://{bucket}/a/b", f"model.path={tiny.save_model(tmp_path / 'tiny')}"
    assert cli.main(["run", "m.yaml", model, "out=here/b"]) == cli.main(["run", "m.yaml", model, f"out={url}/"]) == 0
    assert f"see {url}/gallery.html" in capsys.readouterr().err
    there, here = content(url), content("here/b")
    assert there == here
    assert cli.main(["plan", "m.yaml", model, f"out={url}", "json=true"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["folder"], planned["done"], planned["missing"]) == (url, 2, 0)
    assert cli.main(["verify", url]) == 0
    assert "2 same" in capsys.readouterr().out
    assert cli.main(["gallery", f"{url}/"]) == 0
    assert capsys.readouterr().out == f"{url}/gallery.html\n{url}/grid.png\n"
    assert content(url) == there
    answers = []
    for target in (url, "here/b", f"{url}/images/cat/seed_1_00000.png"):
        assert cli.main(["extract", target]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and "seeds: 1-2" in answers[0] and "from 1 picture" in answers[2]
    store_at(url).remove("images/cat/seed_1_00000.png")
    assert cli.main(["run", "m.yaml", model, f"out={url}", "deep=true"]) == 0
    assert content(url) == there


def test_the_page_writes_to_this_machine_only():
    with pytest.raises(SettingError, match="out=s3://b/x: runner web writes to a folder of this machine"):
        Studio(settings.compose(["out=s3://b/x"]))


def test_a_sweep_shares_the_seed_that_was_drawn(ask, bucket, capsys):
    Path("m.yaml").write_text("version: 1\njobs: [{prompts: [cat], width: 64, height: 64, steps: 1}]\n")
    url = f"s3://{bucket}/sweep"
    first = read_request(Path("m.yaml"), settings.compose([f"out={url}"]), job="steps=1")
    paint(first)
    again = read_request(Path("m.yaml"), settings.compose([f"out={url}"]), job="steps=2")
    assert again.drawn_seeds == first.drawn_seeds and str(again.store) == f"{url}/steps=2"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run", "s3://b/m.yaml"], 4, "s3://b/m.yaml: is a URL; a manifest is read from this machine's disk"),
        (["run", "m.yaml", "model.path=s3://b/m.ckpt"], 2, "a model is read from this machine's disk"),
        (["run", "m.yaml", "out=s4://b/x"], 2, "'s4://' is not known as a store"),
        (["run", "init.yaml"], 4, "'s3://b/x.png' is a URL"),
        (["verify", "s3://no-such-bucket/x"], 10, "there is no run folder 's3://no-such-bucket/x'"),
        (["gallery", "s3://no-such-bucket/x"], 10, "there is no run folder 's3://no-such-bucket/x'"),
        (["extract", "s3://no-such-bucket/x"], 10, "pictures in 's3://no-such-bucket/x'"),
        (["bench", "out=s3://b/x"], 2, "out=s3://b/x: runner bench writes to a folder of this machine"),
    ],
)
def test_what_is_refused_says_so(ask, bucket, capsys, words, code, says):
    Path("init.yaml").write_text("version: 1\njobs: [{prompts: [cat], init: 's3://b/x.png', strength: 0.5}]\n")
    assert cli.main(words) == code
    assert says in capsys.readouterr().err


def test_shards_in_a_store_are_joined_and_exported_as_in_folders(bucket, ask, capsys):
    url = f"s3://{bucket}/runs"
    for part in (1, 2):
        paint(ask(f"{url}/s{part}", f"shard={part}/2", "skip_grid=true"))
    for place, copied in ((url, 16), ("runs", 16), (url, 0)):
        assert cli.main(["merge", f"{url}/s1", f"{url}/s2", f"out={place}/all", "skip_grid=true"]) == 0
        assert f"{copied} pictures copied" in capsys.readouterr().out
    assert paint(ask(f"{url}/all", "skip_grid=true")).done == 0
    assert content(f"{url}/all") == content("runs/all")
    for to in ("webdataset", "imagefolder"):
        for place, made in ((url, 2), ("runs", 2), (url, 0)):
            assert cli.main(["export", f"{place}/all", "--to", to, "shard_size=120kB"]) == 0
            assert f"16 pictures in 2 shards, {made} of them new" in capsys.readouterr().out
        made = [store_at(f"{place}/all-{to}") for place in (url, "runs")]
        there, here = ({name: read(each, name) for name in each.list() if name != ".lock"} for each in made)
        assert there == here and "index.json" in here
    for out in (f"{url}/all/x", f"{url}/all", url):
        assert cli.main(["export", f"{url}/all", "--to", "webdataset", f"out={out}"]) == 2
    assert cli.main(["merge", f"{url}/s1", f"out={url}/s1/"]) == 2
