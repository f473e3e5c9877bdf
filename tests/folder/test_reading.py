"""Pictures are read as they were recorded or not at all, several at once and in order."""

import hashlib
import threading

import pytest
from fake_store import FakeStore

from runner.folder.reading import AHEAD, Unreadable, in_order, read_picture

ID = "0" * 64


@pytest.fixture
def store():
    store = FakeStore()
    store.files |= {"images/cat/1.png": b"picture", "records.jsonl": b"{}", "images/x.tar": b"tar"}
    return store


def record(**changes):
    sha256 = hashlib.sha256(b"picture").hexdigest()
    return {"id": ID, "image": "images/cat/1.png", "bytes": 7, "sha256": sha256} | changes


def test_a_picture_is_the_one_that_was_recorded(store):
    assert read_picture(store, record()) == b"picture"
    assert read_picture(store, {key: value for key, value in record().items() if key != "sha256"}) == b"picture"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": "images/cat/2.png"}, "memory/fake/images/cat/2.png is missing"),
        ({"bytes": 6}, "has changed since it was recorded"),
        ({"bytes": -1}, "has changed since it was recorded"),
        ({"bytes": 8}, "has changed since it was recorded"),
        ({"sha256": "0" * 64}, "has changed since it was recorded"),
        ({"sha256": 5}, "has changed since it was recorded"),
        ({"bytes": 2**64 - 1}, "has changed since it was recorded"),
        ({"image": "records.jsonl"}, "is no picture of a run folder"),
        ({"image": "images/x.tar"}, "is no picture of a run folder"),
        ({"image": "images/../images/cat/1.png"}, "is no picture of a run folder"),
        ({"image": "/images/cat/1.png"}, "is no picture of a run folder"),
        ({"id": "../../x"}, "has the id '../../x', which is none"),
    ],
)
def test_any_other_is_unreadable(store, changes, said):
    with pytest.raises(Unreadable, match=said.replace("(", r"\(")):
        read_picture(store, record(**changes))


def test_work_is_done_side_by_side_and_comes_in_order():
    both = threading.Barrier(2, timeout=60)
    assert list(in_order(lambda number: (both.wait() and number) or number, range(2))) == [0, 1]
    assert list(in_order(lambda number: -number, range(100))) == [-number for number in range(100)]
    assert list(in_order(abs, [])) == []


def test_little_is_under_way_before_it_is_taken():
    taken = []
    found = in_order(lambda number: number, (taken.append(number) or number for number in range(100)))
    assert next(found) == 0
    assert len(taken) <= AHEAD + 1
    found.close()


def test_an_error_is_raised_where_its_result_would_come():
    found = in_order(lambda number: 1 // number, [1, 0, 1])
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)
