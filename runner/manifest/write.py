"""From items back to a manifest: jobs with prompts, seeds and a matrix, as few and as short as their order allows.

The inverse of `items`: the manifest's items are the given ones, in the given order. An item's `init` is written as it
is.

    print(to_yaml(items))
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import yaml

from runner.a1111.tags import read_tags
from runner.item import Item, Lora, Model, Part
from runner.manifest import weighted as manifest_weighted
from runner.manifest.rules import DEFAULTS

ALWAYS_SHOWN = ("width", "height", "steps", "scale", "sampler")
WITH_NEGATIVES = {("prompt",), ("prompt", "negative")}  # prompts, of which some have a negative of their own
SETTINGS = (*ALWAYS_SHOWN, *(key for key in DEFAULTS if key not in (*ALWAYS_SHOWN, "fixed_code")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Items in a row: every combination of the axes' values, the last axis fastest, over values that all share.

    A `seed` is a pair: the item's own, and that of its first noise.
    """

    shared: Mapping[str, Any]
    axes: tuple[tuple[str, tuple[Any, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """A prompt as it is written in a manifest; without a negative of its own it goes with any."""

    text: str
    weighted: bool
    negative: str | None = None


def to_yaml(items: Sequence[Item], models: Mapping[str, str] = MappingProxyType({})) -> str:
    """The manifest of these items, at least one; `models` are paths by name, of the models that it lists.

    Items that have one name for two LoRAs, or for two embeddings, can't stand in one manifest.
    An item whose noise is another's (`fixed_code`) needs that other one in its job: it is added where it is missing.
    """
    wishes = [_wish(item) for item in items]
    common = {key: wishes[0][key] for key in SETTINGS if all(wish[key] == wishes[0][key] for wish in wishes)}
    defaults = {
        key: _plain(value) for key, value in common.items() if key in ALWAYS_SHOWN or value not in (None, DEFAULTS[key])
    }
    jobs = [_job(block, {**DEFAULTS, **defaults}) for block in itertools.chain(*map(_with_codes, _blocks(wishes)))]
    listed: dict[str, Any] = {"models": {name: {"path": path} for name, path in models.items()}} if models else {}
    loras = {lora.name: {"path": lora.path, "sha256": lora.sha256} for item in items for lora in item.loras}
    listed |= {"loras": loras} if loras else {}
    if learnt := {each.name: each for item in items for each in item.embeddings}:
        hashed = ((each, {"sha256": each.sha256} if each.sha256 else {}) for _, each in sorted(learnt.items()))
        listed["embeddings"] = {each.name: {"path": each.path} | sha256 for each, sha256 in hashed}
    return _dump({"version": 1, **listed, "defaults": defaults}, flow=False) + _dump({"jobs": _Lines(jobs)}, flow=None)


# ---- items to blocks


def _wish(item: Item) -> dict[str, Any]:
    settings = {key: item.value(key) for key in SETTINGS}
    if item.a1111:  # what the prompt itself asks for isn't said again
        said = {tag.name for tag in read_tags(item.prompt)[1]}
        settings["loras"] = tuple(lora for lora in item.loras if lora.name not in said)
    noise = item.seed if item.fixed_code is None else item.fixed_code
    return {"prompt": _wording(item), **settings, "seed": (item.seed, noise)}


def _wording(item: Item) -> Wording:
    """The prompt as a text that is read as the item's parts."""
    if item.a1111:
        return Wording(text=item.prompt, weighted=True)
    try:
        if manifest_weighted.parse(item.prompt) == item.parts:
            return Wording(text=item.prompt, weighted=True)
    except ValueError:
        pass
    if item.parts == (Part(text=item.prompt, weight=1.0),):
        return Wording(text=item.prompt, weighted=False)
    text = manifest_weighted.to_text([part.text for part in item.parts], [part.weight for part in item.parts])
    return Wording(text=text, weighted=True)


def _blocks(wishes: Iterable[Mapping[str, Any]]) -> list[Block]:
    """Neighbours that differ in one value are joined, then neighbours of the results, until none is left."""
    blocks = [Block(shared=wish) for wish in wishes]
    while len(joined := list(_join(blocks))) < len(blocks):
        blocks = joined
    return blocks


def _join(blocks: Sequence[Block]) -> Iterator[Block]:
    row: list[Block] = [blocks[0]]
    keys: tuple[str, ...] = ()
    for block in blocks[1:]:
        differing = _differing(row[0], block)
        if differing and (keys in ((), differing) or {keys, differing} <= WITH_NEGATIVES):
            row, keys = [*row, block], max(keys, differing, key=len)
        else:
            yield _as_one(row, keys)
            row, keys = [block], ()
    yield _as_one(row, keys)


def _differing(one: Block, other: Block) -> tuple[str, ...]:
    """The keys that make an axis of two blocks: one, or a prompt and its negative; none if they can't be joined."""
    if one.axes != other.axes:
        return ()
    keys = tuple(key for key in one.shared if one.shared[key] != other.shared[key])
    if any(block.shared[key] in (None, Model()) for key in keys for block in (one, other)):
        return ()
    return keys if len(keys) == 1 or keys in WITH_NEGATIVES else ()


def _as_one(row: Sequence[Block], keys: tuple[str, ...]) -> Block:
    first = row[0]
    if not keys:
        return first
    shared = {key: value for key, value in first.shared.items() if key != keys[0]}
    values = tuple(block.shared[keys[0]] for block in row)
    if len(keys) == 2:
        shared["negative"] = None
        values = tuple(dataclasses.replace(block.shared["prompt"], negative=block.shared["negative"]) for block in row)
    return Block(shared=shared, axes=((keys[0], values), *first.axes))


# ---- fixed_code


def _with_codes(block: Block) -> Iterator[Block]:
    """The block, or several where one job can't say whose noise each of its seeds begins with."""
    place = next((place for place, (key, _) in enumerate(block.axes) if key == "seed"), None)
    seeds = (block.shared["seed"],) if place is None else block.axes[place][1]
    if _samples(seeds, place is not None and place == len(block.axes) - 1) is not None:
        yield block
        return
    borrowed = dict.fromkeys(noise for seed, noise in seeds if seed != noise)
    rows = [[seed for seed in seeds if seed[0] == seed[1] and seed[0] not in borrowed]]
    rows += [[(code, code), *((seed, noise) for seed, noise in seeds if noise == code != seed)] for code in borrowed]
    before, after = (block.axes, ()) if place is None else (block.axes[:place], block.axes[place + 1 :])
    for row in filter(None, rows):
        shared = {key: value for key, value in block.shared.items() if key != "seed"}
        yield Block(shared=shared, axes=(*before, ("seed", tuple(row)), *after))


def _samples(seeds: Sequence[tuple[int, int]], last: bool) -> int | None:
    """How many first seeds lend their noise to the others in turn; 0 if each has its own, None if no job can say it."""
    if all(seed == noise for seed, noise in seeds):
        return 0
    count = next(place for place, (seed, noise) in enumerate(seeds) if seed != noise)
    if not count or any(noise != seeds[place % count][0] for place, (_, noise) in enumerate(seeds)):
        return None
    counted = last and len(seeds) % count == 0 and _steps([seed for seed, _ in seeds]) == {1}
    return count if count == 1 or counted else None


def _steps(seeds: Sequence[int]) -> set[int]:
    return {later - earlier for earlier, later in itertools.pairwise(seeds)}


# ---- blocks to jobs


def _job(block: Block, defaults: Mapping[str, Any]) -> dict[str, Any]:
    shared, axes = dict(block.shared), dict(block.axes)
    job: dict[str, Any] = {}
    if "prompt" in shared:
        job["prompt"] = _prompt(shared["prompt"], defaults)
    elif block.axes[0][0] == "prompt":
        job["prompts"] = _Lines(_prompt(each, defaults) for each in axes.pop("prompt"))
    job |= {key: _plain(shared[key]) for key in SETTINGS if shared.get(key) not in (None, defaults[key])}
    job |= _job_seeds(shared, axes, last=bool(block.axes) and block.axes[-1][0] == "seed")
    matrix = {key: _axis(key, values, defaults) for key, values in axes.items()}
    return {**job, "matrix": matrix} if matrix else job


def _job_seeds(shared: Mapping[str, Any], axes: dict[str, Any], *, last: bool) -> dict[str, Any]:
    pairs = axes["seed"] if "seed" in axes else (shared["seed"],)
    samples = _samples(pairs, last)
    code = {"fixed_code": True} if samples else {}
    if "seed" in axes and not last:
        return code  # its place is in the matrix
    axes.pop("seed", None)
    if samples and samples > 1:
        return {"seed": pairs[0][0], "n_samples": samples, "n_iter": len(pairs) // samples, **code}
    seeds = _seeds([seed for seed, _ in pairs])
    return {"seed" if isinstance(seeds, int) else "seeds": seeds, **code}


def _axis(key: str, values: Sequence[Any], defaults: Mapping[str, Any]) -> Any:
    if key == "seed":
        return _seeds([seed for seed, _ in values])
    if key == "prompt":
        return _Lines(_prompt(each, defaults) for each in values)
    return [_plain(value) for value in values]


def _prompt(prompt: Wording, defaults: Mapping[str, Any]) -> Any:
    more: dict[str, Any] = {} if prompt.weighted else {"weighted": False}
    more |= {} if prompt.negative in (None, defaults["negative"]) else {"negative": prompt.negative}
    return {"text": prompt.text, **more} if more else prompt.text


def _plain(value: Any) -> Any:
    if isinstance(value, Model):
        return value.name
    if isinstance(value, tuple) and all(isinstance(each, Lora) for each in value):
        return {lora.name: _strength(lora) for lora in value}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _strength(lora: Lora) -> Any:
    return _plain(lora.unet) if lora.unet == lora.text else {"unet": _plain(lora.unet), "text": _plain(lora.text)}


def _seeds(seeds: Sequence[int]) -> Any:
    """Seeds as they are written shortest: 7, 27-46, {start: 0, count: 20, step: 5} or [1-3, 7]."""
    steps = _steps(seeds)
    if len(seeds) > 2 and len(steps) == 1 and steps != {1}:
        return {"start": seeds[0], "count": len(seeds), "step": steps.pop()}
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], seed]
        else:
            runs.append([seed])
    spans = [run[0] if len(run) == 1 else f"{run[0]}-{run[1]}" for run in runs]
    return spans if len(spans) > 1 else spans[0]


# ---- YAML


class _Lines(list[Any]):
    """A list that is written with a line for each entry."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_lines(self, data: _Lines) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=False)

    def represent_text(self, data: str) -> yaml.Node:
        """What can't be seen, line ends too, is escaped."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(_Lines, _Dumper.represent_lines)
_Dumper.add_representer(str, _Dumper.represent_text)


def _dump(document: Mapping[str, Any], *, flow: bool | None) -> str:
    """As YAML; `flow` None puts lists and mappings without inner ones on one line."""
    style: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": float("inf")}
    return str(yaml.dump(document, Dumper=_Dumper, default_flow_style=flow, **style))
