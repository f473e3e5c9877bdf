"""Multirun: folders by what differs, one drawn seed for all, and nothing but run folders is written."""

import json

import pytest
import tiny

from runner import cli
from runner.cli.sweep import plan_jobs
from runner.errors import SettingError

TEXT = "version: 1\nname: small\ndefaults: {width: 64, height: 64, steps: 2}\njobs: [{prompts: [cat], seeds: 1-2}]\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.yaml").write_text(TEXT)
    return tmp_path


def names(*words):
    return [job.name for job in plan_jobs(words)]


def test_a_folder_is_named_by_what_differs():
    assert names("unet_bs=2,4", "limit=2") == ["unet_bs=2", "unet_bs=4"]
    assert names("defaults.steps=2,3", "unet_bs=4,8") == [
        "steps=2,unet_bs=4", "steps=2,unet_bs=8", "steps=3,unet_bs=4", "steps=3,unet_bs=8",
    ]  # fmt: skip
    assert names("out=a,b") == ["", ""]
    assert names("unet_bs=4,4") == [""]
    assert names("out=a,b", "unet_bs=2,4") == ["unet_bs=2", "unet_bs=4"] * 2
    assert names("model.path=/x/one.ckpt,/y/two.ckpt") == ["path=one.ckpt", "path=two.ckpt"]
    assert names("defaults.steps=range(2,6,2)") == ["steps=2", "steps=4"]
    assert names("model=glob(emo*)") == [""]
    assert names("defaults.sampler=choice(ddim, plms)") == ["sampler=ddim", "sampler=plms"]
    assert [job.overrides for job in plan_jobs(['defaults.negative="a, b"', "limit=1,2"])] == [
        ('defaults.negative="a, b"', "limit=1"), ('defaults.negative="a, b"', "limit=2"),
    ]  # fmt: skip


def test_names_are_safe_short_and_never_meet():
    odd = names("defaults.negative=" + "x" * 300 + ",a/b:c," + "'q\"',q,Q,a_b_c")
    assert len({name.casefold() for name in odd}) == len(odd) == 6
    assert all(len(name.encode()) <= 100 and not set(name) & set('/\\:*?"<>|') for name in odd)
    assert names("model.path=/x/a.ckpt,/y/a.ckpt")[0] != names("model.path=/x/a.ckpt,/y/a.ckpt")[1]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("defaults.sampler=glob(*)", "none fits"),
        ("unet_bs=interval(1,5)", "interval() names no values"),
        ("model=emoji,nope", "model=nope: no such model"),
        ("unet_bs=2,,4", "is empty"),
        ("unet_bs=range(a,b)", "in numbers"),
        ("unet_bs=range(1,4,0)", "in numbers"),
        ("defaults.steps=range(1,100000)", "more than 1000"),
        ("uent_bs=2,4", "did you mean 'unet_bs'"),
        ("limit=1,x", "limit"),
    ],
)
def test_a_wrong_sweep_is_one_line_before_the_first_run(here, capsys, word, said):
    assert cli.main(["plan", "m.yaml", "-m", "limit=1,2" if not word.startswith("limit") else "deep=true", word]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and not printed.out
    with pytest.raises(SettingError):
        plan_jobs([word])


@pytest.mark.parametrize("name", ["multirun.yaml", "m.yaml"])
def test_a_dry_run_writes_nothing_and_over_nothing(here, capsys, name):
    (here / name).write_text(TEXT)
    (here / "m.yaml").chmod(0o444)
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    here.chmod(0o555)
    try:
        assert cli.main(["plan", name, "-m", "defaults.steps=2,3"]) == 0
    finally:
        here.chmod(0o755)
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before
    assert "small-multirun/steps=2" in capsys.readouterr().out


def test_a_sweep_goes_on_whatever_else_is_set_and_shares_its_drawn_seed(here, model, capsys):
    (here / "m.yaml").write_text(TEXT.replace(", seeds: 1-2", ""))
    words = ["run", "m.yaml", f"model.path={model}", "-m", "defaults.steps=2,3"]
    assert cli.main(words) == 0
    folder = here / "outputs/small-multirun"
    assert sorted(path.name for path in folder.iterdir()) == ["steps=2", "steps=3"]
    capsys.readouterr()
    assert cli.main([*words, "attempts=5", "deep=true"]) == 0
    assert capsys.readouterr().err.count("nothing to render") == 2
    assert cli.main([*words[:-1], "defaults.steps=4,5"]) == 0
    seeds = {tuple(json.loads(file.read_text())["drawn_seeds"].values()) for file in folder.glob("*/run.json")}
    assert len(list(folder.glob("*/run.json"))) == 4 and len(seeds) == 1
    assert {path.name for path in here.iterdir()} == {"m.yaml", "outputs"}
