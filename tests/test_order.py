"""The order of the modules: each imports from lower layers or earlier ones of its own, and light verbs stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import runner
from runner import cli

PACKAGE = Path(runner.__file__).parent
LAYERS = (
    ("errors", "lazy", "spec", "events", "settings", "openmp"),
    ("rounding", "stops", "files", "heap", "tokens", "stored", "pickled", "torch_file", "compvis"),
    ("weights", "costs", "machine"),
    ("inits", "grid", "yaml_nodes", "prompts", "values", "manifest", "manifest_schema", "expand", "json_lines"),
    ("records", "images"),
    ("pictures", "contact_sheet", "gallery", "request", "backlog", "plan", "forecast", "lint", "survey", "survey_text"),
    ("judge", "infotext", "regroup", "extract"),
    ("samplers", "checkpoint", "upsampling", "attention", "layers", "opaque", "packed_file", "parking", "lanes"),
    ("fragments", "compiled", "strips", "stages", "random_model"),
    ("execute", "probes"),
    ("loading", "session", "run", "verify", "doctor", "doctor_text"),
    ("progress",),
    ("studio",),
    ("web_text", "web"),
    ("bench_worker", "bench", "bench_report"),
    ("cli",),
    ("__main__",),
)
ORDER = [name for layer in LAYERS for name in layer]


def imported(module: str) -> set[str]:
    """The modules of the package that a module imports at its top, not inside its functions."""
    found = set()
    for node in ast.parse((PACKAGE / f"{module}.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module == "runner":
            found |= {alias.name for alias in node.names if (PACKAGE / f"{alias.name}.py").exists()}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("runner."):
            found.add(node.module.split(".")[1])
    return found


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_downwards(module):
    above = {other for other in imported(module) if ORDER.index(other) >= ORDER.index(module)}
    assert not above


def heavy_after(statement: str) -> list[str]:
    code = f"import sys\n{statement}\nprint([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize(
    "statement",
    ["import runner.cli", "import runner.survey_text", "import runner.progress", "import runner.bench_report"],
)
def test_light_modules_do_not_import_torch(statement):
    assert heavy_after(statement) == []


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
