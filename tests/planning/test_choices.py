"""What `auto` means."""

import pytest

from runner.machine import speeds
from runner.planning import choices
from runner.planning.choices import LARGE_UNET


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


SLOW, QUICK = 1.0, 0.1


@pytest.mark.parametrize(
    ("device", "seconds", "flags", "wanted"),
    [
        ("cpu", {}, True, "bfloat16"),
        ("cpu", {}, False, "float32"),
        ("cpu", {"float32": QUICK, "bfloat16": SLOW}, True, "float32"),
        ("cpu", {"float32": SLOW, "bfloat16": QUICK}, False, "bfloat16"),
        ("cpu", {"float32": SLOW, "bfloat16": SLOW}, True, "float32"),
        ("cpu", {"float32": SLOW, "bfloat16": None}, True, "float32"),
        ("cpu", {"float32": SLOW}, True, "bfloat16"),  # half a measurement is none
        ("mps", {}, False, "float16"),
        ("mps", {"float32": SLOW, "float16": SLOW}, False, "float16"),  # it takes half the memory
        ("mps", {"float32": QUICK, "float16": SLOW}, False, "float32"),
        ("mps", {"float32": SLOW, "float16": None}, False, "float32"),
    ],
)
def test_the_number_type_is_chosen_by_what_was_measured(device, seconds, flags, wanted):
    sets = ("avx512_bf16",) if flags else ()
    if seconds:
        speeds.keep(device, seconds)
    assert choices.choose_dtype("autocast", device, LARGE_UNET, sets=sets) == wanted
    assert choices.choose_dtype("full", device, LARGE_UNET) == "float32"
    if device == "cpu":
        assert choices.choose_dtype("autocast", device, LARGE_UNET - 1) == "float32"
    by_rule = "float16" if device == "mps" else "bfloat16" if flags else "float32"
    assert choices.choose_dtype("autocast", device, LARGE_UNET, measured={}, sets=sets) == by_rule


@pytest.mark.parametrize(
    ("precision", "device", "parameters", "bfloat16", "wanted"),
    [
        ("full", "cuda:0", 10**9, True, "float32"),
        ("full", "cpu", 10**9, True, "float32"),
        ("autocast", "cuda:0", 10**6, False, "float16"),
        ("autocast", "cpu", 10**9, True, "bfloat16"),
        ("autocast", "cpu", 10**9, False, "float32"),
        ("autocast", "cpu", 10**6, True, "float32"),
    ],
)
def test_precision(precision, device, parameters, bfloat16, wanted):
    sets = ("bf16",) if bfloat16 else ()
    assert choices.choose_dtype(precision, device, parameters, measured={}, sets=sets) == wanted
