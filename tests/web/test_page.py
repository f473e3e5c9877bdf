"""The page as a whole: pictures are made, cropped and painted over in a browser; who is answered with what."""

import re
import subprocess
import sys
import urllib.error
import urllib.request
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from browsing import form, make, run_folders, seeds, upload
from PIL import Image
from playwright.sync_api import expect

from runner import cli, settings
from runner.errors import SettingError
from runner.web import fields, studio
from runner.web import page as web_page
from runner.web.choices import Choices

FRAMES = 500  # ms; the editor draws and reads the mouse by frames
MARGIN, TOOLBAR = 27, 40  # pixels of the picture editor: left of the handle, and below the picture


def status(part):
    """How far the run of a tab is."""
    return part.locator(".how-far.block").get_by_role("status")


def test_a_picture_is_made_and_shown_with_its_seed_and_manifest(page, folder, tmp_path):
    part = form(page)
    make(part, Pictures="2", Seed="41")
    expect(status(part)).to_contain_text(re.compile("2 of 2 pictures in .*-a-red-apple"))
    pictures = part.locator(".grid-container img")
    expect(pictures).to_have_count(2)
    for number in range(2):
        assert pictures.nth(number).evaluate("it => it.decode().then(() => it.naturalWidth)") == 64
    expect(seeds(part)).to_have_value("41-42")
    made = run_folders(folder)[-1]
    text = (made / "manifest.yaml").read_text()
    shown = part.locator(".cm-content").inner_text()
    assert shown.split() == text.split()
    with page.expect_download() as download:
        part.get_by_role("button", name="Download manifest.yaml").click()
    assert download.value.suggested_filename == "manifest.yaml"
    download.value.save_as(tmp_path / "manifest.yaml")
    assert (tmp_path / "manifest.yaml").read_text() == text
    expect(part.get_by_role("button", name="Make pictures")).to_be_enabled()
    expect(part.get_by_role("button", name="Cancel")).to_be_disabled()
    with page.context.expect_page() as opened:
        part.get_by_role("link", name="gallery.html").click()
    expect(opened.value.locator(".cell")).to_have_count(2)
    source = opened.value.locator(".cell img").first
    assert source.evaluate("it => it.decode().then(() => it.naturalWidth)") == 64


def test_an_empty_seed_is_drawn_and_shown(page):
    part = form(page)
    make(part, Pictures="1")
    expect(seeds(part)).to_have_value(re.compile(r"^\d+$"))
    expect(part.locator(".cm-content")).to_contain_text(f"seed: {seeds(part).input_value()}")


def test_a_wrong_value_is_a_message(page, folder):
    part, before = form(page), run_folders(folder)
    make(part, Seed="twelve")
    expect(part.get_by_role("alert")).to_have_text(re.compile("^seed: 'twelve' is not a whole number"))
    expect(part.get_by_role("button", name="Make pictures")).to_be_enabled()
    assert run_folders(folder) == before
    make(part, Seed="12", Pictures="1")
    expect(status(part)).to_contain_text("1 of 1 pictures")
    expect(part.get_by_role("alert")).to_have_count(0)


def test_a_run_is_cancelled_and_another_tab_waits_meanwhile(page, browser, address, folder):
    part = form(page)
    make(part, prompt="long", Pictures="5000")
    expect(status(part)).to_contain_text(re.compile(r"of 5000 pictures.* left"))
    made = run_folders(folder)[-1]
    with browser.new_context() as context:
        context.set_default_timeout(90_000)  # the run takes what processors there are
        other = context.new_page()
        other.goto(address)
        patient = form(other)
        make(patient, Pictures="1")
        expect(status(patient)).to_contain_text("waiting for 1 other")
        part.get_by_role("button", name="Cancel").click()
        expect(status(part)).to_contain_text(re.compile(r"cancelled: \d+ of 5000 pictures"))
        expect(status(patient)).to_contain_text("1 of 1 pictures")
    finished = len((made / "records.jsonl").read_text().splitlines())
    assert 0 <= finished < 5000
    expect(part.get_by_role("button", name="Make pictures")).to_be_enabled()


def test_the_scheme_of_the_system_is_followed(browser, address):
    colours = {}
    for scheme in ("light", "dark"):
        with browser.new_context(color_scheme=scheme) as context:
            page = context.new_page()
            page.goto(address)
            form(page)
            colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", colours["light"])[:3])) > 700
    assert sum(map(int, re.findall(r"\d+", colours["dark"])[:3])) < 100


def crop_to_the_right_half(page, part):
    part.get_by_label("Image", exact=True).click()
    part.get_by_label("Crop", exact=True).click()
    expect(part.get_by_label("Confirm crop")).to_be_visible()
    box = part.locator(".pixi-target-crop").bounding_box()
    left, middle = box["x"], box["y"] + box["height"] / 2 - TOOLBAR / 2
    page.mouse.move(left + 2 * MARGIN, middle)
    page.mouse.move(left + MARGIN, middle, steps=4)
    expect(part.locator(".pixi-target-crop canvas")).to_have_css("cursor", "ew-resize")
    page.mouse.down()
    page.wait_for_timeout(FRAMES)
    page.mouse.move(left + box["width"] / 2, middle, steps=12)
    page.wait_for_timeout(FRAMES)
    page.mouse.up()
    page.wait_for_timeout(FRAMES)
    part.get_by_label("Confirm crop").click()
    expect(part.get_by_label("Confirm crop")).to_be_hidden()
    page.wait_for_timeout(FRAMES)


def pressed_with(monkeypatch):
    """What `Studio.press` is given from now on; nothing is made of it."""
    given = []

    def press(self, form, *pictures):
        given.append((form, *pictures))
        raise SettingError(f"noted {len(given)}")

    monkeypatch.setattr(studio.Studio, "press", press)
    return given


def test_img2img_needs_a_picture(page):
    part = form(page, "img2img")
    make(part)
    expect(part.get_by_role("alert")).to_contain_text("there is no picture yet")


def test_a_picture_is_uploaded_and_cropped(page, picture, monkeypatch):
    given = pressed_with(monkeypatch)
    part = form(page, "img2img")
    upload(page, part, picture)
    make(part, prompt="whole")
    expect(part.get_by_role("alert")).to_have_text("noted 1")
    crop_to_the_right_half(page, part)
    make(part, prompt="half")
    expect(part.get_by_role("alert")).to_have_text("noted 2")
    (whole_form, whole, _), (half_form, half, _) = given
    assert [whole_form["prompt"], half_form["prompt"], half_form["strength"]] == ["whole", "half", 0.75]
    assert whole.size == (320, 200)
    assert (whole.getpixel((10, 100))[:3], whole.getpixel((300, 100))[:3]) == ((200, 60, 60), (20, 200, 20))
    assert abs(half.width - 160) <= 6
    assert half.height == 200
    assert half.getpixel((20, 100))[:3] == half.getpixel((half.width - 5, 100))[:3] == (20, 200, 20)


def test_img2img_makes_a_picture(page, folder, picture):
    part = form(page, "img2img")
    upload(page, part, picture)
    make(part, Pictures="1", Seed="5")
    expect(status(part)).to_contain_text("1 of 1 pictures")
    expect(part.locator(".grid-container img")).to_have_count(1)
    expect(part.locator(".cm-content")).to_contain_text("init: init.png")
    expect(part.get_by_role("button", name="Download init.png")).to_be_visible()
    assert (run_folders(folder)[-1] / "init.png").exists()


def paint_over_the_middle(page, part):
    part.get_by_label("Brush", exact=True).click()
    box = part.locator(".pixi-target canvas").bounding_box()
    across, down = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 - TOOLBAR / 2
    page.mouse.move(across - 30, down)
    page.mouse.down()
    page.wait_for_timeout(FRAMES)
    page.mouse.move(across + 30, down, steps=8)
    page.wait_for_timeout(FRAMES)
    page.mouse.up()
    page.wait_for_timeout(FRAMES)


def test_inpainting_makes_anew_what_is_painted_over(page, folder, picture):
    part = form(page, "inpaint")
    upload(page, part, picture)
    make(part, Pictures="1", Seed="5")
    expect(part.get_by_role("alert")).to_contain_text("nothing is painted yet")
    paint_over_the_middle(page, part)
    make(part, Pictures="1", Seed="5")
    expect(status(part)).to_contain_text("1 of 1 pictures")
    expect(part.locator(".cm-content")).to_contain_text("mask: mask.png")
    run = run_folders(folder)[-1]
    with Image.open(run / "init.png") as init, Image.open(run / "mask.png") as mask:
        assert init.size == mask.size == (320, 200)
        assert {init.getpixel((10, 100)), init.getpixel((300, 100))} == {(200, 60, 60), (20, 200, 20)}
        assert init.getpixel((155, 100)) == (200, 60, 60)  # not painted on
        left, top, right, bottom = mask.getbbox()
    assert 0 < left < 160 < right < 320 and 0 < top < bottom < 200
    assert "mask_sha256" in (run / "records.jsonl").read_text()


# ---- without a browser


def answer(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_no_file_outside_the_run_folders_is_served(address, folder):
    run = folder / "runs/0000-by-hand"
    (run / "images").mkdir(parents=True, exist_ok=True)
    for name in ("manifest.yaml", "images/a.png", "notes.txt", ".secret", "../beside.txt", "../../outside.txt"):
        (run / name).write_text("text")
    (run / "images/link.png").unlink(missing_ok=True)
    (run / "images/link.png").symlink_to(folder / "outside.txt")
    for inner in ("manifest.yaml", "images/a.png"):
        assert answer(f"{address}gradio_api/file={run}/{inner}") == 200
        assert answer(f"{address}runs/0000-by-hand/{inner}") == 200
    for inner in ("notes.txt", ".secret", "images/link.png", "images/../../beside.txt", "images/none.png"):
        assert answer(f"{address}gradio_api/file={run}/{inner}") == 403
        assert answer(f"{address}runs/0000-by-hand/{inner}") == 404
    for path in (
        f"{folder}/runs/beside.txt",
        "http://example.com/",
        "/etc/passwd",
        f"{folder}/outside.txt",
        f"{folder}/runs/../outside.txt",
        f"{folder}/runs/%2e%2e/outside.txt",
        f"{folder}/tiny/unet/config.json",
        "README.md",
        "pyproject.toml",
        "file:///etc/passwd",
        "http://127.0.0.1:1/",
    ):
        assert answer(f"{address}gradio_api/file={path}") == 403
        assert answer(f"{address}file={path}") in (403, 404)


def test_only_this_machine_is_answered(address):
    assert urlsplit(address).hostname == "127.0.0.1"
    assert answer(address) == 200
    assert answer(address, Host="elsewhere.example") == 400


def test_no_other_page_is_answered_and_no_proxy_believed(address):
    own = urlsplit(address)
    assert answer(address, Origin=f"http://{own.netloc}") == 200
    for origin in ("http://evil.example", f"http://127.0.0.1:{own.port + 1}", "null", f"http://localhost:{own.port}"):
        assert answer(address, Origin=origin) == 403
    request = urllib.request.Request(f"{address}config", headers={"X-Forwarded-Host": "evil.example"})
    with urllib.request.urlopen(request) as response:
        assert "evil.example" not in response.read().decode()


def test_the_page_names_no_font_or_script_from_elsewhere(address):
    with urllib.request.urlopen(address) as response:
        text = response.read().decode()
    with urllib.request.urlopen(f"{address}theme.css") as response:
        theme = response.read().decode()
    sources = re.findall(r"<(?:script|link)[^>]+(?:src|href)=[\"']([^\"']+)", text)
    assert sources
    assert not [source for source in sources if "//" in source]
    assert "@import" not in theme
    assert not re.findall(r"url\((?![\"']?data:)", theme)
    assert '"analytics_enabled":false' in text.replace(" ", "").lower()


def test_a_device_can_be_chosen_where_there_is_more_than_one(address, folder):
    here = studio.Studio(settings.compose([f"model.path={folder / 'tiny'}"]))
    for devices, there in ((["cpu"], False), (["cuda:0", "cpu"], True)):
        with web_page.gr.Blocks(analytics_enabled=False) as blocks:
            made = fields.build_form("txt2img", here.usual_form(), Choices(here.settings), devices)
        assert ("device" in made.fields) is there
        blocks.close(verbose=False)


def test_an_editor_keeps_few_pictures_that_were_only_sent(limit):
    limit(fields, MOST_EDITED=3)
    with web_page.gr.Blocks(analytics_enabled=False) as blocks:
        editor = fields._build_editor("img2img")[fields.PICTURE_FIELD]

    def send(name, index=0):
        sent = SimpleNamespace(data={"type": "layer", "index": index, "id": name}, files=[("file", "a.png")])
        editor.accept_blobs(sent)

    for n in range(9):
        send(f"id {n}")
    assert list(editor.blob_storage) == ["id 6", "id 7", "id 8"]
    with pytest.raises(web_page.gr.Error, match="at most 16 layers"):
        send("huge", 10**9)
    assert editor.accept_blobs._is_server_fn
    blocks.close(verbose=False)


def test_a_busy_port_is_a_message(address, folder, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_PORT", str(urlsplit(address).port))
    with (
        pytest.raises(SettingError, match="GRADIO_SERVER_PORT"),
        web_page.open_page(settings.compose([f"model.path={folder / 'tiny'}", f"out={folder / 'busy'}"])),
    ):
        pytest.fail("two pages on one port")


def test_a_port_that_is_none_is_a_message(folder, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_PORT", "http")
    with pytest.raises(SettingError, match="GRADIO_SERVER_PORT=http"):
        web_page.choose_port()


def test_without_gradio_the_verb_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name == "runner.web.page"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("runner.web.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["web"]) == 2
    assert "pip install 'manifest-runner[web]'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["web", "m.yaml"], ["web", "-m", "unet_bs=2,4"]])
def test_the_verb_takes_settings_only(words, capsys):
    assert cli.main(words) == 2
    assert "takes settings only" in capsys.readouterr().err


def test_the_verb_serves_until_it_is_stopped(address, folder):
    words = ["web", f"model.path={folder / 'tiny'}", f"out={folder / 'served'}"]
    process = subprocess.Popen([sys.executable, "-m", "runner", *words], stdout=subprocess.PIPE, text=True)
    with process:
        said = process.stdout.readline()
        try:
            served = re.search(r"http://127\.0\.0\.1:\d+/", said)
            assert served, said
            assert answer(served[0]) == 200
        finally:
            process.terminate()
    assert process.returncode == 143
