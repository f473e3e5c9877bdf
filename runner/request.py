"""What a command is asked for: a manifest's items in the order in which they are made, their models, the run folder.

Every error in it is found here, before anything is loaded or written. Never imports torch.
"""

from __future__ import annotations

import itertools
import json
import random
import secrets
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import Location, ManifestError, ModelError, every
from runner.files import is_url
from runner.folder.names import RUN
from runner.folder.store import Store, store_at
from runner.ids import read_ids
from runner.item import Embedding, Item, Lora, Model, item_id
from runner.keys import LARGEST_SEED
from runner.manifest import items as manifest_items
from runner.manifest import job as manifest_job
from runner.manifest import lines as manifest_lines
from runner.manifest import read as manifest_read
from runner.manifest.embeddings import Reader, Wording, find_embeddings, named
from runner.manifest.rules import ALIASES
from runner.model import find as model_find
from runner.model.files import ModelFiles
from runner.model.loras import fit, read_lora
from runner.model.tokens import ROOM, ClipTokenizer, surely_fits, tokenizers
from runner.settings import Settings, given_defaults, parse_shard
from runner.text import shorten

OUTPUTS = Path("outputs")
LARGEST_DRAWN_SEED = 2**32
LOST_SHOWN = 200  # characters
IDLE = "every job sets its own, or the target is no manifest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One run's wishes. `drawn_seeds` holds, by job, the seeds that the manifest left open. JSON lines have no `jobs`.

    `models` are the models of the items, in the order in which they are loaded. `vectors` says how many vectors each
    embedding has that an item names, by its SHA-256. `with_loras` says whether any item has LoRAs. `listed` are the
    places of the items that the setting `ids` lists, None where there is none; `note` is about ids of no item.
    """

    target: Path
    store: Store
    items: Sequence[Item]
    drawn_seeds: Mapping[int, int]
    jobs: Sequence[manifest_job.Job]
    models: Mapping[Model, ModelFiles]
    settings: Settings
    vectors: Mapping[str, int]
    with_loras: bool = False
    listed: Sequence[int] | None = None
    note: str = ""

    def wanted(self) -> Iterator[Item]:
        """The items in the order in which they are made: model by model, of a model one set of LoRAs after the other.

        Within a set they come as `chosen`, and sets in the order of their first items.
        """
        if not self.with_loras:
            if len(self.models) == 1:
                return self.chosen()
            return (item for model in self.models for item in self.chosen() if item.model == model)
        numbers: dict[tuple[Model, tuple[Lora, ...]], array[int]] = {}
        for number, item in zip(self._numbers(), self.chosen(), strict=True):
            numbers.setdefault(item.weights, array("Q")).append(number)
        return (
            self.items[number]
            for model in self.models
            for (own, _), alike in numbers.items()
            for number in (alike if own == model else ())
        )

    def chosen(self) -> Iterator[Item]:
        """The items after the settings `ids`, `shuffle`, `limit` and `shard`, in this order."""
        if self.settings.shuffle is None and self.listed is None and self.settings.shard is None:
            return itertools.islice(self.items, self.settings.limit)
        return (self.items[number] for number in self._numbers())

    def _numbers(self) -> Sequence[int]:
        """The places of the items that are `chosen`."""
        order = self._places
        if self.settings.shuffle is not None:
            order = array("Q", order)
            random.Random(self.settings.shuffle).shuffle(order)
        return order[: self.settings.limit][self._part]

    @property
    def _places(self) -> Sequence[int]:
        return range(len(self.items)) if self.listed is None else self.listed

    @property
    def _part(self) -> slice:
        """Of the items that are left at last, those of the shard: every n-th."""
        part, parts = parse_shard(self.settings.shard) if self.settings.shard else (1, 1)
        return slice(part - 1, None, parts)

    def count(self) -> int:
        """How many items are wanted."""
        return len(range(len(self._places))[: self.settings.limit][self._part])

    @property
    def is_whole(self) -> bool:
        """Whether every item of the target is wanted."""
        return self.listed is None and self.settings.limit is None and self.settings.shard is None

    def idle_defaults(self) -> list[str]:
        """The item keys whose defaults from the command line reach no item, since each job says its own."""
        given = [ALIASES.get(key, key) for key in given_defaults(self.settings)]
        return [key for key in given if all(key in job.own for job in self.jobs)]

    def grid_sizes(self) -> set[tuple[int, int]] | None:
        """The widths and heights that the jobs combine, perhaps more than the items have; None if they aren't known."""
        sizes: set[tuple[int, int]] = set()
        for job in self.jobs:
            widths, heights = (job.columns.get(key, [job.values.get(key)]) for key in ("width", "height"))
            sizes |= set(itertools.product(widths, heights))
        return sizes if sizes and not any(None in size for size in sizes) else None


def read_request(target: Path, settings: Settings, *, job: str = "", drawn: dict[int, int] | None = None) -> Request:
    """Reads and checks the target, a manifest or a `.jsonl` of records or items, and finds the models.

    `job` names the run among those of a sweep, which share the seeds that are `drawn`.

    Raises:
        ManifestError: the target or a model that it names is wrong.
        ModelError: the model of the settings is wrong.
    """
    _check_target(target)
    read = _read_items if target.suffix == ".jsonl" else _read_manifest
    source = read(target, settings)
    found = _find_models(source.asked, settings)
    models = dict(found.values())
    _check_loras(source.loras, {asked: files for asked, (_, files) in found.items()})
    readers = {model: Reader(files, [*tokenizers(files).values()]) for model, files in models.items()}
    learnt, vectors = find_embeddings(source.wordings, {asked: readers[model] for asked, (model, _) in found.items()})
    counts = {asked: vectors[each.sha256] for asked, each in learnt.items()}
    _check_lengths(source.texts, counts, [each for reader in readers.values() for each in reader.tokenizers])
    _check_shard(source, settings)
    store, kept = _folder(source, settings, job)
    seeds = _draw_seeds(source.without_seed, kept, {} if drawn is None else drawn)
    items = source.items(seeds, {asked: model for asked, (model, _) in found.items()}, learnt)
    listed, note = _listed(items, target, settings)
    return Request(
        target=target,
        store=store,
        items=items,
        drawn_seeds=seeds,
        jobs=source.jobs,
        models=models,
        settings=settings,
        vectors=vectors,
        with_loras=bool(source.loras),
        listed=listed,
        note=note,
    )


def _check_target(target: Path) -> None:
    if is_url(target):
        raise ManifestError(
            "is a URL; a manifest is read from this machine's disk, out= may be a URL", Location(target)
        )
    try:
        if not target.exists():
            raise ManifestError("there is no such file", Location(target))
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        raise ManifestError(f"is no path of this system ({error})", Location(target)) from None


def _check_shard(source: _Source, settings: Settings) -> None:
    """Refuses parts of what has no seeds: each part would draw its own, perhaps on another machine."""
    if settings.shard and source.without_seed:
        job = next(job for job in source.jobs if job.index in source.without_seed)
        message = "this job has no seeds, so every shard would draw others; give it `seeds:`, or set defaults.seed="
        raise ManifestError(message, job.location)


def _folder(source: _Source, settings: Settings, job: str) -> tuple[Store, Mapping[str, int]]:
    """The run folder, and, if any are needed, the seeds that it or another one of the same sweep has kept."""
    shard = "-shard-{}-of-{}".format(*parse_shard(settings.shard)) if settings.shard else ""
    beside = settings.out or f"{OUTPUTS / source.name}{shard}{'-multirun' if job else ''}"
    store = store_at(f"{beside}/{job}" if job else beside)
    if not source.without_seed:
        return store, {}
    return store, _kept_seeds(store) or (_seeds_beside(beside) if job else {})


def _listed(items: Sequence[Item], target: Path, settings: Settings) -> tuple[Sequence[int] | None, str]:
    """The places of the items that `ids` lists, and a note about ids that none of them has."""
    if settings.ids is None:
        return None, ""
    ids = read_ids(settings.ids)
    return array("Q", (place for place, item in enumerate(items) if ids.take(item_id(item)))), ids.note(str(target))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A target that was read. `texts` are the texts that must fit a model's context, with places, and what they name.

    `asked` holds the place of each model that is asked for, `wordings` the texts that name learnt words, `loras` the
    files of LoRAs with the model that they are put on; `items` takes the models and the embeddings that were found.
    """

    name: str
    jobs: Sequence[manifest_job.Job]
    without_seed: Sequence[int]
    asked: Mapping[Model, Location]
    items: Callable[[Mapping[int, int], Mapping[Model, Model], Mapping[Embedding, Embedding]], Sequence[Item]]
    texts: Iterable[tuple[str, Location, tuple[Embedding, ...]]]
    wordings: Iterable[Wording]
    loras: Mapping[tuple[Model, str], Location]


def _read_items(target: Path, settings: Settings) -> _Source:
    lines = manifest_lines.read_items(target, allow_outside=settings.allow_outside)

    def items(
        drawn: Mapping[int, int], found: Mapping[Model, Model], learnt: Mapping[Embedding, Embedding]
    ) -> Sequence[Item]:
        lines.found.update(found)
        lines.learnt.update(learnt)
        return lines

    return _Source(
        name=target.stem,
        jobs=(),
        without_seed=(),
        asked=lines.asked,
        items=items,
        texts=((text, location, names) for (text, names), location in lines.texts.items()),
        wordings=lines.wordings,
        loras=lines.loras,
    )


def _read_manifest(target: Path, settings: Settings) -> _Source:
    checked = manifest_read.load(target, overrides=given_defaults(settings), allow_outside=settings.allow_outside)
    listed = {name: embedding for name, (embedding, _) in (checked.embeddings or {}).items()}
    texts = (text for job in checked.jobs for text in manifest_items.texts(job))
    return _Source(
        name=checked.name,
        jobs=checked.jobs,
        without_seed=manifest_items.jobs_without_seed(checked),
        asked=checked.models,
        items=lambda drawn, found, learnt: manifest_items.Items(checked, drawn, found, learnt),
        texts=((text, location, named([text], listed) if listed else ()) for text, location in texts),
        wordings=manifest_items.wordings(checked),
        loras={
            pair: checked.loras[pair[1]]
            for job in checked.jobs
            for pair in manifest_items.lora_files(job, checked.tagged)
        },
    )


def _find_models(asked: Mapping[Model, Location], settings: Settings) -> dict[Model, tuple[Model, ModelFiles]]:
    """The model that is found for each one asked for; errors about all of them are raised together."""

    seen: model_find.Seen = {}

    def find(model: Model) -> tuple[Model, ModelFiles]:
        try:
            return model_find.use_model(model, settings.model, seen=seen)
        except ModelError as error:
            if model == Model():
                raise
            raise ManifestError(f"the model '{model.name}': {error}", asked[model]) from None

    return dict(zip(asked, every(find, asked), strict=True))


def _check_loras(loras: Mapping[tuple[Model, str], Location], models: Mapping[Model, ModelFiles]) -> None:
    """Whether each LoRA fits the models that it is put on; errors about all of them are raised together."""

    def check(pair: tuple[Model, str]) -> None:
        model, file = pair
        try:
            fit(read_lora(Path(file)), models[model])
        except ModelError as error:
            raise ManifestError(str(error), loras[pair]) from None

    every(check, loras)


def _check_lengths(
    texts: Iterable[tuple[str, Location, tuple[Embedding, ...]]],
    counts: Mapping[Embedding, int],
    readers: Sequence[ClipTokenizer],
) -> None:
    """`counts` are the vectors of the embeddings that are encoded."""
    checked: set[tuple[str, tuple[Embedding, ...]]] = set()
    for text, location, names in texts:
        if surely_fits(text) or (text, names) in checked:
            continue
        checked.add((text, names))
        words = {each.name: range(counts[each]) for each in names if each in counts}
        if lost := max((reader.encode(text, words).lost for reader in readers), key=len):
            raise ManifestError(
                f"the prompt '{shorten(text)}' has more than {ROOM} tokens; these words would be lost: "
                f"'{shorten(lost, LOST_SHOWN)}'. Shorten it, or set long_prompts: chunk or truncate",
                location,
            )


def _draw_seeds(jobs: Sequence[int], kept: Mapping[str, int], drawn: dict[int, int]) -> dict[int, int]:
    """A seed for each job without one: the one that a run folder keeps already, one that was drawn, or a new one."""
    for job in jobs:
        drawn[job] = kept.get(str(job), drawn.get(job, secrets.randbelow(LARGEST_DRAWN_SEED)))
    return {job: drawn[job] for job in jobs}


def _seeds_beside(place: str) -> Mapping[str, int]:
    """The seeds that another run of the same sweep has kept."""
    found = (_kept_seeds(store_at(f"{place}/{name}")) for name in store_at(place).folders())
    return next((kept for kept in found if kept), {})


def _kept_seeds(store: Store) -> Mapping[str, int]:
    try:
        with store.open(RUN) as file:
            kept = json.load(file)["drawn_seeds"]
        pairs = dict(kept).items()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {str(job): seed for job, seed in pairs if type(seed) is int and 0 <= seed <= LARGEST_SEED}
