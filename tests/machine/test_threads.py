import subprocess
import sys
from types import SimpleNamespace

import pytest

from runner.machine import threads


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setattr(threads, "os", SimpleNamespace(environ={}))
    return threads.os.environ


def test_threads_wait_awake_for_a_moment(environment):
    threads.settle()
    assert environment == {"GOMP_SPINCOUNT": str(threads.SPINS)}
    assert threads.environment() == f"GOMP_SPINCOUNT={threads.SPINS}"


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}])
def test_what_the_environment_says_stays(environment, said):
    environment.update(said)
    threads.settle()
    assert environment == said


def test_it_can_be_settled_before_torch_is_there():
    script = "import sys; from runner.cli import verbs; verbs.threads.settle(); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
