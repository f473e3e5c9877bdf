"""Each item that has no picture comes out once, and those that aren't to be made are noted."""

from types import SimpleNamespace

import pytest
from builders import make_item

from runner.item import item_id
from runner.verbs.run import backlog
from runner.verbs.run.backlog import Backlog


class Index:
    """What a ledger would say, of items by their seeds."""

    def __init__(self, done=(), failures=None, lost=()):
        self.done, self.lost = set(map(id_of, done)), set(map(id_of, lost))
        self.counts = {id_of(seed): count for seed, count in (failures or {}).items()}
        self.asked = []

    def is_done(self, identity):
        self.asked.append(identity)
        return identity in self.done

    def failures(self, identity):
        return self.counts.get(identity, 0)

    def images(self):
        return {identity: f"images/{identity}.png" for identity in self.done | self.lost}


def id_of(seed):
    return item_id(make_item(seed=seed))


def ask(seeds, limit=None, attempts=3):
    items = [make_item(number=number, seed=seed) for number, seed in enumerate(seeds)]
    return SimpleNamespace(
        wanted=lambda: iter(items[:limit]),
        count=lambda: len(items[:limit]),
        is_whole=limit is None,
        settings=SimpleNamespace(attempts=attempts),
    )


def seeds(found):
    return [item.seed for item in found]


@pytest.fixture(params=[10_000, 3, 1])
def counted(request, limit):
    """However many items are counted beforehand."""
    limit(backlog, COUNTED=request.param)
    return request.param


def test_the_missing_ones_come_out_once(counted):
    found = Backlog(ask([1, 2, 2, 3, 1, 4, 5]), Index(done={2, 4}))
    assert found.missing >= 3
    assert seeds(found) == [1, 3, 5]


def test_nothing_is_missing(counted):
    found = Backlog(ask(range(8)), Index(done=range(8)))
    assert found.missing == 0
    assert seeds(found) == []


def test_what_was_lost_at_the_end_is_found_at_once(counted):
    found = Backlog(ask(range(8)), Index(done=range(7), lost={7}))
    assert found.missing == 1
    assert seeds(found) == [7]


def test_the_number_is_right_where_all_are_counted_or_no_file_was_lost(counted):
    assert Backlog(ask(range(100)), Index(done=range(10))).missing == 90
    assert Backlog(ask(range(100)), Index(done=range(50, 100))).missing == 50
    assert Backlog(ask(range(100), limit=20), Index()).missing == 20


def test_only_the_counted_items_are_looked_at_before_the_first_one(limit):
    limit(backlog, COUNTED=4)
    index = Index()
    found = Backlog(ask(range(100)), index)
    assert next(iter(found)).seed == 0
    assert index.asked == [id_of(seed) for seed in range(4)]


def test_items_that_failed_too_often_are_given_up(counted):
    found = Backlog(ask([1, 2, 3, 2]), Index(failures={1: 2, 2: 3}))
    assert seeds(found) == [1, 3]
    assert seeds(found.given_up) == [2]
    assert seeds(Backlog(ask([1, 2, 3], attempts=4), Index(failures={1: 2, 2: 3}))) == [1, 2, 3]


def test_an_id_that_is_done_is_forgotten_and_the_ledger_asked():
    index = Index()
    found = Backlog(ask([1, 2, 1]), index)
    items = iter(found)
    assert next(items).seed == 1
    index.done.add(1)
    found.settle(1)
    assert seeds(items) == [2]


def test_pictures_that_nobody_asks_for_are_known_once_all_items_were_seen(counted):
    found = Backlog(ask(range(5)), Index(done={3, 8, 9}))
    assert counted > 5 or found.unwanted() == []
    assert seeds(found) == [0, 1, 2, 4]
    assert set(found.unwanted()) == {f"images/{id_of(seed)}.png" for seed in (8, 9)}


def test_a_limited_run_does_not_know_what_is_unwanted():
    found = Backlog(ask(range(5), limit=2), Index(done={3}))
    assert seeds(found) == [0, 1]
    assert found.unwanted() == []
