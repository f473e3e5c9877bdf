from collections import Counter

import orjson
import pytest
from builders import make_execution, make_item, record

from runner.machine.describe import device_name
from runner.verbs.plan import forecast
from runner.verbs.plan.forecast import Kind, Made

MODEL = {"unet_encode": "abc"}
HERE = make_execution()


def done(item, seconds=None, run=None, **changes):
    run = {
        "device": "cpu",
        "device_name": device_name("cpu"),
        "dtypes": {"unet_encode": "float32"},
        "turbo": True,
        "unet_bs": 4,
    } | (run or {})
    seconds = seconds or {"encode": 0.1, "denoise": 2.0, "decode": 0.5}
    return record(item, seconds=seconds, run=run, bytes=4000, model={"name": "m", "fingerprints": MODEL}, **changes)


def write(folder, *records):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in records))
    return folder


def read(*folders):
    return forecast.read_past(folders, MODEL, HERE)


def kinds(count=1, **changes):
    return Counter({Kind.of(make_item(**changes)): count})


def made(pictures=2, seconds=None, unet_bs=4, **changes):
    seconds = seconds or {"encode": 0.2, "denoise": 4.0, "decode": 1.0}
    return Made(kinds=kinds(pictures, **changes), bytes=Counter(png=8000), seconds=seconds, unet_bs=unet_bs)


def foretell(wanted, past, rows=4):
    return forecast.forecast(wanted, past, {kind.size: rows for kind in wanted})


def test_the_same_again_takes_as_long():
    found = foretell(kinds(2), [made(2)])
    assert found.seconds == pytest.approx({"encode": 0.2, "denoise": 4.0, "decode": 1.0})
    assert found.pictures == 2
    assert found.disk_bytes == 2 * (4000 + forecast.RECORD_BYTES)


@pytest.mark.parametrize(
    ("changes", "times"),
    [({"steps": 40}, 2), ({"sampler": "dpm2"}, 2), ({"sampler": "heun", "steps": 10}, 19 / 20), ({"scale": 1.0}, 0.5)],
)
def test_denoising_goes_by_the_calls_of_the_unet(changes, times):
    found = foretell(kinds(20, **changes), [made(20)])
    assert found.seconds["denoise"] == pytest.approx(4.0 * times)
    assert found.seconds["decode"] == pytest.approx(1.0)


def test_an_init_picture_saves_steps():
    found = foretell(kinds(2, init="a.png", strength=0.5), [made(2)])
    assert found.seconds["denoise"] == pytest.approx(2.0)


def test_padding_counts():
    assert foretell(kinds(1), [made(2)]).seconds["denoise"] == pytest.approx(4.0)
    assert foretell(kinds(3), [made(2)]).seconds["denoise"] == pytest.approx(8.0)
    assert forecast._call_rows({10: 4, 20: 2}, 4) == 10 * 8 + 10 * 4


def test_pictures_of_the_same_size_are_judged_by_first_and_others_scaled():
    small, large = made(2), made(2, {"encode": 0.2, "denoise": 100.0, "decode": 4.0}, width=128, height=128)
    assert foretell(kinds(2, width=128, height=128), [small, large]).seconds["denoise"] == pytest.approx(100.0)
    assert foretell(kinds(2, width=128, height=128), [small]).seconds["decode"] == pytest.approx(4.0)


def test_without_records_nothing_is_said_of_time():
    found = foretell(kinds(1, width=512, height=512), [])
    assert (found.seconds, found.pictures) == ({}, 0)
    assert found.disk_bytes > 512 * 512
    assert foretell(Counter(), []).disk_bytes == 0


def test_the_newest_records_are_enough():
    fast, slow = made(forecast.ENOUGH), made(1000, {"encode": 1, "denoise": 1e6, "decode": 1})
    assert foretell(kinds(forecast.ENOUGH), [fast, slow]).seconds["denoise"] == pytest.approx(4.0)


def test_pictures_of_a_wave_are_put_together_again(tmp_path):
    one, other = {"encode": 0.1, "denoise": 1.0, "decode": 0.1}, {"encode": 0.1, "denoise": 3.0, "decode": 0.1}
    folder = write(
        tmp_path / "a",
        *(done(make_item(number=n), one) for n in range(3)),
        *(done(make_item(number=n), other) for n in (3, 4)),
    )
    newest, oldest = read(folder)
    assert (newest.kinds.total(), newest.seconds["denoise"]) == (2, pytest.approx(6.0))
    assert (oldest.kinds.total(), oldest.seconds["denoise"], oldest.bytes["png"]) == (3, pytest.approx(3.0), 12000)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": {"device": "cuda:0"}},
        {"run": {"device_name": "A slow one"}},
        {"run": {"dtypes": {"unet_encode": "float16"}}},
        {"run": {"unet_bs": 0}},
        {"seconds": {"denoise": "long"}},
        {"item": make_item().to_dict() | {"steps": "many"}},
        {"item": make_item().to_dict() | {"crop": None, "width": [1]}},
        {"item": None},
    ],
    ids=str,
)
def test_records_of_something_else_and_odd_ones_are_passed_over(tmp_path, changes):
    run, seconds = changes.pop("run", None), changes.pop("seconds", None)
    strange = done(make_item(), seconds, run) | changes
    whole = done(make_item())
    assert [each.kinds.total() for each in read(write(tmp_path / "a", strange, whole))] == [1]
    other = done(make_item()) | {"model": {"name": "n", "fingerprints": {"unet_encode": "xyz"}}}
    assert read(write(tmp_path / "b", other)) == []


def test_torn_lines_and_missing_files_do_no_harm(tmp_path):
    folder = write(tmp_path / "a", done(make_item()))
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'[]\n{"id": "torn\n"text"\n\xff\n')
    (tmp_path / "b/records.jsonl").mkdir(parents=True)
    assert len(read(folder, tmp_path / "nowhere", tmp_path / "b")) == 1


def test_only_the_tail_of_a_file_is_read(tmp_path, limit):
    folder = write(tmp_path / "a", *(done(make_item(number=n)) for n in range(50)))
    limit(forecast, LINES_READ=7)
    assert sum(each.kinds.total() for each in read(folder)) == 7
    last = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)[-3:]
    limit(forecast, TAIL_BYTES=len(b"".join(last)) - 1)
    assert sum(each.kinds.total() for each in read(folder)) == 2
