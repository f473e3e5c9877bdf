"""Warnings about a manifest that is right, but perhaps not what was meant: cut prompts, other tools' syntax, odd sizes.

Each check is a small function that says what is odd about one prompt, one kind of picture or one job; the tables join
it with what is wrong about that and what would be right. A warning changes neither a picture nor an exit code.

    linter = Linter(request)
    for item in request.wanted():
        linter.read(item)
    linter.warnings()
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.a1111.editing import schedule
from runner.a1111.emphasis import BREAK, fragments
from runner.errors import Location
from runner.item import MASK, MASK_BLUR, Item, Model, steps_made
from runner.manifest.job import Job
from runner.manifest.rules import DEFAULTS
from runner.model.files import ModelFiles
from runner.model.tokens import ROOM, ClipTokenizer, surely_fits, tokenizers
from runner.request import IDLE, Request
from runner.sampler_names import SAMPLERS, WITH_ETA
from runner.text import name_some, shorten
from runner.verbs.plan.forecast import Kind
from runner.verbs.plan.syntaxes import SUSPECT, foreign_syntax

EXAMPLES = 3
MOST_DISTILLED_STEPS = 12
DISTILLED = re.compile(r"turbo|lightning|hyper|lcm|dmd", re.IGNORECASE)
SIZES_TOLD = ("original_size", "target_size", "crop_origin")
LEAST_WEIGHT = 0.02  # of a prompt's part; below it nothing of the part is seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A thing to warn of: its name, what is counted, and what is wrong and would be right."""

    name: str
    unit: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One case of it: what is odd, the item, and where that is written; each as far as it is known."""

    text: str
    item: int | None
    place: Location | None


@dataclass(slots=True)
class Warned:
    """A check that found something: how often, and the first cases."""

    check: Check
    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def note(self, text: str, *, count: int = 1, item: int | None = None, place: Location | None = None) -> None:
        """Counts another case, and keeps it while there are few."""
        self.count += count
        if len(self.examples) < EXAMPLES:
            self.examples.append(Example(text=text, item=item, place=place))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        check = {"kind": self.check.name, "count": self.count, "unit": self.check.unit, "message": self.check.message}
        places = ((each, str(each.place) if each.place else None) for each in self.examples)
        return check | {"examples": [{"text": each.text, "item": each.item, "place": place} for each, place in places]}


# ---- what is odd about a text or a prompt

UNREAD = re.compile(r"(?<![\\\d:])[^\s:]*:[ ]?[-+]?(?:\d+[.,]\d+|[.]\d+|\d+(?=[,;]|[.](?!\d)))[,;.]?(?![\w)])")
LIKE_A_TIME = re.compile(r"(?<!\S)(\d+):(\d+)(?!\S)")


def numbers_as_weights(item: Item) -> Iterator[str]:
    """Ratios and times of day that were read as weights."""
    if item.parts[0].text != item.prompt and not item.a1111:  # so it was read as a weighted prompt
        for number, weight in LIKE_A_TIME.findall(item.prompt):
            yield f"'{number}:{weight}' is '{number}' with the weight {weight}"


def unread_weights(item: Item) -> Iterator[str]:
    """Numbers behind a colon that look like weights and were not read as any."""
    text = "" if item.a1111 else " ".join(part.text for part in item.parts)
    found = [match for match in UNREAD.findall(item.prompt) if match in text]
    if found:
        yield f"{name_some([repr(each.strip()) for each in dict.fromkeys(found)])} is plain text"


def comment_lines(item: Item) -> Iterator[str]:
    """Prompts that begin like a comment."""
    if item.prompt.startswith(("#", "//")):
        yield f"'{shorten(item.prompt, 40)}'"


def words_in_brackets(item: Item) -> Iterator[str]:
    """BREAK within brackets, in AUTOMATIC1111's syntax."""
    if item.a1111 and "BREAK" in item.prompt:
        *_, (_, text) = schedule(item.parts[0].text, item.steps)
        if found := [each for each in fragments(text) if each.text == BREAK.text and each != BREAK]:
            yield f"'BREAK' weighs {found[0].weight:.3g}"


def odd_weights(item: Item) -> Iterator[str]:
    """Parts that push away from what they say, and parts too light to be seen; a zero is meant."""
    for part in item.parts:
        if part.weight < 0 or 0 < part.weight < LEAST_WEIGHT:
            yield f"'{shorten(part.text, 40)}' weighs {part.weight:.2g} of 1"


# ---- what is odd about a kind of picture


def odd_size(kind: Kind, model: ModelFiles) -> Iterator[str]:
    """Sides below half or above twice of what the model was made for; XL also needs half of the pixels."""
    native = model.native_size
    few = model.family.sizes and 2 * kind.width * kind.height < native**2
    if few or 2 * min(kind.size) < native or max(kind.size) > 2 * native:
        yield f"{kind.width}x{kind.height}; {model.name} was made for {native}x{native}"


def unused_negative(kind: Kind, model: ModelFiles) -> Iterator[str]:
    """A negative prompt without guidance."""
    if kind.negative and not kind.guided:
        yield "scale 1 and a negative prompt"


def unlike_distilled(kind: Kind, model: ModelFiles) -> Iterator[str]:
    """Many steps or guidance for a model that was distilled to need neither."""
    told = bool(model.configs["unet"].get("time_cond_proj_dim"))
    if told or DISTILLED.search(model.name):
        if kind.steps > MOST_DISTILLED_STEPS:
            yield f"{kind.steps} steps of {model.name}"
        elif kind.guided and not told:
            yield f"guidance with {model.name}"


def few_steps(kind: Kind, model: ModelFiles) -> Iterator[str]:
    """Fewer steps than a sampler needs for a picture."""
    made = steps_made(kind.steps, kind.strength)
    if 0 < made < SAMPLERS[kind.sampler].fewest:
        yield f"{made} steps of {kind.sampler}" + (f", left by strength {kind.strength:g}" if made < kind.steps else "")


def no_steps(kind: Kind, model: ModelFiles) -> Iterator[str]:
    """An init picture that is given back as it is, where something else was asked for."""
    if kind.strength and not steps_made(kind.steps, kind.strength):
        yield f"strength {kind.strength:g} of {kind.steps} steps"


# ---- what is odd about a job


def unused_eta(job: Job) -> Iterator[str]:
    """An eta for samplers that have none."""
    without = [sampler for sampler in _values(job, "sampler") if not SAMPLERS[sampler].eta]
    if any(_values(job, "eta")) and without:
        yield f"eta with {name_some(without)}"


def unused_strength(job: Job) -> Iterator[str]:
    """A strength where all pictures begin with noise."""
    if not any(_values(job, "init")) and any(value != DEFAULTS["strength"] for value in _values(job, "strength")):
        yield "strength without init"


def unused_blur(job: Job) -> Iterator[str]:
    """A blur for a mask that isn't there."""
    if not any(_values(job, MASK)) and any(value != DEFAULTS[MASK_BLUR] for value in _values(job, MASK_BLUR)):
        yield "mask_blur without mask"


def black_masks(job: Job) -> Iterator[str]:
    """Masks with which nothing is made anew."""
    if black := [mask.path.name for mask in _values(job, MASK) if mask and not mask.white]:
        yield name_some(black)


def unused_sizes(job: Job) -> Iterator[str]:
    """Sizes that are told to Stable Diffusion XL alone."""
    if found := [key for key in SIZES_TOLD if any(value is not None for value in _values(job, key))]:
        yield name_some(found)


def _values(job: Job, key: str) -> Sequence[Any]:
    return job.columns.get(key, [job.values.get(key)])


# ---- the tables

CUT = Check(
    name="cut_prompt",
    unit="text",
    message=f"words beyond {ROOM} tokens are lost, as long_prompts: truncate allows; long_prompts: chunk keeps them",
)
OTHER_SYNTAX = Check(name="other_syntax", unit="text", message="another tool's syntax, which is plain text here")
SAME_PICTURE = Check(name="same_picture", unit="picture", message="wished for by another item as well, and made once")
NAME_TAKEN = Check(
    name="name_taken",
    unit="picture",
    message="an older picture of another item has the name and keeps it; the new one's name will end in its id",
)
UNREAD_WEIGHT = Check(
    name="unread_weight",
    unit="prompt",
    message="a weight is written words:0.5, without a space, with a point, and white space or the end behind it; "
    "weighted: false says that none is meant",
)
UNUSED_SIZES = Check(name="unused_sizes", unit="job", message="only models of Stable Diffusion XL are told sizes")
IDLE_DEFAULT = Check(name="idle_default", unit="setting", message=f"has no effect: {IDLE}")
PROMPT_CHECKS: Sequence[tuple[Callable[[Item], Iterable[str]], Check]] = (
    (lambda item: foreign_syntax(item.prompt, item.a1111), OTHER_SYNTAX),
    (
        words_in_brackets,
        Check(
            name="break_in_brackets",
            unit="prompt",
            message="within brackets it is a word like others, as in AUTOMATIC1111; close them before it",
        ),
    ),
    (numbers_as_weights, Check(name="number_as_weight", unit="prompt", message=r"a plain colon is written \:")),
    (
        comment_lines,
        Check(
            name="comment_line",
            unit="prompt",
            message="begins like a comment, and is rendered; comments: '#' beside 'file' leaves such lines out",
        ),
    ),
    (odd_weights, Check(name="odd_weight", unit="prompt", message="a weight is negative, or too small to be seen")),
)
KIND_CHECKS: Sequence[tuple[Callable[[Kind, ModelFiles], Iterable[str]], Check]] = (
    (odd_size, Check(name="odd_size", unit="picture", message="a size that the model was not made for")),
    (unused_negative, Check(name="unused_negative", unit="picture", message="a negative prompt needs a scale above 1")),
    (
        unlike_distilled,
        Check(
            name="unlike_distilled",
            unit="picture",
            message="a model for few steps wants 1 to 8 of them, scale 1, and mostly spacing: trailing",
        ),
    ),
    (few_steps, Check(name="few_steps", unit="picture", message="too few steps for more than a quick look")),
    (no_steps, Check(name="no_steps", unit="picture", message="the strength leaves no step to be made")),
)
JOB_CHECKS: Sequence[tuple[Callable[[Job], Iterable[str]], Check]] = (
    (unused_eta, Check(name="unused_eta", unit="job", message=f"eta has an effect with {', '.join(WITH_ETA)} only")),
    (unused_strength, Check(name="unused_strength", unit="job", message="strength has an effect with an init only")),
    (unused_blur, Check(name="unused_blur", unit="job", message="mask_blur has an effect with a mask only")),
    (
        black_masks,
        Check(name="black_mask", unit="job", message="a mask has nothing white, so the init picture is given back"),
    ),
)


class Linter:
    """Reads items one after the other and gathers what there is to warn of; it remembers texts, and no items."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._warned: dict[str, Warned] = {}
        self._prompts: set[str | tuple[str, bool]] = set()
        self._negatives, self._measured = {""}, set[tuple[Model, str]]()
        self._tokenizers: dict[Model, Collection[ClipTokenizer]] = {}
        for key in request.idle_defaults():
            self.note(IDLE_DEFAULT, f"defaults.{key}")
        told_sizes = any(files.family.sizes for files in request.models.values())
        for job in request.jobs:
            for find, check in JOB_CHECKS:
                self._note(check, find(job), job)
            if not told_sizes:
                self._note(UNUSED_SIZES, unused_sizes(job), job)

    @property
    def prompts(self) -> int:
        """How many different prompts were read; one that is read in two syntaxes is two."""
        return len(self._prompts)

    def read(self, item: Item) -> bool:
        """Checks what is new in an item's texts; returns whether the prompt is."""
        wording = (item.prompt, item.a1111) if item.a1111 else item.prompt  # which may be read in both
        new = wording not in self._prompts
        if new:
            self._prompts.add(wording)
            if (
                ":" in item.prompt
                and not item.a1111
                and (found := list(unread_weights(item)))
                and self._is_weighted(item.prompt)
            ):
                self._note(UNREAD_WEIGHT, found, item)
            if len(item.parts) > 1 or item.prompt[:1] in ("#", "/") or SUSPECT.search(item.prompt):
                for find, check in PROMPT_CHECKS:
                    self._note(check, find(item), item)
        if item.negative not in self._negatives:
            self._negatives.add(item.negative)
            self._note(OTHER_SYNTAX, foreign_syntax(item.negative, item.a1111), item)
        if item.long_prompts == "truncate":
            self._measure(item)
        return new

    def read_kinds(self, kinds: Mapping[tuple[Model, Kind], int], samples: Mapping[tuple[Model, Kind], Item]) -> None:
        """Checks the kinds of pictures by each model, with their numbers and an item of each."""
        for (model, kind), count in kinds.items():
            for find, check in KIND_CHECKS:
                for text in find(kind, self._request.models[model]):
                    self.note(check, text, count=count, item=samples[model, kind].number)

    def warnings(self) -> list[Warned]:
        """Everything that was found, by check."""
        return list(self._warned.values())

    def note(self, check: Check, text: str, *, count: int = 1, item: int | None = None) -> None:
        """Adds what was found elsewhere."""
        self._warned.setdefault(check.name, Warned(check)).note(text, count=count, item=item)

    def _note(self, check: Check, found: Iterable[str], of: Item | Job) -> None:
        """One case, however much was found in it."""
        if text := "; ".join(found):
            warned = self._warned.setdefault(check.name, Warned(check))
            place = self._place(of) if len(warned.examples) < EXAMPLES else None
            warned.note(text, item=of.number if isinstance(of, Item) else None, place=place)

    def _measure(self, item: Item) -> None:
        for text in item.texts():
            if not surely_fits(text) and (item.model, text) not in self._measured:
                self._measured.add((item.model, text))
                words = {each.name: range(self._request.vectors[each.sha256]) for each in item.embeddings}
                lost = max((each.encode(text, words).lost for each in self._tokenizers_of(item.model)), key=len)
                self._note(CUT, [f"lost: '{shorten(lost)}'"] if lost else [], item)

    def _tokenizers_of(self, model: Model) -> Collection[ClipTokenizer]:
        if model not in self._tokenizers:
            self._tokenizers[model] = tokenizers(self._request.models[model]).values()
        return self._tokenizers[model]

    def _is_weighted(self, text: str) -> bool:
        """Whether a prompt may have weights, as all may that don't say otherwise."""
        prompts = (prompt for job in self._request.jobs for prompt in _values(job, "prompt"))
        return next((prompt.weighted for prompt in prompts if getattr(prompt, "text", None) == text), True)

    def _place(self, of: Item | Job) -> Location | None:
        """Where the job or the item's prompt is written."""
        if isinstance(of, Job):
            return of.location
        prompts = (prompt for job in self._request.jobs for prompt in _values(job, "prompt"))
        return next((prompt.location for prompt in prompts if prompt.text == of.prompt), None)
