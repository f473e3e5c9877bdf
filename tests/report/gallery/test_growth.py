"""The data of a run that is under way says what is made, what failed and what is still to come."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_engine import FakeEngine
from gallery_data import pieces, shown

from runner import settings
from runner.events import ItemDone
from runner.folder.ledger import Ledger
from runner.item import item_id
from runner.report.gallery.catalog import DONE, FAILED, MISSING
from runner.report.gallery.growth import SHARE, Growth
from runner.report.wanted import Wanted
from runner.request import Request, read_request
from runner.verbs.run.run import run

MANIFEST = """
version: 1
name: small
defaults: {width: 64, height: 64, steps: 2}
jobs: [{prompts: [cat, dog], seeds: 1-4, matrix: {scale: [3, 1]}}]
"""


@pytest.fixture
def ask(tmp_path: Path):
    def read(*overrides: str, text: str = MANIFEST, out: str = "out") -> Request:
        (tmp_path / "m.yaml").write_text(text)
        return read_request(tmp_path / "m.yaml", settings.compose([f"out={tmp_path / out}", *overrides]))

    return read


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_update_is_due_a_hundred_times_as_long_as_it_took_after_the_last_one(ask) -> None:
    request, clock = ask(), Clock()
    list(run(request, FakeEngine()))
    with Ledger(request.store) as ledger:
        growth = Growth(Wanted.of(request.items), ledger, clock)
        state = request.store.folder / "gallery/state.js"
        state.unlink()
        growth.update()
        assert not state.exists()  # the first one waits as well
        clock.now = 1.0
        growth.update()
        assert state.exists()
        state.unlink()
        clock.now = 2.9
        growth.update()
        assert not state.exists()
        clock.now = 3.1
        growth.update()
        assert state.exists() and SHARE == 100


def test_a_page_shows_what_is_made_and_what_is_to_come(ask) -> None:
    request, seen = ask(), []

    def before_wave() -> None:
        if (request.store.folder / "gallery/state.js").exists():
            seen.append((pieces(request.store.folder)["state"], shown(request.store.folder)))

    def refuse(item) -> Exception | None:
        return ValueError("no noise today") if item.seed == 2 else None

    assert list(run(request, FakeEngine(refuse=refuse, before_wave=before_wave)))[-1].done == 12
    for state, rows in seen:
        assert state["running"] and len(rows) == 16
    rows = shown(request.store.folder)
    assert not pieces(request.store.folder)["state"]["running"]
    assert [row["state"] for row in rows] == [FAILED if row["values"]["seed"] == "2" else DONE for row in rows]
    assert {row["problem"] for row in rows} == {"", "ValueError: no noise today"}
    assert [row["values"]["scale"] for row in rows[:8]] == ["3"] * 4 + ["1"] * 4


def test_an_interrupted_run_is_shown_as_far_as_it_came(ask) -> None:
    request, clock = ask(), Clock()
    with Ledger(request.store) as ledger:
        growth = Growth(Wanted.of(request.items), ledger, clock)
        clock.now = 10.0
        growth.update()
    assert {row["state"] for row in shown(request.store.folder)} == {MISSING}
    events = run(request, FakeEngine())
    next(event for event in events if isinstance(event, ItemDone))
    events.close()
    assert list(run(request, FakeEngine()))[-1].done < 16
    assert {row["state"] for row in shown(request.store.folder)} == {DONE}


def test_a_limit_leaves_the_rest_to_come(ask) -> None:
    request = ask("limit=4")
    list(run(request, FakeEngine()))
    assert [row["state"] for row in shown(request.store.folder)] == [DONE] * 4 + [MISSING] * 12


def test_a_folder_of_listed_items_or_of_a_shard_is_whole_with_them(ask, tmp_path) -> None:
    request, ids = ask(), tmp_path / "ids.txt"
    list(run(request, FakeEngine()))
    ids.write_text("".join(f"{item_id(request.items[number])}\n" for number in (9, 2)))
    for overrides, count in (([f"ids={ids}"], 2), (["shard=2/4"], 4)):
        part = ask(*overrides, out=str(count))
        list(run(part, FakeEngine()))
        assert [row["state"] for row in shown(part.store.folder)] == [DONE] * count
    list(run(ask(f"ids={ids}"), FakeEngine()))
    assert pieces(request.store.folder)["state"]["wanted"] == 16  # a list of ids takes nothing from a whole folder


def test_a_manifest_that_asks_for_less_or_in_another_order_is_shown_so_though_nothing_is_rendered(ask) -> None:
    request = ask()
    list(run(request, FakeEngine()))
    before = (request.store.folder / "records.jsonl").read_bytes()
    changed = ask(text=MANIFEST.replace("[cat, dog]", "[dog]").replace("[3, 1]", "[1, 3]"))
    assert list(run(changed, FakeEngine()))[-1].done == 0
    rows, state = shown(request.store.folder), pieces(request.store.folder)["state"]
    assert (state["rows"], state["wanted"]) == (16, 8)
    assert [(row["values"]["prompt"], row["values"]["scale"]) for row in rows[:8]] == [("dog", "1")] * 4 + [
        ("dog", "3")
    ] * 4
    assert {row["values"]["prompt"] for row in rows[8:]} == {"cat"}
    assert (request.store.folder / "records.jsonl").read_bytes() == before
    page = request.store.folder / "gallery/state.js"
    page.unlink()
    list(run(changed, FakeEngine()))
    assert not page.exists()  # nothing has changed, so nothing is built


def test_without_a_report_nothing_of_it_is_written(ask) -> None:
    request = ask("skip_grid=true")
    list(run(request, FakeEngine()))
    assert not (request.store.folder / "gallery").exists() and not (request.store.folder / "gallery.html").exists()
