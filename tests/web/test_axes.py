import pytest

from runner.errors import SettingError
from runner.web import axes
from runner.web.axes import NONE, of_cell, put_into, read_from


def job():
    return {"prompt": "a cat", "seed": 7, "n_samples": 2, "n_iter": 1, "scale": 5, "loras": {"ink": 1, "sharp": 0.5}}


@pytest.mark.parametrize(
    ("key", "text", "values"),
    [
        ("scale", "1, 3, 7.5", [1, 3, 7.5]),
        ("scale", "{start: 3, stop: 9, step: 2}", {"start": 3, "stop": 9, "step": 2}),
        ("sampler", "ddim,\neuler_a", ["ddim", "euler_a"]),
        ("seed", "27-30, 99", ["27-30", 99]),
        ("prompt", "a cat, sleeping\n\n  a  dog ", ["a cat, sleeping", "a dog"]),
        ("strength", "[0.5, 1]", [0.5, 1]),
        ("loras.ink", "0, 1", [0, 1]),
    ],
)
def test_values_are_typed_as_in_a_manifest(key, text, values):
    given = job()
    put_into(given, [(key, text), (NONE, "")])
    assert given["matrix"] == {key: values}
    assert key not in given


def test_a_seed_on_an_axis_replaces_the_count_and_a_lora_there_its_weight():
    given = job()
    put_into(given, [("seed", "1, 2"), ("loras.ink", "0, 1")])
    assert given.keys() == {"prompt", "scale", "loras", "matrix"}
    assert given["loras"] == {"sharp": 0.5}
    assert axes.loras([("seed", "1, 2"), ("loras.ink", "0, 1")]) == ["ink"]


def test_without_axes_there_is_no_matrix():
    given = job()
    put_into(given, [(NONE, "1"), (NONE, "")])
    assert given == job()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([("scale", " \n"), (NONE, "")], "^rows: there are no values yet for 'scale'"),
        ([(NONE, ""), ("steps", "")], "^columns: there are no values yet for 'steps'"),
        ([("scale", "1, [2"), (NONE, "")], "^rows: '1, .2' can't be read"),
        ([("seed", "2001-13-01"), (NONE, "")], "^rows: '2001-13-01' can't be read"),
        ([("scale", "[" * 5000), (NONE, "")], "^rows: .* can't be read"),
        ([("scale", "1"), ("scale", "2")], "^columns: both axes are 'scale'"),
    ],
)
def test_what_is_no_axis_is_a_message_about_its_field(given, said):
    with pytest.raises(SettingError, match=said):
        put_into(job(), given)


@pytest.mark.parametrize("key", axes.KEYS_OF_AXES)
def test_axes_are_read_again_as_they_were_typed(key):
    given = job()
    put_into(given, [(key, "1, 2"), ("scale" if key != "scale" else "eta", "{start: 0, stop: 1, step: 0.5}")])
    again = job()
    put_into(again, read_from(given["matrix"]))
    assert again == given


def test_a_cell_has_the_values_of_its_axes_in_their_own_fields():
    form = {"prompt": "a cat", "scale": 5, "loras": {"ink": 1, "sharp": 0.5}, "axes": [("scale", "1, 2")]}
    chosen = {"scale": 7.5, "loras.ink": 0.25, "prompt": {"parts": []}}
    told = {"scale": 7.5, "loras.ink": 0.25, "loras": {"ink": 0.25, "sharp": 0.5}, "axes": []}
    assert of_cell(form, chosen) == form | told


@pytest.mark.parametrize("matrix", [None, [], "x", 7])
def test_what_is_no_matrix_has_no_axes(matrix):
    assert read_from(matrix) == []
