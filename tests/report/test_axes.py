"""Which keys of items are axes, and in which order their values stand."""

from __future__ import annotations

import pytest
from builders import make_item

from runner.item import Lora, Model
from runner.record import item_dict
from runner.report.axes import Table, as_text, coordinates, usual_axes


def table(items) -> Table:
    made = Table()
    for item in items:
        made.add(coordinates(item_dict(item), item.model.name), dict(item.axes))
    return made


def axes(items) -> dict[str, list[str]]:
    return {column.name: list(column.values) for column in table(items).columns() if column.swept}


def named(**values):
    return tuple(values.items())


def test_axes_are_what_differs_in_the_order_of_the_manifest() -> None:
    items = [
        make_item(prompt=prompt, scale=scale, seed=seed, axes=named(prompt=prompt, scale=scale, seed=seed))
        for prompt in ("b", "a")
        for scale in (7.5, 3.0)
        for seed in (9, 1)
    ]
    assert axes(items) == {"prompt": ["b", "a"], "scale": ["7.5", "3"], "seed": ["9", "1"]}


def test_several_jobs_make_one_set_of_axes() -> None:
    jobs = [make_item(scale=scale, axes=named(scale=scale)) for scale in (1.0, 3.0)]
    jobs += [make_item(sampler=sampler, scale=3.0, axes=named(sampler=sampler)) for sampler in ("plms", "lms")]
    assert axes(jobs) == {"scale": ["1", "3"], "sampler": ["ddim", "plms", "lms"]}


def test_the_weight_of_a_lora_is_an_axis_and_0_where_it_is_not() -> None:
    ink = [Lora("ink", "ink.safetensors", "0" * 64, "", weight, weight) for weight in (0.6, 1.0)]
    items = [make_item(), *(make_item(loras=(lora,), axes=((f"loras.{lora.name}", lora.unet),)) for lora in ink)]
    assert axes(items) == {"loras.ink": ["0", "0.6", "1"]}


def test_loras_that_are_no_axis_put_nothing_out_of_its_place() -> None:
    constant = tuple(Lora(name, f"{name}.safetensors", "0" * 64, "", 0.5, 0.5) for name in ("x", "y", "z"))
    items = [
        make_item(init="a.png", strength=0.5, axes=named(init="a.png")),
        make_item(loras=constant),
        make_item(init="b.png", strength=0.7, axes=named(init="b.png")),
        make_item(loras=constant),
    ]
    made = table(items)
    [init] = [column for column in made.columns() if column.name == "init"]
    assert [init.values[code] for code in init.codes] == ["a.png", "", "b.png", ""]
    made.add(coordinates(item_dict(items[0]), "m"))  # while a column of it is held
    assert made.rows == 5


def test_what_another_axis_decides_is_none_but_is_kept() -> None:
    items = [
        make_item(prompt=prompt, negative=negative, seed=seed)
        for prompt, negative in (("a", "x"), ("b", "y"), ("c", "y"))
        for seed in (1, 2)
    ]
    columns = table(items).columns()
    assert [(column.name, column.swept) for column in columns] == [
        ("prompt", True), ("seed", True), ("negative", False),
    ]  # fmt: skip


def test_keys_that_are_walked_together_are_one_axis() -> None:
    sizes = [(64, 128), (128, 64), (64, 64)]
    walked = [make_item(width=w, height=h, axes=named(width=w, height=h)) for w, h in sizes[:2]]
    assert axes(walked) == {"width": ["64", "128"]}
    crossed = [make_item(width=w, height=h, axes=named(width=w, height=h)) for w, h in sizes]
    assert axes(crossed) == {"width": ["64", "128"], "height": ["128", "64"]}


def test_checkpoints_are_an_axis() -> None:
    items = [make_item(model=Model(name=name)) for name in ("one", "two")]
    assert axes(items) == {"model": ["one", "two"]}


def test_what_is_no_longer_wanted_makes_no_axis() -> None:
    made = table([make_item(seed=1), make_item(seed=2), make_item(seed=1, steps=30)])
    swept = {column.name: column.swept for column in made.columns(wanted=2)}
    assert swept == {"seed": True, "steps": False}


def test_a_grid_begins_with_axes_that_show_many() -> None:
    many = [make_item(prompt=f"p{p}", seed=s) for p in range(6) for s in range(1, 9)]
    swept = [make_item(prompt="q", seed=50, sampler=sampler) for sampler in ("plms", "lms", "euler")]
    columns = table([*many, *swept]).columns()
    assert usual_axes(columns, len(many) + len(swept)) == ("prompt", "seed")
    diagonal = [make_item(prompt=f"p{n}", scale=float(n), seed=n, axes=named(scale=float(n))) for n in range(40)]
    assert usual_axes(table(diagonal).columns(), 40) == ()


def test_rows_in_another_order_have_values_in_that_order() -> None:
    made = table([make_item(scale=scale) for scale in (3.0, 1.0, 5.0, 1.0)]).reordered([1, 0, 3, 2])
    (column,) = made.columns()
    assert (list(column.values), column.codes.tolist()) == (["1", "3", "5"], [0, 1, 0, 2])


def test_any_item_of_a_file_has_values() -> None:
    nested: list[object] = []
    for _ in range(600):
        nested = [nested]
    odd = {"prompt": nested, "seed": {"a": 1}, "axes": {"x" * 50_000: nested, **{f"k{n}": n for n in range(500)}}}
    made = Table()
    for item in (odd, {"loras": {"a": 3}}, {}):
        made.add(coordinates(item, "?"), item.get("axes", {}))
    assert made.rows == 3 and len(list(made.all_columns())) < 60
    assert {len(column.codes) for column in made.all_columns()} == {3}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"), (7.5, "7.5"), (5.0, "5"), ([1, "b", 0.5], "1, b, 0.5"), (True, "true"), (None, "null"),
        (0.1234567, "0.1234567"), (2**63, "9223372036854775808"), ([[1], 2], "[[1], 2]"),
    ],
)  # fmt: skip
def test_values_are_written_as_people_write_them(value: object, text: str) -> None:
    assert as_text(value) == text
