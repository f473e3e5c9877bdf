"""The verb `verify`: renders recorded items of a run folder again, in the manner that their records name, and reports.

Nothing is written into the folder and no lock is taken; of a run that is going on, what is recorded so far is
verified. What a rendering says of its record and its file is found in `judge`.

    verification = Verification(Path("outputs/alps"), settings.compose([]), given=())
    for event in verification.run():
        ...
    print_report(verification, as_json=False)
"""

from __future__ import annotations

import copy
import random
import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from runner.device.memory import available_devices, release_memory
from runner.engine.start import environment, start_executor
from runner.errors import EXIT_DIFFERENCE, EXIT_ITEMS_FAILED, ModelError, NoRunFolder
from runner.events import ItemDone, ItemFailed, Rendered, RunEvent, RunFinished, RunStarted
from runner.folder.ledger import RECORDS, numbered_records
from runner.item import Item, Model
from runner.manifest.lines import part
from runner.model import files as model_files
from runner.model import find
from runner.model.files import ModelFiles
from runner.planning import waves
from runner.planning.costs import INDUCTOR, OPENVINO
from runner.request import Request
from runner.settings import UNET_BS_LIMIT, Settings
from runner.verbs.verify.judge import FAILED, SAME, STATES, Finding, judge, read_back

SHOWN = 20
Found = tuple[Model, ModelFiles]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a picture was made, as far as settings can ask for it and it changes bytes; `unet_bs` is None for `auto`."""

    device: str
    model: Model
    precision: str
    unet_bs: int | None
    compile: bool | str


class Verification:
    """One look at a run folder. `given` are the keys of those settings that hold instead of what is recorded."""

    def __init__(self, folder: Path, settings: Settings, given: Container[str]) -> None:
        self.folder, self.settings, self.given = folder, settings, given
        self.done = self.failed = 0  # records
        self.unreadable: list[int] = []  # lines
        self.recorded: set[bytes] = set()  # fingerprints
        self.findings: list[Finding] = []

    def run(self) -> Iterator[RunEvent]:
        """Looks at every chosen record; the findings are complete after the last event.

        Raises:
            NoRunFolder: there is nothing to verify.
            SettingError: the model isn't known, found, or whole; this machine hasn't the device that was asked for.
        """
        begun = time.monotonic()
        chosen = self._choose()
        groups: dict[Manner, list[Item]] = defaultdict(list)
        for line, record in chosen.items():
            item = read_back(self.folder, line, record)
            if isinstance(item, Finding):
                self.findings.append(item)
            else:
                groups[_manner(part(record, "run"), item.model)].append(item)
        yield RunStarted(wanted=len(chosen), missing=sum(map(len, groups.values())))
        given = self._given_model()
        for manner, items in groups.items():
            yield from self._render(manner, given or self._find_model(manner.model), items, chosen)
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
        for line, record in numbered_records(self.folder):
            if record is None:
                self.unreadable.append(line)
            else:
                newest[record["id"]] = line if record["status"] == "done" else None
                self.recorded.add(_hashes(part(part(record, "model"), "fingerprints")))
        done = [line for line in newest.values() if line]
        self.done, self.failed = len(done), len(newest) - len(done)
        if not done and not self.unreadable:
            raise NoRunFolder(f"'{self.folder}' has no record of a finished picture, so there is nothing to verify")
        if self.settings.sample and self.settings.sample < len(done):
            # Not every n-th: a step that fits the manifest's axes would meet one value of an axis only.
            done = random.Random(self.settings.shuffle or 0).sample(done, self.settings.sample)
        lines = set(done)
        return {line: record for line, record in numbered_records(self.folder) if record and line in lines}

    def _render(
        self, manner: Manner, found: Found, items: list[Item], records: Mapping[int, Mapping[str, Any]]
    ) -> Iterator[RunEvent]:
        model, files = found
        executor = start_executor(self._request(manner, model, files), model)
        now = {"model": model.to_dict(), "env": environment(executor.execution.compiler)}
        for wave in waves.group(items, executor.execution):
            for event in executor.run(wave):
                if isinstance(event, Rendered | ItemFailed):
                    how = event.how if isinstance(event, Rendered) else {}
                    now["run"] = {**executor.describe(), **how}
                    record = records[event.item.number]
                    made = event.pixels if isinstance(event, Rendered) else event.error
                    self.findings.append(judge(self.folder, record, event.item, made, now))
                    yield ItemDone(item=event.item, record=record)
                else:
                    yield event
        device = executor.execution.device
        del executor
        release_memory(device)

    def _given_model(self) -> Found | None:
        """A model that is asked for and is none of the recorded ones: it is used in the place of all of them."""
        if "model" not in self.given and "model.path" not in self.given:
            return None
        found = find.use_model(Model(), self.settings.model, remembered=False)
        return None if _hashes(dict(found[0].fingerprints)) in self.recorded else found

    def _find_model(self, recorded: Model) -> Found:
        """The recorded weights; where they are nowhere, what lies at their place now."""
        if "model.prediction" in self.given:
            recorded = recorded._replace(prediction=self.settings.model.prediction)
        try:
            return find.use_model(recorded, self.settings.model, remembered=False)
        except ModelError:
            if not recorded.path or not model_files.place_of(recorded.path).exists():
                raise
            return find.identify(recorded, remembered=False)

    def _request(self, manner: Manner, model: Model, files: ModelFiles) -> Request:
        """A run in this manner, save for what is given."""
        settings = copy.copy(self.settings)
        for key in {"device", "precision", "unet_bs", "compile"}:
            if key not in self.given:
                setattr(settings, key, getattr(manner, key))
        return Request(
            target=self.folder / RECORDS,
            folder=self.folder,
            items=(),
            jobs=(),
            drawn_seeds={},
            models={model: files},
            settings=settings,
        )


def _hashes(fingerprints: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fingerprints, option=orjson.OPT_SORT_KEYS)


def _manner(run: Mapping[str, Any], model: Model) -> Manner:
    """The model and the settings for a record's `run`; what is no setting or no device here is left to `auto`."""
    dtypes = part(run, "dtypes").values()
    unet_bs = run.get("unet_bs")
    return Manner(
        model=model,
        device=str(run["device"]) if run.get("device") in available_devices() else "auto",
        precision="full" if dtypes and all(dtype == "float32" for dtype in dtypes) else "autocast",
        unet_bs=unet_bs if type(unet_bs) is int and 1 <= unet_bs <= UNET_BS_LIMIT else None,
        compile=_recorded_compile(run.get("compile")),
    )


def _recorded_compile(compiler: object) -> bool | str:
    """OpenVINO counts where it is installed."""
    return OPENVINO if compiler == OPENVINO and find_spec(OPENVINO) else compiler == INDUCTOR


def print_report(verification: Verification, *, as_json: bool) -> None:
    """Prints what was found on stdout: every problem as JSON, or the first ones as lines."""
    if as_json:
        print(orjson.dumps(_document(verification)).decode())
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
        "folder": str(verification.folder),
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
