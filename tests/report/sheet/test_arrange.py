"""Every picture has its place: rows, columns and blocks by the axes of the sweep, or a plain block with captions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from builders import make_item, matrix
from sheets import items_of, sweep

from runner.report.sheet import arrange as module
from runner.report.sheet.arrange import Arrangement, apart, arrange

PROMPTS = ["alps", "castle", "cat", "city", "man"]


def axes_of(*parts: Any) -> list[tuple[str, str]]:
    return list(dict.fromkeys(block.axes for block in arrange(items_of([*itertools.chain(*parts)])).blocks))


def numbers(found: Arrangement) -> list[int]:
    return sorted(item for block in found.blocks for item in block.cells.values())


def test_two_axes_are_rows_and_columns() -> None:
    (block,) = arrange(items_of(matrix(2, 3))).blocks
    assert (block.axes, block.heading, block.captions) == (("prompt", "seed"), (), None)
    assert (block.rows, block.columns) == (["prompt 0", "prompt 1"], ["0", "1", "2"])
    assert block.cells == {divmod(number, 3): number for number in range(6)}


def test_prompts_are_rows_and_what_is_set_are_columns_wherever_the_manifest_has_them() -> None:
    four = {"seed": range(8), "sampler": ["ddim", "plms", "lms", "euler"], "scale": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    assert axes_of(sweep(**four, prompt=PROMPTS)) == [("prompt", "scale")]
    assert axes_of(sweep(prompt=PROMPTS[:2], scale=[1.0, 2.0], seed=range(50))) == [("prompt", "scale")]
    assert axes_of(sweep(scale=[1.0, 2.0, 3.0], seed=range(4), steps=[10, 20, 30])) == [("scale", "steps")]


def test_all_other_axes_are_blocks_with_what_differs_as_their_headings() -> None:
    swept = sweep(prompt=PROMPTS, scale=[1.0, 2.0, 3.0, 4.0], sampler=["ddim", "plms"], seed=[7, 3, 5])
    found = arrange(items_of(swept))
    assert [block.heading for block in found.blocks] == [
        (("sampler", sampler), ("seed", seed)) for sampler in ("ddim", "plms") for seed in ("7", "3", "5")
    ]
    assert found.side_by_side == 3
    for block in found.blocks:
        for (row, column), number in block.cells.items():
            item = swept[number]
            assert (item.prompt, f"{item.scale:g}") == (block.rows[row], block.columns[column])
            assert block.heading == (("sampler", item.sampler), ("seed", str(item.seed)))
    assert numbers(found) == list(range(len(swept)))


def test_jobs_that_sweep_over_other_axes_are_parts_of_their_own() -> None:
    first = sweep(prompt=PROMPTS[:2], scale=[3.0, 5.0, 7.5])
    second = sweep(6, prompt=["a dog"], sampler=["plms", "euler", "lms"], seed=range(4))
    found = arrange(items_of(first + second))
    assert [(block.part, block.axes) for block in found.blocks] == [(0, ("prompt", "scale")), (1, ("sampler", "seed"))]
    assert [dict(block.heading) for block in found.blocks] == [
        {"sampler": "ddim", "seed": "27"}, {"prompt": "a dog", "scale": "7.5"},
    ]  # fmt: skip
    assert numbers(found) == list(range(18))


def test_a_part_without_two_axes_has_captions() -> None:
    second = sweep(15, prompt=["a dog"], sampler=[f"s{n}" for n in range(9)])
    blocks = arrange(items_of(sweep(prompt=PROMPTS, scale=[3.0, 5.0, 7.5]) + second)).blocks
    assert [block.captions is None for block in blocks] == [True, False]
    assert blocks[1].heading == (("prompt", "a dog"), ("scale", "7.5"))
    assert blocks[1].captions[0, 1] == (("sampler", "s1"),)


@pytest.mark.parametrize(("prompts", "seeds"), [(1, 9), (9, 1)])
def test_one_axis_makes_a_square_with_captions(prompts: int, seeds: int) -> None:
    (block,) = arrange(items_of(matrix(prompts, seeds))).blocks
    assert (len(block.rows), len(block.columns), len(block.cells)) == (3, 3, 9)
    assert block.captions[1, 1] == ((("seed", "4"),) if seeds > 1 else (("prompt", "prompt 4"),))


def test_one_picture_has_no_caption_and_none_has_no_block() -> None:
    (block,) = arrange(items_of([make_item()])).blocks
    assert (block.cells, block.captions) == ({(0, 0): 0}, {(0, 0): ()})
    assert arrange(items_of([])).blocks == []


def test_a_matrix_of_holes_has_captions() -> None:
    items = [make_item(number=n, prompt=f"p{n}", seed=n % 5, scale=float(n % 3)) for n in range(15)]
    (block,) = arrange(items_of(items)).blocks
    assert len(block.columns) == 4 and block.captions[1, 0] == (("prompt", "p4"), ("seed", "4"))


def test_a_given_number_in_a_row_makes_a_plain_block() -> None:
    (block,) = arrange(items_of(matrix(2, 3)), 5).blocks
    assert (len(block.rows), len(block.columns)) == (2, 5)
    assert block.captions[1, 0] == (("prompt", "prompt 1"), ("seed", "2"))


def test_what_is_not_made_yet_is_there_where_its_neighbours_are() -> None:
    swept = sweep(prompt=PROMPTS, scale=[1.0, 2.0, 3.0], seed=range(8))
    found = arrange(items_of(swept, unmade=range(10, len(swept))))
    (block,) = found.blocks
    assert (block.axes, len(block.cells), block.heading) == (("scale", "seed"), 16, ())
    assert found.alike == (("prompt", "alps"),)
    assert numbers(arrange(items_of(swept, unmade=range(4, len(swept))))) == [0, 1, 2, 3]


def test_an_item_whose_cell_is_taken_is_appended() -> None:
    items = [
        make_item(number=n, prompt=f"p{n // 4}", seed=n // 2 % 2, long_prompts=("error", "cut")[n % 2])
        for n in range(8)
    ]
    shown = items_of(items)
    shown = module.replace(shown, columns=[column for column in shown.columns if column.name in ("prompt", "seed")])
    first, rest = arrange(shown).blocks
    assert sorted(first.cells.values()) == [0, 2, 4, 6] and sorted(rest.cells.values()) == [1, 3, 5, 7]


def test_more_than_anybody_looks_at_is_cut_and_counted(limit) -> None:
    limit(module, MOST_PICTURES=10)
    found = arrange(items_of(sweep(prompt=PROMPTS[:2], scale=[1.0, 2.0], seed=range(9))))
    assert (found.shown, found.total, len(numbers(found))) == (10, 36, 10)
    plain = arrange(items_of(matrix(1, 12)))
    assert (plain.shown, plain.total, numbers(plain)) == (10, 12, list(range(10)))


def test_a_block_is_cut_into_pieces_of_about_one_size() -> None:
    (block,) = arrange(items_of(matrix(3, 10))).blocks
    pieces = block.cut(2, 4)
    assert [(len(piece.rows), len(piece.columns)) for piece in pieces] == [
        (1, 3),
        (1, 3),
        (1, 4),
        (2, 3),
        (2, 3),
        (2, 4),
    ]
    assert sorted(item for piece in pieces for item in piece.cells.values()) == list(range(30))
    for piece in pieces:
        for (row, column), item in piece.cells.items():
            assert (piece.rows[row], piece.columns[column]) == (f"prompt {item // 10}", str(item % 10))


def test_long_texts_are_told_apart() -> None:
    long = "a very detailed photograph of a castle on a rocky hill above the sea, golden hour, "
    texts = [f"{long}in spring", f"{long}in autumn", "a cat", f"{long}in autumn", "x" * 300 + "1", "x" * 300 + "2"]
    short = apart(texts, 48)
    assert short[2] == "a cat"
    assert [text.endswith(end) for text, end in zip(short, ("spring", "autumn", "cat"), strict=False)] == [True] * 3
    assert short[1] == short[3] and len(set(short)) == 5
    assert all(text.startswith("a very detail") for text in short[:2])
    assert max(map(len, short)) <= 64
    assert apart(texts, 500) == texts and apart([], 9) == []
