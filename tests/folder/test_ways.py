"""Two ways of making a picture differ in what may change its bytes, and in nothing else."""

import pytest

from runner.folder.ways import changed_versions, differences, way_of
from runner.record import Making

RUN = {
    "device": "cpu",
    "device_name": "a processor",
    "threads": 2,
    "dtypes": {"unet": "float32", "vae": "float32"},
    "prediction": "epsilon",
    "unet_bs": 4,
    "turbo": True,
    "memory": "auto",
}


def record(size=64, torch="2.7", **run):
    return {
        "model": {"fingerprints": {}},
        "item": {"width": size, "height": size},
        "run": RUN | run,
        "env": {"torch": torch},
    }


def compare(recorded, **now):
    return differences({way_of(each) for each in recorded}, lambda width, _: Making.from_dict(record(width, **now)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unet_bs": 8}, "unet_bs was 4 and is now 8"),
        ({"dtypes": {"unet": "float16", "vae": "float16"}}, "dtypes was float32 and is now float16"),
        ({"dtypes": {"unet": "float16", "vae": "float32"}}, "dtypes was float32 and is now unet float16, vae float32"),
        ({"device_name": "another"}, "device_name was a processor and is now another"),
        ({"threads": 3}, "threads was 2 and is now 3"),
        ({"compile": "inductor"}, "compile was none and is now inductor"),
        ({"prediction": "v_prediction"}, "prediction was epsilon and is now v_prediction"),
    ],
)
def test_each_factor_counts(change, said):
    assert compare([record()], **change) == [said]


@pytest.mark.parametrize("change", [{}, {"turbo": False}, {"memory": 5}, {"torch": "3.0"}])
def test_what_changes_no_bit_does_not_count(change):
    assert compare([record()], **change) == []


def test_cards_of_one_kind_are_one_device_and_threads_are_the_processors():
    assert compare([record(device="cuda:0")], device="cuda:1", threads=9) == []
    assert compare([record(device="cuda:0")], device="cpu") == ["device was cuda and is now cpu"]


def test_unet_bs_is_compared_for_pictures_of_one_size():
    ways = {way_of(record(64, unet_bs=32)), way_of(record(512, unet_bs=2))}
    assert differences(ways, lambda width, _: Making.from_dict(record(width, unet_bs={64: 32, 512: 2}[width]))) == []
    assert compare([record(64, unet_bs=32), record(512, unet_bs=2)], unet_bs=2) == ["unet_bs was 32 and is now 2"]


def test_a_run_may_go_on_that_is_planned_as_the_one_that_lowered_unet_bs():
    lowered = [record(unet_bs=2, lowered_from=4)]
    assert compare(lowered, unet_bs=4) == compare(lowered, unet_bs=2) == []
    assert compare(lowered, unet_bs=8) == ["unet_bs was 2 and is now 8"]


def test_a_folder_that_is_mixed_takes_any_of_its_ways():
    mixed = [record(unet_bs=2), record(unet_bs=4)]
    assert compare(mixed, unet_bs=2) == compare(mixed, unet_bs=4) == []
    assert compare(mixed, unet_bs=8) == ["unet_bs was 2 or 4 and is now 8"]


def test_number_types_rows_and_compiling_do_not_count_for_pictures_that_were_rendered_again():
    again = record() | {"rerendered": "it overflowed"}
    usual = {"dtypes": {"unet": "float16", "vae": "float16"}, "compile": "inductor", "unet_bs": 8}
    assert compare([again, record(**usual)], **usual) == compare([again], **usual) == []


def test_versions_that_no_picture_was_made_with():
    ways = [way_of(record(torch="2.7")), way_of(record(torch="2.8"))]
    assert changed_versions(ways, (("torch", "2.8"), ("other", "1"))) == []
    assert changed_versions(ways, (("torch", "2.9"),)) == ["torch was 2.7 or 2.8 and is now 2.9"]
    assert changed_versions([], (("torch", "2.9"),)) == []
