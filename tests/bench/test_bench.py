import dataclasses
import json
import shutil
import sys

import numpy as np
import orjson
import pytest
import single_file
import tiny
from PIL import Image
from safetensors.torch import save_file

from runner import cli, settings
from runner.bench import bench
from runner.bench.worker import Job, Stock
from runner.cli.verbs import VERBS, Call
from runner.errors import ModelError, SettingError

STATED = {
    "ready_seconds": 3.0,
    "first_picture_seconds": 4.0,
    "load_peak_bytes": 1 << 30,
    "process_peak_bytes": 2 << 30,
    "dtype": "float32",
    "rows": 2,
    "threads": 1,
    "omp_waiting": "",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


class FakeProcesses:
    """Answers in place of processes: seconds for each turn of a contender, or None for one that fails."""

    def __init__(self, picture, **seconds):
        self.picture, self.seconds, self.turns = str(picture), seconds, []

    def ask(self, job, log):
        return [self.answer(job)]

    def answer(self, job):
        if job.task == "describe":
            return {"run": {"device": "cpu", "device_name": "a CPU", "threads": 1}, "env": {"torch": "2"}}
        turn, name = job.folder.name.split("-", 1)
        self.turns.append(name)
        seconds = self.seconds[name][int(turn)]
        if seconds is None:
            return {"error": "no memory left"}
        return STATED | {"seconds": seconds, "peak_bytes": int(seconds) << 30, "files": [self.picture]}


@pytest.fixture
def fake(folder):
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")

    def start(**seconds):
        processes = FakeProcesses(folder / "red.png", **seconds)
        names = f"bench.contenders=[{','.join(seconds)}]"
        rounds = f"bench.rounds={len(next(iter(seconds.values())))}"
        return processes, settings.compose([names, rounds, "bench.images=6"])

    return start


@pytest.mark.some(0)
def test_the_real_thing(folder, model, capsys):
    words = ["bench.images=3", "bench.steps=2", "bench.rounds=1", "bench.contenders=[stock_full,runner_streamed]"]
    assert cli.main(["bench", f"model.path={model}", *words, "json=true", "out=here"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    stock, runner = report["rows"]
    assert (stock["name"], runner["name"]) == ("stock_full", "runner_streamed")
    assert stock["ratio"] == 1
    assert runner["ratio"] == pytest.approx(stock["seconds"][0] / runner["seconds"][0])
    assert runner["psnr"] > 50
    assert runner["largest_difference"] <= 1
    assert stock["psnr"] is stock["overhead"] is stock["loads_per_step"] is None
    assert runner["loads_per_step"] == 1
    assert 0 < runner["overhead"] < 1
    assert (stock["rows"], runner["rows"]) == (2, 32)
    assert (stock["omp_waiting"], runner["omp_waiting"]) == ("OMP_WAIT_POLICY=passive",) * 2  # as the tests have it
    for row in report["rows"]:
        assert row["first_picture_seconds"] > row["ready_seconds"] > 0
        assert row["pictures_per_second"] == pytest.approx(3 / row["seconds"][0])
        assert row["peak_bytes"] == row["process_peak_bytes"] > 50 << 20
        assert row["dtype"] == "float32"
    assert report["machine"]["device"] == "cpu"
    assert report["versions"].keys() >= {"torch", "diffusers", "accelerate"}
    assert "round 1/1: runner_streamed: " in printed.err
    assert sorted(path.name for path in (folder / "here").iterdir()) == [
        "bench.json", "bench.log", "bench.md",
    ]  # fmt: skip
    assert json.loads((folder / "here/bench.json").read_text()) == report


def test_rounds_alternate_and_a_ratio_is_the_median_of_the_rounds_own(fake):
    processes, chosen = fake(stock_full=[2.0, 20.0, 3.0], runner=[1.0, 5.0, 1.0])
    report = bench.bench(chosen, "runner bench", ask=processes.ask)
    assert processes.turns == ["stock_full", "runner", "runner", "stock_full", "stock_full", "runner"]
    stock, runner = report.rows
    assert runner["ratios"] == [2.0, 4.0, 3.0]
    assert runner["ratio"] == 3.0
    assert stock["ratio"] == 1.0
    assert (stock["pictures_per_second"], runner["pictures_per_second"]) == (2.0, 6.0)
    assert runner["peak_bytes"] == 5 << 30
    assert (runner["psnr"], runner["largest_difference"]) == (float("inf"), 0)


def test_a_contender_that_fails_is_reported_and_gets_no_other_turn(fake, capsys, monkeypatch):
    processes, chosen = fake(runner_full=[None, None], stock_full=[1.0, 1.0])
    monkeypatch.setattr(bench, "ask_process", processes.ask)
    assert VERBS["bench"].run(Call(targets=(), settings=chosen, overrides=())) == 3
    assert processes.turns == ["runner_full", "stock_full", "stock_full"]
    assert "failed: runner_full: no memory left" in capsys.readouterr().out


def test_without_the_baseline_there_are_no_ratios_and_nothing_to_compare_with(fake):
    processes, chosen = fake(runner=[1.0])
    [row] = bench.bench(chosen, "runner bench", ask=processes.ask).rows
    assert row["ratio"] is row["psnr"] is None
    assert row["pictures_per_second"] == 6.0


def test_stock_diffusers_takes_the_fastest_batch_even_if_the_search_ran_out_of_memory(fake):
    processes, chosen = fake(stock_full_batched=[1.0])
    tried = [{"batch": 1, "seconds": 3.0}, {"batch": 2, "seconds": 1.0}, {"batch": 4, "seconds": 2.0}]
    asked = []

    def ask(job, log):
        asked.append(job.stock)
        return [*tried, {"error": "killed"}] if job.task == "batch" else processes.ask(job, log)

    assert not bench.bench(chosen, "runner bench", ask=ask).problems
    assert asked[-1] == Stock(half=False, batch=2)
    tried.clear()
    assert bench.bench(chosen, "runner bench", ask=ask).problems == ["stock_full_batched: killed"]


def names(*overrides):
    return [contender.name for contender in bench.contenders(settings.compose(list(overrides)))]


def test_contenders_for_a_gpu_are_there_with_one():
    on_cpu, on_gpu = names("device=cpu"), names("device=cuda:0")
    assert set(on_gpu) - set(on_cpu) == {"stock_model_offload", "stock_group_offload", "stock_sequential_offload"}
    assert on_cpu[0] == "stock_full"
    assert "runner_1200MB" in names("device=cpu", "bench.ceilings=[1200MB]")
    assert len(set(on_gpu)) == len(on_gpu)


def test_every_contender_has_settings_that_are_valid():
    chosen = settings.compose(["device=cuda:0", "bench.ceilings=[1200MB]"])
    for contender in bench.contenders(chosen):
        changed = dataclasses.replace(chosen, **contender.changes)
        assert (changed.memory == 1_200_000_000) == (contender.name == "runner_1200MB")


def test_contenders_whose_unet_is_compiled(installed):
    installed("openvino")
    asked = ["turbo=false", "compile=true"]  # each contender says of both what it needs
    known = {each.name: each.changes for each in bench.contenders(settings.compose(["device=cpu", *asked]))}
    assert known["runner_compiled"] == {"turbo": None, "compile": True}
    assert known["runner_streamed"] == {"turbo": False, "compile": False}
    assert known["runner_openvino"] == {"turbo": None, "compile": "openvino"}
    assert "runner_openvino" not in names("device=cuda:0")


@pytest.mark.parametrize("name", ["runner_openvino", "stock_group_offload"])
def test_names_of_any_device_are_known_before_the_device_is(folder, installed, name):
    class Reached(Exception):
        pass

    def reach(*_):
        raise Reached

    installed("openvino")
    with pytest.raises(Reached):
        bench.bench(settings.compose([f"bench.contenders=[{name}]"]), "runner bench", ask=reach)


def test_contenders_are_chosen_by_name():
    known = bench.contenders(settings.compose(["device=cpu"]))
    assert bench.choose(known, ["all"]) == known
    assert [each.name for each in bench.choose(known, ["runner", "stock_full", "runner"])] == ["runner", "stock_full"]
    with pytest.raises(SettingError, match="did you mean 'runner_streamed'"):
        bench.choose(known, ["runner_steamed"])
    with pytest.raises(SettingError, match="'stock_group_offload' is no contender on this machine"):
        bench.choose(known, ["stock_group_offload"])
    with pytest.raises(SettingError, match="name some of all, usual, stock_full"):
        bench.choose(known, [])


def test_the_usual_contenders_are_those_that_there_are(installed):
    usual = ["stock_full", "stock_full_batched", "runner", "runner_streamed"]
    for there in (True, False):
        installed("openvino", there=there)
        known = bench.contenders(settings.compose(["device=cpu"]))
        chosen = [each.name for each in bench.choose(known, settings.compose([]).bench.contenders)]
        assert chosen == usual + ["runner_openvino"] * there


def test_others_are_measured_by_stock_diffusers_as_people_run_it():
    assert (bench.baseline("cpu"), bench.baseline("cuda:0")) == ("stock_full", "stock_half")


def test_pictures_are_compared_byte_by_byte(tmp_path):
    grey = np.full((64, 64, 3), 100, dtype=np.uint8)
    other = grey.copy()
    other[0, 0, 0] = 90
    for name, pixels in (("grey", grey), ("other", other)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    files = [str(tmp_path / "grey.png")] * 2
    psnr, largest = bench.compare(files, [files[0], str(tmp_path / "other.png")])
    assert largest == 10
    assert psnr == pytest.approx(10 * np.log10(255**2 / (100 / grey.size / 2)))
    assert bench.compare(files, files) == (float("inf"), 0)


def test_a_process_that_dies_is_an_error_and_its_answers_are_kept(tmp_path, limit):
    program = (
        "import os, sys; print('{\"batch\": 1}', flush=True); print('oh', file=sys.stderr); os.kill(os.getpid(), 9)"
    )
    limit(bench, WORKER=(sys.executable, "-c", program))
    job = Job(task="batch", settings=settings.compose([]), inputs=tmp_path, folder=tmp_path)
    log = tmp_path / "bench.log"
    assert bench.ask_process(job, log) == [{"batch": 1}, {"error": f"its process ended with code -9, see {log}"}]
    assert log.read_text() == "oh\n"


def test_what_is_wrong_with_the_settings_is_said_once(fake):
    _, chosen = fake(stock_full=[1.0])
    with pytest.raises(SettingError, match="cuda:7: this machine has no such device"):
        bench.bench(
            chosen, "runner bench", ask=lambda job, log: [{"error": "device=cuda:7: this machine has no such device"}]
        )


def test_a_single_file_is_refused_since_stock_diffusers_could_not_read_it(folder, capsys):
    parts = single_file.small(1)
    save_file(single_file.to_compvis(parts), file := folder / "model.safetensors")
    assert cli.main(["bench", f"model.path={file}"]) == 2
    assert "bench needs a diffusers folder" in capsys.readouterr().err


def test_a_model_with_random_weights_is_written_once_to_the_cache(folder, model):
    asked = []

    def write(job, log):
        asked.append(job.task)
        shutil.copytree(model, job.folder)
        return [{}]

    with pytest.raises(ModelError, match=r"model\.path=random:sd16: did you mean 'sd15'"):
        bench.with_model(settings.compose(["model.path=random:sd16"]), print, write)
    chosen = settings.compose(["bench=sd15"])
    made = [bench.with_model(chosen, print, write).model.path for _ in range(2)]
    assert asked == ["random_model"]
    assert made == [str(folder / "cache/runner/bench-sd15")] * 2
    shutil.rmtree(made[0])
    with pytest.raises(ModelError, match="the disk is full"):
        bench.with_model(chosen, print, lambda job, log: [{"error": "the disk is full"}])


def test_all_pictures_differ_and_the_warm_up_has_texts_of_its_own(tmp_path):
    chosen = settings.compose(["bench.images=70"]).bench
    bench._write_items(tmp_path, chosen)
    items = [orjson.loads(line) for line in (tmp_path / bench.ITEMS).read_bytes().splitlines()]
    [warm_up] = [orjson.loads(line) for line in (tmp_path / bench.WARM_UP).read_bytes().splitlines()]
    assert len({(item["prompt"], item["seed"]) for item in items}) == 70
    assert len({item["prompt"] for item in items}) == 64
    assert warm_up["steps"] == 1
    assert not {warm_up["prompt"], warm_up["negative"]} & {"", *(item["prompt"] for item in items)}
