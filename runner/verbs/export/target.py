"""The folder that an export writes: what is there from an earlier one, its index, and what belongs there no more.

The index lists the shards, and comes last. While shards are missing a hidden file lists those that are whole, so that
an export that was interrupted goes on; it also says whose folder this is.

    target = Target(store_at("outputs/alps-parquet"), "parquet", FORM)
    known = target.known()
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from typing import Any

import orjson

from runner.errors import SettingError
from runner.folder.names import RECORDS, UNFINISHED
from runner.folder.store import Store
from runner.verbs.export.samples import Form

INDEX = "index.json"
MADE_BY, VERSION = "manifest-runner export", 1
Entry = dict[str, Any]  # what the index says of a shard


class Target:
    """A dataset's folder. `to` is the name of its form, `name` the dataset's, as the index has it."""

    def __init__(self, store: Store, to: str, form: Form, name: str) -> None:
        self.store, self._to, self._form, self._name = store, to, form, name

    def check(self, source: Store) -> None:
        """Refuses to write where other files lie.

        Raises:
            SettingError: it is a run folder, lies in the one that is exported, or no export made it.
        """
        if self.store.size(RECORDS) >= 0 or _is_within(self.store, source):
            raise SettingError(f"'{self.store}' is a run folder, or in one; choose another 'out=' to export to")
        found = [content for name in (INDEX, UNFINISHED) if (content := self._read(name))]
        if other := next((content["format"] for content in found if content["format"] != self._to), None):
            raise SettingError(f"'{self.store}' is an export to {other}; choose another 'out='")
        visible = (name for name in self.store.list() if not name.startswith(".") and "/." not in name)
        if not found and (stranger := next(visible, None)):
            raise SettingError(f"'{self.store}' has files that no export made ({stranger}); choose another 'out='")

    def known(self) -> dict[str, Entry]:
        """What earlier exports say of their shards, by the names of these."""
        found = [content["shardlist"] for name in (INDEX, UNFINISHED) if (content := self._read(name))]
        return {entry["url"]: entry for entries in found for entry in entries}

    def is_finished(self, entries: Mapping[str, Entry]) -> bool:
        """Whether the index is there and lists these shards and no others."""
        return self._read(INDEX) == self._index(entries)

    def begin(self, entries: Mapping[str, Entry]) -> None:
        """From now on shards may be missing, and only these are whole."""
        self.note(entries)
        self.store.remove(INDEX)
        self.store.sweep()

    def note(self, entries: Mapping[str, Entry]) -> None:
        """These shards are whole so far."""
        self.store.put(UNFINISHED, orjson.dumps(self._index(entries)))

    def end(self, entries: Mapping[str, Entry]) -> None:
        """Nothing is missing any more."""
        if not self.is_finished(entries):
            self.store.put(INDEX, orjson.dumps(self._index(entries), option=orjson.OPT_INDENT_2))
        self.store.remove(UNFINISHED)

    def remove_others(self, wanted: Container[str]) -> None:
        """Removes the files of earlier exports that aren't `wanted` any more; never one with another kind of name."""
        for name in self.store.list():
            if self._form.own.fullmatch(name) and name not in wanted:
                self.store.remove(name)

    def _index(self, entries: Mapping[str, Entry]) -> dict[str, Any]:
        about = {"made_by": MADE_BY, "version": VERSION, "format": self._to, "name": self._name}
        return {**self._form.kind, **about, "shardlist": list(entries.values())}

    def _read(self, name: str) -> dict[str, Any] | None:
        """An index, if an export made it."""
        try:
            with self.store.open(name) as file:
                content = orjson.loads(file.read())
            own = content["made_by"] == MADE_BY and content["version"] == VERSION and isinstance(content["format"], str)
            return content if own and all(isinstance(entry["url"], str) for entry in content["shardlist"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _is_within(inner: Store, outer: Store) -> bool:
    """Whether a folder is another one, or in it."""
    places = [os.path.join(os.path.realpath(str(store)), "") for store in (inner, outer)]
    return places[0].startswith(places[1])
