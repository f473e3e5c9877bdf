"""Writes CLIP's vocabulary as a tokenizer folder: `python vocabulary.py bpe_simple_vocab_16e6.txt.gz FOLDER`.

The merges are OpenAI's (MIT); the order of the tokens is that of the `simple_tokenizer.py` beside them.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2


def byte_characters() -> list[str]:
    """A printable character for each byte, in the order of CLIP's tokens: the printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len(set(range(256)) - set(printable))
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(others)]


def main(source: Path, folder: Path) -> None:
    characters = byte_characters()
    lines = gzip.decompress(source.read_bytes()).decode().split("\n")
    merges = lines[1 : MERGES + 1]
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(m.split()) for m in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": START, "eos_token": END,
        "pad_token": END, "unk_token": END,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
