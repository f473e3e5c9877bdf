"""The command line: `runner VERB [TARGET] [key=value ...]`.

Heavy libraries are imported by the verbs that need them, so that help and `plan` answer at once. Every user error
ends here as one message and its exit code.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from runner import __version__
from runner.engine.stops import Stop, Stopped
from runner.errors import EXIT_FAULT, EXIT_ITEMS_FAILED, ManifestError, RunnerError, SettingError, did_you_mean
from runner.machine import threads

USAGE = """usage: runner VERB [TARGET] [key=value ...]

  run MANIFEST     render what is still missing, then build the gallery
  plan MANIFEST    dry run: how many images, how they are grouped, what they take
  verify FOLDER    render recorded pictures again and compare
  gallery FOLDER   (re)build gallery.html and grid.png of a run folder
  extract FILE...  print the manifest that makes these pictures again, from the files alone
  web              the page for txt2img and img2img, on this machine only
  bench            this runner against stock diffusers, on this machine
  doctor           what this machine has, and what auto chooses here

  runner VERB --help    the settings of a verb
  -m, --multirun        Hydra's multirun: unet_bs=2,4 runs once for each value
  --cfg job             show the whole configuration
  --version
"""
VERB_HELP = {
    "run": """usage: runner run MANIFEST [key=value ...]

Renders what is still missing of a manifest (.yaml), or of a .jsonl of records or items; then builds the gallery.
Run it again to go on: finished pictures are skipped. Exit code 3: some items failed.
""",
    "plan": """usage: runner plan MANIFEST [key=value ...]

Says what `run` would do: how many pictures, the axes, time, disk and memory, how prompts were read, and what may not be
what was meant. Nothing is rendered or written. json=true prints one JSON document.
""",
    "verify": """usage: runner verify FOLDER [sample=N] [key=value ...]

Renders the recorded pictures of a run folder again, or N of them, and compares bytes; writes nothing. What isn't set is
as recorded: model, device, precision, compile, unet_bs. Says for each difference how large it is and what has changed.
Exit code 5: something differs, is damaged, missing or altered. 3: no more than that some items can't be rendered.
""",
    "gallery": """usage: runner gallery FOLDER [key=value ...]

(Re)builds gallery.html and grid.png of a run folder from its records and pictures.
""",
    "extract": """usage: runner extract FILE... [key=value ...]

Prints the manifest that makes these PNG and JPEG files again, or all those in these folders, from the files alone. Of
pictures of AUTOMATIC1111's program, comments name what can't be carried over. Exit code 4: some files can't be read.
""",
    "web": """usage: runner web [key=value ...]

Shows the page for txt2img and img2img at http://127.0.0.1:7860, or the next free port; GRADIO_SERVER_PORT names
another. Each press makes a run folder in outputs/web, or in out=. Ctrl-C ends it.
""",
    "bench": """usage: runner bench [bench=emoji|sd15] [bench.KEY=value ...] [key=value ...]

Renders the same pictures with stock diffusers and with this runner, in turns and in one run, and compares speed,
memory, the time to the first picture, and the pictures. bench=emoji takes the model that ships with the package,
bench=sd15 one of Stable Diffusion v1's size with random weights, written once to the user's cache; model.path= your
own. Writes bench.json, bench.md and bench.png to outputs/bench-<name>, or to out=; json=true prints JSON.

  bench.images=64 bench.size=64 bench.steps=20 bench.scale=5.0 bench.rounds=3
  'bench.contenders=[all]'      or some of: stock_full stock_full_batched stock_half stock_half_batched, on CUDA
                                stock_model_offload stock_group_offload stock_sequential_offload,
                                runner runner_full runner_resident runner_streamed
  'bench.ceilings=[1200MB]'     adds a contender runner_1200MB with memory=1200MB

Exit code 3: a contender failed.
""",
    "doctor": """usage: runner doctor [key=value ...]

Says what this machine has, what each fragment of the model gives in each number type and how fast, and what `auto`
chooses for device, precision, turbo, unet_bs and memory. How fast large layers are is kept in the user's cache, and
decides from then on in which number type large models run. json=true prints one JSON document.
""",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line, taken apart."""

    verb: str
    targets: tuple[Path, ...]
    overrides: tuple[str, ...]
    multirun: bool
    show_config: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "debug=true" in words
    try:
        return _main(words)
    except RunnerError as error:
        if debug:
            traceback.print_exc()
        print(f"runner: {error.report()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Stopped as stopped:
        return stopped.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAULT
    except Exception as error:
        if debug:
            traceback.print_exc()
        hint = "" if debug else "; debug=true shows where"
        print(f"runner: a fault of the runner itself: {type(error).__name__}: {error}{hint}", file=sys.stderr)
        return EXIT_FAULT


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        print(f"runner {__version__}")
        return 0
    if words[0] not in VERBS:
        raise SettingError(f"'{words[0]}' is not a verb: {did_you_mean(words[0], VERBS)}")
    if "-h" in words or "--help" in words:
        print(VERB_HELP[words[0]] + _settings_help(), end="")
        return 0
    command = parse(words)
    if command.show_config:
        return _show_config(command)
    signal.signal(signal.SIGTERM, _stop)
    return _run_all(command) if command.multirun else _run_one(command)


def parse(words: Sequence[str]) -> Command:
    """Takes a command line apart.

    Raises:
        SettingError: two targets, an unknown flag.
    """
    verb, rest = words[0], list(words[1:])
    multirun = any(flag in rest for flag in ("-m", "--multirun"))
    show_config = any(rest[i : i + 2] in (["--cfg", "job"], ["-c", "job"]) for i in range(len(rest)))
    rest = [word for word in rest if word not in ("-m", "--multirun", "--cfg", "-c")]
    if show_config:
        rest.remove("job")
    for word in rest:
        if word.startswith("-") and "=" not in word:
            raise SettingError(
                f"'{word}' is not an option: {did_you_mean(word, ('--help', '--multirun', '--cfg job'))}"
            )
    many = verb in WITH_MANY_TARGETS
    targets = [word for word in rest if "=" not in word or (many and Path(word).exists())]
    if len(targets) > 1 and not many:
        raise SettingError(f"two targets: {' and '.join(targets[:2])}; a setting is written key=value")
    return Command(
        verb=verb,
        targets=tuple(map(Path, targets)),
        overrides=tuple(word for word in rest if word not in targets),
        multirun=multirun,
        show_config=show_config,
    )


def _run_one(command: Command) -> int:
    from runner import settings

    target = _target(command)
    said = command.overrides if command.verb in TAKES_OVERRIDES else settings.compose(command.overrides)
    return VERBS[command.verb](target, said)


def _run_all(command: Command) -> int:
    """Hydra's multirun; each job has a run folder of its own, named by what differs."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from runner import settings

    settings.check_overrides(command.overrides)
    target, codes = _target(command), list[int]()

    def job(config: Any) -> None:
        chosen = settings.to_settings(config)
        differs = HydraConfig.get().job.override_dirname.replace("/", "_")
        chosen.out = f"{chosen.out or f'outputs/{target.stem}-multirun'}/{differs}"
        print(f"runner: {differs}", file=sys.stderr)
        codes.append(_code_of(lambda: VERBS[command.verb](target, chosen)))

    quiet = ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
    nowhere = ["hydra.sweep.dir=.", "hydra.sweep.subdir=.", "hydra.job.chdir=false"]
    sys.argv = ["runner", "--multirun", *command.overrides, *quiet, *nowhere]
    conf = str(settings.conf_folder().resolve())
    hydra.main(config_path=conf, config_name="config", version_base="1.3")(job)()
    return next((code for code in codes if code), 0)


def _code_of(verb: Callable[[], int]) -> int:
    try:
        return verb()
    except RunnerError as error:
        print(f"runner: {error.report()}", file=sys.stderr)
        return error.exit_code


def _run(target: Path, settings: Any) -> int:
    threads.settle()
    from rich.console import Console

    from runner import request
    from runner.report import progress
    from runner.verbs.run import run

    asked = request.read_request(target, settings)
    try:
        with Stop().listening() as stop:
            finished = progress.watch(run.run(asked, stop=stop), asked.folder, Console(stderr=True))
    except Stopped:
        print("runner: stopped; what was finished is safe, run again to go on", file=sys.stderr)
        raise
    return EXIT_ITEMS_FAILED if finished.failed else 0


def _plan(target: Path, settings: Any) -> int:
    import orjson

    from runner import request
    from runner.verbs.plan import survey
    from runner.verbs.plan import text as plan_text

    found = survey.make_survey(request.read_request(target, settings))
    if settings.json:
        print(orjson.dumps(found.to_dict()).decode())
    else:
        plan_text.print_survey(found)
    return 0


def _verify(target: Path, overrides: Sequence[str]) -> int:
    threads.settle()
    from rich.console import Console

    from runner import settings

    chosen = settings.compose(overrides)  # before torch is loaded: a wrong setting is said at once
    from runner.report import progress
    from runner.verbs.verify import verify

    verification = verify.Verification(target, chosen, settings.given_keys(overrides))
    progress.show(verification.run(), Console(stderr=True))
    verify.print_report(verification, as_json=chosen.json)
    return verification.exit_code()


def _gallery(target: Path, settings: Any) -> int:
    from runner.report import gallery

    files = gallery.build(target, settings.n_rows)
    print(files.html, files.grid, sep="\n")
    return 0


def _extract(targets: Sequence[Path], settings: Any) -> int:
    from runner.verbs import extract

    found = extract.extract(targets)
    sys.stdout.buffer.write(found.manifest.encode())  # a manifest is UTF-8, whatever the screen is
    sys.stdout.flush()
    for line in (*found.notes, *found.problems):
        print(f"runner: {line}", file=sys.stderr)
    return ManifestError.exit_code if found.problems else 0


def _web(target: Path, settings: Any) -> int:
    threads.settle()
    try:
        from runner.web import page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise SettingError("the page needs Gradio: pip install 'manifest-runner[web]'") from error

    page.serve(settings)
    return 0


def _bench(target: Path, settings: Any) -> int:
    from rich.console import Console

    from runner.bench import bench
    from runner.bench import report as bench_report

    folder = bench.folder_of(settings)
    report = bench.bench(settings, shlex.join(["runner", *sys.argv[1:]]), Console(stderr=True, highlight=False).print)
    files = bench_report.write_files(report, folder)
    if settings.json:
        print(bench_report.as_json(report).decode())
    else:
        bench_report.print_table(report, Console())
        print(*files, sep="\n")
    return EXIT_ITEMS_FAILED if report.problems else 0


def _doctor(target: Path, settings: Any) -> int:
    threads.settle()
    import dataclasses

    import orjson
    from rich.console import Console

    with Console(stderr=True).status("probing the machine"):
        from runner.report import table
        from runner.verbs.doctor import doctor
        from runner.verbs.doctor import text as doctor_text

        report = doctor.examine(settings)
    if settings.json:
        print(orjson.dumps(dataclasses.asdict(report)).decode())
    else:
        table.print_plainly(lambda console: doctor_text.show(report, console))
    return 0


def _target(command: Command) -> Any:
    """What the verb is about: a path, or several where it takes several."""
    see = f"see runner {command.verb} --help"
    if command.verb in WITHOUT_TARGET:
        if command.targets or command.multirun:
            raise SettingError(f"runner {command.verb} takes settings only; {see}")
        return Path()
    if not command.targets:
        raise SettingError(f"runner {command.verb} needs a target; {see}")
    if command.multirun and command.verb in RUNS_ONCE:
        raise SettingError(f"runner {command.verb} runs once; {see}")
    return command.targets if command.verb in WITH_MANY_TARGETS else command.targets[0]


def _show_config(command: Command) -> int:
    from omegaconf import OmegaConf

    from runner import settings

    config = settings.compose_config(command.overrides)
    settings.to_settings(config)
    print(OmegaConf.to_yaml(config), end="")
    return 0


def _settings_help() -> str:
    from runner.settings import conf_folder

    text = (conf_folder() / "config.yaml").read_text(encoding="utf-8").partition("_self_\n\n")[2]
    models = "model: emoji         # a file of conf/model/, or model.path= a diffusers folder, .safetensors or .ckpt\n"
    return "\nSettings, and their defaults:\n\n" + "".join(f"  {line}\n" for line in (models + text).splitlines())


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


VERBS: dict[str, Callable[[Any, Any], int]] = {
    "run": _run,
    "plan": _plan,
    "verify": _verify,
    "gallery": _gallery,
    "extract": _extract,
    "web": _web,
    "bench": _bench,
    "doctor": _doctor,
}
WITHOUT_TARGET = ("web", "bench", "doctor")
WITH_MANY_TARGETS = ("extract",)
RUNS_ONCE = ("extract", "verify")  # whatever is said of multirun
TAKES_OVERRIDES = ("verify",)  # what isn't said there is as recorded, not as in conf/
