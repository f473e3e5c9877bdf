"""The words that were learnt: an `embeddings` of a manifest or of a line, and where a text names one, as `<name>`.

A file is looked at only where a text names it; that is for `request`, which knows the models too.

    listed = list_embeddings(node, frame)
    named(item.texts(), listed)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from runner.errors import Location, ManifestError, ModelError, Problems, did_you_mean, every
from runner.item import Embedding, Model
from runner.manifest.nodes import Node, wrap
from runner.manifest.places import FILE_KEYS, Frame, Listed, find_inside, read_listed, read_sha256
from runner.model.embeddings import LearntWord, Seen, check_fits, find_embedding
from runner.model.files import ModelFiles
from runner.model.tokens import NAME, NAMED, ClipTokenizer


class Wording(NamedTuple):
    """A text that names learnt words, or seems to: where it is written, for which models, and what its names mean."""

    text: str
    location: Location
    models: tuple[Model, ...]
    listed: Listed


class Reader(NamedTuple):
    """A model that was found, and the tokenizers of its text encoders."""

    files: ModelFiles
    tokenizers: Sequence[ClipTokenizer]


# ---- lists


def list_embeddings(node: Node | None, frame: Frame) -> dict[str, tuple[Embedding, Location]] | None:
    """The embeddings that a manifest lists, by their names; None where it has no list."""
    if node is None:
        return None
    if not isinstance(node.value, dict):
        raise node.error(f"embeddings: expected a mapping of names to files (name: path), not {node}")
    return dict(every(lambda entry: _list_embedding(*entry, frame), node.value.items()))


def _list_embedding(key: Node, node: Node, frame: Frame) -> tuple[str, tuple[Embedding, Location]]:
    _check_name(key)
    listed = read_listed("embedding", key, node, frame)
    return key.written, (Embedding(key.written, str(listed.path), listed.sha256), listed.node.location)


def read_embeddings(value: object, location: Location, allow_outside: bool) -> dict[str, Embedding]:
    """Those of a record or of a line, by their names: paths, or what is recorded.

    One whose SHA-256 is recorded may lie anywhere, since no other one is taken for it.
    """
    node = wrap(value, location)
    if not isinstance(node.value, dict):
        raise node.error(f"embeddings: expected a mapping of names to files, not {node}")
    found: dict[str, Embedding] = {}
    for key, entry in node.value.items():
        _check_name(key)
        given = entry.mapping(FILE_KEYS) if isinstance(entry.value, dict) else {"path": entry}
        sha256 = read_sha256(given["sha256"]) if "sha256" in given else ""
        if not given:
            raise entry.error(f"the embedding {key} needs a 'path'")
        folder = location.path.parent
        path = str(find_inside(given["path"], folder, allow_outside or bool(sha256))) if "path" in given else ""
        found[key.written] = Embedding(key.written, path, sha256)
    return found


def _check_name(key: Node) -> None:
    """Whether a text can name an embedding like that."""
    if not re.fullmatch(NAME, key.text()):
        raise key.error(f"{key} can't name an embedding; use letters, digits, '_', '-' and '.'")


# ---- texts


def names_in(text: str) -> Iterator[re.Match[str]]:
    """Where a text names a learnt word."""
    return NAMED.finditer(text) if "<" in text else iter(())


def named(texts: Iterable[str], embeddings: Mapping[str, Embedding]) -> tuple[Embedding, ...]:
    """Those of the embeddings that texts name, sorted by their names."""
    found = {match[1] for text in texts for match in names_in(text)}
    return tuple(embeddings[name] for name in sorted(found & embeddings.keys()))


# ---- what texts name


def find_embeddings(
    wordings: Iterable[Wording], readers: Mapping[Model, Reader]
) -> tuple[dict[Embedding, Embedding], dict[str, int]]:
    """What was found for each embedding that a text names, and how many vectors each has, by its SHA-256.

    Raises:
        ManifestError: a name isn't listed, and no word of the model's own tokenizer; a file isn't there, can't be used,
            or doesn't fit a model that it can meet.
    """
    found, counts, seen = dict[Embedding, Embedding](), dict[str, int](), Seen()
    problems, checked = Problems(), set[tuple[object, ...]]()
    for wording in wordings:
        for match in names_in(wording.text):
            embedding, place = wording.listed.get(match[1], (None, wording.location))
            key = (embedding or match[1], wording.models, None if embedding else wording.text)
            if key in checked:
                continue
            checked.add(key)
            with problems:
                if embedding is None:
                    _check_unlisted(wording, match, readers)
                else:
                    learnt = _find(embedding, place, [readers[model].files for model in wording.models], seen)
                    path = str(learnt.file.resolve())
                    found[embedding] = Embedding(embedding.name, path, learnt.sha256)
                    counts[learnt.sha256] = learnt.count
    problems.raise_all()
    return found, counts


def _find(asked: Embedding, place: Location, models: Sequence[ModelFiles], seen: Seen) -> LearntWord:
    try:
        learnt = find_embedding(asked, seen)
        for model in models:
            check_fits(learnt, model)
    except ModelError as error:
        raise ManifestError(f"the embedding '{asked.name}': {error}", place) from None
    return learnt


def _check_unlisted(wording: Wording, match: re.Match[str], readers: Mapping[Model, Reader]) -> None:
    tokenizers = [each for model in wording.models for each in readers[model].tokenizers]
    if not all(each.has_added(match[0]) for each in tokenizers):
        raise _unknown_name(wording, match)


def _unknown_name(wording: Wording, match: re.Match[str]) -> ManifestError:
    """What is wrong about a name that isn't listed."""
    guess = did_you_mean(match[1], wording.listed) if wording.listed else "none are listed"
    message = f"'{match[0]}', at column {match.start() + 1} of the text, is not listed under 'embeddings', {guess}"
    return ManifestError(message, wording.location)
