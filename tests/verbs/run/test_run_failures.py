"""Items that fail cost no other: each is tried three times in all, and ten that fail alike in a row end the run."""

from functools import partial

from fake_engine import FakeEngine
from small_runs import hashes, paint, records_of, small

from runner.events import ItemFailed
from runner.folder.ledger import Ledger, iterate_records
from runner.folder.writer import Writer
from runner.images.codec import encode
from runner.item import item_id
from runner.report import progress
from runner.verbs.run import run as running


def paint_with(request, **changes):
    """Paints and writes with a writer that is changed."""
    return list(running.run(request, FakeEngine(), make_writer=partial(Writer, **changes)))


def no_dogs(item):
    return ValueError("no dogs today") if item.prompt == "dog" else None


def failures(folder):
    return [record["error"]["message"] for record in records_of(folder) if record["status"] == "failed"]


def test_a_failure_is_recorded_and_tried_again(ask):
    paint(ask(out="whole"))
    request = ask()
    events = paint(request, refuse=lambda item: ValueError("no noise today") if item.seed == 3 else None)
    failed = [event.item.seed for event in events if isinstance(event, ItemFailed)]
    assert failed == [3, 3, 3]
    assert [item.seed for item in events[-1].failed] == [3, 3, 3]
    records = [record for record in iterate_records(request.store) if record["status"] == "failed"]
    assert [record["error"] for record in records] == [{"class": "ValueError", "message": "no noise today"}] * 3
    assert paint(ask())[-1].done == 3
    assert hashes(request.store.folder) == hashes(ask(out="whole").store.folder)


def test_an_item_is_tried_three_times_in_all(ask):
    text = small("cat, dog", "1")
    request = ask(text=text)
    for _ in range(3):
        finished = paint(request, refuse=no_dogs)[-1]
        assert [item.prompt for item in finished.failed] == ["dog"]
        assert not finished.given_up
    [started, finished] = paint(request, refuse=no_dogs)
    assert started.missing == 0
    assert finished.failed == finished.given_up == (request.items[1],)
    assert "1 skipped, since they failed" in progress.summary(finished, request.store)[1]
    assert failures(request.store.folder) == ["no dogs today"] * 3
    assert paint(ask("attempts=4", text=text), refuse=no_dogs)[-1].given_up == ()
    assert failures(request.store.folder) == ["no dogs today"] * 4


def test_a_success_forgets_the_failures_before_it(ask):
    request = ask(text=small("dog", "1"))
    paint(request, refuse=no_dogs)
    assert paint(request)[-1].done == 1
    with Ledger(request.store) as ledger:
        assert ledger.failures(item_id(request.items[0])) == 0


def test_many_failures_alike_end_the_run(ask):
    request = ask(text=small("cat, dog, owl", "1-16"))
    finished = paint(request, refuse=no_dogs)[-1]
    assert finished.done == 16
    assert len(finished.failed) == 10
    assert finished.hopeless == "10 items in a row failed alike: ValueError: no dogs today"
    assert "stopped early: 10 items" in progress.summary(finished, request.store)[0]
    assert not finished.unwanted


def test_failures_that_differ_or_are_not_in_a_row_do_not_end_the_run(ask):
    finished = paint(ask(text=small("cat", "1-17")), refuse=lambda item: ValueError(f"not {item.seed // 9}"))[-1]
    assert (len(finished.failed), finished.hopeless) == (17, "")
    every_tenth = paint(
        ask(text=small("owl", "1-22")), refuse=lambda item: ValueError("no") if item.seed % 10 else None
    )
    assert (len(every_tenth[-1].failed), every_tenth[-1].hopeless) == (20, "")


def test_a_picture_that_cannot_be_encoded_fails_alone(ask):
    def encode_some(pixels, item):
        if item.seed == 2:
            raise ValueError("no colours today")
        return encode(pixels, item)

    request = ask(text=small("cat", "1-3"))
    finished = paint_with(request, encode=encode_some)[-1]
    assert finished.done == 2
    assert [item.seed for item in finished.failed] == [2]
    assert failures(request.store.folder) == ["no colours today"]


def test_ten_pictures_in_a_row_that_cannot_be_encoded_end_the_run(ask):
    finished = paint_with(ask(text=small("cat", "1-40")), encode=lambda *_: 1 / 0)[-1]
    assert finished.hopeless == "10 items in a row failed alike: ZeroDivisionError: division by zero"
    assert 10 <= len(finished.failed) < 40
