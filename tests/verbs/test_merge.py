"""Folders are joined: shards become the folder of the whole run, and nothing is mixed or lost in silence."""

import functools
import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import tiny
from fake_engine import MAKING, FakeEngine
from fake_store import FakeStore, failing_from
from forker import KILLS, forker
from PIL import Image

from runner import cli, settings
from runner.errors import FolderUnwritable, NoRunFolder, SettingError
from runner.folder.ledger import Ledger, iterate_records
from runner.folder.store import LocalStore
from runner.request import read_request
from runner.verbs.merge import Merge
from runner.verbs.run import run as running

MANIFEST = """
version: 1
name: small
defaults: {width: 64, height: 64, steps: 2}
jobs:
  - {prompts: [cat, dog], seeds: 1-4}
"""
OTHER = MANIFEST.replace("steps: 2", "steps: 3").replace("1-4", "1-2")
composed = functools.cache(lambda *words: settings.compose(words))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def ask(tmp_path_factory, model):
    place = tmp_path_factory.mktemp("manifests")
    for name, text in (("m", MANIFEST), ("other", OTHER)):
        (place / f"{name}.yaml").write_text(text)

    def read(out, *words, name="m"):
        given = [f"model.path={model}", f"out={out}", "allow_outside=true", *words]
        return read_request(place / f"{name}.yaml", settings.compose(given))

    return read


@pytest.fixture(scope="module")
def paint(ask):
    def run(out, *words, name="m", **engine):
        list(running.run(ask(out, *words, name=name), FakeEngine(**engine)))
        return Path(out)

    return run


@pytest.fixture(scope="module")
def painted(tmp_path_factory, paint):
    """Three shards, which no test changes, and what a run that was not sharded makes."""
    place = tmp_path_factory.mktemp("shards")
    for number in (1, 2, 3):
        paint(place / f"s{number}", f"shard={number}/3", "skip_grid=true")
    paint(place / "whole")
    return place


@pytest.fixture
def shards(tmp_path, painted):
    return [Path(shutil.copytree(painted / f"s{number}", tmp_path / f"s{number}")) for number in (1, 2, 3)]


def merge(sources, target, *words):
    store = target if isinstance(target, FakeStore) else LocalStore(target)
    return Merge([LocalStore(each) for each in sources], store, composed(*words)).run()


def records(folder):
    return {record["id"]: record for record in iterate_records(LocalStore(folder))}


def pictures(folder):
    """The bytes of each id's picture, which are those that its record says."""
    found = {}
    for identity, record in records(folder).items():
        if record["status"] == "done":
            found[identity] = (folder / record["image"]).read_bytes()
            assert hashlib.sha256(found[identity]).hexdigest() == record["sha256"]
    return found


def files(folder):
    """Every file's content but those that tell of the folder itself: the gallery has its name and its order."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        name: data
        for name, data in found.items()
        if name not in (".lock", "run.json") and not name.startswith("gallery")
    }


def test_shards_become_the_folder_of_the_whole_run(painted, shards, ask, tmp_path):
    report = merge(shards, tmp_path / "out")
    assert (report.copied, report.pictures, report.failed, report.problems, report.notes) == (8, 8, 0, [], [])
    whole = painted / "whole"
    assert pictures(tmp_path / "out") == pictures(whole)
    same = files(tmp_path / "out").keys() - {"records.jsonl"}
    assert files(tmp_path / "out").keys() == files(whole).keys()
    assert {name: files(tmp_path / "out")[name] for name in same} == {name: files(whole)[name] for name in same}
    events = list(running.run(ask(tmp_path / "out"), start=lambda *_: pytest.fail("something is missing")))
    assert events[0].missing == 0 and not events[-1].unwanted
    assert [merge(shards, tmp_path / "out").copied, len(records(tmp_path / "out"))] == [0, 8]
    for number, shard in enumerate(shards, start=1):
        assert files(shard) == files(painted / f"s{number}")


def test_what_was_joined_is_written_down(shards, tmp_path):
    report = merge(shards[:1], tmp_path / "out")
    assert report.notes == ["of 3 shards these were not joined yet: 2, 3"]
    assert merge(shards[1:2], tmp_path / "out").notes == ["of 3 shards these were not joined yet: 3"]
    assert merge(shards[2:], tmp_path / "out").notes == []
    about = json.loads((tmp_path / "out/run.json").read_text())
    assert about["merged"] == list(map(str, shards)) and about["shards"] == ["1/3", "2/3", "3/3"]
    assert about["settings"]["shard"] is None and about["models"]
    assert merge([tmp_path / "out"], tmp_path / "copy").notes == []


def test_a_damaged_picture_is_left_out_and_named_and_comes_later(shards, tmp_path):
    path = next(shards[1].rglob("*.png"))
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\0")
    report = merge(shards, tmp_path / "out")
    assert report.copied == 7 and report.problems == [f"{path} has changed since it was recorded"]
    path.write_bytes(good)
    assert merge(shards, tmp_path / "out").copied == 1
    assert len(pictures(tmp_path / "out")) == 8


def test_a_picture_that_one_folder_has_lost_comes_from_another(shards, tmp_path):
    merge(shards, tmp_path / "copy")
    next(shards[0].rglob("*.png")).unlink()
    report = merge([*shards, tmp_path / "copy"], tmp_path / "out")
    assert (report.copied, report.problems) == (8, [])


def test_a_picture_that_the_target_has_lost_is_copied_again(shards, tmp_path):
    merge(shards, tmp_path / "out")
    lost, changed, *_ = sorted((tmp_path / "out/images").rglob("*.png"))
    changed.write_bytes(bytes(changed.stat().st_size))
    lost.unlink()
    assert merge(shards, tmp_path / "out").copied == 1
    assert merge(shards, tmp_path / "out", "deep=true").copied == 1
    assert len(pictures(tmp_path / "out")) == 8


def test_paths_that_meet_get_the_id(shards, paint, tmp_path):
    """Another manifest has the same prompts, seeds and numbers, and other pictures."""
    other = paint(tmp_path / "other", name="other")
    assert set(files(other)) & set(files(shards[0]))
    report = merge([*shards, other], tmp_path / "out")
    assert report.copied == 12 and len(set(record["image"] for record in records(tmp_path / "out").values())) == 12
    assert len(pictures(tmp_path / "out")) == 12
    assert report.notes == [f"the folders have different manifests; none was written to '{tmp_path / 'out'}'"]
    assert not (tmp_path / "out/manifest.yaml").exists()


def test_other_ways_are_refused_unless_they_may_be_mixed(shards, paint, tmp_path):
    other = paint(tmp_path / "other", name="other", making=MAKING._replace(device_name="glass"))
    with pytest.raises(SettingError, match=r"other' were made in another way .*device_name was paper and is now glass"):
        merge([*shards, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = merge([*shards, other], tmp_path / "out", "mixed=true")
    assert report.copied == 12 and any("device_name was paper" in note for note in report.notes)
    newer = paint(tmp_path / "newer", name="other", making=MAKING._replace(env=(("x", "2"),)))
    notes = merge([*shards, newer], tmp_path / "out2").notes
    assert f"the pictures of '{newer}' were made in another way: x was 1 and is now 2" in notes


def test_rows_that_were_lowered_and_pictures_rendered_again_go_together(shards, paint, tmp_path):
    low = paint(tmp_path / "low", name="other", made={"unet_bs": 2, "lowered_from": 4})
    notes = merge([*shards, low], tmp_path / "out").notes
    assert "pictures of 64x64 were made with unet_bs=2, since memory was short for 4" in notes
    again = shutil.copytree(shards[0], tmp_path / "again")
    lines = [record | {"rerendered": "nan"} for record in records(again).values()]
    (again / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert merge([shards[1], again], tmp_path / "out2").copied == 6


def altered(folder, record):
    """Lets a folder have another picture of an item than it had, and a record of it."""
    data = (folder / record["image"]).read_bytes() + b"more"
    (folder / record["image"]).write_bytes(data)
    with Ledger(LocalStore(folder)) as ledger:
        ledger.append(record | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    return data


def test_two_pictures_of_one_item_are_refused_unless_the_first_may_stay(shards, tmp_path):
    copy = Path(shutil.copytree(shards[0], tmp_path / "copy"))
    [record, *_] = records(copy).values()
    second = altered(copy, record)
    with pytest.raises(SettingError, match=f"1 pictures of '{copy}' are other ones .*{record['image']}"):
        merge([*shards, copy], tmp_path / "out")
    assert "1 pictures were left out" in merge([*shards, copy], tmp_path / "out", "mixed=true").notes[0]
    assert pictures(tmp_path / "out") == pictures(tmp_path / "s1") | pictures(shards[1]) | pictures(shards[2])
    with pytest.raises(SettingError, match="are other ones"):
        merge([copy], tmp_path / "out")
    assert merge([copy, *shards], tmp_path / "out2", "mixed=true").copied == 8
    assert pictures(tmp_path / "out2")[record["id"]] == second


def test_failures_come_along_where_no_folder_has_the_picture(ask, paint, shards, tmp_path):
    failing = paint(tmp_path / "failing", "limit=3", refuse=lambda item: ValueError("no") if item.seed > 1 else None)
    paint(tmp_path / "failing", "limit=3", refuse=lambda item: ValueError("no") if item.seed > 1 else None)
    report = merge([failing], tmp_path / "out")
    assert (report.copied, report.failed, merge([failing], tmp_path / "out").failed) == (1, 2, 0)
    with Ledger(LocalStore(tmp_path / "out")) as ledger:
        assert {ledger.failures(identity) for identity in records(failing)} == {0, 1}
    assert merge([failing, *shards], tmp_path / "out2").failed == 0


def test_inits_come_along(tmp_path, model):
    (tmp_path / "m").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "m/red.png")
    text = MANIFEST.replace("seeds: 1-4}", "seeds: 1, init: red.png, strength: 0.5}")
    (tmp_path / "m/m.yaml").write_text(text)
    given = [f"model.path={model}", f"out={tmp_path / 'a'}"]
    list(running.run(read_request(tmp_path / "m/m.yaml", settings.compose(given)), FakeEngine()))
    [init] = (tmp_path / "a/inits").iterdir()
    assert merge([tmp_path / "a"], tmp_path / "out").copied == 2
    assert (tmp_path / "out/inits" / init.name).read_bytes() == init.read_bytes()
    init.write_bytes(b"another picture")
    report = merge([tmp_path / "a"], tmp_path / "out2")
    assert report.copied == 0 and report.problems == [f"{init} has changed since it was recorded"] * 2


def test_a_hostile_record_writes_nowhere_else(shards, tmp_path):
    """Records that name other files, outside or the folder's own, are left out."""
    record = next(iter(records(shards[0]).values()))
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    told = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    names = ["../secret.png", "images/../../secret.png", "records.jsonl", "gallery.html", str(secret)]
    with Ledger(LocalStore(shards[0])) as ledger:
        for number, name in enumerate(names):
            ledger.append(record | told | {"id": f"{number:064x}", "image": name})
        ledger.append(record | {"id": "../../../x"})
    report = merge(shards, tmp_path / "out")
    assert len(report.problems) == 6 and report.copied == 8
    assert len(pictures(tmp_path / "out")) == 8
    assert {path.name for path in tmp_path.iterdir()} == {"s1", "s2", "s3", "secret.png", "out"}


def test_what_cannot_be_joined_is_refused(shards, tmp_path):
    with pytest.raises(SettingError, match="is one of the folders"):
        merge(shards, tmp_path / "x/../s2")
    with pytest.raises(NoRunFolder, match="there is no run folder"):
        merge([*shards, tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoRunFolder, match=r"has no records.jsonl"):
        merge([*shards, tmp_path / "empty"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_any_write_may_fail(painted):
    shards = [painted / f"s{number}" for number in (1, 2, 3)]
    undisturbed, calls = FakeStore(), []
    merge(shards, undisturbed)
    merge(shards, FakeStore(lambda *call: calls.append(call)))
    assert len(calls) > 20
    for number in range(len(calls)):
        store = FakeStore(failing_from(number))
        with pytest.raises(FolderUnwritable):
            merge(shards, store)
        store.before = lambda method, name: None
        merge(shards, store)
        assert store.files == undisturbed.files


def test_a_merge_may_be_killed_at_any_moment(painted, tmp_path):
    delays, kills, folder = random.Random(3), 0, tmp_path / "0"
    words = ["merge", *(str(painted / f"s{number}") for number in (1, 2, 3)), "out=out"]
    (tmp_path / "undisturbed").mkdir()
    with forker(words, "rich.console, runner.verbs.merge") as run:
        code, whole = run(tmp_path / "undisturbed", 600)
        assert code == 0
        while kills < KILLS:
            folder.mkdir(exist_ok=True)
            code, _ = run(folder, delays.uniform(0, whole))
            if code == 0:
                assert files(folder / "out") == files(tmp_path / "undisturbed/out")
                folder = tmp_path / str(int(folder.name) + 1)
            else:
                assert code == -9
                kills += 1
        assert run(folder, 600)[0] == 0
        assert files(folder / "out") == files(tmp_path / "undisturbed/out")


def test_the_command_line(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["merge", "s1", "s2"]) == 2
    assert "give it as out=" in capsys.readouterr().err
    assert cli.main(["merge", "s1", "s2", "out=all"]) == 0
    out, err = capsys.readouterr()
    assert out == "6 pictures copied, 0 were there already; see all/gallery.html\n"
    assert err.splitlines()[:2] == ["s1: 3 of 3 pictures copied", "s2: 3 of 3 pictures copied"]
    next(Path("s3").rglob("*.png")).unlink()
    assert cli.main(["merge", "s1", "s2", "s3", "out=all", "skip_grid=true"]) == 3
    assert "runner: left out: s3/images/" in capsys.readouterr().err
    assert cli.main(["merge", "s1", "s9", "out=all"]) == 10
    assert cli.main(["merge", "s1", "s1", "out=twice"]) == 0
