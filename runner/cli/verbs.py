"""The table of verbs: what each is called with, the settings that it reads, and what it calls.

Each verb imports the heavy libraries that it needs when it is called, so that help and `plan` answer at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runner import terminal
from runner.engine.stops import Stop, Stopped
from runner.errors import EXIT_ITEMS_FAILED, ManifestError, SettingError
from runner.machine import threads

if TYPE_CHECKING:
    from rich.console import Console

    from runner.settings import Settings

SHOWN = 20  # problems
ENGINE = "model device precision turbo compile unet_bs memory"  # settings of every verb that calls the model
PART = "limit shuffle shard ids"  # which of the items
RUN = f"{ENGINE} engine ray defaults out {PART} skip_grid skip_save n_rows attempts deep mixed lock allow_outside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """What can be asked for.

    `target` is the word of the usage line, empty for a verb that takes settings only; it ends in `...` where several
    targets are allowed. `uses` are the keys of the settings that the verb reads, beside `debug`. Multirun is refused
    for a verb that runs `once`.
    """

    target: str
    summary: str
    help: str
    uses: str
    run: Callable[[Call], int]
    once: bool = False

    @property
    def takes_many(self) -> bool:
        """Whether it takes several targets."""
        return self.target.endswith("...")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a verb is called with: its targets, the settings, and the overrides that made these."""

    targets: tuple[Path, ...]
    settings: Settings
    overrides: tuple[str, ...]
    job: str = ""  # the name of its folder among those of a sweep
    drawn: dict[int, int] = field(default_factory=dict)  # seeds that a sweep's runs share, by manifest's job

    @property
    def target(self) -> Path:
        """The one target."""
        return self.targets[0]


def _run(call: Call) -> int:
    threads.settle()
    from runner import request
    from runner.report import progress
    from runner.verbs.run import run

    asked = request.read_request(call.target, call.settings, job=call.job, drawn=call.drawn)
    _note(asked.note)
    for key in asked.idle_defaults():
        print(f"runner: note: defaults.{key} has no effect: {request.IDLE}", file=sys.stderr)
    try:
        with Stop().listening() as stop:
            finished = progress.watch(run.run(asked, stop=stop), asked.store, terminal.console())
    except Stopped:
        print("runner: stopped; what was finished is safe, run again to go on", file=sys.stderr)
        raise
    return EXIT_ITEMS_FAILED if finished.failed or finished.lost else 0


def _plan(call: Call) -> int:
    from runner import request
    from runner.verbs.plan import survey
    from runner.verbs.plan import text as plan_text

    asked = request.read_request(call.target, call.settings, job=call.job, drawn=call.drawn)
    _note(asked.note)
    found = survey.make_survey(asked)
    if call.settings.json:
        terminal.print_json(found.to_dict())
    else:
        plan_text.print_survey(found)
    return 0


def _verify(call: Call) -> int:
    threads.settle()
    from runner.folder.store import store_at
    from runner.report import progress
    from runner.settings import given_keys
    from runner.verbs.verify import verify

    verification = verify.Verification(store_at(call.target), call.settings, given_keys(call.overrides))
    progress.show(verification.run(), terminal.console())
    verify.print_report(verification, as_json=call.settings.json)
    return verification.exit_code()


def _gallery(call: Call) -> int:
    from runner.folder.names import GALLERY, GRID
    from runner.folder.store import store_at
    from runner.report import gallery

    store = store_at(call.target)
    gallery.build(store, call.settings.n_rows, thumbnails=True)
    print(f"{store}/{GALLERY}", f"{store}/{GRID}", sep="\n", flush=True)
    if call.settings.watch:
        gallery.watch(store)
    return 0


def _merge(call: Call) -> int:
    from runner.folder.names import GALLERY
    from runner.folder.store import store_at
    from runner.report.table import many
    from runner.verbs.merge import Merge

    if not call.settings.out:
        raise SettingError("into which folder? give it as out=")
    target, shown = store_at(call.settings.out), terminal.console()
    merge = Merge([store_at(each) for each in call.targets], target, call.settings, partial(_tell, shown))
    report = merge.run()
    _note(*report.notes)
    there, failed = report.pictures - report.copied, f", {report.failed} items failed" if report.failed else ""
    place = f"{target}/{GALLERY}" if target.size(GALLERY) >= 0 else target
    print(f"{many(report.copied, 'picture')} copied, {there:,} were there already{failed}; see {place}")
    return _left_out(report.problems)


def _export(call: Call) -> int:
    from runner.folder.store import store_at
    from runner.report.table import many
    from runner.verbs.export.export import Export

    folder = call.target if call.target.name not in ("", "..") else call.target.resolve()
    target, shown = store_at(call.settings.out or f"{folder}-{call.settings.to}"), terminal.console()
    report = Export(store_at(folder), target, call.settings, partial(_tell, shown)).run()
    _note(*report.notes)
    shards = many(report.shards, "shard")
    print(f"{many(report.pictures, 'picture')} in {shards}, {report.made:,} of them new; see {target}")
    return _left_out(report.problems)


def _tell(shown: Console, line: str) -> None:
    terminal.say(shown, [line])


def _note(*notes: str) -> None:
    for note in filter(None, notes):
        print(f"runner: note: {note}", file=sys.stderr)


def _left_out(problems: Sequence[str]) -> int:
    """The exit code of a verb that had to leave out pictures; names the first of them."""
    for problem in problems[:SHOWN]:
        print(f"runner: left out: {problem}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"runner: and {len(problems) - SHOWN} more", file=sys.stderr)
    return EXIT_ITEMS_FAILED if problems else 0


def _extract(call: Call) -> int:
    from runner.verbs import extract

    found = extract.extract(call.targets)
    sys.stdout.buffer.write(found.manifest.encode())  # a manifest is UTF-8, whatever the screen is
    sys.stdout.flush()
    for line in (*found.notes, *found.problems):
        print(f"runner: {line}", file=sys.stderr)
    return ManifestError.exit_code if found.problems else 0


def _web(call: Call) -> int:
    threads.settle()
    from runner.web.guard import given_port

    given_port()
    try:
        from runner.web import page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise SettingError("the page needs Gradio: pip install 'manifest-runner[web]'") from error

    page.serve(call.settings)
    return 0


def _bench(call: Call) -> int:
    from runner.bench import bench
    from runner.bench import report as bench_report

    command = shlex.join(["runner", *sys.argv[1:]])
    shown = terminal.console()
    report = bench.bench(call.settings, command, lambda line: terminal.say(shown, [line]))
    files = bench_report.write_files(report, bench.folder_of(call.settings))
    if call.settings.json:
        print(bench_report.as_json(report).decode())
    else:
        bench_report.print_table(report, terminal.console(stderr=False))
        print(*files, sep="\n")
    return EXIT_ITEMS_FAILED if report.problems else 0


def _doctor(call: Call) -> int:
    threads.settle()
    import dataclasses

    with terminal.console().status("probing the machine"):
        from runner.report import table
        from runner.verbs.doctor import doctor
        from runner.verbs.doctor import text as doctor_text

        report = doctor.examine(call.settings)
    if call.settings.json:
        terminal.print_json(dataclasses.asdict(report))
    else:
        table.print_plainly(lambda console: doctor_text.show(report, console))
    return 0


VERBS: Mapping[str, Verb] = {
    "run": Verb(
        target="MANIFEST",
        summary="render what is still missing, then build the gallery",
        help="""
Renders what is still missing of a manifest (.yaml), or of a .jsonl of records or items; then builds the gallery.
Run it again to go on: finished pictures are skipped. Exit code 3: some items failed.
""",
        uses=RUN,
        run=_run,
    ),
    "plan": Verb(
        target="MANIFEST",
        summary="dry run: how many images, how they are grouped, what they take",
        help="""
Dry run: how many pictures, the axes, time, disk and memory, how prompts are read, and likely mistakes in the manifest.
Renders and writes nothing. json=true prints one JSON document.
""",
        uses=f"{RUN} json",
        run=_plan,
    ),
    "verify": Verb(
        target="FOLDER",
        summary="render recorded pictures again and compare",
        help="""
Renders the recorded pictures of a run folder again, or sample=N of them, and compares bytes. Writes nothing. Settings
that are not given are taken from the records: model, device, precision, compile, unet_bs. For each difference it prints
how large it is and which recorded factors changed.
Exit code 5: a picture differs, is damaged, missing or altered. 3: some items can't be rendered again, and that is all.
""",
        uses=f"{ENGINE} sample shuffle json",
        run=_verify,
        once=True,
    ),
    "gallery": Verb(
        target="FOLDER",
        summary="(re)build gallery.html and grid.png of a run folder",
        help="""
(Re)builds gallery.html and grid.png of a run folder from its records and pictures, and thumbnails that are missing.
With --watch it goes on to build the page again whenever there are new records, until Ctrl-C.
""",
        uses="n_rows watch",
        run=_gallery,
        once=True,
    ),
    "merge": Verb(
        target="FOLDER...",
        summary="join run folders, such as shards, into one",
        help="""
Joins run folders, such as those of shard=1/4 to shard=4/4, into out=: copies each picture whose bytes are those of its
record, with its record, then builds the gallery. Run it again to go on. The folders that are joined stay as they are.
Exit code 3: some pictures are lost or damaged; they are named, and left out.
""",
        uses="out mixed deep lock skip_grid n_rows",
        run=_merge,
        once=True,
    ),
    "export": Verb(
        target="FOLDER",
        summary="the pictures of a run folder as a dataset: webdataset, imagefolder, parquet",
        help="""
Writes the finished pictures of a run folder, with their captions and records, as a dataset in shards: --to webdataset
(tar files), imagefolder or parquet, which is the same as to=webdataset and so on. Into out=, or beside the folder. Run
it again to go on, or after more pictures were made. Exit code 3: some pictures are lost or damaged; they are left out.
""",
        uses="to out shard_size ids deep lock",
        run=_export,
        once=True,
    ),
    "extract": Verb(
        target="FILE...",
        summary="print the manifest that makes these pictures again, from the files alone",
        help="""
Prints the manifest that makes these pictures (PNG, JPEG, WebP, AVIF) again, or all those in these folders, from the
files alone. For pictures of other programs (AUTOMATIC1111, ComfyUI, InvokeAI, NovelAI, Fooocus, SwarmUI), comments name
what can't be carried over. Exit code 4: some files can't be read.
""",
        uses="",
        run=_extract,
        once=True,
    ),
    "web": Verb(
        target="",
        summary="the page for txt2img, img2img and more, on this machine only",
        help="""
Serves the page for txt2img, img2img, inpainting and matrices at http://127.0.0.1:7860, or at the next free port;
GRADIO_SERVER_PORT names another. Each press makes a run folder in outputs/web, or in out=. Ctrl-C ends it.
""",
        uses=f"{ENGINE} defaults out web",
        run=_web,
    ),
    "bench": Verb(
        target="",
        summary="this runner against stock diffusers, on this machine",
        help="""
Renders the same pictures with stock diffusers and with this runner, in turns and in one run, and compares speed,
memory, the time to the first picture, and the pictures. bench=emoji takes the model that ships with the package,
bench=sd15 one of Stable Diffusion v1's size with random weights, written once to the user's cache; model.path= takes
your own. Writes the report to outputs/bench-<name>, or to out=. json=true prints JSON. Exit code 3: a contender failed.
""",
        uses=f"bench {ENGINE} out json",
        run=_bench,
    ),
    "doctor": Verb(
        target="",
        summary="what this machine has, and what auto chooses here",
        help="""
Prints what this machine has, what each fragment of the model gives in each number type and how fast, and what `auto`
chooses for device, precision, turbo, unet_bs and memory. The speed of large layers is kept in the user's cache: from
then on it decides in which number type large models run. json=true prints one JSON document.
""",
        uses=f"{ENGINE} json",
        run=_doctor,
    ),
}
