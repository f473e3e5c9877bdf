"""Small objects for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson

from runner.folder.ledger import Index
from runner.folder.names import image_path
from runner.images.codec import encode
from runner.item import Item, Model, Part
from runner.planning.costs import Costs
from runner.planning.layouts import Execution

MODEL = Model(name="emoji", fingerprints=(("unet_encode", "0123456789abcdef" * 4), ("vae", "f" * 64)))


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
    return item._replace(**changes)


def make_execution(**changes: Any) -> Execution:
    """A CPU without a model on it."""
    none = {"text_encoder": 0, "unet": 0, "vae": 0}
    costs = Costs(
        device="cpu",
        dtype="float32",
        base=0,
        latent_factor=8,
        weights=none,
        largest_units=none,
        unet={"block_out_channels": (8, 8)},
        decoder_channels=(8, 8),
    )
    return Execution(**({"dtype": "float32", "costs": costs, "turbo": True} | changes))


def finished_ids(index: Index) -> set[str]:
    """Every id that `is_done`."""
    return {identity for identity in index.images() if index.is_done(identity)}


def matrix(prompts: int, seeds: int, **changes: Any) -> list[Item]:
    """Every prompt with every seed."""
    pairs = [(prompt, seed) for prompt in range(prompts) for seed in range(seeds)]
    return [make_item(number=n, prompt=f"prompt {p}", seed=s, **changes) for n, (p, s) in enumerate(pairs)]


def record(item: Item, **changes: Any) -> dict[str, Any]:
    """The record of a finished item."""
    common = {"id": f"{item.number:064x}", "item": item.to_dict(), "model": {"name": "emoji", "fingerprints": {}}}
    return common | {"status": "done", "image": str(image_path(item)), "bytes": 1} | changes


def failure(item: Item) -> dict[str, Any]:
    return record(item, status="failed", error={"class": "BlackPicture", "message": "came out <black>"})


def run_folder(folder: Path, items: list[Item], *more: dict[str, Any]) -> Path:
    """A run's records and pictures, each picture in the colour of its number; `more` are further records."""
    folder.mkdir(exist_ok=True)
    for item in items:
        colour = np.full((item.height, item.width, 3), (item.number * 20 % 200, 90, 200), dtype=np.uint8)
        path = folder / image_path(item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(colour, item._replace(model=MODEL)))
    records = [*(record(item) for item in items), *more]
    (folder / "records.jsonl").write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in records))
    return folder
