"""What people do on the page, in a browser."""

import re

from playwright.sync_api import expect


def form(page, kind="txt2img"):
    """The visible tab's part of the page."""
    page.get_by_role("tab", name=kind).click()
    part = page.locator(f"#{kind}")
    expect(part.get_by_role("button", name="Make pictures")).to_be_enabled()
    return part


def field(part, label):
    """What is typed into; its name goes on with what is said about it."""
    return part.get_by_label(re.compile(rf"^\s*{re.escape(label)}(?!\w)")).and_(part.locator("input, textarea"))


def make(part, *, prompt="a red apple", **fields):
    for label, value in {"Prompt": prompt, **fields}.items():
        field(part, label).fill(value)
    part.get_by_role("button", name="Make pictures").click()


def seeds(part):
    return part.locator(".seeds").locator("input, textarea")


def run_folders(folder):
    return sorted((folder / "runs").glob("*/"))


def upload(page, part, picture):
    # Gradio's editor loses a picture given before its two canvases, the picture's and the crop's, are drawn.
    expect(part.locator(".pixi-target canvas, .pixi-target-crop canvas")).to_have_count(2)
    part.locator("input[type=file]").first.set_input_files(picture)
    expect(part.get_by_label("Image", exact=True)).to_be_visible()
    expect(part.get_by_label("Undo", exact=True)).to_be_enabled()
