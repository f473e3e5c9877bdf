"""From a checked manifest to items: lazily, in a fixed order, each with its number.

The order: jobs, each with its includes behind it, then prompts, then the zip, then the matrix with its last key varying
fastest, then seeds fastest of all. Numbers count what exclusions leave. An item is computed from its number alone, so a
million of them cost nothing until they are asked for.

    items = Items(manifest, drawn_seeds={0: 1234})
    items[999_999].seed
"""

from __future__ import annotations

import dataclasses
import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

from runner.a1111.tags import read_tags
from runner.errors import Location
from runner.images.inits import Init
from runner.item import EXTRA, MASK_BLUR, Embedding, Item, Lora, Model, with_hash
from runner.keys import A1111, LARGEST_SEED, PLAIN
from runner.manifest.embeddings import Wording, named, names_in
from runner.manifest.grid import Axis, Grid
from runner.manifest.job import Job, shown
from runner.manifest.lazy import Lazy
from runner.manifest.loras import ONE, combine
from runner.manifest.prompts import Prompt
from runner.manifest.read import Manifest
from runner.manifest.rules import DEFAULTS, OWN_SIZE
from runner.model.tokens import surely_fits
from runner.sampler_names import SAMPLERS

LONGEST_CYCLE = 4096  # combinations
BEYOND_TEXTS = slice(Item._fields.index("seed"), Item._fields.index("axes"))


def jobs_without_seed(manifest: Manifest) -> tuple[int, ...]:
    """The jobs, by their index, for which a seed has to be drawn."""
    return tuple(dict.fromkeys(job.index for job in manifest.jobs if job.drawn))


def texts(job: Job) -> Iterator[tuple[str, Location]]:
    """Every text that the job's items may encode and must not cut, with its place; not all of those that surely fit.

    In AUTOMATIC1111's syntax none is cut.
    """
    columns = job.columns
    if PLAIN not in job.syntaxes or "error" not in columns.get("long_prompts", [job.values.get("long_prompts")]):
        return
    prompts_of_job: Sequence[Prompt] = columns["prompt"]
    beside = job.syntaxes_with("prompt")
    for number, prompt in enumerate(prompts_of_job):
        if beside is not None and beside[number] != PLAIN:
            continue
        if not surely_fits(prompt.text):  # no part has more to read than the prompt
            yield from ((part.text, prompt.location) for part in prompt.parts())
        if prompt.negative is not None:
            yield prompt.negative, prompt.location
    yield from ((text, job.location) for text in columns.get("negative", [job.values.get("negative", "")]))


def lora_files(job: Job, tagged: Mapping[str, Lora]) -> set[tuple[Model, str]]:
    """The files of the LoRAs that the job's items may have, each with the models that they may be put on.

    `tagged` are those that tags of prompts may name.
    """
    columns = job.columns
    sets = [*columns.get("loras", [job.values.get("loras", ())])]
    sets += [columns[key] for key in columns if key.startswith(ONE)]
    files = {lora.path for loras in sets for lora in loras}
    if tagged and A1111 in job.syntaxes:
        texts = (prompt.text for prompt in columns["prompt"] if "<" in prompt.text)
        files |= {tagged[tag.name].path for text in texts for tag in read_tags(text)[1] if tag.name in tagged}
    return {(model, path) for model in columns.get("model", [job.values.get("model")]) for path in files}


def wordings(manifest: Manifest) -> Iterator[Wording]:
    """Every text that names learnt words, or seems to, of those that may be encoded.

    In the plain syntax there are none without a list of them.
    """
    listed = manifest.embeddings
    for job in manifest.jobs:
        if listed is None and A1111 not in job.syntaxes:
            continue
        columns = job.columns
        models, scales, negatives = (
            tuple(columns.get(key, [job.values.get(key)])) for key in ("model", "scale", "negative")
        )
        guided = any(scale != 1 for scale in scales)
        prompts: Sequence[Prompt] = columns["prompt"]
        pairs = itertools.chain(
            ((prompt.text, prompt.location) for prompt in prompts),
            ((prompt.negative or "", prompt.location) for prompt in prompts if guided),
            ((text or "", job.location) for text in negatives if guided),
        )
        for text, location in pairs:
            if any(names_in(text)):
                yield Wording(text, location, models, listed or {})


class Items(Lazy[Item]):
    """The items of a manifest; `drawn_seeds` has the first seed of each job that says none, by the job's index.

    `models` and `embeddings` have what was found for those that are asked for.
    """

    def __init__(
        self,
        manifest: Manifest,
        drawn_seeds: Mapping[int, int],
        models: Mapping[Model, Model] = MappingProxyType({}),
        embeddings: Mapping[Embedding, Embedding] = MappingProxyType({}),
    ) -> None:
        jobs = (_with_models(job, models) for job in manifest.jobs)
        listed = {name: embeddings.get(asked, asked) for name, (asked, _) in (manifest.embeddings or {}).items()}
        self._jobs = [
            _JobItems(job, drawn_seeds[job.index] if job.drawn else 0, listed, manifest.tagged) for job in jobs
        ]
        self._ends = list(itertools.accumulate(job.size for job in manifest.jobs))

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[Item]:
        numbers = itertools.count()
        for job in self._jobs:
            yield from map(job.make, range(job.grid.size), numbers)

    def _make(self, number: int) -> Item:
        index = bisect_right(self._ends, number)
        job = self._jobs[index]
        return job.make(number - self._ends[index] + job.grid.size, number)


def _with_models(job: Job, models: Mapping[Model, Model]) -> Job:
    """The job with the models that were found in the place of those that it asks for."""

    def found(column: Sequence[Any]) -> Sequence[Any]:
        return [models.get(model, model) for model in column]

    values = {key: found([value])[0] if key == "model" else value for key, value in job.values.items()}
    columns = (
        {key: found(each) if key == "model" else each for key, each in axis.columns.items()} for axis in job.axes
    )
    axes = tuple(Axis(columns=each, named=axis.named) for each, axis in zip(columns, job.axes, strict=True))
    return dataclasses.replace(job, values=values, axes=axes)


class _JobItems:
    """Makes the items of a job. Neighbours share what the slower axes chose, and the faster axes choose in cycles."""

    def __init__(self, job: Job, drawn: int, embeddings: Mapping[str, Embedding], tagged: Mapping[str, Lora]) -> None:
        self.grid, self._embeddings, self._tagged = _grid(job, drawn), embeddings, tagged
        choose = partial(_chosen, job.samples)
        fixed, _ = choose([axis for axis in self.grid.axes if not axis.named], job.values, 0)  # these have one value
        axes = [axis for axis in self.grid.axes if axis.named]
        split, self._cycle = _split(axes)
        self._position = self.grid.position if job.remainder else int
        self._ones = tuple(key for key in job.columns if key.startswith(ONE))
        self._slow = lru_cache(maxsize=1)(partial(choose, axes[:split], fixed))
        fast = partial(choose, axes[split:], {})
        self._fast = lru_cache(maxsize=None)(fast) if self._cycle <= LONGEST_CYCLE else fast
        # Nothing else of an item depends on its prompt, so that of a long list of them each is put into a copy; but for
        # the embeddings, which are those that it names.
        alone = self._cycle > LONGEST_CYCLE and axes[-1].columns.keys() == {"prompt"} and not embeddings
        self._prompts: Sequence[Prompt] | None = axes[-1].columns["prompt"] if alone else None
        self._beyond_texts = lru_cache(maxsize=1)(lambda slow: tuple(self._make(slow, 0, 0))[BEYOND_TEXTS])

    def make(self, place: int, number: int) -> Item:
        """The item at a place in the job."""
        slow, fast = divmod(self._position(place), self._cycle)
        if self._prompts is None:
            return self._make(slow, fast, number)
        prompt, (values, axes) = self._prompts[fast], self._slow(slow)
        syntax = values["prompt_syntax"]
        if syntax == A1111 and "<" in prompt.text:  # a tag is more than text
            return self._make(slow, fast, number)
        negative = values["negative"] if prompt.negative is None else prompt.negative
        named = (*axes, ("prompt", shown(prompt)))
        return Item._make((number, prompt.text, prompt.parts(syntax), negative, *self._beyond_texts(slow), named))

    def _make(self, slow: int, fast: int, number: int) -> Item:
        (values, axes), (more, also) = self._slow(slow), self._fast(fast)
        values = {**values, **more}
        loras = _read(values, self._tagged)
        if loras or self._ones:
            values["loras"] = (*values["loras"], *(values.pop(key) for key in self._ones), *loras)
        first_noise = values.pop("first_noise")
        values["fixed_code"] = first_noise if values["fixed_code"] else None
        item = resolve(values, number=number, axes=axes + also)
        found = named(item.texts(), self._embeddings) if self._embeddings else ()
        return item._replace(embeddings=found) if found else item


def _grid(job: Job, drawn: int) -> Grid:
    if not job.drawn:
        return Grid(job.axes, job.remainder)
    if not 0 <= drawn <= LARGEST_SEED - job.drawn + 1:
        raise ValueError(f"{job.drawn} seeds from {drawn} leave the range from 0 to {LARGEST_SEED}")
    seeds = Axis.of("seed", range(drawn, drawn + job.drawn), named=job.drawn > 1)
    return Grid((*job.axes, seeds), job.remainder)


def _split(axes: Sequence[Axis]) -> tuple[int, int]:
    """Where the fast axes begin, and how many combinations they have: few enough to keep, but at least one axis."""
    if not axes:
        return 0, 1
    split, cycle = len(axes) - 1, len(axes[-1])
    while split and cycle * len(axes[split - 1]) <= LONGEST_CYCLE:
        split, cycle = split - 1, cycle * len(axes[split - 1])
    return split, cycle


def _chosen(
    samples: int, axes: Sequence[Axis], values: Mapping[str, Any], position: int
) -> tuple[dict[str, Any], tuple[tuple[str, Any], ...]]:
    """The values with those that some axes have at a position, and what an item names of these."""
    chosen = dict(values)
    named: tuple[tuple[str, Any], ...] = ()
    for axis in reversed(axes):  # the position's digits, the lowest one first
        position, place = divmod(position, axis.length)
        names: tuple[tuple[str, Any], ...] = ()
        for key, column in axis.columns.items():
            value = column[place]
            if key == "prompt":
                _say(value, chosen)
            else:
                chosen[key] = value
            if key == "seed":
                chosen["first_noise"] = column[place % samples]
            if axis.named:
                names = (*names, (key, shown(value)))
        named = names + named
    return chosen, named


def _say(prompt: Prompt, chosen: dict[str, Any]) -> None:
    chosen["prompt"] = prompt
    if prompt.negative is not None:
        chosen["negative"] = prompt.negative


def _read(values: dict[str, Any], tagged: Mapping[str, Lora]) -> list[Lora]:
    """Reads the prompt among values in the syntax among them; the LoRAs that it asks for, of those that tags name."""
    prompt: Prompt = values["prompt"]
    values["prompt"], values["parts"] = prompt.text, prompt.parts(values["prompt_syntax"])
    if not tagged or values["prompt_syntax"] != A1111 or "<" not in prompt.text:
        return []
    return [tagged[tag.name]._replace(unet=tag.unet, text=tag.text) for tag in read_tags(prompt.text)[1]]


def resolve(values: dict[str, Any], *, number: int, axes: tuple[tuple[str, Any], ...]) -> Item:
    """The item of these values, each of which becomes what it is for the others' sake."""
    init: Init | None = values["init"]
    if init:
        sized = values["width"] and values["height"]
        width, height = (0, 0) if sized else init.own_size(values["crop"])
        values["init"] = str(init.path)
    else:
        width, height = OWN_SIZE, OWN_SIZE
        values["crop"] = values["strength"] = None
    mask: Init | None = values["mask"]
    values |= {"mask": str(mask.path)} if mask else {MASK_BLUR: DEFAULTS[MASK_BLUR]}
    values["width"] = values["width"] or width
    values["height"] = values["height"] or height
    if not SAMPLERS[values["sampler"]].eta:
        values["eta"] = 0.0
    if values["fixed_code"] == values["seed"]:
        values["fixed_code"] = None
    if values["loras"]:
        values["loras"] = combine(values["loras"])
    if values["prompt_syntax"] == A1111:
        values["long_prompts"] = DEFAULTS["long_prompts"]  # it has no say: all of them are read in pieces
    found = ((key, values.pop(key)) for key in EXTRA)
    extra = tuple((key, value) for key, value in found if value != DEFAULTS[key])
    values["extra"] = with_hash(extra, mask.sha256) if mask else extra
    return Item(**values, number=number, axes=axes, init_sha256=init.sha256 if init else None)
