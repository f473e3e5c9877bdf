"""img2img from the manifest to the picture, on small components."""

import hashlib
import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from runner import settings
from runner.engine import autoencoder
from runner.errors import ManifestError
from runner.folder.ledger import iterate_records
from runner.item import item_id
from runner.request import read_request
from runner.sampler_names import SAMPLERS
from runner.verbs.run import run as running


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def ask(tmp_path, model):
    pixels = np.random.default_rng(1).integers(0, 256, (90, 150, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "sketch.png")

    def read(job, *overrides, name="m.yaml", out="out"):
        text = (
            job
            if name.endswith(".jsonl")
            else f"version: 1\njobs:\n  - {{prompts: [cat], seeds: 1-2, steps: 4, {job}}}\n"
        )
        (tmp_path / name).write_text(text)
        given = [f"model.path={model}", f"out={tmp_path / out}", "unet_bs=4", *overrides]
        return read_request(tmp_path / name, settings.compose(given))

    return read


def pictures(request):
    list(running.run(request))
    records = list(iterate_records(request.store))
    assert all(record["status"] == "done" for record in records), records
    files = [request.store.folder / record["image"] for record in records]
    return {r["item"]["number"]: np.asarray(Image.open(file)) for r, file in zip(records, files, strict=True)}


def test_items_take_the_pictures_own_size(ask):
    assert {(item.width, item.height) for item in ask("init: sketch.png").wanted()} == {(128, 64)}
    assert {(i.width, i.height) for i in ask("init: sketch.png, crop: [0, 0, 64, 90]").wanted()} == {(64, 64)}
    assert {(i.width, i.height) for i in ask("init: sketch.png, width: 192, height: 192").wanted()} == {(192, 192)}
    assert {item.strength for item in ask("init: sketch.png").wanted()} == {0.75}


def test_every_sampler_makes_the_same_bytes_alone_and_among_others(ask):
    names = ", ".join(SAMPLERS)
    job = f"init: sketch.png, matrix: {{sampler: [{names}], strength: [0, 0.3, 1]}}"
    together = pictures(ask(job))
    assert len(together) == len(SAMPLERS) * 6
    alone = pictures(ask(job, "shuffle=3", "limit=9", "turbo=false", out="alone"))
    assert len(alone) == 9
    assert all((together[number] == picture).all() for number, picture in alone.items())


def test_strength_0_is_the_picture_through_the_autoencoder(ask, tmp_path):
    made = pictures(ask("init: sketch.png, strength: 0"))
    vae = tiny.components()[2]
    pixels = np.asarray(Image.open(tmp_path / "sketch.png").resize((128, 64), Image.Resampling.LANCZOS))
    levels = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        through = vae.decode(vae.encode(levels).latent_dist.mode()).sample
    wanted = ((through / 2 + 0.5).clamp(0, 1) * 255)[0].permute(1, 2, 0).numpy()
    assert np.abs(made[0] - wanted).max() <= 0.51
    assert (made[0] == made[1]).all()


def test_strength_1_is_the_picture_of_noise_alone(ask):
    from_sketch = pictures(ask("init: sketch.png, strength: 1"))
    from_noise = pictures(ask("width: 128, height: 64", out="noise"))
    assert all((from_sketch[number] == from_noise[number]).all() for number in from_noise)


def test_a_picture_is_encoded_once(ask, monkeypatch):
    encoded = []
    original = autoencoder.encode_picture
    monkeypatch.setattr(autoencoder, "encode_picture", lambda *args: encoded.append(1) or original(*args))
    pictures(ask("init: sketch.png, matrix: {strength: [0.25, 0.5, 0.75], sampler: [ddim, euler]}"))
    assert len(encoded) == 1


def test_the_run_folder_is_whole_on_its_own(ask, tmp_path):
    request = ask("init: sketch.png, crop: [10, 10, 80, 80]")
    made = pictures(request)
    record = next(iterate_records(request.store))
    data = (request.store.folder / record["item"]["init"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == record["item"]["init_sha256"]
    moved = request.store.folder.rename(tmp_path / "moved")
    (tmp_path / "sketch.png").unlink()
    given = [f"model.path={request.settings.model.path}", f"out={tmp_path / 'again'}", "unet_bs=4"]
    again = read_request(moved / "records.jsonl", settings.compose(given))
    assert [item_id(item) for item in again.wanted()] == [item_id(item) for item in request.wanted()]
    remade = pictures(again)
    assert all((made[number] == remade[number]).all() for number in made)


def test_items_of_swept_crops_come_back_from_records(ask):
    items = list(ask("init: sketch.png, matrix: {crop: [[0, 0, 64, 64], [8, 0, 100, 90]]}").wanted())
    lines = "".join(json.dumps(item.to_dict()) + "\n" for item in items)
    assert list(ask(lines.replace(str(items[0].init), "sketch.png"), name="items.jsonl").wanted()) == items
    wrong = json.loads(lines.splitlines()[0]) | {"init": "sketch.png", "axes": {"steps": [1, 2]}}
    with pytest.raises(ManifestError, match="single values"):
        ask(json.dumps(wrong), name="items.jsonl")


def test_the_id_is_of_the_picture_and_not_of_its_name(ask, tmp_path):
    first = ask("init: sketch.png")
    ids = [item_id(item) for item in first.wanted()]
    (tmp_path / "sketch.png").rename(tmp_path / "other.png")
    same = ask("init: other.png")
    assert [item_id(item) for item in same.wanted()] == ids
    Image.new("RGB", (150, 90)).save(tmp_path / "third.png")
    other = ask("init: third.png")
    assert item_id(other.items[0]) not in ids


def test_a_second_run_renders_nothing(ask):
    pictures(ask("init: sketch.png"))
    assert next(running.run(ask("init: sketch.png"))).missing == 0


def test_one_broken_picture_fails_its_own_items_only(ask, tmp_path):
    Image.new("RGB", (150, 90)).save(tmp_path / "second.png")
    request = ask("matrix: {init: [sketch.png, second.png]}")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "second.png")
    list(running.run(request))
    records = list(iterate_records(request.store))
    failed = {
        record["item"]["number"]: record["error"]["message"] for record in records if record["status"] == "failed"
    }
    assert set(failed) == {2, 3}
    assert all("was changed" in message for message in failed.values())


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("init: missing.png", ["m.yaml:3:", "init: ", "there is no such file"]),
        ("init: m.yaml", ["not a picture"]),
        ("init: ../secret.png", ["leaves the manifest's folder"]),
        ("crop: [0, 0, 64, 64]", ["'crop' needs an 'init'"]),
        ("init: sketch.png, crop: [0, 0, 64]", ["crop: should be four numbers"]),
        ("init: sketch.png, crop: [0, 0, 999, 64]", ["isn't within the picture's 150x90 pixels"]),
        ("init: sketch.png, strength: 1.5", ["strength: ", "1.5"]),
        ("init: sketch.png, matrix: {crop: [[0, 0, 64, 64], [0, 0, 10, 10]]}", ["too few"]),
    ],
)
def test_what_can_not_be_used_is_refused_before_anything_is_loaded(ask, job, words):
    with pytest.raises(ManifestError) as caught:
        ask(job)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_record_whose_picture_is_another_now_is_refused(ask, tmp_path):
    item = {"prompt": "cat", "seed": 1, "init": "sketch.png", "init_sha256": "0" * 64}
    with pytest.raises(ManifestError, match="another picture"):
        ask(json.dumps(item), name="items.jsonl")
