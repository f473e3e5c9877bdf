import itertools
from dataclasses import replace
from types import MappingProxyType

import pytest
import tiny
from builders import make_item

from runner import settings
from runner.errors import SettingError
from runner.machine import cache
from runner.model import files
from runner.planning import choices, costs
from runner.planning import layouts as planning_layouts
from runner.planning import waves as planning_waves
from runner.planning.layouts import Execution

COMPONENTS = "text_encoder", "unet", "vae"
ALL_STAY, UNET_STAYS, ALL_LEAVE = (
    dict(zip(COMPONENTS, way, strict=True))
    for way in (planning_layouts.ALL_STAY, planning_layouts.UNET_STAYS, planning_layouts.ALL_LEAVE)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return files.find_model(str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture(autouse=True)
def nothing_measured(limit):
    """No peaks that other tests left, and none of what a model takes however small it is."""
    limit(costs, LEAST_STAGE=0)
    (cache.cache_folder() / "peaks.json").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def make(model):
    def make(device="cpu", dtype="float32", **changes):
        return Execution(dtype=dtype, costs=costs.model_costs(model, device, dtype, 100 << 20), **changes)

    return make


def items(count, **changes):
    return [make_item(number=number, **changes) for number in range(count)]


def test_rows_depend_on_the_size_and_the_device_alone(make):
    assert make().layout(64, 64).unet_bs == 32
    assert make().layout(512, 512).unet_bs == 2
    assert make(device="cuda:0").layout(512, 512).unet_bs == 16
    assert make().layout(4096, 4096).unet_bs == 2
    assert make(unet_bs=5).layout(512, 512).unet_bs == make(unet_bs=5).layout(64, 64).unet_bs == 5


def test_rows_fill_a_card_and_waves_hide_what_is_streamed(make):
    """Fewer rows fill a small card; a fast one is done with 16 rows before the next weights are there."""
    for processors, rows, wave_rows in ((30, 4, 16), (82, 8, 16), (132, 16, 48), (None, 16, 16)):
        execution = make(device="cuda:0", processors=processors)
        assert execution.layout(512, 512).unet_bs == rows
        streamed = replace(execution, turbo=False).layout(512, 512)
        assert (streamed.unet_bs, streamed.wave_rows) == (rows, wave_rows)
    sizes = [layout.wave_rows for layout in make(device="cuda:0", processors=132, turbo=False).layouts(512, 512)]
    assert sizes[:3] == [48, 32, 16]


def test_what_a_ceiling_leaves_stays(make, limit):
    """From streamed to resident without a gap, unless little memory was asked for itself."""
    limit(planning_layouts, LEAST_KEPT=1)
    [*_, least] = make(turbo=False, unet_bs=2).layouts(64, 64)
    weights = make().costs.weights["unet"]
    for more in (0, 1, weights // 2, weights, 2 * weights):
        chosen = make(turbo=False, unet_bs=2, limit=least.peak + more)
        assert chosen.layout(64, 64).kept <= min(more, weights)
        assert chosen.layout(64, 64).peak <= least.peak + more
        assert replace(chosen, advice=True).layout(64, 64).kept == 0
        kept = replace(chosen, turbo=None, advice=True).layout(64, 64)
        assert kept.turbo or kept.kept == chosen.layout(64, 64).kept
    assert make(turbo=False, unet_bs=2, limit=least.peak + 1).layout(64, 64).kept == 1
    halved = replace(least, kept=64 << 20).keeping(32 << 20)
    assert (halved.kept, halved.peak) == (32 << 20, least.peak - (32 << 20))
    assert "streamed but for 32 MiB" in str(halved)


def test_calls_are_side_by_side_where_a_wave_has_several(model):
    alone, lanes = (
        Execution(dtype="float32", costs=costs.model_costs(model, "cpu", "float32", 0, lanes=count)) for count in (1, 4)
    )
    for side, rows in ((64, 32), (128, 8), (256, 2), (512, 2)):
        few, many = alone.layout(side, side), lanes.layout(side, side)
        assert few.unet_bs == many.unet_bs == rows  # or the number of threads would change a picture
        assert many.wave_rows == 4 * rows
        assert few.peak < many.peak
        assert lanes.costs.side_by_side(rows, many.wave_rows) == 4
        tight = replace(lanes, limit=many.peak - 1).layout(side, side)
        assert tight.unet_bs == rows and tight.turbo
        assert lanes.costs.side_by_side(rows, tight.wave_rows) < 4


def test_small_models_on_a_cpu_have_a_thread_for_each_call(monkeypatch):
    monkeypatch.setattr(choices.describe, "threads", lambda: 6)
    assert choices.choose_lanes("cpu", 41_000_000, "none") == choices.choose_lanes("cpu", 41_000_000, "openvino") == 6
    assert choices.choose_lanes("cpu", 860_000_000, "none") == choices.choose_lanes("cuda:0", 41_000_000, "none") == 0
    assert choices.choose_lanes("cpu", 41_000_000, "inductor") == 0


def test_every_item_is_in_one_wave_and_waves_are_of_one_size(make):
    wanted = [
        make_item(
            number=n, width=64 * (1 + n % 3), sampler=("ddim", "euler")[n % 2], steps=10 + n % 5, scale=1.0 + n % 2
        )
        for n in range(500)
    ]
    waves = list(planning_waves.group(wanted, make()))
    assert sorted(item.number for wave in waves for item in wave.items) == list(range(500))
    assert all(len({(item.width, item.height) for item in wave.items}) == 1 for wave in waves)


def test_like_goes_with_like_while_there_is_enough_of_it(make):
    wanted = [make_item(number=n, sampler=("ddim", "heun")[n % 2]) for n in range(128)]
    waves = list(planning_waves.group(wanted, make()))
    assert all(len({item.sampler for item in wave.items}) == 1 for wave in waves)
    assert {len(wave.items) for wave in waves} == {32}


def test_what_is_left_over_shares_waves(make):
    wanted = [make_item(number=n, steps=1 + n) for n in range(40)]
    assert len(list(planning_waves.group(wanted, make()))) == 2


def test_grouping_is_lazy_and_bounded(make):
    taken = itertools.count()

    def endless():
        for number in itertools.count():
            next(taken)
            yield make_item(number=number, steps=1 + number % 500)

    waves = planning_waves.group(endless(), make())
    for _ in range(20):
        next(waves)
    assert next(taken) < 20 * 32 + 8 * 32 + 32


def test_waves_come_early_where_pictures_are_large(make):
    assert len(next(planning_waves.group(items(50, width=512, height=512), make())).items) == 1
    assert len(next(planning_waves.group(items(50, width=512, height=512), make(turbo=False))).items) == 8


def test_the_unet_stays_where_it_fits(model):
    def turbo(*overrides, device="cpu", free=None):
        return choices.decide(settings.compose([*overrides]), model, device, free).layout(64, 64).turbo

    assert turbo()
    assert turbo(device="cuda:0", free=8 << 30)
    assert not turbo(device="cuda:0", free=1 << 20)  # nobody named a ceiling, so the least is tried
    assert not turbo("turbo=false")
    assert turbo("memory=1GiB", device="cuda:0", free=1 << 20)


def test_what_compiles(monkeypatch, system, installed, tmp_path):
    def chosen(*overrides, device="cpu"):
        return choices.choose_compiler(settings.compose([*overrides]), device)

    (tmp_path / "compiler").touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CXX", str(tmp_path / "compiler"))
    system(choices.sysconfig, get_paths=lambda: {"include": str(tmp_path)})
    installed("openvino")
    assert chosen() == chosen("compile=auto") == chosen("compile=false", "turbo=false") == "none"
    assert chosen("compile=true") == chosen("compile=true", "turbo=true", device="cuda:0") == "inductor"
    assert chosen("compile=openvino") == "openvino"
    with pytest.raises(SettingError, match="compile=openvino can't be combined with turbo=false"):
        chosen("compile=openvino", "turbo=false")
    with pytest.raises(SettingError, match="compile=openvino: is for device=cpu; on cuda:0"):
        chosen("compile=openvino", device="cuda:0")
    installed("openvino", there=False)
    with pytest.raises(SettingError, match=r"pip install 'manifest-runner\[openvino\]'"):
        chosen("compile=openvino")


def test_inductor_needs_a_compiler_on_a_cpu(monkeypatch, system, model, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(SettingError, match=r"compile=true: needs a C\+\+ compiler"):
        choices.decide(settings.compose(["compile=true"]), model, "cpu", None)
    assert choices.choose_compiler(settings.compose(["compile=true"]), "cuda:0") == "inductor"
    (tmp_path / "none").touch(mode=0o755)
    system(choices.sysconfig, get_paths=lambda: {"include": str(tmp_path)})
    with pytest.raises(SettingError, match="the headers of Python"):
        choices.choose_compiler(settings.compose(["compile=true"]), "cpu")
    (tmp_path / "Python.h").touch()
    assert choices.choose_compiler(settings.compose(["compile=true"]), "cpu") == "inductor"


def test_a_compiled_unet_stays_and_has_a_copy_of_its_weights_on_a_cpu(model):
    def make(compiler, device="cpu", **changes):
        return Execution(dtype="float32", costs=costs.model_costs(model, device, "float32", 0, compiler), **changes)

    assert {layout.turbo for layout in make("none").layouts(512, 512)} == {True, False}
    for compiler in ("inductor", "openvino"):
        assert all(layout.turbo for layout in make(compiler).layouts(512, 512))
        more = make(compiler).costs.peak(ALL_STAY, 64, 64, 2, 2) - make("none").costs.peak(ALL_STAY, 64, 64, 2, 2)
        assert more == 4 * model.parameters("unet") + (costs.OPENVINO_BYTES if compiler == "openvino" else 0)
        assert make(compiler).layout(64, 64).unet_bs == make("none").layout(64, 64).unet_bs
    on_gpu = [make(compiler, "cuda:0").costs.peak(ALL_STAY, 64, 64, 2, 2) for compiler in ("none", "inductor")]
    assert on_gpu[0] == on_gpu[1]


def test_what_was_measured_compiled_says_nothing_of_the_uncompiled(model):
    made = {name: costs.model_costs(model, "cpu", "float32", 0, name) for name in ("none", "inductor")}
    key = made["inductor"].key(ALL_STAY, 64, 64, 2, 2)
    plain, known = (replace(made[name], measured={key: 1 << 40}) for name in ("none", "inductor"))
    assert plain.peak(ALL_STAY, 64, 64, 2, 2) == made["none"].peak(ALL_STAY, 64, 64, 2, 2)
    assert known.peak(ALL_STAY, 64, 64, 2, 2) == 1 << 40


def test_devices():
    available = ["cuda:0", "cuda:1", "cpu"]
    assert choices.check_device("auto", available) == "cuda:0"
    assert choices.check_device("cuda", available) == "cuda:0"
    assert choices.check_device("cuda:1", available) == "cuda:1"
    with pytest.raises(SettingError, match="has cpu"):
        choices.check_device("cuda", ["cpu"])


def large(device="cpu"):
    """The costs of Stable Diffusion v1 in bfloat16."""
    weights = {"text_encoder": 246 << 20, "unet": 1719 << 20, "vae": 167 << 20}
    return costs.Costs(
        device=device,
        dtype="bfloat16",
        base=400 << 20 if device == "cpu" else 0,
        latent_factor=8,
        weights=weights,
        largest_units={name: size // 24 for name, size in weights.items()},
        unet={"block_out_channels": (320, 640, 1280, 1280)},
        decoder_channels=(128, 256, 512, 512),
    )


def test_memory_grows_with_what_needs_it():
    def needed(side, modes=ALL_STAY, rows=2, wave_rows=2, device="cpu"):
        return large(device).peak(modes, side, side, rows, wave_rows)

    assert needed(256) < needed(512) < needed(512, rows=8, wave_rows=8)
    assert needed(512, ALL_LEAVE) < needed(512, ALL_LEAVE, wave_rows=64) < needed(512, ALL_LEAVE, 64, 64)
    assert needed(512, ALL_LEAVE) < needed(512, UNET_STAYS) < needed(512)
    assert needed(512, device="cuda:0") < needed(512)


def test_a_small_model_on_a_cpu_takes_more_than_its_weights_and_layers(model, limit):
    def least(device):
        made = Execution(dtype="float32", costs=costs.model_costs(model, device, "float32", 100 << 20))
        return min(layout.peak for layout in made.layouts(64, 64))

    without = least("cpu"), least("cuda:0")
    limit(costs, LEAST_STAGE=200 << 20)
    assert (least("cpu"), least("cuda:0")) == (300 << 20, without[1])
    assert without[0] < 140 << 20


def test_a_large_model_fits_a_small_ceiling():
    """What the original needs a card of 4 GB for, in the memory of a process."""
    layout = Execution(dtype="bfloat16", costs=large(), limit=1200 * 10**6).layout(512, 512)
    assert (layout.modes, layout.unet_bs, layout.wave_rows) == (ALL_LEAVE, 2, 16)


@pytest.mark.parametrize("side", [64, 256, 512, 1024])
def test_a_ceiling_is_kept_from_generous_to_impossible(make, side):
    """Each layout that is ever chosen fits; the first is the fastest, the last the leanest, then comes an error."""
    layouts = list(make().layouts(side, side))
    assert layouts[0].modes == ALL_STAY
    least = min(layout.peak for layout in layouts)
    assert make(limit=least).layout(side, side).peak == least
    for limit in range(least, layouts[0].peak + 2, max(1, (layouts[0].peak - least) // 50)):
        assert make(limit=limit).layout(side, side).peak <= limit
    assert make(limit=layouts[0].peak).layout(side, side) == layouts[0]
    with pytest.raises(SettingError, match=f"need at least memory={-(-least // 2**20)}MiB"):
        make(limit=least - 1).layout(side, side)
    assert make(limit=least - 1, advice=True).layout(side, side).peak == least


def test_rows_in_a_call_are_the_last_thing_that_a_ceiling_changes(make):
    layouts = list(make(device="cuda:0").layouts(512, 512))
    rows = [layout.unet_bs for layout in layouts]
    assert rows == sorted(rows, reverse=True)
    assert [layout.modes for layout in layouts[:3]] == [ALL_STAY, UNET_STAYS, ALL_LEAVE]
    assert {layout.unet_bs for layout in make(unet_bs=3).layouts(512, 512)} == {3}
    assert not any(layout.turbo for layout in make(turbo=False).layouts(512, 512))
    assert all(layout.turbo for layout in make(turbo=True).layouts(512, 512))


def test_what_was_measured_corrects_the_plan(make):
    guessed = make().costs
    key = guessed.key(ALL_STAY, 512, 512, 2, 2)
    try:
        costs.remember(key, 2 * guessed.peak(ALL_STAY, 512, 512, 2, 2))
        known = make().costs
        for side in (512, 256):
            wanted = 2 * guessed.peak(ALL_STAY, side, side, 2, 2)
            assert known.peak(ALL_STAY, side, side, 2, 2) == pytest.approx(wanted, rel=1e-6)
        assert known.peak(ALL_LEAVE, 512, 512, 2, 2) == guessed.peak(ALL_LEAVE, 512, 512, 2, 2)
        costs.remember(key, 1)
        assert make().costs.peak(ALL_STAY, 512, 512, 2, 2) == known.peak(ALL_STAY, 512, 512, 2, 2)
    finally:
        (cache.cache_folder() / "peaks.json").unlink()


def test_what_is_free_or_was_measured_lowers_rows_but_does_not_change_the_plan(make):
    peaks = {rows: list(make(unet_bs=rows, turbo=False).layouts(128, 128))[-1].peak for rows in (16, 32)}
    keys = {rows: make().costs.key(ALL_LEAVE, 128, 128, rows, rows) for rows in (16, 32)}

    def rows(limit, measured=MappingProxyType({}), advice=False):
        ours = make(limit=limit, advice=advice, turbo=False)
        ours = replace(ours, costs=replace(ours.costs, measured=measured))
        return ours.planned_rows(128, 128), ours.layout(128, 128).unet_bs

    assert rows(peaks[32]) == (32, 32)
    assert rows(peaks[32], {keys[32]: 2 * peaks[32], keys[16]: peaks[16]}) == (32, 16)
    assert rows(peaks[32] - 1) == (16, 16)
    assert rows(peaks[32] - 1, {keys[32]: 1}) == (16, 16)  # or a folder that was begun could not be finished
    assert rows(peaks[16], advice=True) == (32, 16)


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"a": "b"}', "{", "\x00", '{"peaks": [[1]]}', '{"cpu tiny float32 stays 64x64 2 2": 5}']
)
def test_a_damaged_memory_of_measurements_counts_as_none(make, text):
    file = cache.cache_folder() / "peaks.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    try:
        assert costs.recall() == {}
    finally:
        file.unlink()
