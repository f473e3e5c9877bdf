"""Which texts of a job are read in which syntax, and what is wrong with them; it is found before an item is made.

A text and a syntax may come from different axes, so a text is read when they meet, in `items`, and checked here for
every syntax that it can meet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from runner.a1111.check import check_negative, check_prompt
from runner.a1111.tags import PromptError, Tag
from runner.errors import Location, ManifestError, Problems
from runner.keys import A1111
from runner.manifest.job import Job
from runner.manifest.nodes import Node
from runner.manifest.prompts import Prompt, check_weights, own_negatives, suspects

SYNTAX = "prompt_syntax"
SECTIONS = ("defaults", "jobs", "matrix", "zip", "include")


def speaks_of_syntax(node: Node) -> bool:
    """Whether a manifest, or a section of it, says anywhere how its texts are read."""
    if isinstance(node.value, list):
        return any(map(speaks_of_syntax, node.value))
    entries = node.value.items() if isinstance(node.value, dict) else ()
    return any(key.written == SYNTAX or (key.written in SECTIONS and speaks_of_syntax(value)) for key, value in entries)


def check_texts(job: Job, listed: Collection[str] = ()) -> None:
    """Reads each text of a job in each syntax that it can meet; `listed` are the LoRAs that the manifest lists.

    Raises:
        ManifestError: a text can't be read, or a tag names a LoRA that isn't listed; all such errors together.
    """
    problems = Problems()
    for prompt, syntaxes in _prompts(job):
        for syntax in syntaxes:
            with problems:
                _check(prompt, syntax, listed)
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


def _check(prompt: Prompt, syntax: str, listed: Collection[str]) -> None:
    if syntax == A1111:
        if prompt.in_parts:
            message = "'parts' with 'weights' are of prompt_syntax: plain; with a1111 write 'text: a (cat:1.2)'"
            raise ManifestError(message, prompt.location)
        read_a1111(prompt.text, prompt.location, listed)
    else:
        check_weights(prompt)


def read_a1111(text: str, location: Location, listed: Collection[str] | None = ()) -> str:
    """A prompt in AUTOMATIC1111's syntax, without its tags; of no listed LoRAs at all they are not looked for.

    Raises:
        ManifestError: it can't be read, or a tag names a LoRA that isn't listed.
    """
    try:
        rest, tags = check_prompt(text)
    except PromptError as error:
        raise ManifestError(str(error), location) from None
    if listed is not None:
        find_loras(tags, listed, location)
    return rest


def read_negative(text: str, location: Location) -> None:
    """Checks a negative prompt in AUTOMATIC1111's syntax.

    Raises:
        ManifestError: it can't be read, or names a LoRA.
    """
    try:
        check_negative(text)
    except PromptError as error:
        raise ManifestError(f"negative: {error}", location) from None


def find_loras(
    tags: Sequence[Tag], listed: Collection[str], location: Location
) -> tuple[tuple[str, float, float], ...]:
    """The LoRAs of a prompt's tags, as the item key `loras` has them: name, weight in the UNet, in the text encoders.

    Raises:
        ManifestError: the manifest doesn't list one of them.
    """
    for tag in tags:
        if tag.name not in listed:
            raise ManifestError(str(PromptError(f"the manifest lists no LoRA '{tag.name}'", tag.offset)), location)
    return tuple((tag.name, tag.unet, tag.text) for tag in tags)
