"""The page in a browser, shared by all tests."""

from urllib.parse import urlsplit

import pytest
import tiny
from PIL import Image, ImageDraw

from runner import settings
from runner.web import page as web_page


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="package")
def address(folder):
    model = tiny.save_model(folder / "tiny")
    given = [f"model.path={model}", f"out={folder / 'runs'}", "defaults.steps=2", "unet_bs=4"]
    with web_page.open_page(settings.compose(given)) as address:
        yield address


@pytest.fixture
def page(browser, address):
    """The page in a tab of its own, which may ask this machine only."""
    outside = []
    context = browser.new_context(
        viewport={"width": 1440, "height": 1000}, device_scale_factor=0.5, accept_downloads=True
    )
    context.set_default_timeout(60_000)
    page = context.new_page()
    own = urlsplit(address).netloc
    page.on("request", lambda it: outside.append(it.url) if urlsplit(it.url).netloc not in ("", own) else None)
    page.goto(address)
    yield page
    context.close()
    assert outside == []


@pytest.fixture
def picture(tmp_path):
    """Left half red, right half green."""
    image = Image.new("RGB", (320, 200), (20, 200, 20))
    ImageDraw.Draw(image).rectangle((0, 0, 159, 199), fill=(200, 60, 60))
    image.save(tmp_path / "halves.png")
    return tmp_path / "halves.png"
