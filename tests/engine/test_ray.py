"""Workers on the machines of a cluster: Ray's own, all of them on this machine, with engines that paint noise."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import fake_worker
import pytest
from builders import make_item
from fake_engine import paint
from ray.cluster_utils import Cluster

from runner import settings
from runner.engine import fleet as fleets
from runner.engine import ray as engines
from runner.engine.base import Delivery
from runner.engine.fleet import Fleet
from runner.engine.ray import start_engine
from runner.errors import DeviceLost, ModelError, SettingError
from runner.events import ItemFailed, Rendered, WorkersChanged
from runner.folder.writer import Finish
from runner.images.codec import encode
from runner.item import Model

KILLS = max(2, int(os.environ.get("RUNNER_KILLS", "0")))
DEADLINE = 120  # seconds
STORE = 1 << 27  # bytes
HEARTBEATS = {"health_check_period_ms": 1000, "health_check_failure_threshold": 8, "health_check_initial_delay_ms": 0}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without workers, a machine with two cores, and one with one."""
    folder = tmp_path_factory.mktemp("fakes")
    kept = dict(os.environ)
    os.environ |= fleets.QUIET | {
        fake_worker.FOLDER: str(folder),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(fleets.__file__).parents[2])]),
    }
    with contextlib.ExitStack() as held:
        held.callback(os.environ.update, kept)
        arguments = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        made = Cluster(initialize_head=True, head_node_args={**arguments, "_system_config": HEARTBEATS})
        held.callback(made.shutdown)
        made.folder, made.two, made.one = folder, add(made, 2), add(made, 1)
        yield made


def add(cluster, cores):
    return cluster.add_node(num_cpus=cores, object_store_memory=STORE)


@pytest.fixture
def marked(cluster):
    """Lets workers of a machine be what a word says; forgets it, and what workers have done, before the next test."""
    for file in cluster.folder.iterdir():
        file.unlink()
    return lambda word, node: cluster.folder.joinpath(f"{word}-{node.node_id}").touch()


@pytest.fixture
def fleet(cluster, marked, limit):
    """A fleet of the cluster; nothing is waited for longer than needed."""
    limit(fleets, LOOK_SECONDS=0.2)
    limit(engines, WAIT_SECONDS=0.2, ALONE_SECONDS=3.0)
    with contextlib.ExitStack() as held:

        def enter(*overrides, start=fake_worker.start):
            asked = settings.compose([f"ray.address={cluster.address}", "engine=ray", "ray.cpus=1", *overrides])
            return held.enter_context(Fleet(asked, start))

        yield enter


def items_of(count, **changes):
    return [
        make_item(number=number, seed=number, prompt=f"picture {number // 4}", **changes) for number in range(count)
    ]


def delivery(place=None):
    return Delivery(address=lambda item: (item, f"{item.number}.png"), finish=Finish(place))


def make(fleet, items, place=None, during=lambda event: None):
    """What an engine of the fleet makes of items: files by number, failures by number, and all other events."""
    engine = start_engine(fleet, Model("m"))
    files, failed, others = {}, {}, []
    end = time.monotonic() + DEADLINE
    for event in engine.run(engine.group(items), delivery(place)):
        assert time.monotonic() < end
        if isinstance(event, Rendered):
            assert event.item.number not in files
            files[event.item.number] = event
        elif isinstance(event, ItemFailed):
            failed[event.item.number] = event.error
        else:
            others.append(event)
        during(event)
    return files, failed, others


def right(files, items):
    """Whether each item has its own bytes, as an engine of this process would make them."""
    wanted = {item.number: encode(paint(item), item) for item in items}
    return {number: event.finished.data for number, event in files.items()} == wanted


def pids(cluster):
    return [int(file.name.rpartition("-")[2]) for file in cluster.folder.glob("waves-*")]


def test_all_machines_make_the_same_pictures_as_one_process(cluster, fleet):
    items = items_of(60)
    files, failed, _ = make(fleet(), items)
    assert not failed
    assert right(files, items)
    assert len(pids(cluster)) == 3


def test_workers_write_into_a_folder_that_they_reach_and_there_are_no_more_than_wanted(cluster, fleet, tmp_path):
    items = items_of(20)
    files, _, _ = make(fleet("ray.workers=1"), items, place=str(tmp_path))
    assert {event.finished.path for event in files.values()} == {f"{number}.png" for number in range(20)}
    assert (tmp_path / "3.png").read_bytes() == encode(paint(items[3]), items[3])
    assert len(pids(cluster)) == 1


def test_files_go_to_machines_that_lack_them(fleet, tmp_path):
    init = tmp_path / "init.png"
    init.write_bytes(bytes([99]))
    items = items_of(4, init=str(init), init_sha256="0" * 64, strength=0.5)
    files, failed, _ = make(fleet(start=fake_worker.start_files), items)
    assert not failed
    assert files[0].finished.data == encode(paint(items[0]) * 0 + 99, items[0])


def test_workers_that_die_are_replaced_and_no_picture_differs(cluster, fleet):
    items, chance, killed = items_of(80 + 20 * KILLS), random.Random(3), []

    def kill(event):
        alive = [pid for pid in pids(cluster) if pid not in killed]
        if isinstance(event, Rendered) and len(killed) < KILLS and chance.random() < 0.1 and alive:
            killed.append(chance.choice(alive))
            with contextlib.suppress(ProcessLookupError):
                os.kill(killed[-1], signal.SIGKILL)

    files, failed, others = make(fleet(), items, during=kill)
    assert len(killed) == KILLS
    assert not failed
    assert right(files, items)
    assert any(isinstance(event, WorkersChanged) and "died" in event.message for event in others)


def test_machines_that_go_are_done_without_and_those_that_come_are_used(cluster, fleet):
    first, items = add(cluster, 3), items_of(200)
    steps = iter([lambda: add(cluster, 3), lambda: cluster.remove_node(first, allow_graceful=False)])

    def change(event):
        if isinstance(event, Rendered) and event.item.number in (20, 60) and (step := next(steps, None)):
            step()

    files, failed, _ = make(fleet("ray.cpus=3"), items, during=change)
    assert not failed
    assert right(files, items)
    assert len(pids(cluster)) == 2
    [second] = {pid for pid in cluster.worker_nodes if pid not in (cluster.one, cluster.two)}
    cluster.remove_node(second, allow_graceful=False)


def test_an_item_that_kills_its_workers_fails_alone(fleet):
    items = items_of(24)
    items[9] = items[9]._replace(prompt="poison")
    files, failed, _ = make(fleet(), items)
    assert list(failed) == [9]
    assert "died" in failed[9].message
    assert files.keys() == {item.number for item in items} - {9}


def test_an_item_that_kills_costs_the_only_place_nothing(fleet):
    items = items_of(2)
    items[0] = items[0]._replace(prompt="poison")
    files, failed, _ = make(fleet("ray.cpus=2"), items)
    assert (list(failed), list(files)) == ([0], [1])


def test_machines_of_another_kind_get_no_work_and_are_named(cluster, fleet, marked):
    marked("other", cluster.one)
    files, _, others = make(fleet(), items_of(20))
    assert {event.making.device_name for event in files.values()} == {"paper"}
    assert any("device_name is iron and not paper" in getattr(event, "message", "") for event in others)


def test_mixed_uses_machines_of_every_kind(cluster, fleet, marked):
    marked("other", cluster.one)
    files, _, _ = make(fleet("mixed=true"), items_of(60))
    assert {event.making.device_name for event in files.values()} == {"paper", "iron"}


def test_a_machine_without_the_model_is_left_out(cluster, fleet, marked):
    marked("lacks", cluster.two)
    files, _, others = make(fleet(), items_of(12))
    assert len(files) == 12
    assert any("no such model here" in getattr(event, "message", "") for event in others)


def test_where_no_machine_has_the_model_that_is_said(cluster, fleet, marked):
    marked("lacks", cluster.one)
    marked("lacks", cluster.two)
    with pytest.raises(ModelError, match="no such model here"):
        make(fleet(), items_of(4))


def test_a_run_whose_machines_are_all_gone_ends(cluster, fleet):
    only = add(cluster, 3)

    def remove(event):
        if isinstance(event, Rendered) and event.item.number == 10:
            cluster.remove_node(only, allow_graceful=False)

    with pytest.raises(DeviceLost, match="no worker is left"):
        make(fleet("ray.cpus=3"), items_of(4000), during=remove)


def test_too_many_cores_for_any_machine_are_refused(fleet):
    with pytest.raises(SettingError, match=r"ray\.cpus=64: no machine of Ray has so many cores; the largest has"):
        make(fleet("ray.cpus=64"), items_of(1))


def test_an_address_where_no_ray_is_says_so():
    with (
        Fleet(settings.compose(["engine=ray", "ray.address=127.0.0.1:1"])) as nobody,
        pytest.raises(SettingError, match=r"ray.address=127.0.0.1:1: can't be reached"),
    ):
        nobody.join()
