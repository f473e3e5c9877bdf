"""Shards for `webdataset`: tar files with three members a picture, `KEY.png`, `KEY.txt` and `KEY.json`.

The same pictures make the same bytes: members have no times and no owners. Their names begin with `train`, since
`datasets` takes files that are named so, and leaves the index alone.

    files = dict(FORM.make(0, samples))
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from runner.verbs.export.samples import Form, Sample


def name(number: int) -> str:
    """`train-000012.tar`"""
    return f"train-{number:06d}.tar"


def make(number: int, samples: Iterable[Sample]) -> Iterator[tuple[str, bytes]]:
    """The one file of a shard."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            _add(tar, sample.name, sample.data)
            _add(tar, f"{sample.key}.txt", sample.caption.encode())
            _add(tar, f"{sample.key}.json", orjson.dumps(_without_nulls(sample.record)))
    yield name(number), buffer.getvalue()


def _add(tar: tarfile.TarFile, member: str, data: bytes) -> None:
    about = tarfile.TarInfo(member)  # of the year 1970, of user 0
    about.size = len(data)
    tar.addfile(about, io.BytesIO(data))


def _without_nulls(value: Any) -> Any:
    """The record without keys that are null, which mean what absent ones do.

    `datasets` takes the types from the first records: a key that was null there could be nothing else later.
    """
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return value


FORM = Form(
    name=name,
    make=make,
    own=re.compile(r"train-\d{6,}\.tar"),
    kind={"__kind__": "wids-shard-index-v1", "wids_version": 1},
)
