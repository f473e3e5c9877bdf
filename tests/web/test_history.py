import json
import os

import pytest

from runner.web import history
from runner.web.forms import IMG2IMG
from runner.web.jobs import EARLIER


def write(folder, name, *, pictures=2, manifest="jobs: [{prompt: a cat, init: x.png}]\n"):
    run = folder / name
    (run / "images/a_cat").mkdir(parents=True)
    (run / "manifest.yaml").write_text(manifest)
    lines = []
    for seed in range(pictures):
        path = f"images/a_cat/seed_{seed}_0000{seed}.png"
        (run / path).write_bytes(b"x")
        lines.append(
            {"id": str(seed), "status": "done", "bytes": 1, "image": path, "item": {"seed": seed, "axes": {"scale": 3}}}
        )
    lines.append({"id": "x", "status": "failed", "item": {"seed": 99}, "error": {"message": "<no noise>"}})
    (run / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_runs_are_listed_newest_first(tmp_path):
    for name in ("0002-b", "0010-c", "10000-d", "0001-a"):
        write(tmp_path, name)
    for name in ("notes", ".checked", "0003_x", "0004-UPPER"):
        (tmp_path / name).mkdir()
    (tmp_path / "0005-no-manifest").mkdir()
    assert history.names(tmp_path) == ["10000-d", "0010-c", "0005-no-manifest", "0002-b", "0001-a"]
    found = history.list_runs(tmp_path, history.names(tmp_path)[1:4])
    assert [run.name for run in found] == ["0010-c", "0002-b"]
    assert (found[0].prompt, found[0].kind, found[0].pictures) == ("a cat", IMG2IMG, 2)
    assert found[0].first == "images/a_cat/seed_0_00000.png"
    assert history.names(tmp_path / "nowhere") == []
    small = tmp_path / "0010-c/thumbs/images/a_cat/seed_0_00000.png.webp"
    small.parent.mkdir(parents=True)
    small.touch()
    assert history.look_at(tmp_path / "0010-c").first == "thumbs/images/a_cat/seed_0_00000.png.webp"


@pytest.mark.parametrize("manifest", ["", "[", "jobs: [{prompt: [1]}]", "\x00\xff", "jobs: [7]"])
def test_a_run_whose_manifest_is_broken_is_listed_all_the_same(tmp_path, manifest):
    write(tmp_path, "0001-a", manifest=manifest)
    (run,) = history.list_runs(tmp_path, ["0001-a", "0002-gone"])
    assert run.pictures == 2


def test_a_run_is_restored_from_its_records(tmp_path):
    run = write(tmp_path, "0001-a")
    job = history.restore(tmp_path, "0001-a")
    assert (job.state, job.over, job.kind) == (EARLIER, True, IMG2IMG)
    assert [each.seed for each in job.pictures] == [0, 1]
    assert job.pictures[0].caption == "scale 3, seed 0"
    assert job.failed == ["seed 99: <no noise>"]
    (run / "images/a_cat/seed_0_00000.png").unlink()
    (run / "images/a_cat/seed_1_00001.png").unlink()
    (run / "images/a_cat/seed_1_00001.png").symlink_to("/etc/hostname")
    assert history.restore(tmp_path, "0001-a").pictures == []
    (run / "records.jsonl").write_text(
        '{"id": "y", "bytes": 1, "status": "done", "image": "no", "item": {"seed": "x", "axes": 7}}\n'
    )
    assert history.restore(tmp_path, "0001-a").pictures == []
    (run / "records.jsonl").unlink()
    assert history.restore(tmp_path, "0001-a").failed == []


def test_of_very_many_records_the_first_are_shown(tmp_path, limit):
    limit(history, MOST_RESTORED=2)
    write(tmp_path, "0001-a")
    job = history.restore(tmp_path, "0001-a")
    assert (len(job.pictures), job.failed) == (2, [])
    assert job.notes == ["here are the first 2; the gallery has all"]


@pytest.mark.parametrize("name", ["", ".", "..", "../etc", "0001-a/..", "0002-none", "0001-a\0", "0001-" + "a" * 300])
def test_what_is_no_run_is_not_found(tmp_path, name):
    write(tmp_path, "0001-a")
    assert history.restore(tmp_path, name) is None


def test_a_manifest_that_is_a_pipe_does_not_hang(tmp_path):
    (tmp_path / "0001-a").mkdir()
    os.mkfifo(tmp_path / "0001-a/manifest.yaml")
    assert history.restore(tmp_path, "0001-a") is None
    assert history.list_runs(tmp_path, ["0001-a"]) == []
