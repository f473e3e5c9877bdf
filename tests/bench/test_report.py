import io
import json
import re

import pytest
from PIL import Image
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


def test_the_picture_has_a_dot_for_each_contender_that_finished(report, tmp_path):
    [_, _, file] = bench_report.write_files(report, tmp_path)
    with Image.open(file) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(0xC2, 0x41, 0x0C), (0x85, 0x81, 0x7A)} <= colours
    across, up = bench_report.scale([1.0, 1.0]), bench_report.scale([2.0, 2.0])
    x, y = bench_report._place(1.0, 2.0, across, up)
    assert bench_report.draw(report).getpixel((round(x), round(y))) in {(0xC2, 0x41, 0x0C), (0x85, 0x81, 0x7A)}


def test_labels_do_not_overlap(report):
    many = Report(
        **{
            **{field: getattr(report, field) for field in ("command", "bench", "machine", "versions")},
            "rows": [ROW | {"name": f"runner_{number}"} for number in range(9)],
        }
    )
    taken = []
    pen = bench_report.ImageDraw.Draw(Image.new("RGB", (bench_report.WIDTH, bench_report.HEIGHT)))
    for row in many.rows:
        bench_report._write_beside(pen, 300, 200, row["name"], "red", taken)
    for index, one in enumerate(taken):
        assert all(one[0] > b[2] or b[0] > one[2] or one[1] > b[3] or b[1] > one[3] for b in taken[:index])
    assert bench_report.draw(many).size == (bench_report.WIDTH, bench_report.HEIGHT)


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([0.6], [0.0, 0.2, 0.4, 0.6, 0.8]),
        ([3.0, 1.0], [0, 1, 2, 3, 4]),
        ([0.043], [0.0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        ([70], [0, 20, 40, 60, 80]),
        ([], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]),
    ],
)
def test_an_axis_has_round_marks_from_zero_to_beyond_the_largest(values, marks):
    assert bench_report.scale(values) == pytest.approx(marks)
