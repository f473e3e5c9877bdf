"""Turns a prompt into CLIP's tokens, without torch, so that `plan` and `run` see the same ones.

The vocabulary is the model's own (`tokenizer/vocab.json` and `merges.txt`, or `tokenizer.json`), and the one that
ships with the package where a model has none. Words that were learnt (textual inversion) stand in a text as `<name>`;
the caller says which numbers stand for each.

    tokenizer.encode("a <toy>", {"toy": range(49408, 49410)})
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from runner.errors import ModelError
from runner.model.configs import read_json
from runner.model.files import ModelFiles
from runner.text import shorten

START, END, COMMA = "<|startoftext|>", "<|endoftext|>", ",</w>"
LENGTH = 77  # tokens, the start and the end among them
ROOM = LENGTH - 2
MOST_TOKENS = 1 << 24
SHIPPED = Path(__file__).parents[1] / "models" / "emoji" / "tokenizer"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
NAME = r"[.-]*\w[\w.-]*"  # of a word that was learnt: a letter, a digit or `_` at least
NAMED = re.compile(f"<({NAME})>")
Words = Mapping[str, range]  # the numbers of the vectors of each learnt word, by its name
NO_WORDS: Words = MappingProxyType({})


def surely_fits(text: str) -> bool:
    """Whether a prompt fits whatever the vocabulary, as most do: no token is of less than a byte of what is read.

    A learnt word may have many vectors.
    """
    if "<" in text and NAMED.search(text):
        return False
    if text.isascii():
        return len(text) <= ROOM
    return len(unicodedata.normalize("NFC", text).lower().encode()) <= ROOM  # which may be longer than the text itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """`ids` has `LENGTH` numbers; `lost` is the text beyond them, empty where all of the prompt fits."""

    ids: tuple[int, ...]
    lost: str


class ClipTokenizer:
    """CLIP's byte-pair encoding (Radford et al. 2021), by the `tokenizers` library."""

    def __init__(self, tokenizer_folder: Path, most: int | None = None, pad: str | None = None) -> None:
        """The text encoder knows `most` tokens; `pad` fills prompts up where the files don't say what does.

        Raises:
            ModelError: the files can't be read, or are not CLIP's, or have more tokens than the text encoder.
        """
        folder = tokenizer_folder if _has_vocabulary(tokenizer_folder) else SHIPPED
        try:
            self._tokenizer, largest = _load_shipped() if folder == SHIPPED else _load(folder)
        except ModelError:
            raise
        except Exception as error:  # the library's own exceptions have no other class
            raise ModelError(f"{folder}: holds no tokenizer of CLIP that can be read ({shorten(str(error))})") from None
        if most is not None and largest >= most:
            raise ModelError(
                f"{folder}: has a token with the number {largest}, and the text encoder knows {most} tokens "
                "(vocab_size); they are not of one model"
            )
        special = (START, END, _pad_token(tokenizer_folder) or pad or END)
        self._start, self.end, self._pad = (_token_id(self._tokenizer, token, folder) for token in special)
        self.comma: int | None = self._tokenizer.token_to_id(COMMA)

    def encode(self, text: str, words: Words = NO_WORDS) -> Tokens:
        """A prompt's tokens, cut or padded to `LENGTH`."""
        ids, places = list[int](), list[int]()
        for numbers, start in self._tokens(text, words):
            ids += numbers
            places += [start] * len(numbers)
        lost = text[places[ROOM] :] if len(ids) > ROOM else ""
        return Tokens(ids=self.frame(ids[:ROOM]), lost=lost)

    def encode_chunks(self, text: str, words: Words = NO_WORDS) -> list[tuple[int, ...]]:
        """All of a prompt's tokens, in as many pieces of `LENGTH` as they need, each with a start and an end.

        The vectors of a learnt word, `ROOM` at most, are in one piece.
        """
        pieces: list[list[int]] = [[]]
        for numbers, _ in self._tokens(text, words):
            if len(pieces[-1]) + len(numbers) > ROOM:
                pieces.append([])
            pieces[-1] += numbers
        return [self.frame(piece) for piece in pieces]

    def has_added(self, token: str) -> bool:
        """Whether a text is one token that the tokenizer's files have on top of CLIP's vocabulary."""
        ids = self._tokenizer.encode(token, add_special_tokens=False).ids
        return len(ids) == 1 and ids[0] in self._tokenizer.get_added_tokens_decoder()

    def _tokens(self, text: str, words: Words) -> Iterator[tuple[Sequence[int], int]]:
        """The numbers of each token, several of a learnt word, and where it begins in the text."""
        begin = 0
        for match in NAMED.finditer(text) if words else ():
            if match[1] in words:
                yield from self._plain_tokens(text[begin : match.start()], begin)
                yield words[match[1]], match.start()
                begin = match.end()
        yield from self._plain_tokens(text[begin:], begin)

    def _plain_tokens(self, text: str, begin: int) -> Iterator[tuple[Sequence[int], int]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return (([number], begin + start) for number, (start, _) in zip(encoding.ids, encoding.offsets, strict=True))

    def units(self, text: str, words: Words = NO_WORDS) -> list[tuple[int, ...]]:
        """All of a text's tokens, those together that may not be parted: the vectors of a learnt word."""
        return [tuple(numbers) for numbers, _ in self._tokens(text, words)]

    def frame(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Up to `ROOM` tokens as a piece of `LENGTH`: with the start before them, the end behind, and padding."""
        framed = [self._start, *ids, self.end]
        return tuple(framed + [self._pad] * (LENGTH - len(framed)))


def _has_vocabulary(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()


def tokenizers(model: ModelFiles) -> dict[str, ClipTokenizer]:
    """The tokenizers of a model's text encoders; those of a single file are the one that ships with the package.

    Raises:
        ModelError: as `ClipTokenizer`.
    """
    # In a folder of v1 or v2 that doesn't say it, it has always been the end token.
    known = model.family.sizes or model.path.is_file()
    return {
        component: ClipTokenizer(
            model.path / text.tokenizer,
            int(model.configs[component]["vocab_size"]),
            text.pad_token if known else None,
        )
        for component, text in model.family.texts.items()
    }


def _pad_token(folder: Path) -> str:
    """What the tokenizer's files say, the old one first; nothing where they don't."""
    settings = _read_settings(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings |= _read_settings(folder / "special_tokens_map.json")
    token = settings.get("pad_token") or ""
    content = token.get("content", END) if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise ModelError(f"{folder}: its pad_token is {shorten(str(content))}, which is no text")
    return content


def _read_settings(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _added_tokens(folder: Path) -> dict[int, AddedToken]:
    """The tokens that were learnt on top of CLIP's, by their numbers, in whichever form transformers saved them."""
    found: dict[int, Mapping[str, Any]] = {}
    for content, number in _read_settings(folder / "added_tokens.json").items():
        found[_number(folder / "added_tokens.json", number)] = {"content": content}
    listed = _read_settings(folder / "tokenizer.json").get("added_tokens", [])
    decoder = _read_settings(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    if not isinstance(listed, list) or not isinstance(decoder, dict):
        raise ModelError(f"{folder}: its added tokens are not listed as transformers does")
    for each in listed:
        if isinstance(each, dict):
            found[_number(folder / "tokenizer.json", each.get("id"))] = each
    for key, each in decoder.items():
        found[_number(folder / "tokenizer_config.json", key)] = each
    return {number: _added(folder, each) for number, each in sorted(found.items())}


def _added(folder: Path, token: Any) -> AddedToken:
    if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
        raise ModelError(f"{folder}: an added token has no text")
    special = token.get("special") is True
    flags = {name: token.get(name) is True for name in ("single_word", "lstrip", "rstrip")}
    return AddedToken(token["content"], special=special, normalized=bool(token.get("normalized", not special)), **flags)


def _number(file: Path, value: Any) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or int(text) >= MOST_TOKENS:
        raise ModelError(f"{file}: {shorten(text)} is no number of a token")
    return int(text)


def _token_id(tokenizer: Tokenizer, token: str, folder: Path) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ModelError(f"{folder}: the tokenizer has no token {shorten(token)}: it is not CLIP's")
    return number


@functools.cache
def _load_shipped() -> tuple[Tokenizer, int]:
    """The tokenizer that ships with the package: single files have no other, those of SDXL for both text encoders."""
    return _load(SHIPPED)


def _load(folder: Path) -> tuple[Tokenizer, int]:
    """A tokenizer, and the largest number of its tokens."""
    tokenizer = _read(folder)
    return tokenizer, max(tokenizer.get_vocab().values(), default=0)


def _read(folder: Path) -> Tokenizer:
    if not (folder / "vocab.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name}: is missing, so the tokenizer isn't whole")
    vocabulary, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    numbers = set(vocabulary.values())
    added = {number: token for number, token in _added_tokens(folder).items() if number not in numbers}
    vocabulary |= {token.content: number for number, token in added.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END))
    tokenizer.add_tokens(list(added.values()))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
