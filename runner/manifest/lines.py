"""From a file of JSON lines, records or items, to items: all of them checked, none of them kept.

Values are checked by the rules of `rules`, as a manifest's are.

    items = read_items(Path("outputs/quickstart/records.jsonl"))
    items[999].seed
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from runner.errors import Location, ManifestError, Problems
from runner.images.inits import Init, InitError
from runner.images.masks import unfit
from runner.item import MASK, MASK_SHA256, Embedding, Item, Lora, Model, Part
from runner.keys import A1111, KEYS, read_strength, words
from runner.manifest import weighted
from runner.manifest.embeddings import Wording, named, names_in, read_embeddings
from runner.manifest.items import resolve
from runner.manifest.lazy import Lazy
from runner.manifest.loras import find_lora
from runner.manifest.nodes import Node, wrap
from runner.manifest.places import Frame, ListedFile, configured_model, find_inside, find_picture, read_sha256
from runner.manifest.rules import ALIASES, DEFAULTS, ITEM_KEYS, check, entries
from runner.manifest.syntax import find_tagged, read_a1111, read_negative
from runner.model.tokens import surely_fits
from runner.record import fingerprints_of, part
from runner.settings import PREDICTIONS

LONGEST_LINE = 2**20  # bytes
BOM = b"\xef\xbb\xbf"
HASHES = {"init": "init_sha256", MASK: MASK_SHA256}
NULLABLE = (*HASHES.values(), *(name for name, key in KEYS.items() if key.nullable))  # where there is no init picture
RECORD_KEYS = (*ITEM_KEYS, "number", "parts", "axes", *HASHES.values(), "embeddings")
LORA_KEYS = ("path", "sha256", "unet", "text", "weight")
RECORD_NAMES = frozenset(RECORD_KEYS)
KEPT_VALUES, SHORT = 4096, 200  # how many checked values are kept, and of how many characters
NOWHERE = Location(Path())


def read_item(
    record: object,
    *,
    number: int,
    location: Location,
    allow_outside: bool = False,
    model: Model = DEFAULTS["model"],
    find_loras: bool = True,
) -> Item:
    """The item that `Item.to_dict` wrote, or one written by hand, where all but a prompt and a seed may be missing.

    `read_model` reads its model. Without `find_loras` a prompt's tags may name LoRAs that are not there.
    """
    given = {
        key: value for key, value in _entries(record, location).items() if value is not None or key not in NULLABLE
    }
    if "seed" not in given:
        raise ManifestError("'seed' is missing; an item in a file of JSON lines needs one", location)
    a1111 = _checked("prompt_syntax", given["prompt_syntax"], location) == A1111 if "prompt_syntax" in given else False
    parts = _read_a1111(given, location) if a1111 else _read_parts(given, location)
    axes = _read_axes(given.get("axes", {}), location)
    code = given.pop("fixed_code", None)  # here it is the noise's seed
    loras = _read_loras(given.pop("loras"), location, allow_outside) if "loras" in given else ()
    if a1111 and find_loras:
        loras = (*loras, *_tagged(given, {lora.name for lora in loras}, location, allow_outside))
    values = {**DEFAULTS, **{key: _checked(key, given[key], location) for key in given if key in ITEM_KEYS}}
    values["loras"] = loras
    values["fixed_code"] = None if code is None else _checked("seed", code, location)
    values |= {key: _find(key, given, location, allow_outside) for key in HASHES if key in given}
    _check_pictures(values, given, location)
    if "prompt" not in values:
        texts, weights = [part.text for part in parts], [part.weight for part in parts]
        values["prompt"] = texts[0] if a1111 else weighted.to_text(texts, weights)
    item = resolve({**values, "parts": parts, "model": model}, number=number, axes=axes)
    if "embeddings" not in given:
        return item
    listed = read_embeddings(given["embeddings"], location, allow_outside)
    return item._replace(embeddings=named(item.texts(), listed))


def read_model(record: Mapping[str, Any], location: Location) -> Model:
    """The model that a record asks for, by what is recorded of it; an item alone may name a file of `conf/model/`."""
    model, prediction = part(record, "model"), part(record, "run").get("prediction")
    if fingerprints := fingerprints_of(model):
        return Model(
            name=str(model.get("name")),
            path=str(model.get("path", "")),
            prediction=str(prediction) if prediction in PREDICTIONS else PREDICTIONS[0],
            vae=str(model.get("vae", "")),
            fingerprints=fingerprints,
        )
    name = (part(record, "item") or record).get("model")
    return Model() if name is None else configured_model(wrap(name, location))


def _entries(record: object, location: Location) -> dict[str, Any]:
    """The entries of a record under their real names."""
    if isinstance(record, dict) and record.keys() <= RECORD_NAMES:
        return record
    entries(wrap(record, location), RECORD_KEYS)
    assert isinstance(record, dict)
    return {ALIASES.get(str(key), str(key)): value for key, value in record.items()}


def _checked(key: str, value: object, location: Location) -> Any:
    """The value by the key's rule. Most values are those of the line before: only seeds and long texts are new."""
    try:
        if key == "seed" or not isinstance(value, str | int | float) or (isinstance(value, str) and len(value) > SHORT):
            return check(key, wrap(value, location))
        return _checked_before(key, value)
    except ManifestError as error:
        raise ManifestError(error.message, location) from None


@lru_cache(maxsize=KEPT_VALUES, typed=True)
def _checked_before(key: str, value: str | int | float) -> Any:
    return check(key, wrap(value, NOWHERE))


def _find(key: str, given: Mapping[str, Any], location: Location, allow_outside: bool) -> Init:
    """The picture or the mask; where its hash is said, its file has to have it."""
    node = wrap(given[key], location)
    found = find_picture(key, node, location.path.parent, allow_outside)
    if given.get(HASHES[key], found.sha256) != found.sha256:
        raise node.error(f"{key}: {found.path} is another picture than the one that the item was made with")
    return found


def _check_pictures(values: Mapping[str, Any], given: Mapping[str, Any], location: Location) -> None:
    init: Init | None = values["init"]
    if (mask := values["mask"]) and (problem := unfit(mask, init)):
        raise ManifestError(problem, location)
    if init is None:
        return
    try:
        size = init.cut_size if "width" in given and "height" in given else init.own_size
        size(_checked("crop", given["crop"], location) if "crop" in given else None)
    except InitError as error:
        raise ManifestError(f"{init.path}: {error}", location) from None


def _read_loras(given: object, location: Location, allow_outside: bool) -> tuple[Lora, ...]:
    """The LoRAs of an item, with their files: as a record has them, or with one `weight`."""
    node = wrap(given, location)
    if not isinstance(node.value, dict):
        raise node.error("loras: expected names with their files ({ink: {path: ink.safetensors, weight: 0.8}})")
    return tuple(_read_lora(key.text(), value, location, allow_outside) for key, value in node.value.items())


def _read_lora(name: str, node: Node, location: Location, allow_outside: bool) -> Lora:
    said = node.mapping(LORA_KEYS)
    if "path" not in said:
        raise node.error(f"loras: {name} needs a 'path', where its file is")
    sha256 = read_sha256(said["sha256"]) if "sha256" in said else ""
    # What is recorded is found wherever it was, as models are, since it has to be the same one.
    path = find_inside(said["path"], location.path.parent, allow_outside or bool(sha256))
    both = {"unet": said["weight"], "text": said["weight"]} if "weight" in said else {}
    strength = both | {key: said[key] for key in ("unet", "text") if key in said}
    unet, text = (read_strength(strength[key])[0] if key in strength else 0.0 for key in ("unet", "text"))
    if not strength:
        raise node.error(f"loras: {name} needs a 'weight'")
    listed = ListedFile(path, sha256, node)
    return find_lora(Frame(folder=path.parent, allow_outside=True), name, listed, unet, text)


def _read_parts(given: Mapping[str, Any], location: Location) -> tuple[Part, ...]:
    if "parts" not in given and "prompt" not in given:
        raise ManifestError("'prompt' is missing", location)
    try:
        if "parts" not in given:
            return weighted.parse(_checked("prompt", given["prompt"], location))
        written = _written(given["parts"])
        return _parts_before(written) if 0 < len(written) <= SHORT else _parts(given["parts"])
    except ManifestError as error:
        raise ManifestError(error.message, location) from None
    except ValueError as error:
        raise ManifestError(f"prompt: {error}", location) from None


def _read_a1111(given: Mapping[str, Any], location: Location) -> tuple[Part, ...]:
    """The only part of a prompt in AUTOMATIC1111's syntax."""
    texts = [_checked("prompt", given["prompt"], location)] if "prompt" in given else []
    text = (texts or [each.text for each in _read_parts(given, location)])[0]
    parts = (Part(read_a1111(text, location)[0], 1.0),)
    if "negative" in given:
        read_negative(_checked("negative", given["negative"], location), location)
    if "parts" in given and _read_parts({"parts": given["parts"]}, location) != parts:
        raise ManifestError("parts: with prompt_syntax a1111 there are none but the prompt; leave them out", location)
    return parts


def _tagged(given: Mapping[str, Any], known: Container[str], location: Location, allow_outside: bool) -> Iterator[Lora]:
    """The LoRAs that the prompt's tags name and the item doesn't list; they lie in a folder `loras` beside the file."""
    frame = Frame(folder=location.path.parent, allow_outside=allow_outside, loras={})
    _, tags = read_a1111(str(given.get("prompt", "")), location)
    for tag in tags:
        if tag.name not in known and (tag.unet or tag.text):
            yield find_tagged(frame, tag, location)._replace(unet=tag.unet, text=tag.text)


def _written(value: object) -> bytes:
    """The value as JSON; nothing for what is no JSON or is nested too deep."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return b""


@lru_cache(maxsize=KEPT_VALUES)
def _parts_before(written: bytes) -> tuple[Part, ...]:
    return _parts(orjson.loads(written))


def _parts(value: object) -> tuple[Part, ...]:
    parts = [part.mapping(("text", "weight")) for part in wrap(value, NOWHERE).items()]
    if any(len(part) < 2 for part in parts):
        raise ManifestError("parts: each needs a 'text' and a 'weight'", NOWHERE)
    weights = [part["weight"].number(-weighted.LARGEST_WEIGHT, weighted.LARGEST_WEIGHT) for part in parts]
    return weighted.combine([words(part["text"]) for part in parts], weights)


def _read_axes(axes: object, location: Location) -> tuple[tuple[str, Any], ...]:
    # A crop is the only single value that is a list.
    if not isinstance(axes, dict) or any(isinstance(axes[key], list | dict) for key in axes if key != "crop"):
        raise ManifestError("axes: expected a mapping of keys to single values", location)
    return tuple((key, _checked(key, value, location) if key == "crop" else value) for key, value in axes.items())


class Lines(Lazy[Item]):
    """The items in a file of JSON lines, of which only the places are kept.

    `asked` are the models that they ask for, each with its first line; `found` is for what was found for these, and
    `learnt` for what was found for embeddings. `texts` are those that must not be cut and might be, with the embeddings
    that they name, each with the place where it stands first. `wordings` are those that name learnt words.
    """

    def __init__(self, path: Path, allow_outside: bool) -> None:
        self.asked: dict[Model, Location] = {}
        self.found: dict[Model, Model] = {}
        self.loras: dict[tuple[Model, str], Location] = {}  # those that are asked for, each with its model
        self._path, self._allow_outside = path, allow_outside
        self._places, self._lines = array("Q"), array("Q")
        self.texts: dict[tuple[str, tuple[Embedding, ...]], Location] = {}
        self.learnt: dict[Embedding, Embedding] = {}
        self._wordings: dict[tuple[object, ...], Wording] = {}
        problems = Problems()
        for place, line, text in _json_lines(path):
            with problems:
                location, record = Location(path, line, 1), self._parse(text, line)
                item = self._item(record, len(self._places), location)
                self.asked.setdefault(item.model, location)
                for lora in item.loras:
                    self.loras.setdefault((item.model, lora.path), location)
                self._note_texts(item, location)
                self._note_words(record.get("item", record), item, location)
            self._places.append(place)
            self._lines.append(line)
        problems.raise_all()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Item]:
        for number, (_, line, text) in zip(range(len(self)), _json_lines(self._path), strict=False):
            yield self._read(text, number, line)

    @property
    def wordings(self) -> Iterable[Wording]:
        """The texts that name learnt words, or seem to."""
        return self._wordings.values()

    def _note_texts(self, item: Item, location: Location) -> None:
        known = {each.name: each for each in item.embeddings}
        for text in item.texts() if item.long_prompts == "error" and not item.a1111 else ():
            if not surely_fits(text):
                self.texts.setdefault((text, named([text], known)), location)

    def _note_words(self, given: Mapping[str, Any], item: Item, location: Location) -> None:
        if "embeddings" in given:
            listed = read_embeddings(given["embeddings"], location, self._allow_outside)
            for text in item.texts():
                if any(names_in(text)):
                    words = {name: (each, location) for name, each in listed.items()}
                    key = (text, item.model, *listed.values())
                    self._wordings.setdefault(key, Wording(text, location, (item.model,), words))

    def _make(self, number: int) -> Item:
        with self._path.open("rb") as file:
            file.seek(self._places[number])
            return self._read(file.readline(LONGEST_LINE), number, self._lines[number])

    def _read(self, text: bytes, number: int, line: int) -> Item:
        item = self._item(self._parse(text, line), number, Location(self._path, line, 1))
        found = tuple(self.learnt.get(each, each) for each in item.embeddings)
        return item._replace(embeddings=found) if found else item

    def _parse(self, text: bytes, line: int) -> dict[str, Any]:
        try:
            record = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ManifestError(f"not valid JSON: {error.msg}", Location(self._path, line, error.colno)) from None
        if not isinstance(record, dict):
            raise ManifestError("each line is one JSON object: a record, or an item", Location(self._path, line, 1))
        return record

    def _item(self, record: dict[str, Any], number: int, location: Location) -> Item:
        asked, item = read_model(record, location), record.get("item", record)
        model = self.found.get(asked, asked)
        return read_item(item, number=number, location=location, allow_outside=self._allow_outside, model=model)


def _json_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Place in bytes, number of the line, and text, of each line that is not blank."""
    place = 0
    with path.open("rb") as file:
        for line in itertools.count(1):
            if not (text := file.readline(LONGEST_LINE + 1)):
                return
            if len(text) > LONGEST_LINE:
                raise ManifestError(f"a line of more than {LONGEST_LINE // 2**20} MiB", Location(path, line, 1))
            start, place = place, place + len(text)
            if line == 1 and text.startswith(BOM):
                start, text = start + len(BOM), text[len(BOM) :]
            if text.strip():
                yield start, line, text


def read_items(path: Path, *, allow_outside: bool = False) -> Lines:
    """The items of a file of JSON lines, all of them checked, none of them kept."""
    if path.exists() and not path.is_file():  # opening a pipe would never return
        raise ManifestError("can't read it, since it is not a file", Location(path))
    try:
        items = Lines(path, allow_outside)
    except OSError as error:
        raise ManifestError(f"can't read the file: {error.strerror or error}", Location(path)) from None
    if not items:
        raise ManifestError("the file holds no items", Location(path))
    return items
