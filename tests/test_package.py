import subprocess
import sys
import zipfile
from pathlib import Path

from runner.settings import conf_folder

ROOT = Path(__file__).parents[1]


def test_the_wheel_has_all_that_is_found_without_a_checkout(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    confs = {f"runner/conf/{path.relative_to(conf_folder())}" for path in conf_folder().rglob("*.yaml")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "runner").rglob("*") if "__pycache__" not in path.parts}
    files = {name for name in sources if (ROOT / name).is_file()}
    assert confs <= names
    assert files <= names
    assert "runner/models/emoji/tokenizer/vocab.json" in files
    assert not any(name.startswith(("tests/", "tools/", "outputs/")) for name in names)


def test_the_embedded_model_is_small():
    folder = ROOT / "runner/models/emoji"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 40_000_000
