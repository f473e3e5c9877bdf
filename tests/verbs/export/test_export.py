"""An export: what is in it, that it goes on where it was, and that nothing else is overwritten."""

import functools
import hashlib
import json
import random
import shutil
import tarfile
from pathlib import Path

import pytest
import tiny
from fake_engine import FakeEngine
from fake_store import FakeStore, failing_from
from forker import KILLS, forker

from runner import cli, settings
from runner.errors import FolderUnwritable, ManifestError, NoRunFolder, RunFolderHeld, SettingError
from runner.folder.ledger import Ledger, iterate_records
from runner.folder.store import LocalStore
from runner.request import read_request
from runner.verbs.export.export import Export
from runner.verbs.run import run as running

MANIFEST = """
version: 1
name: small
defaults: {width: 64, height: 64, steps: 2}
jobs:
  - prompts: [cat, "Füchse: 1 tree:0.5 dog:0.5", a/../b]
    seeds: 1-SEEDS
"""
FORMS = ("webdataset", "imagefolder", "parquet")
THREE = "shard_size=37KB"  # pictures of noise, of 12.5 kB each: two in a shard


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def paint(tmp_path_factory, model):
    """Makes a run folder of so many seeds."""

    def run(folder, seeds=3):
        target = tmp_path_factory.mktemp("manifest") / "m.yaml"
        target.write_text(MANIFEST.replace("SEEDS", str(seeds)))
        given = [f"model.path={model}", f"out={folder}", "skip_grid=true"]
        list(running.run(read_request(target, settings.compose(given)), FakeEngine()))
        return folder

    return run


@pytest.fixture(scope="module")
def painted(tmp_path_factory, paint):
    return paint(tmp_path_factory.mktemp("painted") / "alps")


@pytest.fixture
def alps(tmp_path, painted):
    """A copy of the run folder, which a test may change."""
    return Path(shutil.copytree(painted, tmp_path / "alps"))


composed = functools.cache(lambda *words: settings.compose(words))


def export(folder, target, to="webdataset", *words):
    store = target if isinstance(target, FakeStore) else LocalStore(target)
    return Export(LocalStore(folder), store, composed(f"to={to}", *words)).run()


def files(folder):
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != ".lock"}


def newest(folder):
    return {record["id"]: record for record in iterate_records(LocalStore(folder))}


def samples(folder):
    """Each key's members, in order of the shards."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                found.setdefault(key, {})[kind] = tar.extractfile(member).read()
    return found


def test_an_export_has_every_picture_with_its_caption_and_its_record(painted, tmp_path):
    report = export(painted, tmp_path / "out", "webdataset", THREE)
    assert (report.pictures, report.shards, report.made, report.problems) == (9, 5, 5, [])
    found, records = samples(tmp_path / "out"), list(newest(painted).values())
    assert list(found) == [f"{record['item']['number']:09d}-{record['id'][:12]}" for record in records]
    for record, sample in zip(records, found.values(), strict=True):
        assert sample["png"] == (painted / record["image"]).read_bytes()
        assert sample["txt"].decode() == record["item"]["prompt"]
        told = json.loads(sample["json"])
        assert told["item"] == {key: value for key, value in record["item"].items() if value is not None}
        assert {key: told[key] for key in told if key != "item"} == {key: record[key] for key in told if key != "item"}


def test_the_index_lists_the_shards(painted, tmp_path):
    export(painted, tmp_path / "out", "webdataset", THREE)
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1" and index["name"] == "alps"
    assert [shard["url"] for shard in index["shardlist"]] == [f"train-{number:06d}.tar" for number in range(5)]
    assert sum(shard["nsamples"] for shard in index["shardlist"]) == 9
    for shard in index["shardlist"]:
        data = (tmp_path / "out" / shard["url"]).read_bytes()
        assert (shard["filesize"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("to", FORMS)
def test_the_same_pictures_make_the_same_bytes(painted, tmp_path, to):
    export(painted, tmp_path / "one", to, THREE)
    export(Path(shutil.copytree(painted, tmp_path / "elsewhere/alps")), tmp_path / "two", to, THREE)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("to", FORMS)
def test_what_is_there_is_not_made_again(painted, tmp_path, to):
    export(painted, tmp_path / "out", to, THREE)
    whole, store = files(tmp_path / "out"), LocalStore(tmp_path / "out")
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in whole}
    assert export(painted, store.folder, to, THREE).made == 0
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in whole} == times
    name = sorted(whole)[-2]  # of the last shard but one
    (store.folder / name).unlink()
    assert export(painted, store.folder, to, THREE).made == 1
    assert files(store.folder) == whole
    (store.folder / name).write_bytes(bytes(len(whole[name])))
    assert export(painted, store.folder, to, THREE).made == 0
    assert export(painted, store.folder, to, THREE, "deep=true").made == 1
    assert files(store.folder) == whole


@pytest.mark.parametrize("to", FORMS)
def test_more_pictures_later(alps, paint, tmp_path, to):
    export(alps, tmp_path / "out", to, THREE)
    (tmp_path / "out/README.md").write_text("mine")
    export(paint(alps, seeds=4), tmp_path / "out", to, THREE)
    export(alps, tmp_path / "anew", to, THREE)
    assert files(tmp_path / "out") == files(tmp_path / "anew") | {"README.md": b"mine"}
    numbers = sorted(record["item"]["number"] for record in newest(alps).values())
    assert numbers != list(range(12)) and len(numbers) == 12  # of two manifests: some numbers are there twice


@pytest.mark.parametrize("to", FORMS)
def test_surplus_shards_are_removed_and_nothing_else(painted, tmp_path, to):
    export(painted, tmp_path / "out", to, THREE)
    for name in ("train-000099.txt", "notes/train-000001.tar", "train/000000/mine.png"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "out" / name).write_bytes(b"mine")
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(list(newest(painted))[:2]))
    assert export(painted, tmp_path / "out", to, THREE, f"ids={ids}").shards == 1
    export(painted, tmp_path / "anew", to, THREE, f"ids={ids}")
    left = files(tmp_path / "out").items() - files(tmp_path / "anew").items()
    assert {data for _, data in left} == {b"mine"} and len(left) == 3


def test_ids_choose(painted, tmp_path):
    ids, chosen = tmp_path / "ids.json", list(newest(painted))[4:6]
    ids.write_text(json.dumps([*(each[:12] for each in chosen), "f" * 64]))
    report = export(painted, tmp_path / "out", "webdataset", f"ids={ids}")
    assert [json.loads(sample["json"])["id"] for sample in samples(tmp_path / "out").values()] == chosen
    assert "1 ids are of no item" in report.notes[0] and "f" * 64 in report.notes[0]
    ids.write_text("f" * 64)
    with pytest.raises(ManifestError, match="none of its 1 ids"):
        export(painted, tmp_path / "other", "webdataset", f"ids={ids}")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("to", FORMS)
def test_damaged_pictures_are_left_out_and_named_and_come_when_they_are_mended(alps, tmp_path, to):
    paths = [alps / record["image"] for record in newest(alps).values()]
    good = paths[4].read_bytes()
    paths[0].unlink()
    paths[1].unlink()  # a shard without any
    paths[4].write_bytes(good[:-1] + b"\0")
    report = export(alps, tmp_path / "out", to, THREE)
    assert report.pictures == 6 and report.shards == 4
    assert [problem.rpartition(".png ")[2] for problem in report.problems] == [
        "is missing", "is missing", "has changed since it was recorded",
    ]  # fmt: skip
    assert len(export(alps, tmp_path / "out", to, THREE).problems) == 3
    paths[4].write_bytes(good)
    assert export(alps, tmp_path / "out", to, THREE).pictures == 7


@pytest.mark.parametrize("to", FORMS)
def test_a_picture_that_was_lost_since_leaves_nothing_behind(alps, tmp_path, to):
    export(alps, tmp_path / "out", to, THREE)
    (alps / list(newest(alps).values())[4]["image"]).unlink()
    shard = json.loads((tmp_path / "out/index.json").read_text())["shardlist"][2]["url"]
    (tmp_path / "out" / shard).unlink()
    assert len(export(alps, tmp_path / "out", to, THREE).problems) == 1
    export(alps, tmp_path / "anew", to, THREE)
    assert files(tmp_path / "out") == files(tmp_path / "anew")


def test_only_the_newest_record_counts_and_only_if_it_is_done(alps, tmp_path):
    first, second, *_ = newest(alps).values()
    with Ledger(LocalStore(alps)) as ledger:
        ledger.append({key: first[key] for key in ("id", "item", "model")} | {"status": "failed", "error": {}})
        ledger.append(second | {"made": "later"})
    export(alps, tmp_path / "out")
    told = [json.loads(sample["json"]) for sample in samples(tmp_path / "out").values()]
    assert len(told) == 8 and told[0]["id"] == second["id"] and told[0]["made"] == "later"


def test_a_folder_of_something_else_is_refused(alps, tmp_path):
    (tmp_path / "photos/2020").mkdir(parents=True)
    (tmp_path / "photos/2020/x.png").touch()
    with pytest.raises(SettingError, match=r"has files that no export made \(2020/x.png\)"):
        export(alps, tmp_path / "photos")
    before = files(alps)
    for place in (alps, alps / "export", alps / "images", tmp_path / "alps/../alps/x"):
        with pytest.raises(SettingError, match="is a run folder, or in one"):
            export(alps, place)
    assert files(alps) == before
    (tmp_path / "index").mkdir()
    (tmp_path / "index/index.json").write_text('{"shardlist": []}')  # of another program
    with pytest.raises(SettingError, match=r"no export made \(index.json\)"):
        export(alps, tmp_path / "index")
    export(alps, tmp_path / "out", "parquet")
    with pytest.raises(SettingError, match="is an export to parquet"):
        export(alps, tmp_path / "out", "webdataset")
    with LocalStore(tmp_path / "out").hold(), pytest.raises(RunFolderHeld):
        export(alps, tmp_path / "out", "parquet")


def test_no_pictures_no_export(alps, tmp_path):
    (alps / "records.jsonl").write_bytes(b"")
    with pytest.raises(NoRunFolder, match="no record of a finished picture"):
        export(alps, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_library_of_a_form_may_be_missing(painted, tmp_path, installed, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "runner.verbs.export.parquet", raising=False)
    installed("pyarrow", there=False)
    with pytest.raises(SettingError, match=r"to=parquet needs pyarrow: pip install 'manifest-runner\[export\]'"):
        export(painted, tmp_path / "out", "parquet")
    assert export(painted, tmp_path / "out", "webdataset").pictures == 9


@pytest.mark.parametrize("to", FORMS)
def test_any_write_may_fail(painted, to):
    undisturbed, calls = FakeStore(), []
    export(painted, undisturbed, to, THREE)
    export(painted, FakeStore(lambda *call: calls.append(call)), to, THREE)
    assert len(calls) >= 15
    for number in range(len(calls)):
        store = FakeStore(failing_from(number))
        with pytest.raises(FolderUnwritable):
            export(painted, store, to, THREE)
        if "index.json" in store.files:  # then all is there
            assert store.files["index.json"] == undisturbed.files["index.json"]
        store.before = lambda method, name: None
        export(painted, store, to, THREE)
        assert store.files == undisturbed.files


def test_an_index_never_lists_what_is_not_there(alps, paint):
    """Shards that change are written while there is no index, at every moment of an export of more pictures."""
    store = FakeStore()
    export(alps, store, "webdataset", THREE)

    def check(method, name):
        if "index.json" in store.files:
            for shard in json.loads(store.files["index.json"])["shardlist"]:
                assert hashlib.sha256(store.files[shard["url"]]).hexdigest() == shard["sha256"]

    store.before = check
    paint(alps, seeds=4)
    assert export(alps, store, "webdataset", THREE).pictures == 12


@pytest.mark.parametrize("to", FORMS)
def test_an_export_may_be_killed_at_any_moment(painted, tmp_path, to):
    delays, kills, folder = random.Random(7), 0, tmp_path / "0"
    words = ["export", str(painted), "out=out", f"to={to}", "shard_size=1"]
    (tmp_path / "undisturbed").mkdir()
    with forker(words, f"rich.console, runner.verbs.export.export, runner.verbs.export.{to}") as run:
        code, whole = run(tmp_path / "undisturbed", 600)
        assert code == 0
        while kills < KILLS / len(FORMS):
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


@pytest.mark.parametrize(
    "words", [["--to", "parquet"], ["--to=parquet"], ["to=parquet"]], ids=lambda words: " ".join(words)
)
def test_the_command_line(alps, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "alps/", *words]) == 0
    out, err = capsys.readouterr()
    assert out == "9 pictures in 1 shard, 1 of them new; see alps-parquet\n"
    assert err.startswith("alps-parquet/train-000000.parquet: 9 pictures, 1")
    monkeypatch.chdir(alps)
    next(Path("images").rglob("*.png")).unlink()
    assert cli.main(["export", ".", "--to", "imagefolder"]) == 3
    assert "runner: left out: " in capsys.readouterr().err
    assert (tmp_path / "alps-imagefolder/index.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["export", "alps"], 2, "to what? write to=webdataset"),
        (["export", "alps", "--to"], 2, "--to needs a value"),
        (["export", "alps", "--to", "tar"], 2, "to=tar: known are: imagefolder, parquet, webdataset"),
        (["export", "alps", "--to", "webdatset"], 2, "did you mean 'webdataset'?"),
        (["export", "nowhere", "--to", "webdataset"], 10, "there is no run folder 'nowhere'"),
        (["export", "alps", "to=parquet", "shard_size=0"], 2, "shard_size=0: should be a size"),
        (["export", "alps", "to=parquet", "ids=none.txt"], 4, "none.txt: can't be read"),
        (["run", "m.yaml", "to=parquet"], 2, "'to' is a setting of export"),
    ],
)
def test_a_wrong_command_line(alps, tmp_path, monkeypatch, capsys, words, code, said):
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text(MANIFEST.replace("SEEDS", "1"))
    assert cli.main(words) == code
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alps", "m.yaml"]
