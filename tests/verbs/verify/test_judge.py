"""What record, file and rendering say of each other, on pictures of noise."""

import json

import numpy as np
import pytest
from builders import make_item
from PIL import Image

from runner.events import Failure
from runner.folder.names import image_path
from runner.folder.store import LocalStore
from runner.images import codec
from runner.images.codec import encode
from runner.images.distance import Distance, measure
from runner.item import Model, item_id
from runner.record import Making
from runner.verbs.verify import judge

TINY = Model(name="tiny", fingerprints=(("unet_encode", "a" * 64), ("vae", "b" * 64)))
NOW = Making(
    device="cpu", unet_bs=4, dtypes=(("vae", "float32"),), precision="full", memory="auto", env=(("torch", "2.0"),)
)
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


class Case:
    """A picture in its file, with its record."""

    def __init__(self, folder, **changes):
        self.folder, item = folder, make_item(number=5, axes=(("seed", 27),), model=TINY, **changes)
        data = encode(PIXELS, item)
        self.image = str(image_path(item))
        self.path = folder / self.image
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(data)
        made = {
            "id": item_id(item),
            "status": "done",
            "image": self.image,
            "sha256": judge._sha256(data),
            "pixels": codec.pixels_hash(PIXELS),
            "bytes": len(data),
            "item": item.to_dict() | {"model": "tiny"},
        }
        self.record = json.loads(json.dumps(made | NOW.to_dict() | {"model": TINY.to_dict()}))

    def find(self, made=PIXELS, weights=TINY.fingerprints, **now):
        item = judge.read_back(LocalStore(self.folder), 12, self.record)
        if isinstance(item, judge.Finding):
            return item
        return judge.judge(LocalStore(self.folder), self.record, item, made, NOW._replace(**now), weights)


@pytest.fixture(params=["png", "jpg"])
def case(tmp_path, request):
    return Case(tmp_path, format=request.param)


@pytest.fixture
def png(tmp_path):
    return Case(tmp_path)


def shifted(by):
    """The picture with one level of one pixel changed."""
    other = PIXELS.copy()
    other[5, 5, 0] ^= by
    return other


def test_what_nobody_touched_is_the_same(case):
    assert case.find() == judge.Finding(line=12, image=case.image, state="same", reproduced=True)


def test_a_record_is_read_back_as_the_item_that_it_was(png, tmp_path):
    item = judge.read_back(LocalStore(tmp_path), 12, png.record)
    assert item == make_item(number=12, axes=(("seed", 27),), model=TINY)


def test_a_difference_is_measured(png):
    found = png.find(shifted(16))
    assert (found.state, found.reproduced, found.message) == ("differs", False, "")
    assert (found.distance.greatest, found.distance.share) == (16, 1 / 4096)
    assert found.distance.psnr == pytest.approx(10 * np.log10(255**2 * 4096 * 3 / 256))


def test_the_distance_of_equal_pictures():
    assert measure(PIXELS, PIXELS) == Distance(psnr=None, greatest=0, share=0.0)
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    assert measure(black, white) == measure(white, black) == Distance(psnr=0.0, greatest=255, share=1)


def test_factors_are_named_where_the_rendering_is_not_as_recorded(png):
    now = {"unet_bs": 8, "dtypes": (("vae", "float16"),), "precision": "autocast", "env": (("torch", "2.1"),)}
    now["compile"] = "inductor"
    assert png.find(shifted(1), **now).changed == {
        "torch": ("2.0", "2.1"),
        "unet_bs": (4, 8),
        "dtype of vae": ("float32", "float16"),
        "compile": ("none", "inductor"),
    }
    assert png.find(PIXELS, **now).changed == {}
    assert png.find(PIXELS, **now).state == "same"


def test_other_weights_are_a_difference_even_if_the_bytes_are_the_same(png):
    found = png.find(weights=tuple((dict(TINY.fingerprints) | {"vae": "c" * 64}).items()))
    assert (found.state, found.reproduced) == ("differs", False)
    assert found.changed == {"weights of vae": ("b" * 12, "c" * 12)}
    assert found.message == "the pixels are those of the rendering"


def test_an_encoder_that_writes_other_bytes_is_a_difference(png, limit):
    limit(codec, PNG_LEVEL=9)
    found = png.find(env=(("torch", "2.0"), ("pillow", "13")))
    assert (found.state, found.message) == ("differs", "the pixels are those of the rendering")
    assert found.changed == {"pillow": (None, "13")}


def test_a_changed_pixel_is_damage_and_is_measured(png):
    Image.fromarray(shifted(16)).save(png.path)
    found = png.find()
    assert (found.state, found.reproduced, found.message) == ("damaged", True, "its rendering is as recorded")
    assert found.distance.greatest == 16
    assert png.find(env=(("torch", "2.1"),)).changed == {}
    assert png.find(shifted(3)).message == "its rendering is not as recorded"


def test_a_changed_text_in_a_file_leaves_its_pixels_right(png):
    Image.fromarray(PIXELS).save(png.path)
    found = png.find()
    assert found.state == "damaged"
    assert found.message == "the pixels are those of the rendering; its rendering is as recorded"


@pytest.mark.parametrize("cut", [0, 40, -60])
def test_a_file_that_was_cut_off_is_damaged(case, cut):
    case.path.write_bytes(case.path.read_bytes()[:cut])
    found = case.find()
    assert (found.state, found.distance) == ("damaged", None)
    assert found.message == "it is no picture any more; its rendering is as recorded"


def test_a_picture_of_another_size_is_not_compared(case):
    Image.new("RGB", (64, 128)).save(case.path)
    assert case.find().message.startswith("it is no picture any more")


def test_any_changed_byte_of_a_file_is_damage(case):
    data = case.path.read_bytes()
    for place in [*range(0, len(data), len(data) // 40), len(data) - 1]:
        changed = bytearray(data)
        changed[place] ^= 1
        case.path.write_bytes(changed)
        found = case.find()
        assert (found.state, found.reproduced) == ("damaged", True)


def test_a_deleted_file_is_missing(case):
    case.path.unlink()
    assert (case.find().state, case.find().message) == ("missing", "its rendering is as recorded")
    assert case.find(shifted(1)).message == "its rendering is not as recorded"


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "images", "", "a\0b"])
def test_only_a_file_of_the_run_folder_can_be_a_picture(png, tmp_path, path):
    (tmp_path.parent / "secret.png").write_bytes(png.path.read_bytes())
    png.record["image"] = path
    assert png.find().state == "missing"


def test_an_item_that_can_not_be_rendered_again(case):
    found = case.find(Failure.of(ValueError("no noise today")))
    assert (found.state, found.reproduced) == ("failed", None)
    assert found.message == "it can't be rendered again: no noise today"
    case.path.write_bytes(b"")
    assert case.find(Failure.of(ValueError("x"))).state == "damaged"
    case.path.unlink()
    assert case.find(Failure.of(ValueError("x"))).state == "missing"


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(id="0" * 64),
        lambda record: record["item"].update(seed=77),
        lambda record: record["item"].update(scale=7.25),
        lambda record: record["item"].update(sampler="dddim"),
        lambda record: record["item"].update(width=10**9),
        lambda record: record["item"].update(prompt="cow"),
        lambda record: record["item"].update(number=12),
        lambda record: record["item"].update(number="x"),
        lambda record: record["item"].update(axes={"seed": 77}),
        lambda record: record["item"].update(init="sketch.png"),
        lambda record: record["item"].update(init=5),
        lambda record: record["item"].update(mask=5),
        lambda record: record["item"].update(mask_sha256="0" * 64, mask_blur=9, steps=3),
        lambda record: record["item"]["parts"][0].update(text="cow"),
        lambda record: record["item"].pop("seed"),
        lambda record: record["model"]["fingerprints"].update(vae="0" * 64),
        lambda record: record["model"].update(fingerprints=[1]),
        lambda record: record.update(item=None),
        lambda record: record.update(model=3),
        lambda record: record.update(pixels="0" * 64),
        lambda record: record.update(sha256="0" * 64),
        lambda record: record.update(bytes=1),
        lambda record: record.pop("pixels"),
    ],
)
def test_a_record_that_was_altered_is_told(case, change):
    change(case.record)
    found = case.find()
    assert found.state == (
        "missing" if case.record.get("item") and case.record["item"]["init"] == "sketch.png" else "altered"
    )
    assert found.message


@pytest.mark.parametrize("junk", [None, 3, "x", [], {"device": {}, "dtypes": [], "torch": None}])
def test_nonsense_in_what_can_not_be_checked_stops_nothing(case, junk):
    case.record |= {"run": junk, "env": junk}
    assert case.find().state == "same"
    assert case.find(shifted(1)).changed["unet_bs"] == (None, 4)


def test_the_picture_that_an_item_begins_with(tmp_path):
    sketch = tmp_path / "inits/sketch.png"
    sketch.parent.mkdir()
    Image.fromarray(PIXELS).save(sketch)
    sha256 = judge._sha256(sketch.read_bytes())
    case = Case(tmp_path, init="inits/sketch.png", init_sha256=sha256, strength=0.5, crop=(0, 0, 64, 64))
    assert case.find().state == "same"
    Image.fromarray(shifted(1)).save(sketch)
    assert (case.find().state, case.find().message) == ("damaged", "the picture that it begins with, inits/sketch.png")
    sketch.unlink()
    assert case.find().state == "missing"
