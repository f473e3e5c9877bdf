import re
from types import SimpleNamespace

import pytest

from runner.events import MemoryShort, ModelLoaded, RunFinished, RunStarted, StepDone, WaveStarted
from runner.item import Model
from runner.web import jobs
from runner.web.jobs import DONE, Job
from runner.web.text import UNSEEN, describe, plain, spans, wrong


@pytest.fixture
def job(tmp_path):
    return Job(request=SimpleNamespace(), folder=tmp_path / "0001-x", manifest="version: 1\n")


@pytest.mark.parametrize(
    ("seeds", "text"), [([], ""), ([7], "7"), ([3, 1, 2], "1-3"), ([27, 28, 99, 101, 102], "27-28, 99, 101-102")]
)
def test_seeds_are_written_as_a_manifest_writes_them(seeds, text):
    assert spans(seeds) == text


def test_a_waiting_job_counts_the_others(job):
    assert "waiting for 1 other<" in describe(job, 1)
    assert "waiting for 2 others<" in describe(job, 2)


def test_a_job_whose_turn_has_come_loads_the_model(job):
    assert describe(job, 0).count("loading the model") == 1
    job.state = jobs.LOADING
    assert describe(job, 0).count("loading the model") == 1


def test_a_running_job_says_how_far_it_is(job, system):
    system(jobs.time, monotonic=lambda: 100.0)
    job.note(RunStarted(wanted=8, missing=8))
    assert "0 of 8 pictures" in describe(job, 0)
    assert "left" not in describe(job, 0)
    job.note(WaveStarted(items=(None,) * 4))
    job.note(StepDone(step=10, steps=10))
    job.note(WaveStarted(items=(None,) * 4))
    job.note(StepDone(step=5, steps=10))
    assert job.share == 0.75
    system(jobs.time, monotonic=lambda: 400.0)
    assert "1:40 left" in describe(job, 0)
    assert "width: 75.0%" in describe(job, 0)


def test_the_end_names_the_folder_and_the_gallery(job):
    job.wanted, job.pictures = 2, [jobs.Picture(job.folder / "a.png", 1, {})]
    job.failed = ["seed 2: <no noise>"]
    job.end(jobs.DONE)
    text = describe(job, 0)
    assert "1 of 2 pictures in " in text
    assert str(job.folder) in text
    assert "seed 2: &lt;no noise&gt;" in text
    assert "gallery.html" not in text
    job.folder.mkdir()
    (job.folder / "gallery.html").touch()
    assert 'href="runs/0001-x/gallery.html"' in describe(job, 0)


def test_cancelling_before_the_first_picture_says_so(job):
    job.end(jobs.STOPPED)
    assert "cancelled: no pictures" in describe(job, 0)


def test_a_broken_job_shows_its_message(job):
    job.end(jobs.BROKEN, "the disk is full")
    assert describe(job, 0) == wrong("the disk is full")


def test_messages_are_safe_html():
    assert "<script>" not in wrong("<script>")
    shown = plain("<img src=x> [a](javascript:1) &lt; www.a.b")
    assert not re.search(r"<\w|\]\(|&\w|\w\.\w|:\w", shown)
    assert shown.replace(UNSEEN, "") == "<img src=x> [a](javascript:1) &lt; www.a.b"


def test_what_people_should_know_is_shown(job):
    job.note(RunStarted(wanted=2, missing=2))
    job.note(ModelLoaded(model=Model(), notes=("made in <another> way",)))
    job.note(MemoryShort(message="out of memory"))
    assert "made in &lt;another&gt; way" in describe(job, 0)
    job.note(RunFinished(done=0, failed=(), seconds=1.0, hopeless="10 items in a row failed alike"))
    job.end(DONE)
    assert "out of memory" in describe(job, 0)
    assert "stopped early: 10 items in a row failed alike" in describe(job, 0)
