import dataclasses
import io
import mmap
from pathlib import Path

import pytest
import tiny
import torch

from runner import settings
from runner.bench import bench, worker
from runner.bench.worker import Job, Stock, StockPipeline


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    model = tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")
    return settings.compose([f"model.path={model}", "device=cpu", "bench.images=3", "bench.steps=2"])


@pytest.fixture
def job(chosen, tmp_path):
    bench._write_items(tmp_path, chosen.bench)

    def make(stock=None, **changes):
        changed = dataclasses.replace(chosen, **changes)
        return Job(task="measure", settings=changed, inputs=tmp_path, folder=tmp_path / "made", stock=stock)

    return make


@pytest.mark.parametrize("batch", [1, 2])
def test_stock_diffusers_makes_the_runners_pictures(job, batch):
    [stock] = worker.TASKS["measure"](job(Stock(half=False, batch=batch)))
    [runner] = worker.TASKS["measure"](job(turbo=True))
    psnr, largest = bench.compare(stock["files"], runner["files"])
    assert psnr > 50
    assert largest <= 1
    assert stock["rows"] == 2 * batch
    assert runner["loads_per_step"] is None
    assert len(stock["files"]) == len(runner["files"]) == 3


def test_stock_diffusers_in_half_precision_begins_with_the_same_noise(job):
    [full] = worker.TASKS["measure"](job(Stock(half=False)))
    full_pictures = [Path(file).read_bytes() for file in full["files"]]
    [half] = worker.TASKS["measure"](job(Stock(half=True)))
    assert half["dtype"] == "bfloat16"
    for content, file in zip(full_pictures, half["files"], strict=True):
        psnr, _ = bench.compare([io.BytesIO(content)], [file])
        assert 20 < psnr < 60


def test_an_item_that_the_runner_cannot_make_is_an_error(job, no_noise):
    no_noise()
    with pytest.raises(RuntimeError, match="ValueError: no noise today"):
        list(worker.TASKS["measure"](job()))


@pytest.fixture
def search(job, limit):
    limit(worker, TRIAL_SECONDS=0.01)

    def run(render):
        # A limit of memory would hold for all the other tests.
        return list(worker.find_batch(job(Stock(half=False, batch=worker.FIND_BATCH)), render, lambda: None))

    return run


def test_batches_are_tried_up_to_the_number_of_pictures(search):
    answers = search(worker.shortest_of_tries)
    assert [answer["batch"] for answer in answers] == [1, 2]
    assert all(answer["seconds"] > 0 for answer in answers)


def test_the_search_ends_where_memory_does_or_larger_batches_are_hopeless(search):
    def too_large(contender, items):
        if len(items) > 1:
            raise RuntimeError("can't allocate memory")
        return 1.0

    assert search(too_large) == [{"batch": 1, "seconds": 1.0}]
    assert len(search(lambda contender, items: 4.0 ** len(items))) == 2
    with pytest.raises(RuntimeError, match="broken"):
        search(lambda contender, items: (_ for _ in ()).throw(RuntimeError("broken")))


class Recorder:
    """Stands for a pipeline on a machine with a GPU."""

    def __init__(self):
        self.calls = {}

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.update({name: (args, kwargs)})


@pytest.mark.parametrize("offload", worker.OFFLOADS)
def test_each_way_of_offloading_is_switched_on(offload):
    from diffusers import StableDiffusionPipeline

    pipeline = Recorder()
    assert worker._place(pipeline, "cuda:0", offload) is pipeline
    [name] = pipeline.calls
    assert offload in name
    assert hasattr(StableDiffusionPipeline, name)


def test_errors_are_answers(job, tmp_path, capsys):
    model = dataclasses.replace(job().settings.model, path=str(tmp_path / "nowhere"))
    answers = io.BytesIO()
    assert worker._answer(job(model=model), answers) == 1
    assert b"there is nothing at" in answers.getvalue()
    assert answers.getvalue().startswith(b'{"error":')
    assert "Traceback" in capsys.readouterr().err


def test_the_peak_is_of_what_was_held_since_it_was_reset():
    worker.reset_peaks("cpu")
    before = worker.peak_bytes("cpu")
    with mmap.mmap(-1, 100 << 20) as held:  # not from a heap that may have it already
        held.write(bytes(len(held)))
    assert worker.peak_bytes("cpu") - before > 90 << 20


def test_noise_is_each_items_own(job):
    contender = StockPipeline(job(Stock(half=False, batch=2)))
    both = contender._noise(contender.wanted[:2])
    assert torch.equal(both[1:], contender._noise(contender.wanted[1:2]))
    assert both.shape == (2, 4, 16, 16)
