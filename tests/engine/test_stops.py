"""A signal is heeded at once where nothing is lost, and after the wave in hand where that is short."""

import os
import signal

import pytest

from runner.engine.stops import Stop, Stopped
from runner.events import StepDone, WaveStarted
from runner.folder.ledger import Ledger
from runner.folder.store import LocalStore


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


def steps(clock, count, seconds):
    """A wave whose steps take so long each."""
    yield WaveStarted(items=())
    for step in range(1, count + 1):
        clock.now += seconds
        yield StepDone(step=step, steps=count)


def test_nobody_asked():
    clock, stop = Clock(), Stop()
    with stop.harmless():
        pass
    assert len(list(stop.through(steps(clock, 3, 100)))) == 4
    assert list(stop.through(iter("abc"))) == ["a", "b", "c"]


def test_while_nothing_can_be_lost_it_stops_at_once():
    stop = Stop()
    with pytest.raises(Stopped) as caught, stop.harmless():
        stop.ask(signal.SIGTERM)
        pytest.fail("it went on")
    assert caught.value.exit_code == 143


def test_elsewhere_it_stops_at_the_next_occasion(capfd):
    stop = Stop()
    stop.ask(signal.SIGINT)
    assert "once more stops at once" in capfd.readouterr().err
    with pytest.raises(Stopped) as caught, stop.harmless():
        pytest.fail("it went on")
    assert caught.value.exit_code == 130


def test_the_second_time_it_stops_anywhere():
    stop = Stop()
    stop.ask(signal.SIGINT)
    with pytest.raises(Stopped) as caught:
        stop.ask(signal.SIGTERM)
    assert caught.value.exit_code == 143


@pytest.mark.parametrize(("seconds", "made"), [(1.0, 10), (2.4, 10), (2.6, 6), (60.0, 6)])
def test_a_wave_is_finished_if_that_is_short(seconds, made):
    clock = Clock()
    stop = Stop(clock)
    seen = []

    def run():
        for _ in stop.through(iter(range(2))):
            for event in stop.through(steps(clock, 10, seconds)):
                seen.append(event)
                if event == StepDone(step=6, steps=10):
                    stop.ask(signal.SIGINT)

    with pytest.raises(Stopped):
        run()
    assert seen[-1] == StepDone(step=made, steps=10)


def test_a_wave_that_has_hardly_begun_is_left():
    clock = Clock()
    stop = Stop(clock)
    with pytest.raises(Stopped):
        for event in stop.through(steps(clock, 10, 0.01)):
            assert isinstance(event, WaveStarted)
            stop.ask(signal.SIGINT)


def test_a_signal_in_the_middle_of_a_long_step_leaves_it():
    clock = Clock()
    stop = Stop(clock)

    def wave():
        yield from steps(clock, 1, 50)
        yield StepDone(step=1, steps=10)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the step was finished")

    with stop.listening(), pytest.raises(Stopped):
        list(stop.through(wave()))


def test_signals_are_heard_only_while_it_listens():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Stop().listening() as stop:
        assert signal.getsignal(signal.SIGINT) not in before
        with pytest.raises(Stopped), stop.harmless():
            os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_signal_in_the_middle_of_a_record_leaves_none_of_it(tmp_path, monkeypatch):
    real = os.write

    def write(descriptor, data):
        real(descriptor, bytes(data)[:5])
        raise Stopped(signal.SIGINT)

    with Ledger(LocalStore(tmp_path)) as ledger:
        ledger.append({"id": "a", "status": "failed"})
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            patched.setattr(os, "write", write)
            ledger.append({"id": "b", "status": "failed"})
    assert (tmp_path / "records.jsonl").read_bytes() == b'{"id":"a","status":"failed"}\n'
