"""The verb `verify`: renders recorded items of a run folder again, in the way that their records name, and reports.

It writes nothing into the folder and takes no lock; of a run that is going on, it verifies what is recorded so far.
`judge` compares a rendering with its record and its file.

    verification = Verification(store_at("outputs/alps"), settings.compose([]), given=())
    for event in verification.run():
        ...
    print_report(verification, as_json=False)
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from runner import terminal
from runner.device.memory import available_devices
from runner.engine.base import Engine
from runner.engine.start import start_engine
from runner.errors import EXIT_DIFFERENCE, EXIT_ITEMS_FAILED, ModelError, NoRunFolder
from runner.events import ItemDone, ItemFailed, Rendered, RunEvent, RunFinished, RunStarted
from runner.folder.ledger import numbered_records
from runner.folder.names import RECORDS
from runner.folder.store import Store
from runner.item import Item, Model
from runner.model import files as model_files
from runner.model import find
from runner.model.files import ModelFiles
from runner.record import INDUCTOR, OPENVINO, Making, Pairs, Record, fingerprints_of, part
from runner.settings import UNET_BS_LIMIT, Settings
from runner.verbs.verify.judge import FAILED, SAME, STATES, Finding, judge, read_back

SHOWN = 20
Found = tuple[Model, ModelFiles]
Asked = tuple[tuple[str, Any], ...]  # settings
Start = Callable[[Settings, ModelFiles], Engine]


class Verification:
    """One look at a run folder.

    `given` are the keys of the settings that hold instead of what is recorded; `start` makes an engine.
    """

    def __init__(self, store: Store, settings: Settings, given: Container[str], start: Start = start_engine) -> None:
        self.store, self.settings, self.given, self._start = store, settings, given, start
        self.done = self.failed = 0  # records
        self.unreadable: list[int] = []  # lines
        self.recorded: set[Pairs] = set()  # fingerprints
        self.findings: list[Finding] = []
        self._seen: find.Seen = {}

    def run(self) -> Iterator[RunEvent]:
        """Looks at every chosen record; the findings are complete after the last event.

        Raises:
            NoRunFolder: there is nothing to verify.
            SettingError: the model isn't known, found, or whole; this machine hasn't the device that was asked for.
        """
        begun = time.monotonic()
        chosen = self._choose()
        groups: dict[tuple[Model, Asked], list[Item]] = defaultdict(list)
        for line, record in chosen.items():
            item = read_back(self.store, line, record)
            if isinstance(item, Finding):
                self.findings.append(item)
            else:
                groups[item.model, self._asked(record)].append(item)
        yield RunStarted(wanted=len(chosen), missing=sum(map(len, groups.values())))
        given = self._given_model()
        for (model, asked), items in groups.items():
            yield from self._render(asked, given or self._find_model(model), items, chosen)
        self.findings.sort(key=lambda finding: finding.line)
        yield RunFinished(done=len(self.findings), failed=(), seconds=time.monotonic() - begun)

    def counts(self) -> dict[str, int]:
        """How many records are in each state."""
        found = Counter(finding.state for finding in self.findings)
        return {state: found[state] for state in STATES}

    def problems(self) -> list[Finding]:
        """The findings other than `same`."""
        return [finding for finding in self.findings if finding.state != SAME]

    def exit_code(self) -> int:
        """5 for any difference or damage; 3 where the only trouble is that items can't be rendered; else 0."""
        states = {finding.state for finding in self.problems()}
        if self.unreadable or states - {FAILED}:
            return EXIT_DIFFERENCE
        return EXIT_ITEMS_FAILED if states else 0

    def _choose(self) -> dict[int, dict[str, Any]]:
        """By their lines: each id's newest record, if it says done; of these all, or as many as asked for."""
        newest: dict[str, int | None] = {}
        for line, record in numbered_records(self.store):
            if record is None:
                self.unreadable.append(line)
            else:
                newest[record["id"]] = line if record["status"] == "done" else None
                self.recorded.add(fingerprints_of(part(record, "model")))
        done = [line for line in newest.values() if line]
        self.done, self.failed = len(done), len(newest) - len(done)
        if not done and not self.unreadable:
            raise NoRunFolder(f"'{self.store}' has no record of a finished picture, so there is nothing to verify")
        if self.settings.sample and self.settings.sample < len(done):
            # Not every n-th: a step that fits the manifest's axes would meet one value of an axis only.
            done = random.Random(self.settings.shuffle or 0).sample(done, self.settings.sample)
        lines = set(done)
        return {line: record for line, record in numbered_records(self.store) if record and line in lines}

    def _render(
        self, asked: Asked, found: Found, items: list[Item], records: Mapping[int, Mapping[str, Any]]
    ) -> Iterator[RunEvent]:
        """Renders items that were made with one model in one way."""
        model, files = found
        engine = self._start(dataclasses.replace(self.settings, **dict(asked)), files)
        for event in engine.run(engine.group(sorted(items, key=lambda item: item.loras))):  # each set is put on once
            if isinstance(event, Rendered | ItemFailed):
                record = records[event.item.number]
                made = event.error if isinstance(event, ItemFailed) else event.pixels
                assert made is not None  # this process makes them
                making = event.making or engine.describe()
                self.findings.append(judge(self.store, record, event.item, made, making, model.fingerprints))
                yield ItemDone(item=event.item, record=Record.from_dict(record))
            else:
                yield event
        engine.close()

    def _given_model(self) -> Found | None:
        """A model that is asked for and is none of the recorded ones: it is used in the place of all of them."""
        if "model" not in self.given and "model.path" not in self.given:
            return None
        found = find.use_model(Model(), self.settings.model, remembered=False)
        return None if found[0].fingerprints in self.recorded else found

    def _find_model(self, recorded: Model) -> Found:
        """The recorded weights; where they are nowhere, what lies at their place now."""
        if "model.prediction" in self.given:
            recorded = recorded._replace(prediction=self.settings.model.prediction)
        try:
            return find.use_model(recorded, self.settings.model, remembered=False, seen=self._seen)
        except ModelError:
            if not recorded.path or not model_files.place_of(recorded.path).exists():
                raise
            return find.identify(recorded, remembered=False, seen=self._seen)

    def _asked(self, record: Mapping[str, Any]) -> Asked:
        """The settings for which a picture is made as its record says, without those that are given."""
        recorded = _as_settings(Making.from_dict(record))
        return tuple((key, value) for key, value in recorded.items() if key not in self.given)


def _as_settings(making: Making) -> dict[str, Any]:
    """The settings for a making; what is no setting, no device here or not installed is left to `auto`."""
    rows, compiler = making.unet_bs, making.compile
    installed = compiler == OPENVINO and find_spec(OPENVINO)
    return {
        "device": making.device if making.device in available_devices() else "auto",
        "precision": "full" if making.is_full else "autocast",
        "unet_bs": rows if rows is not None and 1 <= rows <= UNET_BS_LIMIT else None,
        "compile": OPENVINO if installed else compiler == INDUCTOR,
    }


def print_report(verification: Verification, *, as_json: bool) -> None:
    """Prints what was found on stdout: every problem as JSON, or the first ones as lines."""
    if as_json:
        terminal.print_json(_document(verification))
        return
    checked = f"{len(verification.findings)} of {verification.done} pictures verified"
    counts = [f"{count} {state}" for state, count in verification.counts().items() if count]
    failed = [f"{verification.failed} failed when they were made"] if verification.failed else []
    print("; ".join([checked, ", ".join(counts), *failed]))
    for line in verification.unreadable:
        print(f"  unreadable  {RECORDS}:{line}")
    problems = verification.problems()
    print(*(f"  {_line(finding)}\n" for finding in problems[:SHOWN]), sep="", end="")
    if len(problems) > SHOWN:
        print(f"  and {len(problems) - SHOWN} more; json=true shows them all")


def _document(verification: Verification) -> dict[str, Any]:
    return {
        "folder": str(verification.store),
        "records": verification.done,
        "verified": len(verification.findings),
        "failed_records": verification.failed,
        "unreadable_lines": verification.unreadable,
        "counts": verification.counts(),
        "problems": [asdict(finding) for finding in verification.problems()],
    }


def _line(finding: Finding) -> str:
    said = [finding.message] if finding.message else []
    if (distance := finding.distance) and distance.psnr is not None:
        said.append(f"{distance.psnr:.1f} dB, up to {distance.greatest} levels in {distance.share:.2%} of the pixels")
    if finding.changed:
        said.append("changed: " + ", ".join(f"{name} {a} -> {b}" for name, (a, b) in finding.changed.items()))
    elif finding.reproduced is False:
        said.append("nothing that is recorded has changed")
    return f"{finding.state:10}  {finding.image}  {'; '.join(said)}"
