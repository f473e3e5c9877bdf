import hashlib
import shlex
import shutil
import time

import hypothesis
import numpy as np
import pytest
import tiny
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from runner import cli, settings
from runner.errors import ManifestError, SettingError
from runner.folder.ledger import iterate_records
from runner.folder.local import LocalStore
from runner.images.inits import flatten
from runner.manifest import read as manifest_read
from runner.web import forms as web_forms
from runner.web import jobs as web_jobs
from runner.web import studio as web_studio
from runner.web.forms import Beside, to_manifest
from runner.web.studio import Studio

USUAL = settings.compose([])
QUICK = {"prompt": "a red apple", "steps": 2, "n_samples": 2, "seed": "7"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def open_studio(tmp_path, model):
    given = [f"model.path={model}", f"out={tmp_path / 'web'}", "unet_bs=4"]
    return lambda *overrides, **more: Studio(settings.compose([*given, *overrides]), **more)


def hashes(folder):
    """Each picture's path and the SHA-256 of its file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "images").rglob("seed_*")}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_form_begins_with_the_models_own_size_and_the_settings(open_studio):
    form = open_studio("defaults.steps=9", "turbo=false").usual_form()
    assert (form["width"], form["height"], form["steps"], form["turbo"], form["unet_bs"]) == (64, 64, 9, "false", "4")
    assert set(web_forms.ITEM_FIELDS) <= set(form)


def test_a_press_makes_a_run_folder_with_its_manifest_and_pictures(open_studio, tmp_path):
    with open_studio() as here:
        job = here.press(here.usual_form() | QUICK)
        job.wait()
    assert (job.state, job.message, job.share) == (web_jobs.DONE, "", 1.0)
    assert job.folder == tmp_path / "web/0001-a-red-apple"
    assert [each.seed for each in job.pictures] == [7, 8]
    assert [pixels(path).shape for path, *_ in job.pictures] == [(64, 64, 3)] * 2
    assert (job.folder / "manifest.yaml").read_text() == job.manifest
    assert {path.name for path in job.folder.iterdir()} >= {"run.json", "records.jsonl", "gallery.html", "runner.log"}


def test_what_the_form_says_holds_whatever_it_began_with(open_studio):
    with open_studio("defaults.steps=9", "defaults.scale=3") as here:
        job = here.press(here.usual_form() | QUICK)
        job.wait()
    (item, _) = (record["item"] for record in iterate_records(LocalStore(job.folder)))
    assert (item["steps"], item["scale"]) == (2, 3)
    assert "steps: 2" in job.manifest and "defaults" not in job.manifest


@pytest.mark.parametrize(
    "changed",
    [{}, {"seed": "", "format": "jpg"}, {"sampler": "ddim", "eta": 0.5, "unet_bs": "2", "precision": "full"}],
    ids=["plain", "drawn seed", "other settings"],
)
def test_the_manifest_renders_the_same_bytes_from_the_command_line(open_studio, tmp_path, monkeypatch, changed):
    with open_studio() as here:
        job = here.press(here.usual_form() | QUICK | changed)
        job.wait()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifest.yaml").write_text(job.manifest)
    program, *words = shlex.split(job.manifest.splitlines()[0].removeprefix("# "))
    assert program == "runner"
    assert cli.main([*words, "out=again"]) == 0
    assert len(hashes(job.folder)) == 2
    assert hashes(tmp_path / "again") == hashes(job.folder)


def test_one_model_serves_all_presses_until_a_setting_changes(open_studio):
    loaded = []

    def start(request, model):
        loaded.append(request)
        return FakeEngine()

    with open_studio(start=start) as here:
        jobs = [here.press(here.usual_form() | QUICK | {"seed": str(seed)}) for seed in (1, 3)]
        jobs.append(here.press(here.usual_form() | QUICK | {"turbo": "false"}))
        for job in jobs:
            job.wait()
    assert [job.state for job in jobs] == [web_jobs.DONE] * 3
    assert len({job.folder for job in jobs}) == 3
    assert [request.settings.turbo for request in loaded] == [None, False]


def test_a_job_waits_for_the_others_and_can_be_cancelled_meanwhile(open_studio):
    with open_studio() as here:
        first = here.press(here.usual_form() | QUICK | {"n_samples": 2000, "steps": 50})
        second, third = (here.press(here.usual_form() | QUICK) for _ in range(2))
        assert [here.ahead(job) for job in (first, second, third)] == [0, 1, 2]
        assert second.state == web_jobs.WAITING
        second.stop.set()
        first.stop.set()
        for job in (first, second, third):
            job.wait()
        assert here.ahead(third) == 0
    assert [job.state for job in (first, second, third)] == [web_jobs.STOPPED, web_jobs.STOPPED, web_jobs.DONE]
    assert not second.pictures
    assert not (second.folder / "records.jsonl").exists()
    assert len(third.pictures) == 2


def test_a_cancelled_job_keeps_what_is_finished(open_studio):
    with open_studio() as here:
        job = here.press(here.usual_form() | QUICK | {"n_samples": 500})
        while not job.pictures and not job.over:
            time.sleep(0.01)  # who asks all the time lets no other thread compute
        assert job.seconds_left() >= 0
        job.stop.set()
        job.wait()
    records = list(iterate_records(LocalStore(job.folder)))
    assert 0 < len(job.pictures) <= len(records) < 500
    assert all((job.folder / record["image"]).exists() for record in records)
    assert (job.folder / "gallery.html").exists()
    assert job.seconds_left() is None


def test_leaving_stops_what_is_under_way(open_studio):
    with open_studio() as here:
        job = here.press(here.usual_form() | QUICK | {"n_samples": 2000, "steps": 50})
    assert job.over
    assert job.state == web_jobs.STOPPED


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"seed": "abc"}, ManifestError, "seed: 'abc' is not a whole number"),
        ({"seed": "-2"}, ManifestError, "seed: '-2' is not"),
        ({"width": None}, ManifestError, "width: 'null' is not a whole number"),
        ({"width": 100}, ManifestError, "not a multiple of 64"),
        ({"n_samples": 0}, ManifestError, "n_samples: "),
        ({"prompt": "cat " * 100}, ManifestError, "more than 75 tokens"),
        ({"prompt": "cat:-1"}, ManifestError, "sum"),
        ({"unet_bs": "0"}, SettingError, "unet_bs=0: should be"),
        ({"unet_bs": "many"}, SettingError, "unet_bs=many: should be"),
        ({"precision": "half"}, SettingError, "precision=half"),
    ],
)
def test_a_wrong_value_is_refused_and_leaves_nothing_behind(open_studio, tmp_path, changed, error, said):
    with open_studio() as here:
        with pytest.raises(error, match=said.replace("(", r"\(")):
            here.press(here.usual_form() | QUICK | changed)
        assert list((tmp_path / "web").iterdir()) == []


def test_a_missing_device_breaks_the_job_with_the_message(open_studio):
    with open_studio() as here:
        job = here.press(here.usual_form() | QUICK | {"device": "cuda:9"})
        job.wait()
    assert job.state == web_jobs.BROKEN
    assert "this machine has no such device" in job.message


def test_a_fault_breaks_the_job_and_the_next_one_works(open_studio):
    faults = [RuntimeError("unexpected")]

    def start(request, model):
        if faults:
            raise faults.pop()
        return FakeEngine()

    with open_studio(start=start) as here:
        job = here.press(here.usual_form() | QUICK)
        job.wait()
        after = here.press(here.usual_form() | QUICK)
        after.wait()
    assert job.state == web_jobs.BROKEN
    assert "a fault of the runner itself: RuntimeError: unexpected" in job.message
    assert after.state == web_jobs.DONE


def test_what_plan_would_warn_of_is_told_before_the_first_picture(open_studio):
    with open_studio() as here:
        job = here.press(here.usual_form() | QUICK | {"prompt": "cat: 0.5 dog: 0.5", "steps": 2})
        notes = list(job.notes)
        job.wait()
    assert any("'cat: 0.5', 'dog: 0.5' is plain text" in note for note in notes)
    assert any("2 steps of" in note for note in notes)


def test_a_check_counts_and_warns_and_leaves_nothing(open_studio, tmp_path):
    with open_studio() as here:
        picture = Image.effect_noise((128, 64), 80).convert("RGB")
        found = here.check(here.usual_form() | QUICK | {"axes": [("scale", "1, 2, 3"), ("steps", "1, 9")]}, picture)
        assert (found.pictures, found.seconds) == (12, None)
        assert found.warnings
        [few] = here.check(here.usual_form() | QUICK | {"axes": [("scale", "1, 2, 3"), ("steps", "2")]}).warnings
        assert few.count("2 steps of") == 1  # though there are three such kinds
        with pytest.raises(SettingError, match="columns: there are no values yet"):
            here.check(here.usual_form() | QUICK | {"axes": [("scale", "1, 2, 3"), ("steps", "")]})
        here.press(here.usual_form() | QUICK).wait()
        assert here.check(here.usual_form() | QUICK).seconds > 0
        many = here.check(here.usual_form() | QUICK | {"seed": "0-999999"})
        assert (many.pictures, many.seconds) == (1_000_000, None)
    assert [path.name for path in (tmp_path / "web").iterdir()] == ["0001-a-red-apple"]


def test_a_picture_of_another_shape_is_cropped_by_the_manifest(open_studio):
    with open_studio() as here:
        picture = Image.effect_noise((200, 100), 80).convert("RGB")
        job = here.press(here.usual_form() | QUICK | {"fit": "crop", "n_samples": 1, "strength": 0}, picture)
        job.wait()
    assert "  crop:\n  - 50\n  - 0\n  - 150\n  - 100\n" in job.manifest
    assert pixels(job.folder / "init.png").shape == (100, 200, 3)
    assert pixels(job.pictures[0].path).shape == (64, 64, 3)


def test_jobs_are_found_by_name_and_bounded(open_studio, limit):
    limit(web_studio, MOST_REMEMBERED=1, MOST_WAITING=2)
    with open_studio(start=lambda *_: FakeEngine()) as here:
        done = []
        for seed in range(3):
            done.append(here.press(here.usual_form() | QUICK | {"seed": str(seed)}))
            done[-1].wait()
        last = here.press(here.usual_form() | QUICK)
        last.wait()
        assert here.find(last.name) is last
        assert here.find(done[0].name) is not done[0]  # forgotten, and read from its folder
        assert [each.seed for each in here.find(done[0].name).pictures] == [0, 1]
        assert here.find("../x") is None


def test_no_more_than_so_many_runs_wait(open_studio, limit):
    limit(web_studio, MOST_WAITING=2)
    with open_studio() as here:
        long = here.usual_form() | QUICK | {"n_samples": 2000, "steps": 50}
        for _ in range(2):
            here.press(long)
        with pytest.raises(SettingError, match="2 runs wait already"):
            here.press(long)


def test_failed_pictures_are_told_by_their_seeds(open_studio, no_noise):
    no_noise()
    with open_studio() as here:
        job = here.press(here.usual_form() | QUICK)
        job.wait()
    assert job.state == web_jobs.DONE
    assert job.failed == ["seed 7: no noise today", "seed 8: no noise today"]


def test_numbers_of_run_folders_go_on(open_studio, tmp_path):
    (tmp_path / "web/0041-old").mkdir(parents=True)
    (tmp_path / "web/notes").mkdir()
    with open_studio() as here:
        jobs = [here.press(here.usual_form() | QUICK | {"prompt": prompt}) for prompt in ("../../x", "", "猫")]
        for job in jobs:
            job.wait()
    assert [job.folder.name for job in jobs] == ["0042-x", "0043-picture", "0044-picture"]
    assert all(job.folder.parent == tmp_path / "web" for job in jobs)


def test_the_manifest_of_img2img_names_the_picture_beside_it(open_studio):
    here = open_studio()
    text = to_manifest(
        here.usual_form() | QUICK | {"strength": 0.4}, here.settings, name="x", beside=Beside(picture=True)
    )
    assert "\n  init: init.png\n  strength: 0.4\n" in text


def test_img2img_makes_pictures_of_a_picture(open_studio):
    with open_studio() as here:
        picture = Image.effect_noise((100, 80), 80).convert("RGBA")
        job = here.press(here.usual_form() | QUICK | {"strength": 0.5}, picture)
        job.wait()
    assert job.state == web_jobs.DONE
    assert pixels(job.folder / "init.png").shape == (80, 100, 3)
    assert len(job.pictures) == 2
    shutil.copytree(job.folder, job.folder.with_name("copy"), ignore=shutil.ignore_patterns("images", "*.json*"))
    words = ["run", str(job.folder.with_name("copy") / "manifest.yaml"), f"out={job.folder.with_name('again')}"]
    assert cli.main([*words, f"model.path={here.settings.model.path}", "unet_bs=4"]) == 0
    assert hashes(job.folder.with_name("again")) == hashes(job.folder)


def test_inpainting_keeps_what_is_not_in_the_mask(open_studio):
    with open_studio() as here:
        picture, mask = Image.effect_noise((128, 64), 80).convert("RGB"), Image.new("L", (128, 64))
        mask.paste(255, (64, 0, 128, 64))
        form = here.usual_form() | QUICK | {"strength": 1, "mask_blur": 0, "width": 128, "height": 64}
        job = here.press(form, picture, mask)
        job.wait()
    assert job.state == web_jobs.DONE, job.message
    assert "mask: mask.png" in job.manifest and "mask_blur: 0" in job.manifest
    made, given = pixels(job.pictures[0][0]), np.asarray(picture)
    assert (made[:, :64] == given[:, :64]).all() and (made[:, 64:] != given[:, 64:]).any()


def test_transparent_pixels_become_white():
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    flat = flatten(picture)
    assert flat.mode == "RGB"
    assert [flat.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


@hypothesis.settings(deadline=None)
@given(prompt=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_every_prompt_survives_the_manifest(tmp_path_factory, prompt):
    form = web_forms.GOOD | web_forms.DEFAULTS | QUICK | {"prompt": prompt, "width": 64, "height": 64}
    text = to_manifest(form, USUAL, name="x")
    path = tmp_path_factory.getbasetemp() / "survives.yaml"
    path.write_bytes(text.encode())
    try:
        read = manifest_read.load(path, overrides={}, allow_outside=False)
    except ManifestError as error:
        assert error.message.startswith("prompt: ")  # weights that can't be
    else:
        (job,) = read.jobs
        assert job.columns["prompt"][0].text == " ".join(prompt.split())
