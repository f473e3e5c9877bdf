"""README and docs tell the truth: manifests are read, commands, settings, keys, tests and files exist."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from schemas import complaints

from runner import settings
from runner.cli.verbs import VERBS
from runner.keys import KEYS
from runner.manifest import items as manifest_items
from runner.manifest import read as manifest_read
from runner.record import KINDS, Record
from runner.sampler_names import SAMPLERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {path.relative_to(ROOT): path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
EVERYTHING = "\n".join(DOCS.values())


def doc(name):
    return DOCS[Path("docs", name)]


def rows(text, head):
    """The rows of the table that begins with a heading line."""
    table = text.partition(head)[2].partition("\n\n")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 160


def read_manifests(document, folder):
    for place in ("prompts", "weights/tuned"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "weights/sd-v1-4.ckpt").touch()
    (folder / "prompts/animals.txt").write_text("a lion\na gnu\n")
    (folder / "loras").mkdir(exist_ok=True)
    for name in ("ink", "sharp"):
        save_file({"unet.conv_in.lora_A.weight": torch.zeros(1)}, folder / f"loras/{name}.safetensors")
    for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)):
        whole = text if "version:" in text else f"version: 1\n{text}"
        (folder / f"{number}.yaml").write_text(whole)
        assert complaints(whole) == []
        yield manifest_read.load(folder / f"{number}.yaml", overrides={}, allow_outside=False)


def test_the_manifests_of_the_documents_are_read(tmp_path):
    fruit, loras = read_manifests(README, tmp_path)
    assert (fruit.name, sum(job.size for job in fruit.jobs)) == ("fruit", 36)
    assert [job.size for job in loras.jobs] == [4 * 3]
    [sets] = read_manifests(doc("loras.md"), tmp_path)
    assert [job.size for job in sets.jobs] == [4 * 3, 4 * 3]
    alps, models = read_manifests(doc("manifest.md"), tmp_path)
    assert alps.name == "alps"
    assert [job.size for job in alps.jobs] == [(1 + 1 + 3 + 2) * 2 * (3 * 3 - 1) * 20, 1, 20]
    assert [job.size for job in models.jobs] == [2 * 4 * 3]


@pytest.mark.parametrize("path", sorted((ROOT / "manifests").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_manifest_is_read(path):
    read = manifest_read.load(path, overrides={}, allow_outside=False)
    items = manifest_items.Items(read, dict.fromkeys(manifest_items.jobs_without_seed(read), 1))
    assert len(items) == len({(item.prompt, item.seed, item.scale, item.sampler) for item in items})


def test_every_command_is_known_and_its_settings_exist():
    lines = re.findall(r"`runner ([^`\n]+)`|^\$ runner (.+)$", EVERYTHING, re.MULTILINE)
    commands = [re.sub(r"\s+#.*", "", "".join(found)).split() for found in lines]
    assert len(commands) > 20
    assert {words[0] for words in commands} - {"VERB", "--help", "--version"} == set(VERBS)
    known = settings.known_keys()
    named = {word.strip("'").partition("=")[0] for words in commands for word in words if "=" in word}
    assert named <= known | {"defaults.KEY"}


def test_every_setting_is_explained_and_exists():
    named = set(re.findall(r"`([a-z_]+)`", " ".join(row[0] for row in rows(doc("settings.md"), "| key | values |"))))
    fields = {field.name for field in settings.fields(settings.Settings)}
    assert fields - named == {"defaults"} and "defaults.KEY" in doc("settings.md")
    assert named <= fields


def test_every_item_key_and_every_sampler_is_explained():
    names = [name for row in rows(doc("manifest.md"), "| key | values | default |") for name in row[0].split("`")[1::2]]
    assert set(KEYS) <= set(names) <= {*KEYS, *(alias for key in KEYS.values() for alias in key.aliases)}
    listed = doc("manifest.md").partition("**Samplers**")[2].partition("\n\n")[0]
    assert set(SAMPLERS) <= set(re.findall(r"\w+", listed))


def test_every_key_of_a_record_is_explained():
    table = rows(doc("records.md"), "| key | |")
    named = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in table)))
    assert named == {*Record.__dataclass_fields__} - {"making"} | {"run", "env"}
    assert all(f"`{key}`" in doc("records.md") for key in KINDS)


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ )make ([a-z]+)", EVERYTHING)) <= targets


def test_every_promise_names_its_test():
    promises = rows(doc("promises.md"), "| promise | test |")
    assert len(promises) > 10
    for _, name in promises:
        path, _, function = name.strip("`").partition("::")
        assert f"\ndef {function}(" in (ROOT / path).read_text(), name


@pytest.mark.parametrize("path", DOCS, ids=str)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", DOCS[path]):
        assert (ROOT / path.parent / target).exists(), target


def test_every_python_file_that_a_document_names_exists():
    named = {(path, name) for path, text in DOCS.items() for name in re.findall(r"`([\w/]+\.py)`", text)}
    named = {(path, name) for path, name in named if path.name != "migrating.md"}  # it names the original's files
    assert len(named) > 40
    places = ("", "runner", "tests", "tools")
    missing = [f"{path}: {name}" for path, name in named if not any((ROOT / each / name).exists() for each in places)]
    assert not missing


def test_the_exit_codes_are_those_of_the_errors():
    from runner import errors

    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    written = {int(code) for row in rows(doc("promises.md"), "| code | means |") for code in row[0].split(",")}
    assert codes | {0, errors.EXIT_ITEMS_FAILED, errors.EXIT_DIFFERENCE, 130, 143} == written
