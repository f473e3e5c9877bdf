import itertools

import pytest
import tiny
from builders import make_item

from runner import plan, settings, weights
from runner.errors import SettingError
from runner.plan import Execution


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return weights.find_model(str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")))


def execution(**changes):
    return Execution(**({"device": "cpu", "dtype": "float32", "turbo": True, "unet_bs": None} | changes))


def items(count, **changes):
    return [make_item(number=number, **changes) for number in range(count)]


def test_rows_depend_on_the_size_and_the_device_alone():
    small, large = make_item(), make_item(width=512, height=512)
    assert execution().rows(small, 8) == 32
    assert execution().rows(large, 8) == 2
    assert execution(device="cuda:0").rows(large, 8) == 16
    assert execution().rows(make_item(width=4096, height=4096), 8) == 2
    assert execution(unet_bs=5).rows(large, 8) == execution(unet_bs=5).rows(small, 8) == 5


def test_every_item_is_in_one_wave_and_waves_are_of_one_size():
    wanted = [
        make_item(
            number=n, width=64 * (1 + n % 3), sampler=("ddim", "euler")[n % 2], steps=10 + n % 5, scale=1.0 + n % 2
        )
        for n in range(500)
    ]
    waves = list(plan.group(wanted, execution(), 8))
    assert sorted(item.number for wave in waves for item in wave.items) == list(range(500))
    assert all(len({(item.width, item.height) for item in wave.items}) == 1 for wave in waves)


def test_like_goes_with_like_while_there_is_enough_of_it():
    wanted = [make_item(number=n, sampler=("ddim", "heun")[n % 2]) for n in range(128)]
    waves = list(plan.group(wanted, execution(), 8))
    assert all(len({item.sampler for item in wave.items}) == 1 for wave in waves)
    assert {len(wave.items) for wave in waves} == {32}


def test_what_is_left_over_shares_waves():
    wanted = [make_item(number=n, steps=1 + n) for n in range(40)]
    assert len(list(plan.group(wanted, execution(), 8))) == 2


def test_grouping_is_lazy_and_bounded():
    taken = itertools.count()

    def endless():
        for number in itertools.count():
            next(taken)
            yield make_item(number=number, steps=1 + number % 500)

    waves = plan.group(endless(), execution(), 8)
    for _ in range(20):
        next(waves)
    assert next(taken) < 20 * 32 + 8 * 32 + 32


def test_waves_come_early_where_pictures_are_large():
    assert len(next(plan.group(items(50, width=512, height=512), execution(), 8)).items) == 1
    assert len(next(plan.group(items(50, width=512, height=512), execution(turbo=False), 8)).items) == 8


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
def test_precision(monkeypatch, precision, device, parameters, bfloat16, wanted):
    monkeypatch.setattr(plan, "_cpu_multiplies_bfloat16", lambda: bfloat16)
    assert plan.choose_dtype(precision, device, parameters) == wanted


def test_the_unet_stays_where_it_fits(model):
    auto = settings.compose([])
    assert plan.decide(auto, model, "cpu", None).turbo
    assert plan.decide(auto, model, "cuda:0", 8 << 30).turbo
    assert not plan.decide(auto, model, "cuda:0", 1 << 20).turbo
    assert not plan.decide(settings.compose(["memory=1MiB"]), model, "cuda:0", 8 << 30).turbo
    assert not plan.decide(settings.compose(["turbo=false"]), model, "cpu", None).turbo


def test_devices():
    available = ["cuda:0", "cuda:1", "cpu"]
    assert plan.check_device("auto", available) == "cuda:0"
    assert plan.check_device("cuda", available) == "cuda:0"
    assert plan.check_device("cuda:1", available) == "cuda:1"
    with pytest.raises(SettingError, match="has cpu"):
        plan.check_device("cuda", ["cpu"])


def test_memory_grows_with_what_needs_it(model):
    def needed(rows, side, **changes):
        wave = plan.Wave(items=(make_item(width=side, height=side),), unet_bs=rows)
        return plan.memory_bytes(wave, execution(**changes), model)

    assert needed(2, 64) < needed(8, 512) < needed(32, 512)
    assert needed(2, 64, turbo=False) <= needed(2, 64)
    assert needed(2, 64, device="cuda:0") < needed(2, 64)
