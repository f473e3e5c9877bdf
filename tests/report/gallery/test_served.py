"""The gallery from a static server, or the disk: it grows with its run, and what it copies makes its pictures again."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import tiny
import yaml
from fake_engine import FakeEngine
from playwright.sync_api import expect

from runner import cli, settings
from runner.events import ItemDone
from runner.folder.ledger import Ledger, iterate_records
from runner.folder.local import LocalStore
from runner.item import item_id
from runner.report.gallery.growth import Growth
from runner.report.wanted import Wanted
from runner.request import Request, read_request
from runner.verbs.run.run import run

MANIFEST = """
version: 1
name: small
defaults: {width: 64, height: 64, steps: 2, sampler: dpmpp_2m}
jobs:
  - prompts: [cat, "dog:0.25 cow:0.75", {text: "oil: on canvas", weighted: false, negative: "a 'quoted' text"}]
    seeds: 1-4
    matrix: {scale: [3, 1]}
"""


@pytest.fixture
def ask(tmp_path: Path):
    def read(*overrides: str, text: str = MANIFEST) -> Request:
        (tmp_path / "m.yaml").write_text(text)
        return read_request(tmp_path / "m.yaml", settings.compose([f"out={tmp_path / 'it is $mine'}", *overrides]))

    return read


@pytest.fixture
def visit(context, serve, tmp_path, request):
    place = tmp_path.as_uri() if getattr(request, "param", "") == "from the disk" else serve

    def visit(hash: str = ""):
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.goto(f"{place}/it is $mine/gallery.html{hash}")
        expect(page.locator("#counts")).not_to_contain_text("loading")
        return page

    return visit


def copied(page, label: str) -> str:
    page.get_by_role("button", name=label).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    return page.evaluate("navigator.clipboard.readText()")


@pytest.mark.parametrize("visit", ["served", "from the disk"], indirect=True)
def test_the_page_grows_with_its_run_and_keeps_its_place(ask, visit) -> None:
    request, now = ask(), [0.0]
    wanted = Wanted.of(request.items)
    assert wanted is not None
    with Ledger(request.store) as ledger:
        now[0] = 10.0
        Growth(wanted, ledger, lambda: now[0] + 10).update()  # not yet due
        growth = Growth(wanted, ledger, lambda: now[0])
        now[0] = 100.0
        growth.update()
    page = visit("#rows=seed&columns=scale&size=384&only.prompt=cat")
    expect(page.locator(".waiting")).to_have_count(8)
    expect(page.locator("#counts")).to_contain_text("0 made, 24 to go · the run goes on")
    page.locator("#scroller").evaluate("it => { it.scrollTop = 500; }")
    page.locator(".cell[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    label, top = (
        page.evaluate(text)
        for text in ("document.activeElement.ariaLabel", "document.getElementById('scroller').scrollTop")
    )
    list(run(request, FakeEngine(refuse=lambda item: ValueError("no noise") if item.seed == 4 else None)))
    expect(page.locator(".waiting")).to_have_count(0)
    assert page.locator(".failed .why").all_text_contents() == ["failed: ValueError: no noise"] * 2
    expect(page.locator("#counts")).to_have_text("8 of 24 items · 6 failed")
    assert page.evaluate("document.getElementById('scroller').scrollTop") == top
    assert page.evaluate("document.activeElement.ariaLabel") == label.removesuffix(", not made yet")


def test_an_interrupted_run_is_taken_up_by_the_page(ask, visit) -> None:
    request = ask("limit=3")
    list(run(request, FakeEngine()))
    page = visit("#view=list")
    expect(page.locator("#counts")).to_have_text("24 items · 3 made, 21 to go")
    events = run(ask(), FakeEngine())
    next(event for event in events if isinstance(event, ItemDone))
    events.close()
    list(run(ask(), FakeEngine()))
    page.reload()
    expect(page.locator("#counts")).to_have_text("24 items")


def test_the_copied_item_is_the_same_item_of_a_manifest(ask, visit, tmp_path) -> None:
    request = ask()
    list(run(request, FakeEngine()))
    page = visit("#view=list")
    wishes, ids = [], []
    for place in (0, 8, 16, 23):
        page.locator(".shot").nth(place).click()
        wishes.append(copied(page, "Copy as manifest item"))
        ids.append(item_id(request.items[place]))
        page.keyboard.press("Escape")
    text = "version: 1\nname: again\njobs:\n  - prompts: [x]\n    seeds: 1\n    include:\n" + "".join(
        f"      {line}\n" for wish in wishes for line in wish.splitlines()
    )
    assert [entry["seed"] for entry in yaml.safe_load(text)["jobs"][0]["include"]] == [1, 1, 1, 4]
    again = ask(text=text)
    assert [item_id(item) for item in again.items[1:]] == ids


def test_the_copied_command_makes_the_picture_again(ask, visit, tmp_path) -> None:
    model = tiny.save_model(tmp_path / "tiny")
    request = ask(f"model.path={model}", "unet_bs=4", text=MANIFEST.replace("1-4", "1-2"))
    list(run(request))
    page = visit("#view=list")
    page.locator(".shot").nth(5).click()
    command = copied(page, "Copy the command")
    assert shlex.split(command)[0] == "grep" and "unet_bs=4" in command
    # The shell does its part, and hands the runner's arguments to the one that is loaded already.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/runner").write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    (tmp_path / "bin/runner").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert done.returncode == 0, done.stderr
    assert cli.main(done.stdout.split("\0")[:-1]) == 0
    (made,) = iterate_records(LocalStore(tmp_path / "it is $mine-again"))
    (first,) = (each for each in iterate_records(request.store) if each["id"] == made["id"])
    assert made["id"] == item_id(request.items[5]) and made["pixels"] == first["pixels"]
