"""A compiled UNet draws what the UNet draws, and a picture still doesn't depend on its neighbours."""

import os
import shutil
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import tiny
import torch
from builders import make_item

from runner import settings
from runner.engine import openvino as engine_openvino
from runner.engine.executor import Executor
from runner.errors import FolderUnwritable, ModelError, SettingError
from runner.events import ItemFailed, Rendered
from runner.folder.ledger import iterate_records
from runner.folder.store import LocalStore
from runner.model import files
from runner.planning import choices
from runner.planning.costs import model_costs
from runner.planning.layouts import Execution
from runner.planning.waves import Wave
from runner.record import INDUCTOR, NONE, OPENVINO
from runner.request import read_request
from runner.verbs.run import run as running

openvino = pytest.importorskip("openvino")

LONG = "a cat with " + "very " * 90 + "long hair"
MANIFEST = "version: 1\njobs: [{prompts: [cat], seeds: SEEDS, width: 64, height: 64, steps: 1}]\n"
builds = pytest.mark.skipif("RUNNER_FULL_SIZE" not in os.environ, reason="RUNNER_FULL_SIZE=1; takes a minute")
compilers = pytest.mark.parametrize("compiler", [OPENVINO, pytest.param(INDUCTOR, marks=builds)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return files.find_model(str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/runner/openvino"


def make_executor(model, compiler, dtype="float32", lanes=0):
    costs = model_costs(model, "cpu", dtype, compiler=compiler, lanes=lanes)
    return Executor(model, Execution(dtype=dtype, costs=costs, unet_bs=4))


def render(executor, items):
    """Each item's pixels by its number, from one wave."""
    layout = replace(executor.execution.layout(items[0].width, items[0].height), wave_rows=100)
    events = list(executor.run(Wave(items=tuple(items), layout=layout)))
    assert not [event.error for event in events if isinstance(event, ItemFailed)]
    return {event.item.number: event.pixels for event in events if isinstance(event, Rendered)}


def items(count, **changes):
    ordinary = [make_item(number=n, seed=n, prompt=f"cat {n}", steps=2 + n % 2, **changes) for n in range(count)]
    return [*ordinary, make_item(number=count, prompt=LONG, long_prompts="chunk", steps=2, **changes)]


@compilers
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor imports what torch gives up
def test_pictures_are_the_uncompiled_ones_and_do_not_depend_on_their_neighbours(model, compiler):
    eager, executor = make_executor(model, NONE), make_executor(model, compiler)
    for width in (64, 128):  # with two lengths of prompts more shapes than are kept
        wanted = items(4, width=width)
        together = render(executor, wanted)
        backwards = render(executor, wanted[::-1])
        for item in wanted:
            assert np.array_equal(together[item.number], backwards[item.number])
        for item in wanted[2:]:
            assert np.array_equal(together[item.number], render(executor, [item])[item.number])
        for number, pixels in render(eager, wanted).items():
            assert np.abs(pixels.astype(int) - together[number]).max() <= 2


def test_the_unet_is_converted_once_and_torchs_is_not_needed(model, cache, monkeypatch, caplog):
    first = render(make_executor(model, OPENVINO), items(1))
    assert "converting the UNet for OpenVINO" in caplog.text
    [folder] = cache.iterdir()
    assert {path.name for path in folder.iterdir()} == {"unet.xml", "unet.bin"}
    monkeypatch.setattr(openvino, "convert_model", lambda *_, **__: pytest.fail("converted again"))
    executor = make_executor(model, OPENVINO)
    again = render(executor, items(1))
    assert all(np.array_equal(first[number], again[number]) for number in first)
    assert all(parameter.is_meta for parameter in executor.components["unet"].module.parameters())


def test_openvino_computes_side_by_side_what_it_computes_alone(model, system):
    wanted = render(make_executor(model, OPENVINO), items(6))
    system(torch, get_num_threads=lambda: 2)
    system(torch, set_num_threads=lambda number: None)
    executor = make_executor(model, OPENVINO, lanes=2)
    assert executor.components["unet"].place.width == 2
    for _ in range(2):
        found = render(executor, items(6))
        assert all(np.array_equal(found[number], pixels) for number, pixels in wanted.items())


@pytest.mark.some(0)
def test_half_precision_is_kept_in_half_and_beside_the_exact_one(model, cache):
    exact = render(make_executor(model, OPENVINO), items(1))
    half = render(make_executor(model, OPENVINO, "bfloat16"), items(1))
    sizes = sorted(path.stat().st_size for path in cache.rglob("*.bin"))
    assert len(sizes) == 2
    assert 0.5 < 2 * sizes[0] / sizes[1] < 1.2
    assert all(np.abs(exact[number].astype(int) - half[number]).mean() < 8 for number in exact)


def test_a_damaged_file_is_named(model, cache):
    executor = make_executor(model, OPENVINO)
    [folder] = cache.iterdir()
    os.truncate(folder / "unet.bin", 1000)
    with pytest.raises(ModelError, match=f"{folder}: is damaged"):
        render(executor, items(1))


@pytest.mark.some(0)
def test_what_can_not_be_kept_leaves_nothing_behind(model, cache, monkeypatch):
    def cut(converted, file, **_):
        file.write_text("<net")

    monkeypatch.setattr(openvino, "save_model", cut)
    with pytest.raises(FolderUnwritable, match="can't keep the UNet for OpenVINO"):
        make_executor(model, OPENVINO)
    assert list(cache.iterdir()) == []


def test_other_weights_are_another_unet(tmp_path, model):
    other = files.find_model(str(tiny.save_model(tmp_path / "other", seed=1)))
    assert engine_openvino._key(model, True) == engine_openvino._key(model, True)
    assert len({engine_openvino._key(each, exact) for each in (model, other) for exact in (True, False)}) == 4


def test_records_say_what_computed_the_unet_and_ways_are_not_mixed(tmp_path, model):
    def ask(seeds, *overrides):
        (tmp_path / "m.yaml").write_text(MANIFEST.replace("SEEDS", seeds))
        given = [f"model.path={model.path}", f"out={tmp_path / 'out'}", "unet_bs=4", *overrides]
        return read_request(tmp_path / "m.yaml", settings.compose(given))

    list(running.run(ask("1", "compile=openvino")))
    [record] = iterate_records(LocalStore(tmp_path / "out"))
    assert record["run"]["compile"] == OPENVINO
    assert record["env"]["openvino"] == version("openvino")
    with pytest.raises(SettingError, match="compile was openvino and is now none"):
        list(running.run(ask("1-2")))
    shutil.rmtree(tmp_path / "out")
    list(running.run(ask("1")))
    [record] = iterate_records(LocalStore(tmp_path / "out"))
    assert record["run"]["compile"] == NONE
    assert "openvino" not in record["env"]


def test_what_is_rendered_again_in_full_precision_is_not_compiled(model):
    execution = Execution(dtype="bfloat16", costs=model_costs(model, "cpu", "bfloat16", compiler=INDUCTOR))
    full = choices.in_full_precision(execution)
    assert (full.dtype, full.compiler) == ("float32", NONE)
