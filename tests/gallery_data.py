"""What the gallery of a folder holds, read as its page reads it, and large folders for it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from builders import make_item, record
from PIL import Image

from runner.folder.names import image_path, thumbnail_name

CALL = re.compile(rb'gallery\("(\w+)",(\d+),(.*)\)\n', re.DOTALL)


def pieces(folder: Path) -> dict[str, Any]:
    """The value of every piece, by its file's name."""
    return {path.stem: value_of(path.read_bytes()) for path in sorted((folder / "gallery").glob("*.js"))}


def value_of(script: bytes) -> Any:
    found = CALL.fullmatch(script)
    assert found is not None, script[:80]
    return json.loads(found[3])


def without_traces(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The files of a run folder by name; of the gallery's pieces without how the ledger came to be, and where it is."""
    found: dict[str, Any] = dict(files)
    for name in [name for name in files if name.startswith("gallery/") and name.endswith(".js")]:
        said = value_of(found.pop(name))
        if "/records-" not in name:
            found[name] = {key: value for key, value in said.items() if key not in ("records", "items", "folder")}
    return found


def shown(folder: Path) -> list[dict[str, Any]]:
    """What the page knows of each row: its id, its values by key, its state, its picture's path, and its problem."""
    said = pieces(folder)
    columns = said["axes"]["columns"]
    rows = []
    for name in sorted(name for name in said if name.startswith("items-")):
        piece, number = said[name], int(name[-5:])
        for place, identity in enumerate(piece["ids"]):
            path = f"{piece['folders'][piece['folder'][place]]}/{piece['names'][place]}"
            rows.append(
                {
                    "id": identity,
                    "values": {
                        column["name"]: column["values"][codes[place]]
                        for column, codes in zip(columns, piece["codes"], strict=True)
                    },
                    "state": int(piece["states"][place]),
                    "path": "" if path == "/" else path.removeprefix("/"),
                    "size": piece["sizes"][piece["size"][place]],
                    "problem": piece["problems"].get(str(number * 2000 + place), ""),
                    "record": _record(said, piece["records"][place]),
                }
            )
    return rows


def _record(said: dict[str, Any], place: int) -> dict[str, Any] | None:
    if place < 0:
        return None
    piece = said[f"records-{place // 200:05d}"]
    line = piece["records"][place % 200]
    return {key: piece["shared"][value] if key in ("model", "run", "env") else value for key, value in line.items()}


def large_folder(folder: Path, count: int, side: int = 512) -> Path:
    """A folder of so many records, in fifty-pair rows of prompts and seeds; its pictures are links to a few files."""
    sources = folder.parent / "sources"
    sources.mkdir(exist_ok=True)
    for colour in range(8):
        picture = Image.new("RGB", (side, side), (colour * 30, 100, 200 - colour * 20))
        picture.save(sources / f"{colour}.png")
        picture.resize((256, 256)).save(sources / f"{colour}.webp")
    link = _linker()
    with (folder.mkdir(), open(folder / "records.jsonl", "wb"))[1] as lines:
        places = itertools.product(range(count // 400), (1.0, 2.0, 3.0, 4.0), ("ddim", "plms"), range(50))
        for number, (prompt, scale, sampler, seed) in enumerate(places):
            text = f"prompt number {prompt}, a castle on a hill in the evening light"
            axes = (("prompt", text), ("scale", scale), ("sampler", sampler), ("seed", seed))
            item = make_item(
                number=number, prompt=text, seed=seed, scale=scale, sampler=sampler, width=side, height=side, axes=axes
            )
            path = str(image_path(item))
            link(sources / f"{number % 8}.png", folder / path)
            link(sources / f"{number % 8}.webp", folder / thumbnail_name(path))
            identity = hashlib.sha256(str(number).encode()).hexdigest()
            lines.write(orjson.dumps(record(item) | {"id": identity, "run": {"unet_bs": 8}}) + b"\n")
    return folder


def _linker() -> Callable[[Path, Path], None]:
    made: set[Path] = set()

    def link(source: Path, target: Path) -> None:
        if target.parent not in made:
            target.parent.mkdir(parents=True)
            made.add(target.parent)
        os.link(source, target)

    return link
