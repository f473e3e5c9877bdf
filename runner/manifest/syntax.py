"""Which texts of a job are read in which syntax, and what is wrong with them; it is found before an item is made.

A text and a syntax may come from different axes, so a text is read when they meet, in `items`, and checked here for
every syntax that it can meet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from runner.a1111.check import check_negative, check_prompt
from runner.a1111.tags import PromptError, Tag
from runner.errors import Location, ManifestError, Problems, did_you_mean
from runner.item import Lora
from runner.keys import A1111
from runner.manifest.job import Job
from runner.manifest.loras import find_lora
from runner.manifest.nodes import Node, wrap
from runner.manifest.places import Frame, ListedFile, find_inside
from runner.manifest.prompts import Prompt, check_weights, own_negatives, suspects

SYNTAX = "prompt_syntax"
FOLDER, ENDINGS = "loras", (".safetensors", ".pt", ".ckpt", ".bin")
SECTIONS = ("defaults", "jobs", "matrix", "zip", "include")


def speaks_of_syntax(node: Node) -> bool:
    """Whether a manifest, or a section of it, says anywhere how its texts are read."""
    if isinstance(node.value, list):
        return any(map(speaks_of_syntax, node.value))
    entries = node.value.items() if isinstance(node.value, dict) else ()
    return any(key.written == SYNTAX or (key.written in SECTIONS and speaks_of_syntax(value)) for key, value in entries)


def check_texts(frame: Frame, job: Job) -> None:
    """Reads each text of a job in each syntax that it can meet, and finds the LoRAs that its prompts' tags name.

    Raises:
        ManifestError: a text can't be read, or a tag names a LoRA that isn't there; all such errors together.
    """
    problems = Problems()
    for prompt, syntaxes in _prompts(job):
        for syntax in syntaxes:
            with problems:
                _check(frame, prompt, syntax)
    checked = set[str]()
    for negative, location in _negatives(job):
        if negative not in checked:
            checked.add(negative)
            with problems:
                read_negative(negative, location)
    problems.raise_all()


def _prompts(job: Job) -> Iterator[tuple[Prompt, Collection[str]]]:
    """The prompts that may be wrong, and their syntaxes."""
    column: Sequence[Prompt] = job.columns["prompt"]
    together = job.syntaxes_with("prompt")
    if together is not None:
        return zip(column, ((syntax,) for syntax in together), strict=True)
    syntaxes = job.syntaxes
    return ((prompt, syntaxes) for prompt in suspects(column, plain=A1111 not in syntaxes))


def _negatives(job: Job) -> Iterator[tuple[str, Location]]:
    """The negative prompts that are read in AUTOMATIC1111's syntax, with their places."""
    if A1111 not in job.syntaxes:
        return
    beside = job.syntaxes_with("prompt")
    column = job.columns["prompt"]
    yield from own_negatives(
        column if beside is None else [prompt for prompt, syntax in zip(column, beside, strict=True) if syntax == A1111]
    )
    beside = job.syntaxes_with("negative")
    values = job.columns.get("negative", [job.values.get("negative", "")])
    for number, negative in enumerate(values):
        if beside is None or beside[number] == A1111:
            yield negative, job.location


def _check(frame: Frame, prompt: Prompt, syntax: str) -> None:
    if syntax == A1111:
        if prompt.in_parts:
            message = "'parts' with 'weights' are of prompt_syntax: plain; with a1111 write 'text: a (cat:1.2)'"
            raise ManifestError(message, prompt.location)
        for tag in read_a1111(prompt.text, prompt.location)[1]:
            if tag.name not in frame.tagged:
                frame.tagged[tag.name] = find_tagged(frame, tag, prompt.location)
    else:
        check_weights(prompt)


def read_a1111(text: str, location: Location) -> tuple[str, Sequence[Tag]]:
    """A prompt in AUTOMATIC1111's syntax without its tags, and these.

    Raises:
        ManifestError: it can't be read.
    """
    try:
        return check_prompt(text)
    except PromptError as error:
        raise ManifestError(str(error), location) from None


def read_negative(text: str, location: Location) -> None:
    """Checks a negative prompt in AUTOMATIC1111's syntax.

    Raises:
        ManifestError: it can't be read, or names a LoRA.
    """
    try:
        check_negative(text)
    except PromptError as error:
        raise ManifestError(f"negative: {error}", location) from None


def find_tagged(frame: Frame, tag: Tag, location: Location) -> Lora:
    """The LoRA that a tag names: one that the manifest lists, or a file of this name in the folder `loras` beside it.

    Raises:
        ManifestError: there is none, or its file is wrong.
    """
    listed = (frame.loras or {}).get(tag.name)
    if listed is None and frame.loras is not None:
        node = wrap(f"{FOLDER}/{tag.name}", location)
        found = (f"{FOLDER}/{tag.name}{ending}" for ending in ENDINGS if "/" not in tag.name)
        path = next((name for name in found if _is_file(frame.folder / name)), None)
        if path is None:
            known = did_you_mean(tag.name, frame.loras) if frame.loras else f"and its folder '{FOLDER}' holds none"
            message = f"the manifest lists no LoRA '{tag.name}', {known}"
            raise ManifestError(str(PromptError(message, tag.offset)), location)
        listed = ListedFile(find_inside(wrap(path, location), frame.folder, frame.allow_outside), "", node)
    return find_lora(frame, tag.name, listed, tag.unet, tag.text)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False
