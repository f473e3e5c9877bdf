"""The README tells the truth: its manifest is read, its commands are known, its settings exist."""

import re
from pathlib import Path

import pytest
from schemas import complaints

from runner import settings
from runner.cli.verbs import VERBS
from runner.manifest import items as manifest_items
from runner.manifest import read as manifest_read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_manifests_of_the_readme_are_read(tmp_path):
    for folder in ("prompts", "weights/tuned"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "weights/sd-v1-4.ckpt").touch()
    (tmp_path / "prompts/animals.txt").write_text("a lion\na gnu\n")
    texts = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    read = []
    for number, text in enumerate(texts):
        whole = text if "version:" in text else f"version: 1\n{text}"
        (tmp_path / f"{number}.yaml").write_text(whole)
        read.append(manifest_read.load(tmp_path / f"{number}.yaml", overrides={}, allow_outside=False))
        assert complaints(whole) == []
    assert read[0].name == "alps"
    assert [job.size for job in read[0].jobs] == [(1 + 1 + 3 + 2) * 2 * (3 * 3 - 1) * 20, 1, 20]
    assert [job.size for job in read[1].jobs] == [2 * 4 * 3]


@pytest.mark.parametrize("path", sorted((ROOT / "manifests").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_manifest_is_read(path):
    read = manifest_read.load(path, overrides={}, allow_outside=False)
    items = manifest_items.Items(read, dict.fromkeys(manifest_items.jobs_without_seed(read), 1))
    assert len(items) == len({(item.prompt, item.seed, item.scale, item.sampler) for item in items})


def test_every_command_of_the_readme_is_known():
    commands = re.findall(
        r"runner ([a-z]+) [A-Za-z]", " ".join(re.findall(r"`(runner [^`]*)`|\$ (runner .*)", README)[0])
    )
    commands += re.findall(r"`runner ([a-z]+) ", README)
    assert commands
    assert set(commands) <= set(VERBS)


def test_every_setting_of_the_readme_exists_and_the_other_way_round():
    table = README.partition("| key | values | default |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+)`", " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))))
    fields = {field.name for field in settings.fields(settings.Settings)}
    assert fields - named == {"engine", "defaults"}
    assert named <= fields


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ )make ([a-z]+)", README)) <= targets


def test_every_promise_names_its_test():
    table = README.partition("| promise | test |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    for _, name in rows:
        path, _, function = name.strip("`").partition("::")
        assert f"\ndef {function}(" in (ROOT / path).read_text(), name
