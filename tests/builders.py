"""Small objects for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

from runner.spec import Item, Part


def make_item(**changes: Any) -> Item:
    """An ordinary item; a changed prompt brings its own single part unless parts are given."""
    prompt = changes.get("prompt", "Austrian alps, oil on canvas")
    item = Item(
        number=0,
        prompt=prompt,
        parts=(Part(text=prompt, weight=1.0),),
        negative="",
        seed=27,
        width=64,
        height=64,
        steps=20,
        scale=7.5,
        sampler="ddim",
        eta=0.0,
        format="png",
        long_prompts="error",
    )
    return dataclasses.replace(item, **changes)
