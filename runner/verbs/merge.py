"""The verb `merge`: joins run folders, such as the shards of a run, into one.

Each picture is copied if it is the one that its record says, then its record is appended. So whatever interrupts a
merge, merging again copies what is missing. Folders are taken in the order in which they are given, their records in
that of their ledgers. The folders that are joined stay as they are.

    report = Merge([store_at("outputs/a"), store_at("outputs/b")], store_at("outputs/both"), settings).run()
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import orjson

from runner.errors import SettingError
from runner.folder.ledger import Index, Ledger, iterate_records, read_index
from runner.folder.names import INITS, LINES, MANIFEST, RUN, UNFINISHED, WANTED
from runner.folder.reading import Unreadable, check_names, in_order, read_picture, read_recorded
from runner.folder.store import Store
from runner.folder.ways import Way, changed_versions, differences, lowered
from runner.item import MASK, MASK_SHA256
from runner.record import DONE, Making, part
from runner.report import gallery
from runner.settings import Settings, parse_shard
from runner.text import name_some

TOGETHER = 64  # pictures whose records are flushed at once
Line = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Report:
    """What a merge came to: pictures that were copied, items that are failed ones, and what couldn't be copied."""

    copied: int = 0
    pictures: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Merge:
    """One merge; `tell` is told of each folder that was read through."""

    def __init__(
        self,
        sources: Sequence[Store],
        target: Store,
        settings: Settings,
        tell: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._sources, self._target, self._settings, self._tell = sources, target, settings, tell
        self._report = Report()
        self._problems: dict[str, str] = {}  # by the id of the picture

    def run(self) -> Report:
        """Copies what the target lacks.

        Raises:
            NoRunFolder: one of the folders is none.
            SettingError: the folders don't go together.
        """
        if _place(self._target) in map(_place, self._sources):
            raise SettingError(f"out={self._target} is one of the folders that are joined; choose another one")
        indexes = [read_index(store, must_exist=True, hashes=True) for store in self._sources]
        there = read_index(self._target, hashes=True)
        self._check_same(there, indexes)
        self._check_ways(there, indexes)
        with Ledger(self._target, deep=self._settings.deep, lock=self._settings.lock) as self._ledger:
            if self._target.size(UNFINISHED) >= 0:
                self._target.sweep()
            self._put_about()
            for index in indexes:
                self._copy_pictures(index)
            self._copy_failures(indexes)
            self._build_report()
            self._report.pictures = len(self._ledger.images())
        self._report.problems += self._problems.values()
        return self._report

    def _check_same(self, there: Index, indexes: Sequence[Index]) -> None:
        """Refuses two pictures of one item, unless they may be mixed: then the first one stays."""
        seen = there.hashes()
        for index in indexes:
            own = index.hashes()
            other = [identity for identity, sha256 in own.items() if seen.get(identity, sha256) != sha256]
            if other and not self._settings.mixed:
                images = index.images()
                raise SettingError(
                    f"{len(other)} pictures of '{index.store}' are other ones than those of the same items before it: "
                    f"{name_some([images[identity] for identity in other])}. Keep the first ones with mixed=true"
                )
            if other:
                self._report.notes.append(f"'{index.store}': {len(other)} pictures were left out; others came before")
            seen = own | seen

    def _check_ways(self, there: Index, indexes: Sequence[Index]) -> None:
        """As `run` does it: other rounding is refused, unless it may be mixed; other versions are a note."""
        before = list(there.ways)
        for index in indexes:
            found, versions = dict[str, None](), dict[str, None]()
            for way in index.ways:
                alike = [each for each in before if (each.model, each.size) == (way.model, way.size)]
                making = _as_planned(way)
                found |= dict.fromkeys(differences(alike, lambda width, height, making=making: making))  # type: ignore[misc]
                versions |= dict.fromkeys(changed_versions(alike, making.env))
            if found and not self._settings.mixed:
                raise SettingError(
                    f"the pictures of '{index.store}' were made in another way than those before it: "
                    f"{'; '.join(sorted(found))}. Mix them with mixed=true, or join only what was made alike"
                )
            if said := "; ".join(sorted([*found, *versions])):
                self._report.notes.append(f"the pictures of '{index.store}' were made in another way: {said}")
            before += index.ways
        self._report.notes += sorted(lowered(set(before)))

    def _copy_pictures(self, index: Index) -> None:
        """Copies the pictures of one folder that no folder before it has."""
        records, copied = self._missing(index), self._report.copied
        while some := list(islice(records, TOGETHER)):
            if self._target.size(UNFINISHED) < 0:
                self._target.put(UNFINISHED, b"")
            placed = [record | {"image": self._ledger.claim(record["image"], record["id"])} for record in some]
            outcomes = in_order(lambda pair: self._copy(index.store, *pair), zip(some, placed, strict=True))
            for record, problem in zip(placed, outcomes, strict=True):
                if problem:
                    self._problems[record["id"]] = problem
                    continue
                self._problems.pop(record["id"], None)
                self._ledger.append(record)
                self._report.copied += 1
            self._ledger.flush()
        self._tell(f"{index.store}: {self._report.copied - copied} of {len(index.images())} pictures copied")

    def _missing(self, index: Index) -> Iterator[Line]:
        """The newest records of the folder's pictures that the target hasn't got."""
        images, hashes = index.images(), index.hashes()
        for record in iterate_records(index.store):
            identity = record["id"]
            if record["status"] != DONE or images.get(identity) != record["image"]:
                continue
            if hashes[identity] != str(record.get("sha256")):
                continue
            del images[identity]
            try:
                check_names(index.store, record)  # before anything is named after them
            except Unreadable as error:
                self._problems[identity] = str(error)
                continue
            if not self._ledger.is_done(identity):
                yield record

    def _copy(self, source: Store, record: Line, placed: Line) -> str:
        """Copies a picture, and what it was made from; what is wrong where it can't be."""
        try:
            data = read_picture(source, record)
            item = part(record, "item")
            for name, sha256 in ((item.get("init"), item.get("init_sha256")), (item.get(MASK), item.get(MASK_SHA256))):
                if isinstance(name, str) and PurePosixPath(name).parts[:1] == (INITS,) and self._target.size(name) < 0:
                    self._target.put(name, read_recorded(source, name, source.size(name), sha256))
        except Unreadable as error:
            return str(error)
        self._target.put(placed["image"], data)
        return ""

    def _copy_failures(self, indexes: Sequence[Index]) -> None:
        """Carries over, of each item that has only failed, one failure; the target counts one try then."""
        done = self._ledger.images()
        for index in indexes:
            for record in iterate_records(index.store):
                identity = record["id"]
                known = identity in done or self._ledger.failures(identity)
                if record["status"] != DONE and index.failures(identity) and not known:
                    self._ledger.append(record)
                    self._report.failed += 1

    def _put_about(self) -> None:
        """Writes what was asked for, if all folders were asked for the same, and where they were."""
        asked = {(name, data) for name in (MANIFEST, LINES) for store in self._sources if (data := _read(store, name))}
        own = {(name, data) for name in (MANIFEST, LINES) if (data := _read(self._target, name))}
        if len(asked | own) > 1:
            self._report.notes.append(f"the folders have different manifests; none was written to '{self._target}'")
        elif asked:
            self._target.put(*asked.pop())
        before, abouts = _about(self._target), [_about(store) for store in self._sources]
        about = before or next(filter(None, abouts), {})
        merged = {*_texts(before, "merged"), *map(str, self._sources)}
        shards = {shard for each in (before, *abouts) for shard in _shards(each)}
        settings = part(about, "settings") | {"shard": None}
        about = about | {"settings": settings, "merged": sorted(merged), "shards": sorted(shards)}
        self._target.put(RUN, orjson.dumps(about, option=orjson.OPT_INDENT_2))
        for number in sorted({parts for _, parts in map(parse_shard, shards)}):
            there = {shard for shard, parts in map(parse_shard, shards) if parts == number}
            if missing := [str(shard) for shard in range(1, number + 1) if shard not in there]:
                self._report.notes.append(f"of {number} shards these were not joined yet: {name_some(missing)}")

    def _build_report(self) -> None:
        if self._target.size(UNFINISHED) >= 0 and not self._settings.skip_grid:
            self._target.remove(WANTED)  # of a run that asked for a part of what is here now
            gallery.build(self._target, self._settings.n_rows)
            self._target.remove(UNFINISHED)


def _as_planned(way: Way) -> Making:
    """How a picture was to be made: a run that was short of memory may have lowered its rows by itself."""
    return way.making._replace(unet_bs=way.making.lowered_from or way.making.unet_bs)


def _place(store: Store) -> str:
    return os.path.realpath(str(store))


def _read(store: Store, name: str) -> bytes:
    try:
        with store.open(name) as file:
            return file.read()
    except OSError:
        return b""


def _shards(about: Mapping[str, Any]) -> Iterator[str]:
    """Which shards a folder holds, as its `run.json` says: that of its run, or those that were joined."""
    for shard in (*_texts(about, "shards"), str(part(about, "settings").get("shard"))):
        with suppress(SettingError):
            parse_shard(shard)
            yield shard


def _texts(about: Mapping[str, Any], key: str) -> list[str]:
    values = about.get(key)
    return list(map(str, values)) if isinstance(values, list) else []


def _about(store: Store) -> dict[str, Any]:
    """What a folder's `run.json` holds; nothing where it can't be read."""
    try:
        about = orjson.loads(_read(store, RUN))
    except orjson.JSONDecodeError:
        return {}
    return about if isinstance(about, dict) else {}
