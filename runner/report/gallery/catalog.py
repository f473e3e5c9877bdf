"""The gallery's data: what the page shows of each item, in pieces that it loads as scripts.

A page that was opened from a file can read nothing but scripts and pictures, so each piece is a call of the page's one
function with plain values: `gallery("items", 3, {...})`. Nothing in them can end the script or become markup.

- `state.js`: how far everything is, and the mark of each piece; small, read again and again while a run goes on
- `axes.js`: the keys, their values, and what all items share
- `items-00000.js`: `ITEMS` rows, column by column; the wanted ones first, in the manifest's order
- `records-00000.js`: `RECORDS` whole lines of the ledger in its order, read when a picture is opened large

    catalog = Catalog(store, wanted)
    for record in iterate_records(store):
        catalog.add(record)
    catalog.write(running=False)
"""

from __future__ import annotations

import hashlib
import itertools
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from runner.folder.names import PIECES
from runner.folder.store import Store
from runner.record import FAILED as FAILED_STATUS
from runner.record import part
from runner.report.axes import Column, usual_axes
from runner.report.sheet.arrange import Items
from runner.report.wanted import Wanted, size_of, told

ITEMS, RECORDS = 2000, 200  # in a piece
MISSING, DONE, FAILED, GONE = range(4)  # not made yet, made, failed, made but its file is not there
LONGEST_REASON = 500  # characters
SHARED = ("model", "run", "env")  # of a record, alike in nearly all
LONG_NUMBER = re.compile(rb"[:,\[]-?\d{16}")
LARGEST_NUMBER = 2**53 - 1  # that a browser keeps exact
ESCAPES = {b"<": b"\\u003c", b"\xe2\x80\xa8": b"\\u2028", b"\xe2\x80\xa9": b"\\u2029"}
FIGURE = "\x01"  # in front of a number that a browser would round, as a text


class Catalog:
    """What is known of every item; `write` puts the pieces that differ from those that it put before."""

    def __init__(self, store: Store, wanted: Wanted) -> None:
        self.store, self.wanted = store, len(wanted.ids)
        self._table = wanted.table
        self.ids, self.sizes = list(wanted.ids), list(wanted.sizes)
        self._rows: dict[str, list[int]] = {}
        for row, identity in enumerate(self.ids):
            self._rows.setdefault(identity, []).append(row)
        self.states = bytearray(self.wanted)
        self.paths: list[str] = [""] * self.wanted
        self._places = array("i", [-1]) * self.wanted  # of the newest record in the ledger
        self._problems: dict[int, str] = {}
        self._records = 0
        self._waiting: list[Mapping[str, Any]] = []  # of the last piece of records, which isn't full yet
        self._changed: set[int] = set(range(-(-self.wanted // ITEMS)))
        self._marks: dict[str, str] = {}
        self._judged: tuple[int, list[Column]] | None = None

    @property
    def counts(self) -> list[int]:
        """How many rows are in each state."""
        return [self.states.count(state) for state in range(4)]

    def add(self, record: Mapping[str, Any]) -> None:
        """The next line of the ledger; a picture that it says was made is believed to be there."""
        rows = self._rows.get(record["id"])
        if rows is None:
            rows = self._rows[record["id"]] = [self._append(record)]
        path = str(record.get("image") or "")
        failed = record["status"] == FAILED_STATUS
        for row in rows:
            self.states[row] = FAILED if failed else DONE
            self.paths[row], self._places[row] = "" if failed else path, self._records
            self._problems.pop(row, None)
            if failed:
                self._problems[row] = reason(record)
            self._changed.add(row // ITEMS)
        self._records += 1
        self._waiting.append(record)
        if len(self._waiting) == RECORDS:
            self._put_records()
            self._waiting = []

    def look(self) -> None:
        """Sees which pictures are not there any more."""
        done = [row for row, state in enumerate(self.states) if state == DONE]
        sizes = self.store.sizes(self.paths[row] for row in done)
        for row in done:
            if sizes[self.paths[row]] < 0:
                self.states[row] = GONE

    def write(self, *, running: bool) -> None:
        """Puts every piece that has changed, and last the state, which names them; `running`: there will be more."""
        if self._waiting:
            self._put_records()
        if self._judged is None or self._judged[0] != self._table.rows:
            self._judged = self._table.rows, self._table.columns(self.wanted)
            self._changed = set(range(self._pieces["items"]))  # all tell of the same columns
        columns = self._judged[1]
        for number in sorted(self._changed):
            self._put(name_of("items", number), self._items_piece(number, columns))
        self._changed.clear()
        usual = usual_axes(columns, self.wanted) if self.wanted else ()
        said = [{"name": each.name, "values": each.values, "swept": each.swept} for each in columns]
        self._put("axes", script("axes", 0, {"columns": said, "common": self._table.common(), "usual": usual}))
        state = {
            "folder": as_unicode(str(self.store)),
            "rows": len(self.ids),
            "wanted": self.wanted,
            "counts": self.counts,
            "running": running,
            "axes": self._marks["axes"],
            "items": [self._marks[name_of("items", number)] for number in range(self._pieces["items"])],
            "records": [self._marks[name_of("records", number)] for number in range(self._pieces["records"])],
        }
        self.store.put(f"{PIECES}/state.js", script("state", 0, state))

    def shown(self) -> Items:
        """What the contact sheet shows: all that is wanted."""
        problems = {row: f"failed: {said}" for row, said in self._problems.items()}
        gone = (row for row, state in enumerate(self.states) if state == GONE)
        problems |= {row: f"missing: {self.paths[row] or 'no file was recorded'}" for row in gone}
        return Items(
            columns=self._table.columns(self.wanted),
            common=self._table.common(),
            made=[state != MISSING for state in self.states[: self.wanted]],
            paths=self.paths,
            sizes=self.sizes,
            problems=problems,
        )

    def sweep(self) -> None:
        """Removes pieces of an earlier, larger catalog."""
        for kind, count in self._pieces.items():
            for number in itertools.count(count):
                name = f"{PIECES}/{name_of(kind, number)}.js"
                if self.store.size(name) < 0:
                    break
                self.store.remove(name)

    def _append(self, record: Mapping[str, Any]) -> int:
        """A row for an item that isn't wanted."""
        self._table.add(*told(record))
        self.ids.append(record["id"])
        self.sizes.append(size_of(part(record, "item")))
        self.states.append(MISSING)
        self.paths.append("")
        self._places.append(-1)
        return len(self.ids) - 1

    @property
    def _pieces(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {"items": -(-len(self.ids) // ITEMS), "records": -(-self._records // RECORDS)}

    def _put_records(self) -> None:
        number = (self._records - 1) // RECORDS
        self._put(name_of("records", number), records_piece(number, self._waiting))

    def _put(self, name: str, data: bytes) -> None:
        mark = hashlib.sha256(data).hexdigest()[:12]
        if self._marks.get(name) != mark and not self._has(f"{PIECES}/{name}.js", data):
            self.store.put(f"{PIECES}/{name}.js", data)
        self._marks[name] = mark

    def _has(self, name: str, data: bytes) -> bool:
        """Whether a file is this already: to read it is faster than to flush it to a disk."""
        if self.store.remote or self.store.size(name) != len(data):
            return False
        try:
            with self.store.open(name) as file:
                return file.read() == data
        except OSError:
            return False

    def _items_piece(self, number: int, columns: Sequence[Column]) -> bytes:
        rows = range(number * ITEMS, min((number + 1) * ITEMS, len(self.ids)))
        folders, names = zip(*(self.paths[row].rpartition("/")[::2] for row in rows), strict=True)
        folder_codes, folder_values = _coded(folders)
        size_codes, size_values = _coded(self.sizes[row] for row in rows)
        piece = {
            "ids": [self.ids[row] for row in rows],
            "codes": [column.codes[rows.start : rows.stop].tolist() for column in columns],
            "states": "".join(map(str, self.states[rows.start : rows.stop])),
            "records": self._places[rows.start : rows.stop].tolist(),
            "folders": folder_values,
            "folder": folder_codes,
            "names": names,
            "sizes": size_values,
            "size": size_codes,
            "problems": {str(row): self._problems[row] for row in rows if row in self._problems},
        }
        return script("items", number, piece)


def as_unicode(name: str) -> str:
    """A name of a file system, which may hold anything, without what is no Unicode."""
    return name.encode("utf-8", "replace").decode()


def name_of(kind: str, number: int) -> str:
    """A piece's name."""
    return f"{kind}-{number:05d}"


def script(kind: str, number: int, data: Any) -> bytes:
    """A call of the page's function, as the bytes of a script."""
    written = _dumps(data)
    for mark, escaped in ESCAPES.items():
        written = written.replace(mark, escaped)
    return b'gallery("%b",%d,%b)\n' % (kind.encode(), number, written)


def records_piece(number: int, records: Sequence[Mapping[str, Any]]) -> bytes:
    """Whole records, with what many share said once."""
    shared: dict[bytes, int] = {}
    lines = []
    for record in records:
        line = dict(record)
        for key in SHARED:
            if key in line:
                line[key] = shared.setdefault(_dumps(line[key]), len(shared))
        lines.append(_exact(line))
    return script("records", number, {"shared": [_exact(orjson.loads(each)) for each in shared], "records": lines})


def reason(record: Mapping[str, Any]) -> str:
    """Why an item failed."""
    error = part(record, "error")
    text = f"{error.get('class', 'error')}: {error.get('message', 'unknown')}"
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"


def _coded(values: Iterable[Any]) -> tuple[list[int], list[Any]]:
    places: dict[Any, int] = {}
    codes = [places.setdefault(value, len(places)) for value in values]
    return codes, list(places)


def _dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # nested deeper than it writes; it reads deeper than that
        return b'"nested too deep"'


def _exact(value: Any) -> Any:
    """The value with numbers that a browser would round as texts that say so."""
    return _spelled(value) if LONG_NUMBER.search(_dumps(value)) else value


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_spelled(each) for each in value]
    long = isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_NUMBER
    return f"{FIGURE}{value}" if long else value
