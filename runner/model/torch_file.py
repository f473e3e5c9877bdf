"""The table of tensors of a file that `torch.save` wrote (`.ckpt`, `.pt`, `.bin`), without torch.

Such a file is a zip archive: a pickle that describes the tensors, and their bytes, uncompressed. So each tensor is a
range of bytes in the file, as in a safetensors file, and nothing has to be converted or copied.

    table = read_table(Path("sd-v1-4.ckpt"))
"""

from __future__ import annotations

import io
import itertools
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from runner.errors import ModelError
from runner.model.pickled import Damaged, PickledTensor, interpret
from runner.model.safetensors import ITEM_BYTES, StoredTensor

Find = Callable[[object], Mapping[str, PickledTensor]]
PART_LIMIT = 1 << 24  # bytes of the archive's directory, and of its pickle; Stable Diffusion has less than one million
LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
ENCRYPTED, UTF8 = 0x1, 0x800
SAVE_AGAIN = (
    "if you trust where it comes from, since this runs what is in it, save it again with a current torch: "
    """python -c "import torch; old = torch.load('old.ckpt', map_location='cpu', weights_only=False); """
    """torch.save(old.get('state_dict', old), 'new.ckpt')" """.strip()
)


def read_table(file: Path, find: Find | None = None) -> dict[str, StoredTensor]:
    """The tensors of a file of torch.save: a dictionary of them, or one that holds such a one as `state_dict`.

    `find` finds them in what was saved, where they are elsewhere.

    Raises:
        ModelError: the file is damaged, is of another kind, or asks for anything that weights don't need.
    """
    try:
        with _BoundedFile(file) as stream:
            archive = _Archive(stream)
            tensors = (find or _find_tensors)(interpret(archive.read("data.pkl")))
            table = {name: _locate(file, archive, name, tensor) for name, tensor in tensors.items()}
            archive.check_overlaps()
            return table
    except Damaged as error:
        raise ModelError(f"{file}: {error}") from error
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, OverflowError, struct.error) as error:
        raise ModelError(f"{file}: is not a file of torch.save, or was cut off ({error})") from error


def _find_tensors(document: object) -> dict[str, PickledTensor]:
    """Those of the dictionary, or where it has none, of the first one in it that has: `state_dict`, `model`."""
    if not isinstance(document, dict):
        raise Damaged("holds no dictionary of tensors")
    inner = [document.get("state_dict"), document, *document.values()]
    for state in inner:
        if isinstance(state, dict) and any(isinstance(value, PickledTensor) for value in state.values()):
            return {str(name): value for name, value in state.items() if isinstance(value, PickledTensor)}
    raise Damaged("holds no dictionary of tensors")


def _locate(file: Path, archive: _Archive, name: str, tensor: PickledTensor) -> StoredTensor:
    if not tensor.is_contiguous():
        raise Damaged(f"{name} is stored transposed or expanded; save it again with .contiguous()")
    start, end = archive.span(f"data/{tensor.storage.key}")
    size = ITEM_BYTES[tensor.storage.dtype]
    begin = start + tensor.offset * size
    stop = begin + math.prod(tensor.shape) * size
    if stop > end:
        raise Damaged(f"{name} lies outside its place in the file")
    return StoredTensor(file=file, dtype=tensor.storage.dtype, shape=tensor.shape, start=begin, end=stop)


class _Archive:
    """The zip archive, all its entries in one folder. What `zipfile` doesn't check is checked here."""

    def __init__(self, stream: _BoundedFile) -> None:
        self._stream = stream
        directory = zipfile.ZipFile(stream)
        self._end = directory.start_dir
        self._entries = {entry.filename: entry for entry in directory.infolist()}
        if len(self._entries) != len(directory.infolist()):
            raise Damaged("its archive has two entries of one name")
        roots = [name.partition("/")[0] for name in self._entries if name.partition("/")[2] == "data.pkl"]
        if len(roots) != 1:
            raise Damaged("is a zip archive, but not one of torch.save: it should hold one data.pkl")
        self._root = roots[0]
        self._spans: dict[str, tuple[int, int, int]] = {}  # by entry: its header's begin, its bytes' begin and end
        if f"{self._root}/byteorder" in self._entries and self.read("byteorder") != b"little":
            raise Damaged("its numbers are big-endian; save it again on a little-endian machine")

    def read(self, name: str) -> bytes:
        """All bytes of a small entry."""
        start, end = self.span(name)
        self._stream.seek(start)
        return self._stream.read(end - start)

    def span(self, name: str) -> tuple[int, int]:
        """Where the bytes of an entry begin and end in the file."""
        if name not in self._spans:
            self._spans[name] = self._find(f"{self._root}/{name}")
        return self._spans[name][1:]

    def check_overlaps(self) -> None:
        """Refuses entries that share bytes."""
        spans = sorted(self._spans.values())
        if any(here[2] > there[0] for here, there in itertools.pairwise(spans)):
            raise Damaged("entries of its archive overlap")

    def _find(self, name: str) -> tuple[int, int, int]:
        if name not in self._entries:
            raise Damaged(f"its archive has no entry {name}: was it cut off?")
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Damaged(f"{name} is compressed, which torch.save never does; {SAVE_AGAIN}")
        self._stream.seek(entry.header_offset)
        header = self._stream.read(LOCAL_HEADER.size)
        signature, _, flags, *_, name_length, extra_length = LOCAL_HEADER.unpack(header)
        if (flags | entry.flag_bits) & ENCRYPTED:
            raise Damaged(f"{name} is encrypted")
        if signature != b"PK\3\4" or self._stream.read(name_length) != _encoded(entry):
            raise Damaged(f"{name} is not where the archive's directory says")
        start = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if start + entry.file_size > self._end:
            raise Damaged(f"{name} lies outside the file: was it cut off?")
        return entry.header_offset, start, start + entry.file_size


def _encoded(entry: zipfile.ZipInfo) -> bytes:
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & UTF8 else "cp437")


class _BoundedFile(io.FileIO):
    """A file of which no large piece is read at once, whatever sizes an archive claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = PART_LIMIT + 1 if size is None or size < 0 else min(size, PART_LIMIT + 1)
        data = super().read(wanted) or b""
        if len(data) > PART_LIMIT:
            raise OSError(f"its directory or its pickle is larger than {PART_LIMIT:,} bytes")
        return data
