import subprocess
import sys
from types import SimpleNamespace

import pytest

from runner import openmp


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setattr(openmp, "os", SimpleNamespace(environ={}))
    return openmp.os.environ


def test_threads_wait_awake_for_a_moment(environment):
    openmp.settle()
    assert environment == {"GOMP_SPINCOUNT": str(openmp.SPINS)}
    assert openmp.environment() == f"GOMP_SPINCOUNT={openmp.SPINS}"


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}])
def test_what_the_environment_says_stays(environment, said):
    environment.update(said)
    openmp.settle()
    assert environment == said


def test_it_can_be_settled_before_torch_is_there():
    script = "import sys; from runner import cli; cli.openmp.settle(); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
