"""Says what has become of a recorded picture: holds its record, its file and a new rendering against each other.

Two of the three that agree show which one has changed. It renders nothing itself, and it writes nothing.

    item = read_back(store, line, record)                     # or what is wrong with the record
    finding = judge(store, record, item, pixels, making, fingerprints)   # as they are now
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runner.errors import Location, ManifestError
from runner.events import Failure
from runner.files import expanded
from runner.folder.names import RECORDS
from runner.folder.store import Store
from runner.images import codec, metadata
from runner.images.codec import Pixels
from runner.images.distance import Distance, measure
from runner.item import DIGITS_SHOWN, MASK, Item, item_id
from runner.manifest.lines import read_item, read_model
from runner.record import Making, Pairs, fingerprints_of, item_of_picture, part

SAME, DIFFERS, DAMAGED, MISSING, ALTERED, FAILED = "same", "differs", "damaged", "missing", "altered", "failed"
STATES = (SAME, DIFFERS, DAMAGED, MISSING, ALTERED, FAILED)
WEIGHTS = "weights of "
PICTURES = {"init": "the picture that it begins with", MASK: "the mask that is laid over that"}
LARGEST_FILE = 1 << 29  # bytes; no picture has as many


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What has become of the record on a line.

    `reproduced` says whether the rendering is as recorded, None where there is none; `distance` is from the file to
    the rendering; `changed` are the recorded factors that are different now, as (then, now), where it isn't.
    """

    line: int
    image: str
    state: str
    message: str = ""
    reproduced: bool | None = None
    distance: Distance | None = None
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def read_back(store: Store, line: int, record: Mapping[str, Any]) -> Item | Finding:
    """The record's item, numbered by its line; or why it can't be rendered again."""
    finding = Finding(line=line, image=record["image"], state=ALTERED)
    wish = part(record, "item")
    for key, what in PICTURES.items():
        if isinstance(path := wish.get(key), str) and (
            state := _file_state(_read(store, path), wish.get(f"{key}_sha256"))
        ):
            return replace(finding, state=state, message=f"{what}, {path}")
    try:
        place = Location(expanded(f"{store}/{RECORDS}"), line, 1)
        item = read_item(wish, number=line, location=place, model=read_model(record, place))
    except ManifestError as error:
        return replace(finding, message=error.message)
    if item_id(item) != record["id"]:
        return replace(finding, message="the id is not that of the item and the weights")
    return item


def judge(
    store: Store, record: Mapping[str, Any], item: Item, made: Pixels | Failure, now: Making, weights: Pairs
) -> Finding:
    """What a rendering of the item (uint8 [H, W, 3], or why there is none) shows about record and file.

    `now` is how it was made, `weights` are the fingerprints that it was made with.
    """
    file = _read(store, record["image"])
    state = _file_state(file, record.get("sha256"))
    finding = Finding(line=item.number, image=record["image"], state=state or FAILED)
    if isinstance(made, Failure):
        return replace(finding, message=f"it can't be rendered again: {made}")
    wish = record["item"]
    item = item._replace(number=wish.get("number")).with_pictures(wish.get("init"), wish.get(MASK))
    new = codec.encode(made, item)
    recorded = (record.get("pixels"), record.get("sha256"), record["bytes"])
    as_recorded = (codec.pixels_hash(made), _sha256(new), len(new)) == recorded
    if (file == new and not as_recorded) or (file and not state and _says_otherwise(file, record["item"])):
        return replace(finding, state=ALTERED, message="the file is as it was made, and the record says otherwise")
    changed = _changed(record, now, weights)
    reproduced = as_recorded and not any(name.startswith(WEIGHTS) for name in changed)
    if reproduced and not state:
        return replace(finding, state=SAME, reproduced=True)
    distance = _distance(file, new, item)
    return replace(
        finding,
        state=state or DIFFERS,
        message=_message(state, reproduced, distance),
        reproduced=reproduced,
        distance=distance,
        changed={} if reproduced else changed,
    )


def _message(state: str | None, reproduced: bool, distance: Distance | None) -> str:
    rendering = "its rendering is " + ("as recorded" if reproduced else "not as recorded")
    if state == MISSING:
        return rendering
    if distance is None:
        return f"it is no picture any more; {rendering}"
    equal = "the pixels are those of the rendering" if not distance.greatest else ""
    return "; ".join(filter(None, [equal, rendering if state == DAMAGED else ""]))


def _changed(record: Mapping[str, Any], now: Making, weights: Pairs) -> dict[str, tuple[Any, Any]]:
    """The recorded factors that are different now, the weights first."""
    then, today = (
        {WEIGHTS + fragment: sha256[:DIGITS_SHOWN] for fragment, sha256 in hashes}
        for hashes in (fingerprints_of(part(record, "model")), weights)
    )
    names = [*then, *(today.keys() - then.keys())]
    changed = {name: (then.get(name), today.get(name)) for name in names if then.get(name) != today.get(name)}
    return changed | Making.from_dict(record).differences(now)


def _distance(file: bytes | None, new: bytes, item: Item) -> Distance | None:
    """From a file to the rendering's, as they are decoded; None where the file holds no picture of this size."""
    one, other = (codec.decode(data or b"", item.width, item.height) for data in (file, new))
    return None if one is None or other is None else measure(one, other)


def _says_otherwise(file: bytes, wish: Mapping[str, Any]) -> bool:
    """Whether a file was made of another item than the record's; few files say nothing of it."""
    written = metadata.read_metadata(io.BytesIO(file)).item
    return written is not None and written != item_of_picture(wish)


def _file_state(file: bytes | None, sha256: object) -> str | None:
    if file is None:
        return MISSING
    return None if _sha256(file) == sha256 else DAMAGED


def _read(store: Store, path: str) -> bytes | None:
    """A file of the run folder: None where there is none, empty where it can't be read."""
    size = store.size(path)
    if size < 0:
        return None
    if size > LARGEST_FILE:
        return b""
    try:
        with store.open(path) as file:
            return file.read()
    except OSError:
        return b""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
