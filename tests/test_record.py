"""What a record holds comes back from its line, and lines of earlier versions go on to count."""

import json
import shutil
from pathlib import Path

import orjson
import pytest
from builders import MODEL, make_item
from fake_engine import MAKING
from jsonschema import Draft7Validator

from runner import cli, settings
from runner.errors import ManifestError
from runner.folder import schema
from runner.folder.ledger import iterate_records
from runner.folder.store import LocalStore
from runner.item import item_id
from runner.model.files import find_model
from runner.model.fingerprints import fingerprints
from runner.record import Making, Record, Written, is_newer, is_record, model_dict
from runner.request import read_request
from runner.verbs.run.run import run

ROOT = Path(__file__).parents[1]
BEFORE = Path(__file__).parent / "data/version_0"  # written by the version whose lines had no version
VALIDATOR = Draft7Validator(schema.make_schema())


def make_record(**changes):
    item = make_item(model=MODEL, axes=(("seed", 27),))
    record = Record(
        id=item_id(item), item=item.to_dict() | {"model": "emoji"}, model=model_dict(MODEL), making=MAKING, **changes
    )
    written = Written(path="images/a/b.png", sha256="a" * 64, pixels_sha256="b" * 64, bytes=123)
    return record.finished(written, {"encode": 0.12345678}, 77)


def test_a_line_gives_its_record_back():
    record = make_record(rerendered="it overflowed")
    line = orjson.loads(orjson.dumps(record.to_dict()))
    assert is_record(line) and line["version"] == 1
    assert Record.from_dict(line).to_dict() == line == record.to_dict()
    assert line["seconds"] == {"encode": 0.123457}


def test_a_failure_has_its_error_and_no_picture():
    record = make_record().failed({"class": "ValueError", "message": "no"}, {})
    line = orjson.loads(orjson.dumps(record.to_dict()))
    assert is_record(line) and "image" not in line
    assert Record.from_dict(line).error == {"class": "ValueError", "message": "no"}
    assert not list(VALIDATOR.iter_errors(line))


@pytest.mark.parametrize("value", [None, [], "text", 7, {"device": ["?"], "unet_bs": True, "dtypes": 3}])
def test_what_is_of_the_wrong_kind_counts_as_absent(value):
    line = {"id": 3, "status": value, "item": value, "model": value, "run": value, "bytes": "many"}
    record = Record.from_dict(line)
    assert record.making == Making()
    assert (record.id, record.bytes, record.fingerprints) == ("", 0, ())


def test_differences_name_each_factor_and_leave_out_what_changes_no_byte():
    now = MAKING._replace(dtypes=(("unet", "float16"),), memory=5, turbo=False, env=(("x", "2"),), threads=3)
    assert MAKING.differences(now) == {
        "x": ("1", "2"), "threads": (1, 3), "dtype of unet": ("float32", "float16"),
    }  # fmt: skip
    assert MAKING.differences(MAKING._replace(precision="full", engine="ray", lowered_from=8)) == {}


def test_the_shipped_schema_is_up_to_date_and_accepts_records_of_both_versions():
    assert (ROOT / "runner/schema/record.v1.json").read_text() == schema.to_text()
    lines = [make_record().to_dict(), *iterate_records(LocalStore(BEFORE))]
    assert [error.message for line in lines for error in VALIDATOR.iter_errors(orjson.loads(orjson.dumps(line)))] == []
    assert list(VALIDATOR.iter_errors(make_record().to_dict() | {"sha256": "?"}))


def test_a_record_of_a_later_version_is_refused_with_its_place(tmp_path):
    line = make_record().to_dict() | {"version": 2}
    assert is_newer(line)
    (tmp_path / "records.jsonl").write_bytes(orjson.dumps(line) + b"\n")
    with pytest.raises(ManifestError, match=r"records.jsonl:1:1: the record is of version 2; this runner reads"):
        list(iterate_records(LocalStore(tmp_path)))


@pytest.fixture
def before(tmp_path):
    """The folder of the version before, as if the weights that ship now had been those of then."""
    folder = shutil.copytree(BEFORE, tmp_path / "old")
    file = folder / "records.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["model"]["fingerprints"] = fingerprints(find_model("builtin:emoji"))
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    items = read_request(file, settings.compose([])).items
    written = [json.dumps(line | {"id": item_id(item)}) for line, item in zip(lines, items, strict=True)]
    file.write_text("\n".join(written) + "\n")
    return folder


def test_a_folder_of_earlier_weights_says_so_and_goes_on(tmp_path, capsys):
    """The package ships other weights by now: the records' pictures can't be made, and the old ones stay."""
    folder = shutil.copytree(BEFORE, tmp_path / "old")
    assert cli.main(["run", str(folder / "records.jsonl"), f"out={tmp_path / 'again'}"]) == 4
    assert "the model 'emoji': no model with these fingerprints was found" in capsys.readouterr().err
    assert cli.main(["verify", str(folder), "sample=1", "json=true"]) == 5
    assert "weights of vae" in capsys.readouterr().out
    (tmp_path / "m.yaml").write_text(
        "version: 1\ndefaults: {width: 64, height: 64, steps: 20, scale: 3, sampler: dpmpp_2m}\n"
        "jobs: [{prompt: tiger face, seed: 1}]\n"
    )
    kept = (folder / "images/tiger_face/seed_1_00000.png").read_bytes()
    assert cli.main(["run", str(tmp_path / "m.yaml"), f"out={folder}", "mixed=true", "skip_grid=true"]) == 0
    assert (folder / "images/tiger_face/seed_1_00000.png").read_bytes() == kept
    assert len(list(iterate_records(LocalStore(folder)))) == 5


def test_a_folder_of_the_version_before_goes_on_verifies_and_is_a_target(before, tmp_path, capsys):
    folder = before
    chosen = settings.compose([f"out={folder}", "mixed=true"])  # mixed: it was made on another machine
    started, finished = run(read_request(folder / "records.jsonl", chosen))
    assert (started.wanted, started.missing, finished.done) == (4, 0, 0)
    again = tmp_path / "again"
    assert cli.main(["run", str(folder / "records.jsonl"), f"out={again}", "skip_grid=true"]) == 0
    old, new = ({record["id"]: record for record in iterate_records(LocalStore(place))} for place in (folder, again))
    assert old.keys() == new.keys()
    capsys.readouterr()
    assert cli.main(["verify", str(folder), "sample=2", "json=true"]) in (0, 5)  # bytes are those of one machine
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["same"] + report["counts"]["differs"] == report["verified"] == 2
