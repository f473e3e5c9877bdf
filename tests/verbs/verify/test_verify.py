"""`verify` from a run folder to its report, on small components."""

import json
import os
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import tiny
from fake_engine import FakeEngine
from PIL import Image
from safetensors.numpy import load_file, save_file

from runner import cli, settings
from runner.engine import denoise
from runner.folder.ledger import Ledger
from runner.folder.store import LocalStore
from runner.images import inits
from runner.model import fingerprints
from runner.record import environment
from runner.request import read_request
from runner.verbs.run import run as running
from runner.verbs.verify import verify as verb

MANIFEST = """
version: 1
defaults: {width: 64, height: 64, steps: 2}
jobs:
  - {prompts: [cat, "cat:1 dog:3"], seeds: 1-2}
  - {prompts: [dog], seed: 9, format: jpg}
  - {prompts: [hill], seed: 3, init: sketch.png, matrix: {crop: [[0, 0, 64, 64], [8, 0, 100, 90]]}}
"""
FIRST = "images/cat/seed_1_00000.png"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model and a run folder, which tests copy and damage."""
    place = tmp_path_factory.mktemp("made")
    tiny.save_model(place / "tiny")
    pixels = np.random.default_rng(1).integers(0, 256, (90, 150, 3), np.uint8)
    Image.fromarray(pixels).save(place / "sketch.png")
    (place / "m.yaml").write_text(MANIFEST)
    given = [f"model.path={place / 'tiny'}", f"out={place / 'out'}", "unet_bs=4", "skip_grid=true"]
    list(running.run(read_request(place / "m.yaml", settings.compose(given))))
    return place


@pytest.fixture
def folder(made, tmp_path):
    inits.examine.cache_clear()
    return shutil.copytree(made / "out", tmp_path / "out")


@pytest.fixture
def verify(folder, capsys):
    def call(*words):
        code = cli.main(["verify", str(folder), "json=true", *words])
        return code, json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def other_noise(monkeypatch):
    """Renderings that come out a little different, as with another version of a library."""
    original = denoise.draw_noise

    def draw(*args):
        noise, generators = original(*args)
        return noise * 1.001, generators

    monkeypatch.setattr(denoise, "draw_noise", draw)


def edit_records(folder, change, place=0):
    """Changes one record by hand."""
    path = folder / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    place = next(i for i, record in enumerate(records) if record["item"]["number"] == place)
    change(records[place])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def only(problems):
    assert len(problems) == 1, problems
    return problems[0]


def test_what_nobody_touched_is_the_same_and_stays_untouched(verify, folder):
    def listing():
        return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}

    with Ledger(LocalStore(folder)):  # as if a run were going on: no lock is taken
        before = listing()
        code, report = verify()
        assert listing() == before
    assert code == 0
    assert report["counts"] == {"same": 7, "differs": 0, "damaged": 0, "missing": 0, "altered": 0, "failed": 0}
    assert (report["records"], report["verified"], report["problems"]) == (7, 7, [])


def asked_for(folder, *overrides):
    """The settings that pictures are rendered again with."""
    asked = []

    def start(settings, files):
        asked.append(settings)
        return FakeEngine()

    chosen = settings.compose(overrides)
    list(verb.Verification(LocalStore(folder), chosen, settings.given_keys(overrides), start).run())
    return asked


def test_pictures_are_made_as_recorded_unless_settings_are_given(folder):
    asked = [
        *asked_for(folder, "sample=1"),
        *asked_for(folder, "sample=1", "unet_bs=2", "precision=autocast", "turbo=false"),
        *asked_for(folder, "sample=1", "unet_bs=auto", "model.prediction=epsilon"),
    ]
    chosen = [(each.unet_bs, each.precision, each.turbo, each.device) for each in asked]
    assert chosen == [(4, "full", None, "cpu"), (2, "autocast", False, "cpu"), (None, "full", None, "cpu")]


def test_records_that_were_made_in_several_ways_are_each_made_in_their_own(verify, folder):
    edit_records(folder, lambda record: record["run"].update(unet_bs=6, device="cuda:7"))
    assert {(each.unet_bs, each.device) for each in asked_for(folder)} == {(4, "cpu"), (6, "auto")}
    code, report = verify()
    assert report["verified"] == 7
    assert code == (5 if report["problems"] else 0)


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [
        ("inductor", True),
        ("none", False),
        ("openvino", "openvino" if find_spec("openvino") else False),
        (["?"], False),
        (None, False),
    ],
)
def test_a_picture_is_compiled_for_as_it_was(folder, recorded, wanted):
    for number in range(7):
        edit_records(folder, lambda record: record["run"].update(compile=recorded), number)
    assert {each.compile for each in asked_for(folder)} == {wanted}


def test_a_difference_is_measured_and_its_factor_named(verify, folder, other_noise):
    edit_records(folder, lambda record: record["env"].update(torch="1.0"))
    code, report = verify("unet_bs=2")
    assert code == 5
    assert report["counts"]["differs"] == 7
    first, *others = sorted(report["problems"], key=lambda problem: problem["image"] != FIRST)
    assert first["changed"] == {"torch": ["1.0", dict(environment())["torch"]], "unet_bs": [4, 2]}
    assert all(problem["changed"] == {"unet_bs": [4, 2]} for problem in others)
    assert first["distance"]["greatest"] >= 1
    assert first["distance"]["psnr"] > 30
    assert 0 < first["distance"]["share"] <= 1
    assert all(problem["reproduced"] is False for problem in report["problems"])


def test_a_difference_without_a_changed_factor_is_said(folder, other_noise, capsys):
    assert cli.main(["verify", str(folder), "sample=1"]) == 5
    text = capsys.readouterr().out
    assert text.startswith("1 of 7 pictures verified; 1 differs\n  differs ")
    assert " dB, up to " in text
    assert text.endswith("; nothing that is recorded has changed\n")


def test_a_weight_that_was_changed_is_named_by_its_fragment(verify, folder, made, tmp_path):
    model = shutil.copytree(made / "tiny", tmp_path / "other")
    file = model / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_out.weight"] = tensors["conv_out.weight"] * np.float32(1.5)
    save_file(tensors, file)
    code, report = verify(f"model.path={model}")
    assert code == 5
    assert report["counts"]["differs"] == 7
    assert {tuple(problem["changed"]) for problem in report["problems"]} == {("weights of unet_decode",)}
    assert all(problem["distance"]["greatest"] for problem in report["problems"] if problem["image"].endswith("png"))


def test_every_byte_of_the_weights_is_read_again(verify, folder, made, limit):
    limit(fingerprints, CACHED_SIZE=0)
    assert verify("sample=1")[0] == 0
    [file] = (made / "tiny/vae").glob("*.safetensors")
    content, stat = file.read_bytes(), file.stat()
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # so that what is remembered still seems to hold
        assert verify("sample=1")[0] != 0
    finally:
        file.write_bytes(content)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert verify("sample=1")[0] == 0


def test_damage_is_told_apart(verify, folder):
    files = sorted((folder / "images/cat_1_dog_3").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-60])
    files[1].unlink()
    edit_records(folder, lambda record: record.update(run="nonsense", env=None), place=1)
    edit_records(folder, lambda record: record["item"].update(steps=3), place=4)
    with Image.open(folder / FIRST) as image:
        pixels = np.asarray(image).copy()
    pixels[5, 5, 0] ^= 16
    Image.fromarray(pixels).save(folder / FIRST)
    code, report = verify("unet_bs=4")
    assert code == 5
    states = {problem["image"]: (problem["state"], problem["reproduced"]) for problem in report["problems"]}
    assert states == {
        FIRST: ("damaged", True),
        str(files[0].relative_to(folder)): ("damaged", True),
        str(files[1].relative_to(folder)): ("missing", True),
        "images/dog/seed_9_00004.jpg": ("altered", None),
    }
    assert report["problems"][0]["distance"]["greatest"] == 16


def test_a_line_that_can_not_be_read_is_told(verify, folder, capsys):
    path = folder / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1].replace(b'"status"', b'"statuz"', 1), *lines[2:]])[:-1])
    code, report = verify()
    assert code == 5
    assert report["unreadable_lines"] == [2, 7]
    assert (report["counts"]["same"], report["problems"]) == (5, [])
    assert cli.main(["verify", str(folder), "sample=1"]) == 5
    assert "\n  unreadable  records.jsonl:2\n" in capsys.readouterr().out


def test_an_init_picture_that_is_gone_or_another_one(verify, folder):
    (copy,) = (folder / "inits").iterdir()
    Image.new("RGB", (150, 90)).save(copy)
    code, report = verify()
    assert code == 5
    assert report["counts"] | {"same": 5, "damaged": 2} == report["counts"]
    assert f"inits/{copy.name}" in report["problems"][0]["message"]
    copy.unlink()
    assert verify()[1]["counts"]["missing"] == 2


def test_items_that_can_not_be_rendered_again_are_code_3_if_nothing_else_is_wrong(verify, folder, no_noise):
    no_noise(9)
    code, report = verify()
    assert code == 3
    problem = only(report["problems"])
    assert problem["state"] == "failed"
    assert problem["message"] == "it can't be rendered again: no noise today"
    assert problem["reproduced"] is None
    (folder / problem["image"]).unlink()
    code, report = verify()
    assert (code, only(report["problems"])["state"]) == (5, "missing")


def test_only_the_newest_record_of_an_id_counts(verify, folder):
    path = folder / "records.jsonl"
    last = json.loads(path.read_text().splitlines()[-1])
    with path.open("a") as file:
        file.write(json.dumps(last | {"status": "failed", "error": {}}) + "\n")
    code, report = verify()
    assert (code, report["records"], report["failed_records"]) == (0, 6, 1)
    with path.open("a") as file:
        file.write(json.dumps(last) + "\n")
    report = verify()[1]
    assert (report["records"], report["failed_records"], report["counts"]["same"]) == (7, 0, 7)


def test_a_sample_is_the_same_each_time_and_shuffle_draws_another(verify, folder):
    for place in range(7):  # so that nothing needs to be rendered
        edit_records(folder, lambda record: record.update(id=record["id"][::-1]), place)

    def drawn(*words):
        return [problem["image"] for problem in verify(*words)[1]["problems"]]

    assert len(set(drawn("sample=3"))) == 3
    assert drawn("sample=3") == drawn("sample=3")
    assert len({tuple(drawn("sample=3", f"shuffle={seed}")) for seed in range(4)}) > 1
    assert len(drawn("sample=99")) == 7


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere"], 10, "there is no run folder 'nowhere'"),
        (["."], 10, "is not a run folder"),
        (["empty"], 10, "nothing to verify"),
        (["out", "sample=0"], 2, "sample=0: should be at least 1"),
        (["out", "unet_bs=x"], 2, "unet_bs=x"),
        (["out", "device=cuda:9"], 2, "this machine has no such device"),
        (["out", "model.path=nowhere"], 2, "there is nothing at nowhere"),
        (["out", "-m", "unet_bs=1,2"], 2, "runs once"),
        ([], 2, "needs a target"),
    ],
)
def test_a_user_error_is_one_message_and_its_code(folder, monkeypatch, capsys, words, code, said):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty").mkdir()
    (folder.parent / "empty/records.jsonl").write_text("")
    assert cli.main(["verify", *words]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_weights_that_are_not_where_they_were(verify, folder, made, capsys):
    for place in range(7):
        edit_records(folder, lambda record: record["model"].update(path="/nowhere"), place)
    assert cli.main(["verify", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "no model with these fingerprints was found, neither at /nowhere nor by model=: tiny, text_encoder " in error
    assert verify(f"model.path={made / 'tiny'}", "sample=2")[0] == 0


def test_many_problems_are_counted_and_the_first_ones_shown(folder, capsys, limit):
    from runner.verbs.verify import verify as verb

    limit(verb, SHOWN=2)
    for path in (folder / "images").rglob("*.png"):
        path.unlink()
    assert cli.main(["verify", str(folder)]) == 5
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "7 of 7 pictures verified; 1 same, 6 missing"
    assert out.count("\n  missing ") == 2
    assert out.endswith("  and 4 more; json=true shows them all\n")
    assert "7 of 7 pictures to render" in err


# ---- several models


@pytest.fixture
def two(tmp_path):
    """A run folder with the pictures of two models, and these beside it."""
    for seed, name in enumerate(("one", "two")):
        tiny.save_model(tmp_path / name, seed=seed)
    (tmp_path / "models.yaml").write_text(MODELS)
    given = [f"out={tmp_path / 'out'}", "unet_bs=4", "skip_grid=true"]
    list(running.run(read_request(tmp_path / "models.yaml", settings.compose(given))))
    return tmp_path


MODELS = """
version: 1
models: {one: {path: one}, two: {path: two}}
jobs: [{prompt: cat, seeds: 1-2, matrix: {model: [one, two]}, width: 64, height: 64, steps: 2}]
"""


def states(report):
    return {state: count for state, count in report["counts"].items() if count}


def test_each_picture_is_rendered_with_its_own_model(two, capsys):
    def verify(*words):
        code = cli.main(["verify", str(two / "out"), "json=true", *words])
        return code, json.loads(capsys.readouterr().out)

    assert (verify()[0], states(verify()[1])) == (0, {"same": 4})
    (two / "two").rename(two / "moved")
    assert states(verify(f"model.path={two / 'moved'}")[1]) == {"same": 4}
    other = tiny.save_model(two / "other", seed=2)
    assert states(verify(f"model.path={other}")[1]) == {"differs": 4}  # in the place of all
    shutil.copytree(other, two / "two")
    code, report = verify()
    assert (code, states(report)) == (5, {"same": 2, "differs": 2})
    assert all("weights of vae" in problem["changed"] for problem in report["problems"])
    shutil.rmtree(two / "two")
    assert cli.main(["verify", str(two / "out")]) == 2
    assert (
        f"no model with these fingerprints was found, neither at {two / 'two'} nor by model=: two, "
        in capsys.readouterr().err
    )
