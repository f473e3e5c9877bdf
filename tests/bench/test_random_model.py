import pytest
import tiny
import torch

from runner.bench import random_model
from runner.model import files

TEXTS = {"text_encoder": 123_060_480, "text_encoder_2": 694_659_840}
SIZES = {
    "sd15": {"text_encoder": TEXTS["text_encoder"], "unet": 859_520_964, "vae": 83_653_863},
    "sdxl": TEXTS | {"unet": 2_567_463_684, "vae": 83_653_863},
}


@pytest.mark.parametrize("kind", SIZES)
def test_the_architecture_is_that_of_the_released_model(kind):
    with torch.device("meta"):
        made = {name: make() for name, make in random_model.PARTS[kind].items()}
    sizes = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in made.items()}
    assert sizes == SIZES[kind]


@pytest.fixture
def small(limit):
    text, unet, vae = tiny.components()
    parts = {"text_encoder": lambda: text, "unet": lambda: unet, "vae": lambda: vae}
    limit(random_model, PARTS={"sd15": parts, "sdxl": {}})


def test_it_is_a_model_in_half_precision_that_is_written_once(small, tmp_path):
    folder = tmp_path / "cache/bench"
    random_model.save("sd15", folder)
    model = files.find_model(str(folder))
    assert {tensor.dtype for table in model.tensors.values() for tensor in table.values()} == {"F16"}
    assert [path.name for path in folder.parent.iterdir()] == ["bench"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    random_model.save("sd15", folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_half_a_model_does_not_count(small, tmp_path, monkeypatch, limit):
    def broken():
        raise OSError("no space left")

    whole = {"sd15": dict(random_model.PARTS["sd15"])}
    monkeypatch.setitem(random_model.PARTS["sd15"], "vae", broken)
    with pytest.raises(OSError, match="no space left"):
        random_model.save("sd15", tmp_path / "bench")
    assert not (tmp_path / "bench").exists()
    limit(random_model, PARTS=whole)
    random_model.save("sd15", tmp_path / "bench")
    assert files.find_model(str(tmp_path / "bench")).parameters("vae")
