"""What an item is: one wished picture, resolved to the last number, with its model, and the id that follows from it.

An item knows nothing of devices, batches or folders. `item_id` depends on what defines the picture and on nothing
else, so that the same wish has the same id in any manifest, in any order and on any machine.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from runner.keys import A1111, KEYS

DIGITS_SHOWN = 12  # of a fingerprint


def steps_made(steps: int, strength: float | None) -> int:
    """How many of the steps are made: with an init picture only the last ones, as `strength` says."""
    # A product such as 0.29 * 100 is a little less than what was meant.
    return steps if strength is None else int(steps * strength + 1e-6)


class Model(NamedTuple):
    """Whose weights draw a picture: what it is called, where its files were found, and each fragment's fingerprint.

    A model that is only asked for has no fingerprints yet, or those that are recorded; where nothing at all is said, it
    is the one of the settings. `prediction` is what its UNet predicts, `auto` where its files or the settings say it.
    `vae` is the path of another autoencoder, empty for its own. `family` is that of its files.
    """

    name: str = ""
    path: str = ""
    prediction: str = "auto"
    vae: str = ""
    fingerprints: tuple[tuple[str, str], ...] = ()
    family: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What it is, as it stands in a picture; a record says where it was as well."""
        return {"name": self.name, "fingerprints": dict(self.fingerprints)}

    def __str__(self) -> str:
        return ", ".join([self.name, *(f"{name} {sha256[:DIGITS_SHOWN]}" for name, sha256 in self.fingerprints)])


class Lora(NamedTuple):
    """A LoRA as a picture has it: its name, its file, the SHA-256 of its tensors, and how strong it is.

    `unet` and `text` are the weights of what it changes there. `hash` is what AUTOMATIC1111 calls its file by.
    """

    name: str
    path: str
    sha256: str
    hash: str
    unet: float
    text: float

    def to_dict(self) -> dict[str, Any]:
        """What it is, as it stands in a picture; a record says where it was as well."""
        return {"sha256": self.sha256, "unet": self.unet, "text": self.text}


class Embedding(NamedTuple):
    """Vectors that were learnt for a word (Gal et al. 2022), `<name>` in a prompt: their file, and their SHA-256."""

    name: str
    path: str
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """What it is, as it stands in a picture; a record says where it was as well."""
        return {"sha256": self.sha256}


class Part(NamedTuple):
    """A piece of a weighted prompt; the weights of a prompt's parts add up to 1."""

    text: str
    weight: float


class Item(NamedTuple):
    """One wished picture, a tuple, since there may be millions.

    Sizes are in pixels; `number` is its place in the manifest and in its file's name. `init` is the
    path of the picture that img2img begins with; it, `crop` (left, top, right, bottom) and `strength` are None where
    the picture is made from noise alone. `fixed_code` is the seed of the first noise, where that is not the item's own.
    `extra` holds the keys that have no field here and are not at their default, in the order of `keys.KEYS`. `loras`
    and `embeddings` are what is put on top of the model: those whose weight is not 0, and those that its texts name.
    """

    number: int
    prompt: str
    parts: tuple[Part, ...]
    negative: str
    seed: int
    width: int
    height: int
    steps: int
    scale: float
    sampler: str
    eta: float
    format: str
    long_prompts: str
    init: str | None = None
    init_sha256: str | None = None
    crop: tuple[int, int, int, int] | None = None
    strength: float | None = None
    fixed_code: int | None = None
    extra: tuple[tuple[str, Any], ...] = ()
    model: Model = Model()
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    axes: tuple[tuple[str, Any], ...] = ()

    @property
    def guided(self) -> bool:
        """Whether the picture needs a second row in each call of the UNet."""
        return self.scale != 1.0

    @property
    def rows(self) -> int:
        """Rows in each call of the UNet."""
        return 2 if self.guided else 1

    @property
    def chunked(self) -> bool:
        """Whether prompts that are too long are encoded piece by piece."""
        return self.long_prompts == "chunk" or self.a1111

    @property
    def a1111(self) -> bool:
        """Whether its texts are read as AUTOMATIC1111 reads them."""
        return SYNTAX_A1111 in self.extra

    @property
    def skipped_steps(self) -> int:
        """How many of the steps are not made, since the picture is there already."""
        return self.steps - steps_made(self.steps, self.strength)

    def texts(self) -> tuple[str, ...]:
        """Every text that this picture is made of, as it is written."""
        positive = tuple(part.text for part in self.parts)
        return (*positive, self.negative) if self.guided else positive

    def to_dict(self) -> dict[str, Any]:
        """The item as it stands in a picture, the model aside; `manifest.lines.read_item` is the way back."""
        values = self._asdict() | {"parts": [part._asdict() for part in self.parts], "axes": dict(self.axes)}
        del values["model"], values["extra"]
        for key in ON_TOP:
            added = {each.name: each.to_dict() for each in values.pop(key)}
            values |= {key: added} if added else {}
        return values | dict(self.extra)

    def value(self, key: str) -> Any:
        """The value of an item key."""
        if key in self._fields:
            return getattr(self, key)
        return dict(self.extra).get(key, KEYS[key].default if key in KEYS else None)

    def with_pictures(self, init: str | None, mask: str | None) -> Item:
        """The same item with its init picture and its mask, if it has them, at other places."""
        extra = tuple((key, mask if key == MASK else value) for key, value in self.extra)
        return self._replace(init=init, extra=extra)

    @property
    def weights(self) -> tuple[Model, tuple[Lora, ...]]:
        """Whose weights draw it: pictures of the same ones can be made together."""
        return self.model, self.loras


ON_TOP = ("loras", "embeddings")
SYNTAX_A1111 = ("prompt_syntax", A1111)
# Of the extra keys, one beside those of the table: it belongs to `mask` as `init_sha256` belongs to `init`.
MASK, MASK_SHA256, MASK_BLUR = "mask", "mask_sha256", "mask_blur"
EXTRA = tuple(key for key in KEYS if key not in Item._fields)
# What an id is made of, beside the parts and the seed. The prompt's own text is not: its parts are what is drawn.
SHARED = (*(name for name, key in KEYS.items() if key.in_id and name != "seed" and name not in EXTRA), "init_sha256")
IN_ID = frozenset([*(name for name in EXTRA if KEYS[name].in_id), MASK_SHA256])
_NEGATIVE, _SHARED = Item._fields.index("negative"), slice(Item._fields.index("width"), Item._fields.index("model"))


def with_hash(extra: Sequence[tuple[str, Any]], sha256: str) -> tuple[tuple[str, Any], ...]:
    """The `extra` of an item with the SHA-256 of its mask's file right behind the mask."""
    place = [key for key, _ in extra].index(MASK) + 1
    return (*extra[:place], (MASK_SHA256, sha256), *extra[place:])


def item_id(item: Item) -> str:
    """SHA-256 (hexadecimal) over what defines the picture: the resolved item and its model's fingerprints.

    It is that of `{"item": {...}, "model": {...}}` as JSON with its keys sorted, but without those that are None: they
    don't count, so that keys which come later leave the ids of older items as they are. LoRAs and embeddings stand
    beside the model where there are any: those by the fingerprints and weights alone, these under the names that the
    texts have for them.
    """
    return item_digest(item).hex()


def item_digest(item: Item) -> bytes:
    """The 32 bytes of an item's id."""
    before, between, after = _around(
        item[_NEGATIVE], item[_SHARED], item.model.fingerprints, item.loras, item.embeddings
    )
    [(text, weight), *more] = parts = item.parts
    written = _json_parts(parts) if more or weight != 1 else b'[{"text":%b,"weight":1.0}]' % orjson.dumps(text)
    return hashlib.sha256(b"%b%b%b%d%b" % (before, written, between, item.seed, after)).digest()


@functools.lru_cache(maxsize=4096)  # neighbours share all but their parts and their seed
def _around(
    negative: str, others: tuple[Any, ...], fingerprints: tuple[tuple[str, str], ...],
    loras: tuple[Lora, ...], embeddings: tuple[Embedding, ...],
) -> Sequence[bytes]:  # fmt: skip
    """The JSON of an id before the parts, between them and the seed, and after; `others` are an item's from its width.

    Of those the init's path is no part of it. Values of one key are of one type, so that equal ones are written alike.
    """
    values = {"negative": negative, **dict(zip(Item._fields[_SHARED], others, strict=True))}
    wish = {key: values[key] for key in SHARED if values[key] is not None}
    wish |= {key: value for key, value in values["extra"] if key in IN_ID}
    if wish["long_prompts"] != "chunk":
        del wish["long_prompts"]  # the other ways make one and the same picture, or none
    document: dict[str, Any] = {"item": {**wish, "parts": None, "seed": None}, "model": dict(fingerprints)}
    if loras:
        document["loras"] = sorted([each.sha256, float(each.unet), float(each.text)] for each in loras)
    if embeddings:
        document["embeddings"] = {each.name: each.sha256 for each in embeddings}
    written = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    # No text holds these: a quote in it would be escaped.
    return re.split(b'(?<="parts":)null|(?<="seed":)null', written)


@functools.lru_cache(maxsize=4096)
def _json_parts(parts: tuple[Part, ...]) -> bytes:
    return orjson.dumps([{"text": part.text, "weight": part.weight} for part in parts])
