"""A small model, and requests for pictures of it."""

import pytest
import tiny
from small_runs import MANIFEST

from runner import settings
from runner.request import read_request


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def ask(tmp_path, model):
    def read(*overrides, text=MANIFEST, name="m.yaml", out="out"):
        (tmp_path / name).write_text(text)
        given = [f"model.path={model}", f"out={tmp_path / out}", "unet_bs=4", *overrides]
        return read_request(tmp_path / name, settings.compose(given))

    return read
