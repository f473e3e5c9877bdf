"""What a tab of the page does, in a browser: one test for each thing that people do."""

import re
import shutil
import time

import pytest
from browsing import field, form, make, run_folders, seeds, upload
from PIL import Image
from playwright.sync_api import expect

PHONE = {"width": 390, "height": 844}


def status(part):
    return part.locator(".how-far.block").get_by_role("status")


def told(part):
    return part.locator(".told.block")


def test_ctrl_enter_makes_pictures_of_the_seeds_that_are_typed(page):
    part = form(page)
    field(part, "Seed").fill("41-42, 99")
    field(part, "Prompt").fill("by keyboard")
    field(part, "Negative prompt").press("Control+Enter")
    expect(status(part)).to_contain_text("3 of 3 pictures")
    expect(seeds(part)).to_have_value("41-42, 99")
    field(part, "Seed").fill("-1")
    field(part, "Pictures").fill("1")
    field(part, "Prompt").press("Control+Enter")
    expect(status(part)).to_contain_text("1 of 1 pictures")
    expect(seeds(part)).to_have_value(re.compile(r"^\d+$"))


def test_a_run_goes_on_without_its_tab_and_a_reload_finds_it_again(page, browser, address, folder):
    with browser.new_context() as context:
        other = context.new_page()
        other.goto(address)
        part = form(other)
        make(part, prompt="left alone", Pictures="20000", Seed="5", **{"Negative prompt": "blur"})
        expect(status(part)).to_contain_text(re.compile(r"of 20000 pictures"))
        expect(other).to_have_url(re.compile(r"\?run=\d{4}-left-alone"))
        left = other.url
    page.goto(left)
    part = form(page)
    expect(status(part)).to_contain_text("of 20000 pictures")
    expect(field(part, "Prompt")).to_have_value("left alone")
    expect(field(part, "Negative prompt")).to_have_value("blur")
    expect(field(part, "Seed")).to_have_value("5")
    page.get_by_role("tab", name="runs").click()
    row = page.locator(".runs li").first
    expect(row).to_contain_text("left alone")
    expect(row).to_contain_text("going on")
    row.get_by_role("link", name="left alone").click()
    part = form(page)
    part.get_by_role("button", name="Cancel").click()
    expect(status(part)).to_contain_text(re.compile(r"cancelled: \d+ of 20000 pictures|cancelled: no pictures"))
    assert run_folders(folder)[-1].name in page.url


def test_a_run_of_an_earlier_session_is_shown_from_its_folder(page, address, folder):
    part = form(page)
    make(part, prompt="<b>kept</b> & shown", Pictures="1", Seed="3")
    expect(status(part)).to_contain_text("1 of 1 pictures")
    made = run_folders(folder)[-1]
    copy = made.with_name(f"{int(made.name[:4]) + 1:04d}-copied-from-elsewhere")
    shutil.copytree(made, copy)
    page.get_by_role("tab", name="runs").click()
    row = page.locator(".runs li").first
    expect(row.locator("strong")).to_have_text("<b>kept</b> & shown")
    expect(row.locator("img")).to_have_js_property("naturalWidth", 64)
    row.locator("a.again").click()
    part = form(page)
    expect(status(part)).to_contain_text("copied-from-elsewhere")
    expect(part.locator(".grid-container img")).to_have_count(1)
    expect(part.get_by_role("button", name="Cancel")).to_be_disabled()
    page.goto(f"{address}?run=../../etc")
    expect(form(page).get_by_role("button", name="Make pictures")).to_be_enabled()


def test_pictures_under_way_are_seen(page):
    part = form(page)
    part.get_by_label("number input for Steps").fill("150")
    make(part, prompt="slowly", Pictures="40")
    expect(part.locator("img.preview")).to_be_visible()
    part.get_by_role("button", name="Cancel").click()
    expect(status(part)).to_contain_text("cancelled: ")
    expect(part.locator("img.preview")).to_have_count(0)


def test_what_plan_warns_of_is_seen_before_anything_is_made(page, folder):
    part, before = form(page), run_folders(folder)
    field(part, "Prompt").fill("cat: 0.5 dog: 0.5")
    part.get_by_role("button", name="Check").click()
    expect(told(part)).to_contain_text("4 pictures")
    expect(told(part)).to_contain_text("is plain text")
    assert run_folders(folder) == before
    make(part, prompt="cat: 0.5 dog: 0.5", Pictures="1")
    expect(status(part)).to_contain_text("is plain text")


def test_what_is_wrong_stands_beside_its_field_which_is_opened(page):
    part = form(page)
    rows = field(part, "unet_bs")
    expect(rows).to_be_hidden()
    part.get_by_role("button", name="How it is made").click()
    rows.fill("0")
    part.get_by_role("button", name="How it is made").click()
    expect(rows).to_be_hidden()
    make(part, prompt="<img src=x onerror=alert(1)> " * 30, Pictures="1")
    expect(part.get_by_role("alert")).to_contain_text("unet_bs=0: should be")
    expect(rows).to_be_visible()
    expect(part.locator(".wrong-field")).to_contain_text("should be auto or a number of rows")
    rows.fill("4")
    part.get_by_role("button", name="Make pictures").click()
    expect(part.get_by_role("alert")).to_contain_text("choose 'chunk' or 'truncate' at 'A prompt that is too long'")
    expect(part.get_by_role("radio", name="chunk")).to_be_visible()
    expect(part.locator(".wrong-field")).to_have_count(2)
    assert part.locator("img[src=x]").count() == 0
    part.get_by_role("radio", name="truncate").check()
    part.get_by_role("button", name="Make pictures").click()
    expect(status(part)).to_contain_text("1 of 1 pictures")
    expect(part.locator(".wrong-field")).to_have_count(0)


def test_a_seed_is_used_again_and_a_picture_is_sent_to_img2img(page, folder):
    part = form(page)
    make(part, prompt="sent", Pictures="2", Seed="70")
    expect(part.locator(".grid-container img")).to_have_count(2)
    part.locator(".grid-container button").nth(1).click()
    part.get_by_role("button", name="Use its seed").click()
    expect(field(part, "Seed")).to_have_value("71")
    part.get_by_role("button", name="Send to img2img").click()
    target = page.locator("#img2img")
    expect(target.get_by_label("Undo", exact=True)).to_be_enabled()
    expect(field(target, "Prompt")).to_have_value("sent")
    expect(field(target, "Seed")).to_have_value("71")
    target.get_by_role("button", name="Make pictures").click()
    expect(status(target)).to_contain_text("2 of 2 pictures")
    sent, made = run_folders(folder)[-2:]
    with Image.open(next(sent.glob("images/*/seed_71_*"))) as one, Image.open(made / "init.png") as other:
        assert one.convert("RGB").tobytes() == other.tobytes()
    page.reload()
    expect(target.get_by_label("Undo", exact=True)).to_be_enabled()
    expect(status(target)).to_contain_text("2 of 2 pictures")


def test_the_size_of_the_picture_is_made_without_squashing_it(page, folder, picture):
    part = form(page, "img2img")
    upload(page, part, picture)
    part.get_by_label("size of the picture").check()
    expect(part.get_by_label("number input for Width")).to_be_disabled()
    make(part, prompt="wide", Pictures="1")
    expect(status(part)).to_contain_text("1 of 1 pictures")
    made = next(run_folders(folder)[-1].glob("images/*/*.png"))
    with Image.open(made) as image:
        assert image.size == (320, 192)


def test_a_dropped_picture_fills_the_form(page, folder, tmp_path):
    part = form(page)
    make(part, prompt="read again", Pictures="1", Seed="12345", **{"Negative prompt": "fog"})
    expect(status(part)).to_contain_text("1 of 1 pictures")
    made = next(run_folders(folder)[-1].glob("images/*/*.png"))
    shutil.copy(made, tmp_path / "apple.png")
    page.goto(page.url.partition("?")[0])
    part = form(page)
    expect(field(part, "Prompt")).to_have_value("")
    part.locator(".drop input[type=file]").set_input_files(tmp_path / "apple.png")
    expect(field(part, "Prompt")).to_have_value("read again")
    expect(field(part, "Negative prompt")).to_have_value("fog")
    expect(field(part, "Seed")).to_have_value("12345")
    expect(told(part)).to_contain_text("the form has the picture's settings")
    Image.new("RGB", (8, 8)).save(tmp_path / "<i>none.png")
    part.locator(".drop input[type=file]").set_input_files(tmp_path / "<i>none.png")
    expect(told(part).get_by_role("alert")).to_contain_text("no generation metadata")


def test_a_matrix_is_counted_made_and_compared_in_its_gallery(page):
    part = form(page, "matrix")
    field(part, "Prompt").fill("compared")
    part.get_by_role("button", name="Check").click()
    expect(part.get_by_role("alert")).to_contain_text("there are no values yet for 'scale'")
    field(part, "Values of the rows").fill("1, 3, 7.5")
    field(part, "Values of the columns").fill("{start: 2, stop: 4, step: 2}")
    field(part, "Pictures").fill("1")
    expect(told(part)).to_contain_text("24 pictures")
    part.get_by_role("button", name="Check").click()
    expect(told(part)).to_contain_text("6 pictures")
    part.get_by_role("button", name="Make pictures").click()
    expect(status(part)).to_contain_text("6 of 6 pictures")
    expect(part.locator(".grid-container")).to_contain_text("scale 7.5, steps 4")
    cell = part.locator(".grid-container button").filter(has_text="scale 3.0, steps 4")
    cell.click()
    part.get_by_role("button", name="Send to img2img").click()
    target = page.locator("#img2img")
    expect(target.get_by_label("range slider for Scale")).to_have_value("3")
    expect(target.get_by_label("range slider for Steps")).to_have_value("4")
    page.get_by_role("tab", name="matrix").click()
    with page.context.expect_page() as opened:
        part.get_by_role("link", name="gallery.html").click()
    expect(opened.value).to_have_url(re.compile(r"/runs/\d{4}-compared/gallery\.html"))
    expect(opened.value.locator("img").first).to_have_js_property("naturalWidth", 64)


def test_all_pictures_are_downloaded_as_a_zip(page, tmp_path):
    part = form(page)
    make(part, prompt="packed", Pictures="2")
    expect(status(part)).to_contain_text("2 of 2 pictures")
    with page.expect_download() as download:
        part.get_by_role("link", name="zip").click()
    assert re.fullmatch(r"\d{4}-packed\.zip", download.value.suggested_filename)
    download.value.save_as(tmp_path / "all.zip")
    shutil.unpack_archive(tmp_path / "all.zip", tmp_path / "all")
    (unpacked,) = (tmp_path / "all").iterdir()
    assert len(list(unpacked.glob("images/*/*.png"))) == 2
    assert len((unpacked / "records.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("kind", ["txt2img", "img2img", "inpaint", "matrix", "runs"])
@pytest.mark.some(2)
def test_nothing_scrolls_sideways_on_a_phone(page, kind):
    page.set_viewport_size(PHONE)
    page.reload()
    page.get_by_role("tab", name=kind, exact=True).click()
    expect(page.locator(f"#{kind}")).to_be_visible()
    deadline = time.monotonic() + 10
    while page.evaluate("document.documentElement.scrollWidth") > PHONE["width"]:
        assert time.monotonic() < deadline, page.evaluate("document.documentElement.scrollWidth")
    assert page.locator(f"#{kind}").bounding_box()["width"] <= PHONE["width"]
