"""Shards for the `imagefolder` loader of `datasets`: folders of pictures, each with a `metadata.jsonl` beside them.

The metadata are the last file of a shard.

    files = dict(FORM.make(0, samples))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import orjson

from runner.verbs.export.samples import Form, Sample

METADATA = "metadata.jsonl"


def _folder(number: int) -> str:
    return f"train/{number:06d}"


def name(number: int) -> str:
    """`train/000012/metadata.jsonl`"""
    return f"{_folder(number)}/{METADATA}"


def file(number: int, picture: str) -> str:
    """`train/000012/000000001-0123456789ab.png`"""
    return f"{_folder(number)}/{picture}"


def make(number: int, samples: Iterable[Sample]) -> Iterator[tuple[str, bytes]]:
    """A shard's pictures, then what is said of them."""
    lines = []
    for sample in samples:
        lines.append(orjson.dumps({"file_name": sample.name, **sample.columns()}) + b"\n")
        yield file(number, sample.name), sample.data
    yield name(number), b"".join(lines)


FORM = Form(
    name=name,
    make=make,
    own=re.compile(rf"train/\d{{6,}}/({re.escape(METADATA)}|\d{{9,}}-[0-9a-f]{{12}}\.\w+)"),
    kind={},
    file=file,
)
