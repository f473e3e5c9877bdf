"""Shards for `datasets`, and for all that reads Parquet: the pictures' files and what is said of them in one table.

The column `image` is a struct of the file's bytes and name. The schema says, as `datasets` writes it, that this is a
picture, so that `load_dataset` decodes it. The same pictures and the same pyarrow make the same bytes.

    files = dict(FORM.make(0, samples))
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from runner.verbs.export.samples import COLUMNS, Form, Sample

ROWS = 100  # in a group: what a reader has in memory at once
TYPES = {str: "string", int: "int64", float: "float64"}


def name(number: int) -> str:
    """`train-000012.parquet`"""
    return f"train-{number:06d}.parquet"


def schema() -> pa.Schema:
    """The table's columns."""
    image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    others = [pa.field(key, pa.type_for_alias(TYPES[kind])) for key, kind in COLUMNS.items()]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {key: {"dtype": TYPES[kind], "_type": "Value"} for key, kind in COLUMNS.items()}
    return pa.schema([image, *others], metadata={"huggingface": json.dumps({"info": {"features": features}})})


def make(number: int, samples: Iterable[Sample]) -> Iterator[tuple[str, bytes]]:
    """The one file of a shard."""
    buffer, columns, rest = pa.BufferOutputStream(), schema(), iter(samples)
    packed = dict.fromkeys([*COLUMNS, "image.path"], "zstd")  # pictures are as small as they get
    with pq.ParquetWriter(buffer, columns, compression=packed, use_dictionary=["model", "sampler"]) as writer:
        while rows := [_row(sample) for sample in islice(rest, ROWS)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=columns), row_group_size=ROWS)
    yield name(number), buffer.getvalue().to_pybytes()


def _row(sample: Sample) -> dict[str, Any]:
    return {"image": {"bytes": sample.data, "path": sample.name}, **sample.columns()}


FORM = Form(name=name, make=make, own=re.compile(r"train-\d{6,}\.parquet"), kind={})
