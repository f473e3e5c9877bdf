"""From picture files to the manifest that makes the pictures again, by what stands in the files alone.

Pictures of this program say everything; those of AUTOMATIC1111's program are read as far as they go, and the manifest's
comments name the rest. Nothing in a file is executed, no pixel is decoded, and no model is looked for.

    extraction = extract([Path("outputs/alps")])
    print(extraction.manifest, *extraction.notes, *extraction.problems)
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from runner.a1111.tags import read_tags
from runner.errors import Location, ManifestError, NoRunFolder
from runner.files import is_url, sha256_of
from runner.folder.local import LocalStore
from runner.folder.names import INITS, RECORDS, THUMBS
from runner.folder.store import store_at
from runner.images import foreign, infotext, metadata
from runner.item import MASK, MASK_BLUR, MASK_SHA256, Embedding, Item, Lora, Model
from runner.keys import read_strength
from runner.manifest import write
from runner.manifest.embeddings import names_in
from runner.manifest.lines import read_item
from runner.manifest.nodes import wrap
from runner.manifest.places import SHA256
from runner.manifest.rules import MOST_ITEMS, check
from runner.record import fingerprints_of
from runner.settings import group_names
from runner.text import name_some, shorten

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif")
OF_IMG2IMG = ("init", "init_sha256", "crop", "strength", MASK, MASK_SHA256, MASK_BLUR)
WEIGHTS, LORAS, EMBEDDINGS = "weights", "loras", "embeddings"  # where files are to be put
UNSAFE = r"[^\w.-]"
Opening = Callable[[], BufferedReader]
MARK = 8  # digits of a fingerprint, behind a name that several models have


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """A manifest ("" where no picture could be read), what it doesn't carry over, and the files that can't be read."""

    manifest: str
    notes: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What one file says; `own` says whether it was made by this program."""

    path: Path
    item: Item
    notes: Sequence[str]
    own: bool


def extract(targets: Sequence[Path]) -> Extraction:
    """The manifest of these pictures, and of all in these folders; its paths are relative to the current folder."""
    sources, problems = list[_Source](), list[str]()
    named: dict[str, tuple[Embedding | None, Path]] = {}
    for path, opening in _files(targets):
        try:
            source = _read(path, opening)
            _check_words(source, named)
            sources.append(source)
        except ManifestError as error:
            problems.append(_one_line(str(error)))
    notes = tuple(_notes(sources))
    return Extraction(manifest=_manifest(sources, notes) if sources else "", notes=notes, problems=tuple(problems))


def _check_words(source: _Source, named: dict[str, tuple[Embedding | None, Path]]) -> None:
    """Refuses a picture whose texts mean something else by a name than an earlier one's: a manifest has one meaning."""
    own = {each.name: each for each in source.item.embeddings}
    for match in itertools.chain.from_iterable(map(names_in, source.item.texts())):
        embedding, earlier = named.setdefault(match[1], (own.get(match[1]), source.path))
        if embedding != own.get(match[1]):
            message = f"its {match[0]} is another one than that of {earlier}; extract it by itself"
            raise ManifestError(message, Location(source.path))


def _files(targets: Sequence[Path]) -> Iterator[tuple[Path, Opening]]:
    """The pictures' files, each with what opens it."""
    for target in targets:
        if is_url(target):
            yield from _in_store(target)
            continue
        with contextlib.suppress(OSError, ValueError):  # a name that this system can't have; it is told when it is read
            if target.is_dir():
                yield from ((path, partial(_open, path)) for path in _within(target))
                continue
        yield target, partial(_open, target)


def _in_store(target: Path) -> Iterator[tuple[Path, Opening]]:
    """The picture at a URL, or those in the folder there."""
    if target.suffix.lower() in SUFFIXES:
        store = store_at(target.parent)
        yield target, partial(store.open, target.name)
        return
    store = store_at(target)
    names = list(store.list())
    runs = {str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).name == RECORDS}
    found = [name for name in _pictures(names) if not _runs_of(PurePosixPath(name)) & runs]
    if not found:
        raise NoRunFolder(f"there are no {metadata.KINDS} pictures in '{store}'")
    yield from ((target / name, partial(store.open, name)) for name in found)


def _within(folder: Path) -> list[Path]:
    # In a run folder the contact sheet, the init pictures and the thumbnails aren't results.
    found = (folder / name for name in _pictures(LocalStore(folder).list()))
    return [path for path in found if not any(Path(run, RECORDS).exists() for run in _runs_of(path))] or [folder]


def _pictures(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if PurePath(name).suffix.lower() in SUFFIXES)


def _runs_of(path: PurePath) -> set[str]:
    """The run folders that a picture may be an aside of."""
    return {str(path.parent), *(str(place.parent) for place in path.parents if place.name in (INITS, THUMBS))}


def _wish(item: Item, **changes: Any) -> Item:
    """The item without what has no say in its picture."""
    return item._replace(number=0, axes=(), **changes)


# ---- one file


def _open(path: Path) -> BufferedReader:
    if path.is_dir() or (path.exists() and not path.is_file()):
        reason = f"holds no {metadata.KINDS} pictures" if path.is_dir() else "is not a file"
        raise ManifestError(reason, Location(path))
    return path.open("rb")


def _read(path: Path, opening: Opening) -> _Source:
    place = Location(path)
    try:
        with opening() as file:
            found = metadata.read_metadata(file)
        if found.item is not None:
            return _read_own(path, found.item, found.model or {}, place)
        return _read_others(path, found, place)
    except (OSError, ValueError) as error:
        if isinstance(error, metadata.PictureError):
            raise ManifestError(str(error), place) from None
        raise ManifestError(f"can't be read: {getattr(error, 'strerror', None) or error}", place) from None


def _read_own(path: Path, given: Mapping[str, Any], model: Mapping[str, Any], place: Location) -> _Source:
    number = wrap(given.get("number", 0), place).integer(0, MOST_ITEMS)
    noise_only = {key: value for key, value in given.items() if key not in (*OF_IMG2IMG, "loras")}
    item = read_item(noise_only, number=number, location=place, model=_model(model), find_loras=False)
    item = item._replace(loras=_loras(given.get("loras", {}), place))
    notes: list[str] = []
    if given.get("init") is not None:
        item = item._replace(**_img2img(path, given, notes, place))
        if given.get(MASK) is not None:
            item = item._replace(extra=(*_inpainting(path, given, notes, place), *item.extra))
    placed = (each._replace(path=f"{EMBEDDINGS}/{each.name}.safetensors") for each in item.embeddings)
    item = item._replace(embeddings=tuple(placed))
    return _Source(path=path, item=item, notes=notes, own=True)


def _model(model: Mapping[str, Any]) -> Model:
    fingerprints = fingerprints_of(model)
    return Model(name=_one_line(str(model.get("name"))), fingerprints=fingerprints)


def _loras(given: Any, place: Location) -> tuple[Lora, ...]:
    """The LoRAs that a picture has; where their files are it doesn't say."""
    entries = wrap(given, place).value
    if not isinstance(entries, dict):
        raise ManifestError("loras: expected a mapping of names", place)
    found = []
    for key, value in entries.items():
        said, name = value.mapping(("sha256", "unet", "text")), _one_line(key.text())
        unet, text = (read_strength(said[part])[0] if part in said else 0.0 for part in ("unet", "text"))
        sha256 = said["sha256"].text() if "sha256" in said else ""
        if not SHA256.fullmatch(sha256):
            raise ManifestError(f"loras: {name}: expected the SHA-256 of its tensors, 64 hexadecimal digits", place)
        found.append(Lora(name, f"{LORAS}/{re.sub(UNSAFE, '_', name)}.safetensors", sha256, "", unet, text))
    return tuple(found)


def _img2img(path: Path, given: Mapping[str, Any], notes: list[str], place: Location) -> dict[str, Any]:
    sha256 = _hash_of("init", given, place)
    crop = given.get("crop")
    return {
        "init": _find_picture("init picture", path, given["init"], sha256, notes),
        "init_sha256": sha256,
        "crop": None if crop is None else check("crop", wrap(crop, place)),
        "strength": check("strength", wrap(given.get("strength"), place)),
    }


def _inpainting(path: Path, given: Mapping[str, Any], notes: list[str], place: Location) -> Iterator[tuple[str, Any]]:
    """What an item's `extra` begins with where there is a mask."""
    sha256 = _hash_of(MASK, given, place)
    yield MASK, _find_picture(MASK, path, given[MASK], sha256, notes)
    yield MASK_SHA256, sha256
    if MASK_BLUR in given:
        yield MASK_BLUR, check(MASK_BLUR, wrap(given[MASK_BLUR], place))


def _hash_of(key: str, given: Mapping[str, Any], place: Location) -> str:
    name, what = f"{key}_sha256", "the mask" if key == MASK else "the init picture"
    if not SHA256.fullmatch(sha256 := str(given.get(name))):
        raise ManifestError(f"{name}: expected the SHA-256 of {what}, 64 hexadecimal digits", place)
    return sha256


def _find_picture(what: str, path: Path, recorded: object, sha256: str, notes: list[str]) -> str:
    """The run folder's copy, relative to the current folder; where it is gone, a path that says what is missing."""
    suffix = PurePosixPath(str(recorded)).suffix
    name = f"inits/{sha256}{suffix if suffix.isprintable() else ''}"
    if is_url(path):
        notes.append(f"the {what} isn't on this machine; copy it from the run folder's {name} to {name}")
        return name
    copy = path.resolve().parent.parent.parent / name
    if not copy.is_file() or sha256_of(copy) != sha256:
        notes.append(f"the {what} isn't in the run folder; put the file with this SHA-256 at {name}")
        return name
    found = Path(os.path.relpath(copy)).as_posix()
    if found.startswith(os.pardir):
        notes.append(f"the {what} is outside the current folder: the manifest needs allow_outside=true")
    return found


def _read_others(path: Path, found: metadata.Metadata, place: Location) -> _Source:
    """The picture of another program: by its own text, or by AUTOMATIC1111's, which many write."""
    try:
        if other := foreign.read(found.texts, found.size):
            _, record, notes, model = other
        elif found.parameters is not None:
            record, notes, model = infotext.read(found.parameters)
        else:
            said = f"; it has the texts {name_some(sorted(found.texts))}" if found.texts else ""
            raise ManifestError(f"has no generation metadata that is known{said}", place)
    except ValueError as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"its text can't be read: {error}", place) from None
    strength = record.pop("strength", None)
    item = read_item(record, number=0, location=place, model=Model(name=_one_line(model)), find_loras=False)
    if strength is not None:
        item = item._replace(strength=check("strength", wrap(strength, place)))
    return _Source(path=path, item=item, notes=notes, own=False)


# ---- the manifest


def _notes(sources: Sequence[_Source]) -> Iterator[str]:
    """Each note once, with the files that it is about."""
    about: dict[str, list[Path]] = {}
    for source in sources:
        for note in source.notes:
            about.setdefault(note, []).append(source.path)
    for note, paths in about.items():
        files = name_some([str(path) for path in paths]) if len(paths) < len(sources) else "all pictures"
        yield _one_line(f"{shorten(note, 200)} ({files})")
    if paths_of_models := _paths(_names(sources)):
        yield f"say under 'models' where the weights are: {', '.join(paths_of_models)}"
    if loras := dict.fromkeys(name for source in sources for name in _names_of_loras(source.item)):
        yield _one_line(f"say under 'loras' where the files of these are: {', '.join(loras)}")
    if embeddings := dict.fromkeys(each.path for source in sources for each in source.item.embeddings):
        yield f"say under 'embeddings' where their files are: {', '.join(embeddings)}"
    there = {_wish(source.item) for source in sources}
    for source in sources:
        lender = source.item.fixed_code
        if lender is not None and _wish(source.item, seed=lender, fixed_code=None) not in there:
            yield _one_line(f"a picture with seed {lender} is added: {source.path} (fixed_code) begins with its noise")


def _names_of_loras(item: Item) -> list[str]:
    """The LoRAs that an item has, and those that its prompt names."""
    tagged = [tag.name for tag in read_tags(item.prompt)[1]] if item.a1111 else []
    return [*(lora.name for lora in item.loras), *tagged]


def _in_order(sources: Sequence[_Source]) -> list[_Source]:
    """Each wish once, by the items' numbers, as in their own manifest; where these say nothing, as they were named."""
    once: dict[Item, _Source] = {}
    for source in sources:
        once.setdefault(_wish(source.item), source)
    found = list(once.values())
    numbers = {source.item.number for source in found if source.own}
    return sorted(found, key=lambda source: source.item.number) if len(numbers) == len(found) else found


def _names(sources: Sequence[_Source]) -> dict[Model, str]:
    """What each model is called in the manifest: nothing where there is one only, and no two the same."""
    models = list(dict.fromkeys(source.item.model for source in sources))
    shared = Counter(model.name for model in models)
    marks = {model: "".join(sha256[:MARK] for _, sha256 in model.fingerprints[:1]) for model in models}
    named = {model: model.name if shared[model.name] == 1 else f"{model.name}-{marks[model]}" for model in models}
    return named if len(models) > 1 else dict.fromkeys(models, "")


def _paths(names: Mapping[Model, str]) -> dict[str, str]:
    """Paths for the files of the named models, except for those that `conf/model/` lists."""
    listed = [name for name in names.values() if name and name not in group_names("model")]
    return {name: f"{WEIGHTS}/" + re.sub(UNSAFE, "_", name) for name in listed}


def _with_own_names(items: Sequence[Item]) -> list[Item]:
    """The items with LoRAs that are called otherwise where several files have one name."""
    found = {(lora.name, lora.sha256) for item in items for lora in item.loras}
    shared = Counter(name for name, _ in found)

    def renamed(lora: Lora) -> Lora:
        if shared[lora.name] == 1:
            return lora
        name = f"{lora.name}-{lora.sha256[:MARK]}"
        return lora._replace(name=name, path=f"{LORAS}/{re.sub(UNSAFE, '_', name)}.safetensors")

    return [item._replace(loras=tuple(map(renamed, item.loras))) for item in items]


def _manifest(sources: Sequence[_Source], notes: Sequence[str]) -> str:
    names = _names(sources)
    items = [each.item._replace(model=Model(name=names[each.item.model])) for each in _in_order(sources)]
    pictures = "1 picture" if len(items) == 1 else f"{len(items)} pictures"
    models = [_one_line(shorten(f"model: {model}", 200)) for model in names if model.name]
    comments = "".join(f"# {line}\n" for line in (f"from {pictures}", *models, *notes))
    return comments + write.to_yaml(_with_own_names(items), _paths(names))


def _one_line(text: str) -> str:
    """A text from a file for a comment or the screen: nothing in it ends the line or steers a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
