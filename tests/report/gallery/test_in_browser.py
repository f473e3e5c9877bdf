"""The gallery in a browser, opened from the disk."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import pytest
from builders import MODEL, failure, make_item, matrix, record, run_folder
from gallery_data import large_folder
from playwright.sync_api import expect

from runner.folder.local import LocalStore
from runner.folder.names import image_path, thumbnail_name
from runner.item import Item, item_id
from runner.report.gallery import build
from runner.report.gallery.build import build_page
from runner.report.wanted import Wanted

ROWS = int(os.environ.get("RUNNER_GALLERY", "20000"))  # of the large folder; a multiple of 400
PROMPTS, SCALES, SAMPLERS, SEEDS = ("red apple", "a lemon"), (7.5, 3.0, 13.0), ("ddim", "lms"), (3, 13, 30)


def sweep() -> list[Item]:
    combinations = itertools.product(PROMPTS, SCALES, SAMPLERS, SEEDS)
    return [
        make_item(
            number=number, prompt=prompt, scale=scale, sampler=sampler, seed=seed, model=MODEL,
            axes=(("prompt", prompt), ("scale", scale), ("sampler", sampler), ("seed", seed)),
        )
        for number, (prompt, scale, sampler, seed) in enumerate(combinations)
    ]  # fmt: skip


def done(item: Item) -> dict[str, object]:
    return record(item) | {"id": item_id(item), "model": {"name": "emoji"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A sweep whose pictures were made in another order; one failed, one is gone."""
    folder, items = tmp_path_factory.mktemp("galleries") / "a sweep #1", sweep()
    run_folder(folder, items)
    (folder / image_path(items[6])).unlink()
    records = [done(item) for item in reversed(items)] + [failure(items[1]) | {"id": item_id(items[1])}]
    (folder / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    wanted = Wanted.of(items)
    assert wanted is not None
    wanted.save(LocalStore(folder))
    build(LocalStore(folder))
    return folder


def texts(page, selector: str) -> list[str]:
    return page.locator(selector).all_text_contents()


def choose(page, name: str, value: str) -> None:
    page.locator(f"#axes label:has(> span:text-is('{name}')) select").select_option(label=value)


def open_at(page, number: int):
    page.locator("#canvas .shot").nth(number).click()
    return page.locator("#large")


def focused(page, label: str) -> None:
    expect(page.locator(".cell:focus")).to_have_attribute("aria-label", label)


def facts(page) -> dict[str, str]:
    names, values = texts(page, "#facts dt"), texts(page, "#facts dd > span:first-child")
    return dict(zip(names, values, strict=True))


def test_a_grid_has_the_axes_and_their_values_in_the_order_of_the_manifest(folder, visit) -> None:
    page = visit(folder)
    assert texts(page, ".side") == list(PROMPTS) and texts(page, ".head") == ["7.5", "3", "13"]
    expect(page.get_by_role("grid")).to_have_attribute("aria-rowcount", "3")
    choose(page, "Rows", "seed")
    assert texts(page, ".side") == ["3", "13", "30"]
    choose(page, "Columns", "sampler")
    assert texts(page, ".head") == ["ddim", "lms"]
    page.get_by_label("Exchange rows and columns").click()
    assert (texts(page, ".side"), texts(page, ".head")) == (["ddim", "lms"], ["3", "13", "30"])
    assert page.locator(".cell img:visible").evaluate_all("all => all.every(it => it.alt.startsWith('red apple'))")


def test_other_axes_have_one_value_or_all_side_by_side(folder, visit) -> None:
    page = visit(folder)
    cell = page.locator(".row .cell").first
    expect(cell).to_have_attribute("aria-label", "prompt red apple, scale 7.5, sampler ddim, seed 3")
    choose(page, "sampler", "lms")
    expect(cell).to_have_attribute("aria-label", "prompt red apple, scale 7.5, sampler lms, seed 3")
    page.get_by_label("sampler: the value before").click()
    expect(cell).to_have_attribute("aria-label", "prompt red apple, scale 7.5, sampler ddim, seed 3")
    choose(page, "seed", "all side by side")
    assert texts(page, ".head") == [*("7.5", "3", "13"), *(str(seed) for _ in SCALES for seed in SEEDS)]
    expect(page.locator(".row .cell")).to_have_count(18)


def test_headings_stay_in_sight(folder, visit) -> None:
    page = visit(folder, "#side=seed&side=sampler&size=384")
    scroller = page.locator("#scroller")
    before = page.locator(".corner").bounding_box()
    scroller.evaluate("it => it.scrollTo(900, 300)")
    expect(page.locator(".side").first).to_be_in_viewport()
    expect(page.locator(".head").first).to_be_in_viewport()
    assert page.locator(".corner").bounding_box() == before
    side, head = page.locator(".side").first.bounding_box(), page.locator(".head").first.bounding_box()
    assert side["x"] == 0 and head["y"] == before["y"]
    page.get_by_role("button", name="List").click()
    scroller.evaluate("it => it.scrollTo(0, 1600)")
    expect(page.locator(".stuck")).to_contain_text("red apple")


def test_the_list_stands_by_prompt(folder, visit) -> None:
    page = visit(folder, "#view=list")
    assert texts(page, ".heading h2") == list(PROMPTS) and texts(page, ".heading .count") == ["18", "18"]
    assert texts(page, ".caption")[:2] == ["scale 7.5 · sampler ddim · seed 3", "scale 7.5 · sampler ddim · seed 13"]
    choose(page, "seed", "13")
    assert texts(page, ".heading .count") == ["6", "6"]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("seed 3", 12), ("seed:3", 12), ("3", 20), ("seed:3 scale:3", 4), ("apple", 18), ("APP", 18),
        ("apple lemon", 0),
        ('prompt:"a lemon"', 18), ("sampler lms apple", 9), ("emoji", 36), ("steps:20", 36), ("steps:2", 0), ("<b>", 0),
        ("seed 4", 0), ("nothing:3", 0),
    ],
)  # fmt: skip
@pytest.mark.some(8)
def test_words_filter_by_whole_values_of_a_key(folder, visit, words: str, count: int) -> None:
    page = visit(folder, "#view=list")
    page.get_by_label("Filter by words").fill(words)
    expect(page.locator("#canvas .cell")).to_have_count(count)
    expect(page.locator("#nothing")).to_be_visible(visible=count == 0)


def test_what_failed_or_is_gone_says_so(folder, visit) -> None:
    page = visit(folder, "#view=list")
    assert texts(page, ".failed .why") == ["failed: BlackPicture: came out <black>"]
    gone = sweep()[6]
    assert texts(page, ".gone .why") == [f"missing: {image_path(gone)}"]
    expect(page.locator("#counts")).to_have_text("36 items · 1 failed · 1 missing")
    page.get_by_label("Show").select_option(label="failed")
    expect(page.locator("#canvas .cell")).to_have_count(1)


def test_a_large_picture_moves_along_both_axes_and_tells_all(folder, visit) -> None:
    page = visit(folder)
    large = open_at(page, 0)
    expect(large.get_by_role("heading")).to_have_text("red apple")
    page.keyboard.press("ArrowRight")
    assert facts(page)["scale"] == "3"
    page.keyboard.press("ArrowDown")
    assert (facts(page)["scale"], facts(page)["prompt"]) == ("3", "a lemon")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert (facts(page)["scale"], facts(page)["prompt"], facts(page)["steps"]) == ("7.5", "a lemon", "20")
    page.get_by_label("The seed after").click()
    assert facts(page)["seed"] == "13"
    page.get_by_text("Record", exact=True).click()
    expect(page.locator("#record")).to_contain_text('"prompt": "a lemon"')
    page.keyboard.press("Escape")
    expect(large).not_to_be_visible()
    focused(page, "prompt a lemon, scale 7.5, sampler ddim, seed 13")


def test_the_keyboard_reaches_everything_in_the_grid(folder, visit) -> None:
    page = visit(folder)
    expect(page.locator(".cell[tabindex='0']")).to_have_count(1)
    page.locator(".cell[tabindex='0']").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    focused(page, "prompt a lemon, scale 13, sampler ddim, seed 3")
    page.keyboard.press("Enter")
    expect(page.locator("#large")).to_be_visible()
    page.keyboard.press("Escape")
    focused(page, "prompt a lemon, scale 13, sampler ddim, seed 3")
    page.keyboard.press("/")
    expect(page.locator("#words")).to_be_focused()


def test_two_pictures_are_compared_with_a_divider(folder, visit) -> None:
    page = visit(folder)
    open_at(page, 2)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("c")
    expect(page.get_by_label("Divider")).to_be_focused()
    assert texts(page, ".letter") == ["A: scale 3", "B: scale 13"]
    box = page.locator("#views").bounding_box()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Divider")).to_have_value("51")
    assert page.locator(".view").last.evaluate("it => it.style.clipPath") == "inset(0px 0px 0px 51%)"
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 50)
    page.mouse.up()
    expect(page.get_by_label("Divider")).to_have_value("25")
    page.get_by_role("button", name="Side by side").click()
    left, right = (page.locator(".view").nth(place).bounding_box() for place in (0, 1))
    assert left["x"] + left["width"] <= right["x"]
    page.get_by_role("button", name="Down", exact=True).click()
    assert texts(page, ".letter")[1] == "B: prompt a lemon, scale 13"
    page.get_by_role("button", name="End comparison").click()
    expect(page.locator(".view")).to_have_count(1)
    expect(page.locator("#large")).to_be_visible()


def test_a_link_brings_everything_back(folder, visit) -> None:
    page = visit(folder)
    choose(page, "Rows", "sampler")
    choose(page, "seed", "13")
    page.get_by_label("Filter by words").fill("apple")
    choose(page, "prompt", "all side by side")
    open_at(page, 1)
    page.keyboard.press("c")
    there = page.url.partition("#")[2]
    again = visit(folder, f"#{there}")
    expect(again.locator(".letter")).to_have_count(2)
    assert texts(again, ".letter") == texts(page, ".letter") and facts(again) == facts(page)
    assert texts(again, ".side") == ["ddim", "lms"]
    expect(again.get_by_label("Filter by words")).to_have_value("apple")
    assert again.url == page.url


@pytest.mark.parametrize(
    "hash",
    [
        "#rows=nothing&columns=seed",
        "#view=odd&size=-4",
        "#open=nothing",
        "#only.seed=77&side=x&show=y",
        "#%ff&&==",
        "#rows=seed&columns=seed",
    ],
)
def test_a_wrong_link_shows_what_there_is(folder, visit, hash: str) -> None:
    page = visit(folder, hash)
    expect(page.locator("#canvas .cell").first).to_be_visible()
    expect(page.locator("#large")).not_to_be_visible()


def test_marks_are_kept_and_saved_as_a_list_of_ids(folder, visit, tmp_path) -> None:
    page, items = visit(folder), sweep()
    page.locator(".cell[tabindex='0']").focus()
    page.keyboard.press("f")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("4")
    open_at(page, 2)
    page.keyboard.press("f")
    page.get_by_role("button", name="Rate 2").click()
    page.keyboard.press("Escape")
    expect(page).not_to_have_url(re.compile("open="))
    expect(page.locator("#save")).to_have_text("Save 2 favourites")
    page.reload()
    expect(page.locator("#save")).to_have_text("Save 2 favourites")
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(tmp_path / "ids.txt")
    assert download.value.suggested_filename.endswith("-ids.txt")
    assert (tmp_path / "ids.txt").read_text() == "".join(f"{item_id(items[number])}\n" for number in (0, 12))
    page.get_by_label("Show").select_option(label="rated 3 or more")
    expect(page.locator("#canvas .cell")).to_have_count(1)
    expect(page.locator("#save")).to_have_text("Save 1 rated 3 or more")
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(tmp_path / "ids.txt")
    assert (tmp_path / "ids.txt").read_text() == f"{item_id(items[6])}\n"


def test_two_galleries_and_two_tabs_keep_each_others_marks(folder, visit, tmp_path) -> None:
    other = run_folder(tmp_path / "other", matrix(1, 2))
    build(LocalStore(other))
    one, two, third = visit(folder), visit(folder), visit(other)
    for page, place in ((one, 1), (two, 2), (third, 0)):
        page.locator("#canvas .cell").nth(place).hover()
        page.locator("#canvas .star").nth(place).click()
    for page, count in ((one, 2), (two, 2), (third, 1)):
        expect(page.locator("#save")).to_have_text(f"Save {count} favourites")
    one.locator("#canvas .cell").nth(1).hover()
    one.locator("#canvas .star").nth(1).click()
    expect(two.locator("#save")).to_have_text("Save 1 favourites")


HOSTILE = [
    "</script><script>window.broken = 1</script>", "<img src=x onerror='window.broken = 1'>", "__proto__",
    "javascript:window.broken = 1", "\u2028window.broken = 1//", "]]>--><svg onload=window.broken=1>",
]  # fmt: skip


def test_nothing_of_a_hostile_folder_becomes_script(visit, tmp_path) -> None:
    items = [
        make_item(number=number, prompt=text, negative=text, axes=(("prompt", text), (text, text)))
        for number, text in enumerate(HOSTILE)
    ]
    folder = run_folder(tmp_path / "<img src=x onerror=broken=1>", items)
    (folder / "evil.html").write_text("<script>window.broken = 1</script>")
    more = [record(items[0]) | {"id": text, "image": "evil.html", "model": {"name": text}} for text in HOSTILE]
    more += [
        record(items[0], image="javascript:broken=1") | {"id": "x"},
        failure(items[1]) | {"error": {"message": "<b>"}},
    ]
    with open(folder / "records.jsonl", "a") as lines:
        lines.writelines(json.dumps(each) + "\n" for each in more)
    build(LocalStore(folder))
    page = visit(folder, "#view=list&size=48")
    expect(page.locator("#canvas .cell")).to_have_count(len(HOSTILE) * 2 + 1)
    assert page.title() == "<img src=x onerror=broken=1>"
    for place in range(len(HOSTILE) * 2 + 1):
        open_at(page, place)
        page.locator("#whole").evaluate("it => { it.open = true; }")
        expect(page.locator("#record")).to_contain_text('"id"')
        target = page.locator("#file").get_attribute("href")
        assert target is None or target.startswith("images/")
        page.keyboard.press("Escape")
    assert page.evaluate("window.broken") is None
    assert page.locator("#canvas img[src='x'], #canvas svg, #canvas b").count() == 0


def test_large_pictures_are_shown_by_their_thumbnails(visit, tmp_path) -> None:
    items = [make_item(number=n, prompt="50% of #1 家", seed=n, width=512, height=512) for n in range(3)]
    folder = run_folder(tmp_path / "run", items)
    build(LocalStore(folder), thumbnails=True)
    (folder / thumbnail_name(str(image_path(items[1])))).unlink()
    for path in (thumbnail_name(str(image_path(items[2]))), str(image_path(items[2]))):
        (folder / path).unlink()
    page = visit(folder)
    images = page.locator("#canvas img")
    expect(page.locator("#canvas .why")).to_have_text(["missing: its file can't be read"])
    assert images.nth(0).evaluate("it => it.decode().then(() => [it.naturalWidth, it.currentSrc])")[0] == 256
    assert images.nth(1).evaluate("it => it.decode().then(() => it.naturalWidth)") == 512
    open_at(page, 0)
    assert page.locator(".view img").evaluate("it => it.decode().then(() => it.naturalWidth)") == 512


def test_what_is_no_longer_asked_for_has_a_section_of_its_own(visit, tmp_path) -> None:
    items = [item._replace(model=MODEL) for item in matrix(2, 3)]
    folder = run_folder(tmp_path / "run", items)
    (folder / "records.jsonl").write_text("".join(json.dumps(done(item)) + "\n" for item in items))
    wanted = Wanted.of([*items[:3], make_item(prompt="new", seed=0, model=MODEL)])
    assert wanted is not None
    wanted.save(LocalStore(folder))
    build(LocalStore(folder))
    page = visit(folder, "#view=grid&rows=prompt&columns=seed")
    assert texts(page, ".side") == ["prompt 0", "new"] and texts(page, ".heading h2") == ["No longer in the manifest"]
    expect(page.locator(".cards .cell")).to_have_count(3)
    assert texts(page, ".waiting .why") == ["not made yet"]
    expect(page.locator("#counts")).to_contain_text("1 to go · 3 no longer in the manifest")
    page.locator(".cards .shot").first.click()
    expect(page.locator("#trouble")).to_have_text("The manifest no longer asks for this picture.")


def test_a_page_without_its_data_says_what_to_do(visit, tmp_path) -> None:
    build(LocalStore(run_folder(tmp_path / "run", matrix(1, 2))))
    (tmp_path / "run/gallery/state.js").unlink()
    page = visit(tmp_path / "run")
    expect(page.locator("#nothing")).to_contain_text("make it with: runner gallery FOLDER")


def test_a_seed_beyond_the_numbers_of_a_browser_is_shown_exactly(visit, tmp_path) -> None:
    build(LocalStore(run_folder(tmp_path / "run", [make_item(seed=2**63 - 1), make_item(number=1, seed=2)])))
    page = visit(tmp_path / "run")
    open_at(page, 0)
    page.get_by_text("Record", exact=True).click()
    expect(page.locator("#record")).to_contain_text(f'"seed": {2**63 - 1}')
    assert facts(page)["seed"] == str(2**63 - 1)


CONTRAST = """() => {
  const linear = it => it <= 0.03928 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4;
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(it => linear(it / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = it => {
    for (; it; it = it.parentElement) {
      const colour = getComputedStyle(it).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const poor = [];
  for (const it of document.querySelectorAll("body *")) {
    const own = [...it.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !it.checkVisibility({ opacityProperty: true }) || it.closest(":disabled, noscript")) continue;
    const [a, b] = [light(getComputedStyle(it).color), light(behind(it))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) poor.push([it.className || it.tagName, it.textContent.slice(0, 20), contrast]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_it_is_readable_in_light_and_dark_on_any_width(folder, visit, context, scheme: str, width: int) -> None:
    page = visit(folder)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    if width == 390:
        page.get_by_role("button", name="Options").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []
    page.get_by_role("button", name="List").click()
    assert page.evaluate(CONTRAST) == []
    open_at(page, 3)
    page.keyboard.press("c")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []
    for name in ("Close", "Copy the command"):
        page.get_by_role("button", name=name).scroll_into_view_if_needed()
        expect(page.get_by_role("button", name=name)).to_be_in_viewport()


def test_everything_that_can_be_pressed_has_a_name(folder, visit) -> None:
    page = visit(folder)
    open_at(page, 0)
    nameless = """() => [...document.querySelectorAll("button, input, select, a, img, [tabindex]")]
      .filter(it => !(it.getAttribute("aria-label") || it.textContent.trim() || it.alt))
      .filter(it => !it.closest("label")?.textContent.trim())
      .filter(it => it.checkVisibility()).map(it => it.outerHTML)"""
    assert page.evaluate(nameless) == []
    page.keyboard.press("Escape")
    assert page.evaluate(nameless) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    folder = large_folder(tmp_path_factory.mktemp("large") / "run", ROWS)
    build_page(LocalStore(folder), running=False)
    return folder


# How often a place in sight has no block while it is scrolled through, and how many elements there were at most.
GAPS = """async () => {
  const scroller = document.getElementById("scroller"), box = scroller.getBoundingClientRect();
  const frame = () => new Promise(requestAnimationFrame);
  const blank = (x, y) => !document.elementFromPoint(box.left + x, box.top + y)?.closest(".block, .header, .stuck");
  let gaps = 0, most = 0;
  for (let turn = 0; turn < 40; turn++) {
    if (scroller.scrollTop + 2 * box.height > scroller.scrollHeight) break;
    scroller.scrollTop += 700;
    await frame(); await frame();
    // Between two blocks there are some pixels.
    for (const y of [140, 330, 520]) for (const x of [300, 640]) if (blank(x, y) && blank(x, y + 80)) gaps += 1;
    most = Math.max(most, document.querySelectorAll("*").length);
  }
  return [gaps, most];
}"""


def test_many_pictures_are_quick_to_look_through(large, visit, context) -> None:
    page = visit(large, "#rows=seed&columns=scale&side=prompt")
    assert page.evaluate("document.querySelectorAll('*').length") < 4000
    page = visit(large, "#view=list&rows=seed")
    gaps, most = page.evaluate(GAPS)
    assert gaps == 0 and most < 4000
    page.get_by_label("Filter by words").fill("seed 3 prompt:0")
    page.get_by_label("Filter by words").fill("seed 3")
    expect(page.locator("#counts")).to_have_text(f"{ROWS // 50:,} of {ROWS:,} items")
    page.get_by_label("Filter by words").fill("")
    page.locator("#scroller").evaluate("it => { it.scrollTop = it.scrollHeight; }")
    expect(page.locator(f".cell[data-row='{ROWS - 1}']")).to_be_in_viewport()
    open_at(page, page.locator("#canvas .shot").count() - 1)
    page.get_by_text("Record", exact=True).click()
    expect(page.locator("#record")).to_contain_text(f'"number": {ROWS - 1}')
    page.keyboard.press("Escape")
    page.context.new_cdp_session(page).send("HeapProfiler.collectGarbage")
    assert page.evaluate("performance.memory.usedJSHeapSize") < 100e6


def test_a_grid_of_many_rows_has_no_gaps(large, visit) -> None:
    page = visit(large, "#rows=seed&columns=prompt&size=120")
    gaps, most = page.evaluate(GAPS)
    assert gaps == 0 and most < 4000


def test_pictures_in_sight_are_there(large, visit) -> None:
    page = visit(large)
    images = page.locator(".cell img")
    for place in range(3):
        assert images.nth(place).evaluate("it => it.decode().then(() => it.naturalWidth)") == 256
