import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.events import RunStarted, StepDone, WaveDone, WaveStarted
from runner.web import jobs
from runner.web.jobs import Job, Pace, Picture, preview_sheet
from runner.web.text import describe


@pytest.fixture
def job(tmp_path):
    job = Job(folder=tmp_path / "0001-x", manifest="version: 1\n")
    job.note(RunStarted(wanted=2, missing=2))
    job.note(WaveStarted(items=(None,) * 2))
    return job


def red(*, asked=None):
    """What makes a preview of two red pictures; `asked` counts how often it does."""

    def make():
        if asked is not None:
            asked.append(1)
        return [np.full((8, 12, 3), (250, 0, 0), np.uint8)] * 2

    return make


def test_a_preview_is_made_only_while_somebody_looks(job):
    asked = []
    job.note(StepDone(step=1, steps=9, preview=red(asked=asked)))
    assert (asked, job.preview) == ([], b"")
    job.look()
    job.note(StepDone(step=2, steps=9, preview=red(asked=asked)))
    with Image.open(io.BytesIO(job.preview)) as sheet:
        assert sheet.size == (24, 8)
        assert sheet.getpixel((3, 3))[0] > 240
    assert 'class="preview"' in describe(job, 0)
    job.note(StepDone(step=3, steps=9, preview=red(asked=asked)))
    assert len(asked) == 1  # so soon after the last one
    job.note(WaveDone())
    assert "preview" not in describe(job, 0)


def test_a_preview_that_fails_costs_nothing_else(job):
    def fail():
        raise MemoryError("no room")

    job.look()
    job.note(StepDone(step=1, steps=2, preview=fail))
    assert (job.preview, job.share, job.over) == (b"", 0.5, False)
    job._pace.next = 0.0
    job.note(StepDone(step=2, steps=2, preview=red()))
    assert job.preview == b""


def test_previews_take_a_small_share_of_the_time():
    pace = Pace()
    pace.looked = now = time.monotonic()
    pace.made(now, now + 3.0)  # the first one finds out what the model's latents mean
    assert pace.wants(now + 1.0) is False or jobs.LEAST_PAUSE < 1
    assert pace.next == now + 3.0 + jobs.LEAST_PAUSE
    pace.made(now, now + 0.1)
    assert pace.next == pytest.approx(now + 0.1 + 0.1 / jobs.MOST_SHARE)


def test_many_previews_become_one_sheet():
    with Image.open(io.BytesIO(preview_sheet([np.zeros((4, 4, 3), np.uint8)] * 99))) as sheet:
        assert sheet.size == (16, 16)
    assert preview_sheet([]) == b""


def test_a_caption_says_the_axes():
    assert Picture(Path(), 7, {}).caption == "seed 7"
    assert Picture(Path(), 7, {"scale": 3, "seed": 7, "sampler": "ddim"}).caption == "scale 3, sampler ddim, seed 7"
