"""People are told what happened, in a few lines, and a log that can't be written is no matter."""

import os

import pytest
from builders import make_item
from fake_store import FakeStore
from rich.console import Console

from runner.errors import FolderUnwritable
from runner.events import Failure, ItemDone, ItemFailed, ModelLoaded, RunFinished, RunStarted, WorkersChanged
from runner.folder.local import LocalStore
from runner.item import Model
from runner.record import Making, Record
from runner.report import progress

ITEMS = tuple(make_item(number=number, seed=number) for number in range(14))

SD14 = Model(name="sd14")


def finished(**changes):
    return RunFinished(**({"done": 0, "failed": (), "seconds": 2.0} | changes))


def test_nothing_to_render(tmp_path):
    assert progress.summary(finished(), LocalStore(tmp_path)) == [f"nothing to render: all pictures are in {tmp_path}"]


def test_failures_are_named_but_not_all_of_many(tmp_path):
    lines = progress.summary(finished(done=4, failed=ITEMS), LocalStore(tmp_path))
    assert lines[0] == "4 pictures in 2.0 s (2.00 a second)"
    assert lines[1].startswith("14 failed")
    assert lines[2] == "  0: Austrian alps, oil on canvas, seed 0"
    assert lines[-1] == "  and 4 more"
    assert len(lines) == 2 + 10 + 1


def test_items_that_were_given_up_are_named_apart(tmp_path):
    lines = progress.summary(finished(failed=ITEMS[:3], given_up=ITEMS[1:3]), LocalStore(tmp_path))
    assert [line.split(",")[0] for line in lines if not line.startswith("  ")][1:] == ["1 failed", "2 skipped"]
    assert sum(line.startswith("  ") for line in lines) == 3


def test_notes_are_shown_and_logged(tmp_path, capsys):
    events = [RunStarted(wanted=2, missing=1), ModelLoaded(model=SD14, notes=("torch was [old]",)), finished(done=1)]
    progress.watch(events, LocalStore(tmp_path), Console(width=200))
    assert "note: torch was [old]" in capsys.readouterr().out
    assert "WARNING torch was [old]" in (tmp_path / "runner.log").read_text()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_log_on_a_full_disk_costs_nothing(capsys):
    def before(method, name):
        if store.files:  # the log is there, and nothing more goes into it
            raise FolderUnwritable("the disk is full")

    store, handlers = FakeStore(before), list(progress.log.handlers)
    store.made = True
    events = [
        RunStarted(wanted=2, missing=2),
        ItemDone(item=ITEMS[0], record={}),
        ItemFailed(item=ITEMS[1], error=Failure.of(ValueError("bad"))),
        finished(done=1, failed=ITEMS[1:2]),
    ]
    assert list(progress.logged(events, store)) == events
    assert store.files == {"runner.log": b""}
    assert capsys.readouterr().err == ""
    assert progress.log.handlers == handlers


def test_a_log_that_cannot_be_opened_is_the_folders_error(tmp_path):
    (tmp_path / "runner.log").mkdir()
    with pytest.raises(FolderUnwritable, match="is not a file"):
        list(progress.logged([RunStarted(wanted=1, missing=1), finished()], LocalStore(tmp_path)))


def test_the_pace_of_several_machines_is_told_for_each(tmp_path, capsys, limit):
    limit(progress, LINE_SECONDS=-1.0)
    record = Record(id="0", item={}, model={}, making=Making())
    made = [ItemDone(item=item, record=record, worker=f"node-{item.number % 2}") for item in ITEMS]
    events = [RunStarted(wanted=14, missing=14), *made, finished(done=14)]
    progress.watch(events, LocalStore(tmp_path), Console(width=200))
    last = capsys.readouterr().out.splitlines()[-2]
    assert last.startswith("14/14 images, ")
    assert "(node-0 " in last and ", node-1 " in last


def test_workers_that_come_and_go_are_told_and_logged(tmp_path, capsys):
    events = [
        RunStarted(wanted=1, missing=1),
        WorkersChanged(message="a worker of \x1b[31mnode died", working=3),
        finished(done=1),
    ]
    progress.watch(events, LocalStore(tmp_path), Console(width=200))
    assert "a worker of" in (out := capsys.readouterr().out) and "\x1b[31m" not in out
    assert "; 3 at work" in (tmp_path / "runner.log").read_text()
