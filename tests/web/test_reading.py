import pytest
import tiny
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from runner import settings
from runner.errors import SettingError
from runner.web.reading import read_picture
from runner.web.studio import Studio


def save(path, text=None):
    info = PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    return path


def test_a_picture_of_the_page_gives_its_form_back(tmp_path):
    given = [f"model.path={tiny.save_model(tmp_path / 'tiny')}", f"out={tmp_path / 'web'}", "unet_bs=4"]
    asked = {"prompt": "a red apple: 5", "negative": "fog", "steps": 2, "n_samples": 1, "seed": "41", "sampler": "ddim"}
    with Studio(settings.compose(given)) as studio:
        job = studio.press(studio.usual_form() | asked)
        job.wait()
    found = read_picture(job.pictures[0].path, {})
    assert {key: found.form[key] for key in ("negative", "steps", "seed", "sampler")} == {
        "negative": "fog", "steps": 2, "seed": "41", "sampler": "ddim",
    }  # fmt: skip
    assert found.form["prompt"] == asked["prompt"]


def test_another_programs_picture_is_read_with_what_it_does_not_carry_over(tmp_path):
    said = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512, Model: other"
    text = f"(a cat:1.2) <lora:ink:0.8>\nNegative prompt: blurry\n{said}"
    found = read_picture(save(tmp_path / "a.png", text), {})
    assert (found.form["prompt"], found.form["negative"]) == ("(a cat:1.2) <lora:ink:0.8>", "blurry")
    assert (found.form["seed"], found.form["sampler"], found.form["prompt_syntax"]) == ("5", "euler_a", "a1111")
    assert not [note for note in found.notes if str(tmp_path) in note]


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 99])
def test_what_says_nothing_is_a_message_with_the_files_own_name(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(SettingError, match=r"^holiday.png: ") as error:
        read_picture(tmp_path / "holiday.png", {})
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(SettingError, match="no generation metadata"):
        read_picture(save(tmp_path / "y.png"), {})
