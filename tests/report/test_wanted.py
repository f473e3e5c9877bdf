"""What a manifest asks for is kept in the folder, and is told from the records where it isn't there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import make_item, matrix, record, run_folder

from runner.folder.local import LocalStore
from runner.folder.names import WANTED
from runner.item import item_id
from runner.report import wanted as module
from runner.report.wanted import Wanted


def told(wanted: Wanted) -> tuple[object, ...]:
    columns = [(each.name, list(each.values), each.codes.tolist(), each.swept) for each in wanted.table.columns()]
    return list(wanted.ids), [tuple(size) for size in wanted.sizes], columns, wanted.mark


def test_it_is_the_items_in_their_order(tmp_path: Path) -> None:
    items = matrix(2, 2)
    wanted = Wanted.of(items)
    assert wanted is not None and wanted.ids == [item_id(item) for item in items]
    assert [(each.name, each.codes.tolist()) for each in wanted.table.columns()] == [
        ("prompt", [0, 0, 1, 1]), ("seed", [0, 1, 0, 1]),
    ]  # fmt: skip


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    wanted, store = Wanted.of([*matrix(2, 3), make_item(width=128, sampler="plms")]), LocalStore(tmp_path)
    assert wanted is not None and Wanted.load(store) is None
    wanted.save(store)
    loaded, other = Wanted.load(store), Wanted.of(matrix(2, 2))
    assert loaded is not None and told(loaded) == told(wanted)
    assert other is not None and other.mark != wanted.mark


def test_too_many_items_are_not_listed(limit) -> None:
    limit(module, MOST=3)
    assert Wanted.of(matrix(1, 4)) is None and Wanted.of(matrix(1, 3)) is not None


def test_without_it_the_records_tell_the_order_by_the_numbers(tmp_path: Path) -> None:
    items = matrix(1, 3)
    renumbered = record(items[2]) | {"item": items[2].to_dict() | {"number": 0}}
    store = LocalStore(run_folder(tmp_path, [items[2], items[0]], record(items[1]), renumbered))
    wanted = Wanted.of_records(store)
    assert wanted.ids == [f"{number:064x}" for number in (2, 0, 1)]
    assert wanted.table.columns()[0].values == ["2", "0", "1"]


BROKEN = [
    b"", b"[]", b"{}", b"null", b'{"version":1}', b"\xff",
    b'{"version":1,"named":[],"columns":{"seed":{"values":["1"],"codes":[4]}},"sizes":[[1,1]],"size":[0],"ids":["a"]}',
    b'{"version":1,"named":[],"columns":{"seed":{"values":[1]}},"sizes":[[1,1]],"size":[0],"ids":["a"]}',
    b'{"version":1,"named":[],"columns":[],"sizes":[[1,1]],"size":[7],"ids":["a"]}',
    b'{"version":1,"named":[],"columns":{"seed":{"values":["1"],"codes":[-1]}},"sizes":[[1,1]],"size":[0],"ids":["a"]}',
    b'{"version":2,"named":[],"columns":{},"sizes":[[1,1]],"size":[0],"ids":["a"]}',
]  # fmt: skip


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_one_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WANTED).parent.mkdir()
    (tmp_path / WANTED).write_bytes(content)
    assert Wanted.load(LocalStore(tmp_path)) is None


def test_sizes_that_are_none_are_ordinary_ones() -> None:
    odd: list[object] = [None, -1, 0, "64", True, 2**40, 1.5]
    assert {module.size_of({"width": width, "height": 64}) for width in odd} == {(512, 512)}
    assert module.size_of({"width": 64, "height": 128}) == (64, 128)


def test_what_is_saved_is_plain_json(tmp_path: Path) -> None:
    wanted = Wanted.of(matrix(1, 2))
    assert wanted is not None
    wanted.save(LocalStore(tmp_path))
    said = json.loads((tmp_path / WANTED).read_text())
    assert (
        said["columns"]["seed"] == {"values": ["0", "1"], "codes": [0, 1]} and "codes" not in said["columns"]["steps"]
    )
