"""What was measured is kept for the machine and the torch that it was measured with."""

import json
import math
from importlib.metadata import version

import pytest

from runner.machine import describe, speeds


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "runner/machine.json"


def test_what_is_kept_comes_back(cache):
    assert speeds.recall("cpu") == {}
    assert speeds.keep("cpu", {"float32": 0.5, "bfloat16": None}) == cache
    assert speeds.recall("cpu") == {"float32": 0.5, "bfloat16": math.inf}
    speeds.keep("mps", {"float32": 0.1})
    assert speeds.recall("cpu") == {"float32": 0.5, "bfloat16": math.inf}


def test_what_was_measured_on_another_machine_or_torch_does_not_count():
    speeds.keep("cpu", {"float32": 0.5})
    assert speeds.recall("cpu", "another identity") == {}
    assert speeds.recall("cpu") == speeds.recall("cpu", speeds.identity("cpu")) == {"float32": 0.5}


def test_an_identity_names_device_instruction_sets_and_torch():
    found = speeds.identity("cpu")
    assert found.startswith("cpu ") and found.endswith(f" torch {version('torch')}")
    assert set(describe.instruction_sets()) <= set(found.split())


def test_a_device_without_an_identity_is_not_kept(cache):
    assert speeds.keep("cuda:0", {"float32": 0.5}, key="") is None
    assert speeds.recall("cuda:0", key="") == {}
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert speeds.keep("cpu", {"float32": 0.5}) is None
    assert speeds.recall("cpu") == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "\x00", "3", "[" * 10**5]
    + [json.dumps({"KEY": value}) for value in (3, [1], {"float32": "fast"}, {"float32": [1]}, {"float32": -1})]
    + ['{"KEY": {"float32": NaN}}'],
)
def test_a_damaged_file_counts_as_none_and_is_replaced(cache, text):
    speeds.keep("cpu", {"float32": 0.5})
    (key,) = json.loads(cache.read_text())
    cache.write_text(text.replace("KEY", key))
    assert speeds.recall("cpu") == {}
    speeds.keep("cpu", {"float32": 0.25})
    assert speeds.recall("cpu") == {"float32": 0.25}


def test_a_file_that_is_not_text_counts_as_none(cache):
    speeds.keep("cpu", {"float32": 0.5})
    cache.write_bytes(b"\xff\xfe\x00")
    assert speeds.recall("cpu") == {}
