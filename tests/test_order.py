"""The order of the packages that docs/architecture.md declares, and which modules may import torch."""

import ast
import itertools
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import tiny

import runner
from runner import cli

PACKAGE = Path(runner.__file__).parent
DECLARATION = PACKAGE.parent / "docs/architecture.md"
ROWS = [re.findall(r"[\w/]+", row) for row in re.findall(r"^\| `([\w/ ]+)` \|", DECLARATION.read_text(), re.MULTILINE)]
RANKS = {room.rstrip("/"): rank for rank, row in enumerate(ROWS) for room in row}
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imported(module: str) -> set[str]:
    """The modules of the package that a module imports at its top, not inside its functions."""
    found = set()
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "runner":
            place = (node.module or "").removeprefix("runner").lstrip(".")
            inside = {f"{place}.{alias.name}".lstrip(".") for alias in node.names}
            found |= (inside & MODULES.keys()) or {place or "__init__"}
    return found


def room(module: str) -> str:
    """The file or package of the declaration that a module belongs to."""
    return module.partition(".")[0]


def test_every_file_and_package_has_its_row():
    assert RANKS.keys() == {room(module) for module in MODULES} - {"__init__"}


def test_imports_point_to_rows_above():
    below = [
        f"{module} imports {other}"
        for module in MODULES.keys() - {"__init__"}
        for other in imported(module) - {"__init__"}
        if RANKS[room(other)] > RANKS[room(module)]
    ]
    assert not below


def test_no_import_goes_in_a_circle():
    assert list(TopologicalSorter({module: imported(module) for module in MODULES}).static_order())


def test_verbs_do_not_know_each_other():
    verbs = {module: module.split(".")[1] for module in MODULES if module.startswith("verbs.")}
    crossing = {(a, b) for a in verbs for b in imported(a) & verbs.keys() if verbs[a] != verbs[b]}
    assert not crossing


def test_every_package_says_what_it_is_for():
    packages = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    said = {path.parent.name: ast.get_docstring(ast.parse(path.read_text())) or "" for path in packages}
    assert [name for name, text in said.items() if "Begin with" not in text] == ["verbs"]


def test_files_and_functions_stay_short():
    long = [name for name, path in MODULES.items() if len(path.read_text().splitlines()) > 400]
    functions = itertools.chain.from_iterable(
        (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
        for path in MODULES.values()
    )
    assert not long
    assert not [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= 40]


def heavy_after(statement: str) -> list[str]:
    code = f"import sys\n{statement}\nprint([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("module", ["cli", "verbs.plan.text", "report.progress", "bench.report"])
def test_light_modules_do_not_import_torch(module):
    assert heavy_after(f"import runner.{module}") == []


def test_help_and_plan_do_not_import_torch(tmp_path):
    manifest = tmp_path / "m.yaml"
    manifest.write_text("version: 1\njobs: [{prompts: [cat], seeds: 1-3, width: 64, height: 64}]\n")
    assert heavy_after("from runner import cli; assert cli.main(['extract', 'nowhere.png']) == 4") == []
    for words in (["--help"], ["run", "--help"], ["plan", str(manifest)], ["run", "--cfg", "job"]):
        assert heavy_after(f"from runner import cli; assert cli.main({words!r}) == 0") == []


def test_a_run_of_which_nothing_is_missing_does_not_import_torch(tmp_path):
    manifest = tmp_path / "m.yaml"
    manifest.write_text("version: 1\njobs: [{prompts: [cat], seeds: 1-3, width: 64, height: 64, steps: 1}]\n")
    words = ["run", str(manifest), f"model.path={tiny.save_model(tmp_path / 'tiny')}", f"out={tmp_path / 'out'}"]
    assert cli.main(words) == 0
    assert heavy_after(f"from runner import cli; assert cli.main({words!r}) == 0") == []


def test_a_run_with_an_engine_of_its_own_does_not_import_torch(tmp_path):
    manifest = tmp_path / "m.yaml"
    manifest.write_text("version: 1\njobs: [{prompts: [cat], seeds: 1-3, width: 64, height: 64, steps: 1}]\n")
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from fake_engine import FakeEngine
from runner import settings
from runner.request import read_request
from runner.verbs.run.run import run
request = read_request(Path({str(manifest)!r}), settings.compose(["out={tmp_path / "out"}"]))
assert list(run(request, FakeEngine()))[-1].done == 3"""
    assert heavy_after(code) == []


def test_tests_replace_no_private_names_and_few_functions():
    tests = [path.read_text() for path in Path(__file__).parent.rglob("*.py")]
    replaced = re.findall(r"setattr\(([^,\n]+), *\"?([\w.]+)", "\n".join(tests))
    assert len(replaced) <= 40
    assert not [name for _, name in replaced if name.startswith("_")]
