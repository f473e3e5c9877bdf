import io
import json
import re

import pytest
from rich.console import Console

from runner.bench import report as bench_report
from runner.bench.bench import Report

ROW = {
    "name": "runner", "problem": "", "pictures_per_second": 2.0, "ratio": 2.5, "ratios": [2.5], "seconds": [2.0],
    "ready_seconds": 3.0, "first_picture_seconds": 4.25, "peak_bytes": 1 << 30, "process_peak_bytes": 3 << 29,
    "load_peak_bytes": 1 << 29, "psnr": float("inf"), "largest_difference": 0, "overhead": 0.043,
    "loads_per_step": None, "dtype": "float32", "rows": 32, "threads": 2, "omp_waiting": "OMP_WAIT_POLICY=passive",
}  # fmt: skip
FAILED = dict.fromkeys(ROW) | {"name": "stock_half", "problem": "no [memory]\nleft"}


@pytest.fixture
def report():
    return Report(
        command="runner bench",
        bench={"name": "emoji", "images": 4, "size": 64, "steps": 20, "rounds": 3},
        machine={
            "cpu": "a CPU", "cores": 2, "memory_bytes": 24 << 30, "system": "Linux", "date": "2026-01-02",
            "device": "cpu", "device_name": "a CPU", "threads": 2,
        },
        versions={"torch": "2.13.0"},
        rows=[ROW, FAILED, ROW | {"name": "stock_full", "psnr": None, "largest_difference": None, "overhead": None}],
    )  # fmt: skip


def test_the_table_fits_a_terminal_and_names_what_failed(report):
    out = io.StringIO()
    bench_report.print_table(report, Console(file=out, width=80))
    text = out.getvalue()
    assert re.search(r"│ runner +│ +2 │ +2\.50 │ +1\.00 │ +4\.2 │ +inf │ +0 │", text)
    assert "4.3%" in text
    assert "failed: stock_half: no [memory]" in text
    assert "…" not in text
    assert "to stock_full's" in text


def test_markdown_has_machine_versions_and_command(report):
    text = bench_report.to_markdown(report)
    assert "`runner bench`" in text
    assert "2026-01-02, a CPU, 2 cores, 24 GiB, 2 threads, device cpu; torch 2.13.0" in text
    assert "| runner | 2 | 2.50 | 1.00 | 4.2 | inf | 0 |" in text
    assert "| stock_full | 2 | 2.50 | 1.00 | 4.2 |  |  |" in text
    assert "- failed: stock_half: no [memory] left" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {len(bench_report.COMPARED) + 2, len(bench_report.DETAILS) + 2}


def test_json_is_whole(report):
    document = json.loads(bench_report.as_json(report))
    assert document["rows"][0] == ROW | {"psnr": None}
    assert set(document) == {"command", "bench", "machine", "versions", "rows"}


def test_the_files_are_a_document_and_json(report, tmp_path):
    files = bench_report.write_files(report, tmp_path)
    assert [file.name for file in files] == ["bench.json", "bench.md"]
    assert json.loads(files[0].read_text())["command"] == report.command
    assert files[1].read_text().startswith("### ")
