"""A worker, in this process."""

import hashlib
import os
import threading
from pathlib import Path

import pytest
from builders import MODEL, make_item
from fake_engine import FakeEngine, paint
from fake_worker import start_files

from runner import settings
from runner.engine.worker import Job, Worker, files_of, placed
from runner.errors import FolderUnwritable, ModelError
from runner.folder.writer import Finish
from runner.images.codec import encode
from runner.item import Embedding, Lora
from runner.planning import waves


@pytest.fixture
def work(monkeypatch):
    """Makes a worker whose engine is given."""
    workers = []

    def start(engine=None, begin=None, **changes):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        worker = Worker(Job(settings=settings.compose([]), start=begin or (lambda *_: engine), **changes))
        workers.append(worker)
        worker.load(MODEL)
        return worker

    yield start
    for worker in workers:
        worker.close()


def a_wave(*items):
    return next(waves.group(items, FakeEngine().execution))


def told(wave):
    return [(item, f"images/{item.number}.png") for item in wave.items]


def test_a_wave_comes_back_as_files(work):
    wave = a_wave(make_item(number=4, seed=1), make_item(number=7, seed=2))
    answer = work(FakeEngine()).run(wave, told(wave), Finish())
    assert [outcome.place for outcome in answer.outcomes] == [0, 1]
    for item, outcome in zip(wave.items, answer.outcomes, strict=True):
        data = encode(paint(item), item)
        assert outcome.finished.data == data
        assert outcome.finished.sha256 == hashlib.sha256(data).hexdigest()
        assert outcome.making.device_name == "paper"


def test_pictures_tell_what_the_run_says_and_not_where_the_worker_read_them(work):
    wave = a_wave(make_item(seed=1))
    renamed = wave.items[0]._replace(prompt="as it is told")
    [outcome] = work(FakeEngine()).run(wave, [(renamed, "x.png")], Finish()).outcomes
    assert b"as it is told" in outcome.finished.data


def test_a_worker_can_put_files_into_the_run_folder(work, tmp_path):
    wave = a_wave(make_item(seed=1))
    [outcome] = work(FakeEngine()).run(wave, told(wave), Finish(str(tmp_path))).outcomes
    assert outcome.finished.path == "images/0.png"
    assert hashlib.sha256((tmp_path / "images/0.png").read_bytes()).hexdigest() == outcome.finished.sha256


def test_a_folder_that_cannot_be_written_is_no_fault_of_a_picture(work, tmp_path):
    wave = a_wave(make_item(seed=1))
    with pytest.raises(FolderUnwritable):
        work(FakeEngine()).run(wave, told(wave), Finish(str(tmp_path / "gone")))


def test_an_item_that_fails_has_its_reason(work):
    wave = a_wave(make_item(number=0, seed=1), make_item(number=1, seed=2))
    engine = FakeEngine(refuse=lambda item: ValueError("no") if item.seed == 1 else None)
    first, second = work(engine).run(wave, told(wave), Finish()).outcomes
    assert (first.finished, first.failure.message) == (None, "no")
    assert second.failure is None


def test_a_picture_that_cannot_be_encoded_has_failed_alone(work):
    wave = a_wave(make_item(number=0, seed=1), make_item(number=1, seed=2))
    as_gif = [(wave.items[0]._replace(format="gif"), "0.gif"), (wave.items[1], "1.png")]
    first, second = work(FakeEngine()).run(wave, as_gif, Finish()).outcomes
    assert "gif" in first.failure.message
    assert second.finished


def test_without_a_place_for_them_no_files_are_made(work):
    wave = a_wave(make_item(seed=1))
    [outcome] = work(FakeEngine()).run(wave, [], None).outcomes
    assert (outcome.finished, outcome.failure) == (None, None)


def test_another_model_takes_the_place_of_the_first(work):
    engines = [FakeEngine(), FakeEngine()]
    made = iter(engines)
    worker = work(begin=lambda *_: next(made))
    worker.load(MODEL)
    assert [engine.closed for engine in engines] == [True, False]


def test_what_it_lacks_it_says(work):
    def lacks(*_):
        raise ModelError("no such model")

    with pytest.raises(ModelError):
        work(begin=lacks)


def test_files_of_another_machine_are_read_from_copies(work):
    worker = work(begin=start_files)
    kept = worker.keep("/elsewhere/init.png", bytes([77]))
    wave = a_wave(make_item(seed=1, init="/elsewhere/init.png", init_sha256="0" * 64, strength=0.5))
    [outcome] = worker.run(wave, told(wave), Finish(), kept).outcomes
    assert Path(kept[1]).read_bytes() == bytes([77])
    assert b"/elsewhere/init.png" in outcome.finished.data


def test_copies_go_when_they_are_dropped(work):
    worker = work(FakeEngine())
    kept, again = (worker.keep("/elsewhere/init.png", bytes([77])) for _ in range(2))
    worker.drop(kept)
    assert not Path(kept[1]).exists()
    assert Path(again[1]).read_bytes() == bytes([77])
    worker.close()
    assert worker.keep("/elsewhere/init.png", b"") == ("/elsewhere/init.png", "/elsewhere/init.png")  # no room
    worker.drop(("/elsewhere/init.png", "/elsewhere/init.png"))


def test_every_file_of_an_item_can_be_elsewhere():
    extra = (("mask", "m.png"), ("mask_sha256", "1" * 64))
    item = make_item(
        init="i.png",
        extra=extra,
        loras=(Lora("l", "l.safetensors", "2" * 64, "", 1.0, 1.0),),
        embeddings=(Embedding("e", "e.pt", "3" * 64),),
    )
    assert [*files_of(item)] == ["i.png", "m.png", "l.safetensors", "e.pt"]
    assert [*files_of(placed(item, lambda path: f"/there/{path}"))] == [f"/there/{path}" for path in files_of(item)]
    assert [*files_of(make_item())] == []
    assert placed(make_item(), str.upper) == make_item()


def test_threads_are_those_that_it_was_given(work):
    work(FakeEngine(), cores=3)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    work(FakeEngine(), environment={"OMP_NUM_THREADS": "5"})
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_waves_are_rendered_one_after_the_other_in_one_thread(work):
    threads = []
    engine = FakeEngine(before_wave=lambda: threads.append(threading.get_ident()))
    worker = work(engine)
    wave = a_wave(make_item(seed=1))
    callers = [threading.Thread(target=worker.run, args=(wave, told(wave), Finish())) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(threads) == 3
    assert len(set(threads)) == 1
