"""The tools for cards, dry: on the CPU, and with numbers instead of a card."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import tiny

TOOLS = Path(__file__).parents[1] / "tools"


def load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def findings(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_the_check_of_a_card_runs_dry(tmp_path, capsys):
    """Every phase but the compiler's, in this process; of stock's ways the first, or all with RUNNER_THOROUGH=1."""
    check = load("gpu_check")
    left_out = ("compiled",) if os.environ.get("RUNNER_THOROUGH") == "1" else ("compiled", "stock_")
    phases = [name for name in check.PHASES if name == "stock_half" or not name.startswith(left_out)]
    assert check.main([*phases, "--dry", "--here", "--out", str(tmp_path)]) == 0
    found = findings(tmp_path)
    assert {each["phase"] for each in found} == {"environment", "small", "sanitized", "full", "speed", "profile"}
    [small] = [each for each in found if each["phase"] == "small"]
    assert (small["again"], small["streamed"], small["shuffled"], small["alone"]) == ([], [], [], [])
    assert small["levels_from_cpu"] == 0
    [places] = [each for each in found if "place_in_call_counts" in each]
    assert not places["place_in_call_counts"] and not places["neighbours_count"]
    assert [each["differ"] for each in found if "way" in each and each["phase"] == "full"] == [[], []]
    speeds = {each["contender"] for each in found if each["phase"] == "speed"}
    assert speeds == {name for name in phases if name.startswith(("stock", "resident", "ceiling"))}
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["phase"] == "speed"  # what decides comes last


def test_a_phase_that_dies_costs_no_other(tmp_path, monkeypatch):
    check = load("gpu_check")
    monkeypatch.setattr(check, "SHIPPED", tmp_path / "nothing")
    monkeypatch.setitem(check.PHASES, "sanitized", (check.sanitized, 0.01))
    assert check.main(["sanitized", "--dry", "--out", str(tmp_path)]) == 1
    assert "took more than 0.01 s" in findings(tmp_path)[-1]["problem"]
    with pytest.raises(SystemExit):
        check.main(["smal"])


def test_a_card_is_simulated_with_the_real_plan(tmp_path):
    """No copy takes longer than the ceiling of arithmetic; with all units staying, nothing is lost."""
    simulate = load("simulate")
    units = simulate.units_of(str(tiny.save_model(tmp_path / "tiny")), 64)
    assert list(units)[:2] == ["time_embedding", "conv_in"] and units["conv_in"].uses == 64
    assert all(unit.size > 0 for unit in units.values())
    slow = simulate.Card("slow", 1e-6, 1e3, 30)  # it computes for so long that all copies are hidden
    fast = simulate.Card("fast", 1e3, 1e-3, 30)  # it waits for each of them
    ours, resident = simulate.step_seconds(units, (), 4, slow)
    assert resident == pytest.approx(ours, rel=0.02)
    ours, resident = simulate.step_seconds(units, (), 4, fast)
    assert ours == pytest.approx(sum(unit.size for unit in units.values()) / 1e6, rel=0.02) and resident < ours / 1e3
    ours, resident = simulate.step_seconds(units, list(units)[1:], 4, simulate.Card("card", 1e-3, 1e3, 30))
    assert ours == pytest.approx(resident, rel=0.02)
