"""Where there may be workers, without Ray."""

import pytest

from runner import settings
from runner.engine.fleet import Machine, check_reachable, machine_here, places, strength
from runner.errors import SettingError

CARDS, PLAIN = Machine("a", "with-cards", 2, 16), Machine("b", "without", 0, 8)


def found(machines, *overrides):
    return [(place.node, place.cards, place.cores) for place in places(machines, settings.compose([*overrides]))]


@pytest.mark.parametrize(
    ("machines", "overrides", "wanted"),
    [
        ([CARDS, PLAIN], [], [("a", 1, 8), ("a", 1, 8)]),
        ([CARDS, PLAIN], ["mixed=true"], [("a", 1, 8), ("a", 1, 8), ("b", 0, 8)]),
        ([CARDS, PLAIN], ["device=cpu"], [("a", 0, 16), ("b", 0, 8)]),
        ([CARDS, PLAIN], ["device=cpu", "ray.cpus=8"], [("a", 0, 8), ("a", 0, 8), ("b", 0, 8)]),
        ([CARDS], ["device=cuda"], [("a", 1, 8), ("a", 1, 8)]),
        ([PLAIN], ["device=cuda"], []),
        ([PLAIN], ["ray.cpus=3"], [("b", 0, 3), ("b", 0, 3)]),
        ([PLAIN], ["ray.cpus=9"], []),
        ([Machine("c", "head", 0, 0)], [], []),
        ([Machine("d", "cards alone", 1, 0)], [], [("d", 1, 0)]),
    ],
)
def test_workers_are_on_cards_or_else_on_cores(machines, overrides, wanted):
    assert found(machines, *overrides) == wanted


def test_the_order_of_the_machines_does_not_matter():
    assert found([PLAIN, CARDS], "mixed=true") == found([CARDS, PLAIN], "mixed=true")


def test_cards_that_are_hidden_are_not_counted(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine_here(settings.compose(["device=cuda"])).cards == 0


def test_what_plan_counts_is_no_more_than_wanted():
    assert strength(settings.compose(["engine=ray", "device=cpu", "ray.cpus=1", "ray.workers=1"])) == (1, 1.0)


def test_a_worker_that_fits_nowhere_is_said():
    with pytest.raises(SettingError, match=r"ray\.cpus=4096: no machine of Ray has so many cores"):
        strength(settings.compose(["engine=ray", "device=cpu", "ray.cpus=4096"]))
    with pytest.raises(SettingError, match="device=cuda: no machine of Ray has a card"):
        strength(settings.compose(["engine=ray", "device=cuda"]))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "[::1]:1"])
def test_an_address_where_nothing_listens_is_found_out_at_once(address):
    with pytest.raises((OSError, ValueError)):
        check_reachable(address)
