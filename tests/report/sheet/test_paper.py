"""Pages stay within their limits, blocks don't touch each other, and their shapes are those of a screen."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from builders import matrix
from sheets import items_of, sweep

from runner.report.sheet import paper
from runner.report.sheet.arrange import arrange
from runner.report.sheet.fonts import Fonts
from runner.report.sheet.lettering import Lettering
from runner.report.sheet.paper import Labels, Measures, Page, lay_out

PROMPTS = [f"a castle number {n}, in the evening" for n in range(5)]
LETTERING = Lettering(Fonts())


def laid(swept: Any, per_row: int | None = None) -> tuple[Measures, list[Page]]:
    items = items_of(swept)
    return lay_out(arrange(items, per_row), set(items.sizes), LETTERING, "a footer")


def boxes(measures: Measures, page: Page) -> list[tuple[int, int, int, int]]:
    return [(x, y, x + measures.size_of(block)[0], y + measures.size_of(block)[1]) for block, (x, y) in page.placed]


SWEEPS = {
    "one": sweep(seed=[1]),
    "seeds": sweep(seed=range(30)),
    "long": sweep(prompt=PROMPTS[:2], seed=range(300)),
    "four": sweep(prompt=PROMPTS, scale=[1.0, 2.0, 3.0], sampler=["ddim", "plms", "lms"], seed=range(4), width=[512]),
    "sizes": sweep(prompt=PROMPTS[:2], width=[256, 64], height=[64, 512]),
    "jobs": sweep(prompt=PROMPTS, scale=[1.0, 2.0]) + sweep(10, prompt=["dog"], sampler=["plms", "lms"], seed=range(3)),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_everything_is_on_its_page_and_nothing_on_anything_else(name: str) -> None:
    measures, pages = laid(SWEEPS[name])
    assert sum(len(block.cells) for page in pages for block, _ in page.placed) == len(SWEEPS[name])
    for page in pages:
        found = boxes(measures, page)
        assert page.size[0] * page.size[1] <= paper.MAX_PIXELS and max(page.size) <= paper.MAX_SIDE
        assert all(min(box) >= paper.MARGIN and box[2] < page.size[0] and box[3] < page.size[1] for box in found)
        for a, b in itertools.combinations(found, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("name", ["long", "four", "seeds"])
def test_a_page_is_neither_a_ribbon_nor_a_column(name: str) -> None:
    _, (page,) = laid(SWEEPS[name])
    assert 1 / 3 < page.size[0] / page.size[1] < 3.5


def test_labels_are_near_in_a_long_block() -> None:
    measures, (page,) = laid(SWEEPS["long"])
    assert len(page.placed) > 5
    assert all(measures.size_of(block)[0] <= paper.LONGEST_BLOCK for block, _ in page.placed)


def test_small_pictures_are_enlarged_and_large_ones_reduced() -> None:
    assert laid(matrix(2, 3))[0].box == (128, 128)
    assert laid(matrix(2, 3, width=768, height=512))[0].box == (224, 149)
    assert laid(matrix(2, 3, width=13_312, height=64))[0].box == (224, 1)


def test_more_pictures_are_smaller_and_then_there_are_pages(limit) -> None:
    limit(paper, MAX_PIXELS=3_000_000)
    measures, pages = laid(matrix(5, 12, width=512, height=512))
    assert len(pages) == 1 and paper.LEAST <= measures.box[0] < paper.LARGE
    measures, pages = laid(matrix(30, 12, width=512, height=512))
    assert len(pages) > 1 and measures.box[0] == paper.PAGED
    assert all(page.size[0] * page.size[1] <= paper.MAX_PIXELS for page in pages)
    assert sum(len(block.cells) for page in pages for block, _ in page.placed) == 360


def test_so_many_in_a_row_as_asked_for_fit() -> None:
    measures, pages = laid(matrix(2, 350), 400)
    assert all(page.size[0] <= paper.MAX_SIDE for page in pages) and measures.box[0] < paper.LEAST
    assert [len(block.columns) for page in pages for block, _ in page.placed] == [400]


def test_labels_say_what_differs() -> None:
    long = "a very detailed photograph of a castle on a rocky hill above the sea, golden hour, " * 4
    items = items_of(sweep(prompt=[f"{long}{end}" for end in ("spring", "autumn", "")], seed=[1, 2]))
    arrangement = arrange(items)
    measures, _ = lay_out(arrangement, set(items.sizes), LETTERING, "")
    labels = Labels(arrangement, LETTERING, measures)
    rows = [labels.row(value) for value in arrangement.blocks[0].rows]
    assert rows[0].endswith("spring") and rows[1].endswith("autumn") and len(set(rows)) == 3
    for row in rows[:2]:
        lines = LETTERING.wrap(row, measures.letters, measures.side - 12, paper.row_lines(measures))
        assert lines[-1].endswith(("spring", "autumn"))
    assert labels.row("") == "(empty)"
    assert labels.heading((("seed", "3"), ("negative", ""))) == "seed: 3, negative: (empty)"
    assert labels.caption((("seed", "3"), ("prompt", "a cat"))) == "seed 3 · a cat"
