"""The verb `export`: pictures with their captions and records in shards, in a folder of their own, the index last.

What is written follows from the records alone, so that the same pictures make the same files. A shard that is there is
not made again; whatever interrupts an export, the next one ends with the files of one that nothing had interrupted.

    report = Export(store_at("outputs/alps"), store_at("outputs/alps-parquet"), settings).run()
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import PurePosixPath

import orjson

from runner.errors import NoRunFolder, SettingError
from runner.folder.reading import Unreadable, in_order, read_picture, read_recorded
from runner.folder.store import Store
from runner.ids import read_ids
from runner.settings import FORMATS, Settings
from runner.text import show_size
from runner.verbs.export.samples import Form, Sample
from runner.verbs.export.selection import Picked, Selection, Shard
from runner.verbs.export.target import Entry, Target


@dataclass(slots=True, kw_only=True)
class Report:
    """What an export came to; `made` shards were written, `problems` are the pictures that are left out, and why."""

    pictures: int = 0
    shards: int = 0
    made: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Export:
    """One export of a run folder; `tell` is told of each shard that is written.

    Raises:
        SettingError: the form of dataset isn't said, or needs a library.
    """

    def __init__(
        self, source: Store, target: Store, settings: Settings, tell: Callable[[str], object] = lambda line: None
    ) -> None:
        if settings.to is None:
            raise SettingError(f"to what? write to=webdataset, or another of {', '.join(FORMATS)}")
        self._source, self._settings, self._tell = source, settings, tell
        self._form = form_named(settings.to)
        self._target = Target(target, settings.to, self._form, source.name)
        self._report = Report()
        self._kept = set[str]()  # files of pictures alone, which this export wants

    def run(self) -> Report:
        """Writes what is missing of the dataset.

        Raises:
            NoRunFolder: there are no finished pictures.
            SettingError: the target holds something else.
            ManifestError: the list of ids is wrong.
        """
        ids = read_ids(self._settings.ids) if self._settings.ids else None
        with Selection(self._source, ids.take if ids else lambda identity: True) as self._selection:
            if ids and (note := ids.note(str(self._source))):
                self._report.notes.append(note)
            if not self._selection.pictures:
                raise NoRunFolder(f"'{self._source}' has no record of a finished picture to export")
            self._target.check(self._source)
            with self._target.store.hold(lock=self._settings.lock):
                self._write(list(self._selection.shards(self._settings.shard_size)))
        return self._report

    def _write(self, plan: list[Shard]) -> None:
        known = self._target.known()
        names = {shard.number: self._form.name(shard.number) for shard in plan}
        whole = {names[shard.number]: known[names[shard.number]] for shard in plan if self._is_whole(shard, known)}
        self._kept = {name for shard in plan if names[shard.number] in whole for name, *_ in self._files_of(shard)}
        if len(whole) < len(plan) or not self._target.is_finished(whole):
            self._target.begin(whole)
            for shard in plan:
                if names[shard.number] not in whole and (entry := self._make(shard)):
                    whole[names[shard.number]] = entry
                    self._target.note(whole)
            whole = {name: whole[name] for name in names.values() if name in whole}
            self._target.remove_others({*whole, *self._kept})
        self._target.end(whole)
        self._report.shards = len(whole)
        self._report.pictures = sum(entry["nsamples"] for entry in whole.values())

    def _is_whole(self, shard: Shard, known: dict[str, Entry]) -> bool:
        """Whether a shard is there as it would be made now."""
        entry = known.get(self._form.name(shard.number), {})
        if entry.get("made_of") != shard.made_of or entry.get("nsamples") != len(shard.pictures):
            return False
        files = [(entry["url"], entry.get("filesize"), entry.get("sha256")), *self._files_of(shard)]
        return all(self._is_there(*file) for file in files)

    def _files_of(self, shard: Shard) -> Iterator[tuple[str, int, str | None]]:
        """Name, size and SHA-256 of each file that the shard has for a picture alone."""
        for picked in shard.pictures if self._form.file else ():
            record = orjson.loads(self._selection.line(picked))
            assert self._form.file
            yield self._form.file(shard.number, picked.key + _suffix(record)), picked.bytes, record.get("sha256")

    def _is_there(self, name: str, size: object, sha256: object) -> bool:
        if type(size) is not int or self._target.store.size(name) != size:
            return False
        try:
            return not self._settings.deep or bool(read_recorded(self._target.store, name, size, sha256))
        except Unreadable:
            return False

    def _make(self, shard: Shard) -> Entry | None:
        """Writes a shard; None where none of its pictures is left."""
        samples = list[str]()

        def readable() -> Iterator[Sample]:
            for sample in in_order(self._sample, shard.pictures):
                if isinstance(sample, Sample):
                    samples.append(sample.key)
                    yield sample
                else:
                    self._report.problems.append(str(sample))

        name, data = self._put_all_but_last(self._form.make(shard.number, readable()))
        if not samples:
            return None
        self._target.store.put(name, data)
        self._report.made += 1
        self._tell(f"{self._target.store}/{name}: {len(samples)} pictures, {show_size(len(data))}")
        about = {"url": name, "nsamples": len(samples), "filesize": len(data)}
        return about | {"sha256": hashlib.sha256(data).hexdigest(), "made_of": shard.made_of}

    def _put_all_but_last(self, files: Iterator[tuple[str, bytes]]) -> tuple[str, bytes]:
        """Writes a shard's files but for the last one, which makes it whole, and returns that one."""
        last = [next(files)]

        def before() -> Iterator[tuple[str, bytes]]:
            for file in files:
                self._kept.add(last[0][0])
                yield last.pop()
                last.append(file)

        for _ in in_order(lambda file: self._target.store.put(*file), before()):
            pass
        return last[0]

    def _sample(self, picked: Picked) -> Sample | Unreadable:
        line = self._selection.line(picked)
        record = orjson.loads(line)
        try:
            data = read_picture(self._source, record)
        except Unreadable as error:
            return error
        return Sample(key=picked.key, suffix=_suffix(record), data=data, line=line, record=record)


def _suffix(record: dict[str, str]) -> str:
    return PurePosixPath(record["image"]).suffix


def form_named(name: str) -> Form:
    """One of `settings.FORMATS`.

    Raises:
        SettingError: it needs a library that isn't there.
    """
    try:
        form = import_module(f"runner.verbs.export.{name}").FORM
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise SettingError(f"to={name} needs pyarrow: pip install 'manifest-runner[export]'") from error
    assert isinstance(form, Form)
    return form
