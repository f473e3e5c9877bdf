"""Thumbnails of pictures that have none, since an earlier version made them, or since the thumbnails were removed.

A picture that can't be read gets none; the page shows the picture itself then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from runner.errors import RunnerError
from runner.folder.names import thumbnail_name
from runner.folder.store import Store
from runner.images.codec import THUMBNAIL, thumbnail

THREADS = 4
log = logging.getLogger(__name__)


def make_missing(store: Store, pictures: Iterable[tuple[str, tuple[int, int]]]) -> int:
    """Makes what is missing for pictures, each a path with its width and height; how many that were."""
    large = {thumbnail_name(path): path for path, size in pictures if max(size) > THUMBNAIL}
    missing = [large[name] for name, size in store.sizes(large).items() if size < 0]
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(lambda path: _make(store, path), missing))


def _make(store: Store, path: str) -> bool:
    try:
        with store.open(path) as file, Image.open(file, formats=("PNG", "JPEG")) as picture:
            small = thumbnail(picture)
    except RunnerError:  # a store that is down
        raise
    except Exception as error:  # the parsers raise almost anything on garbage
        log.debug("no thumbnail of %s: %r", path, error)
        return False
    if small:
        store.put(thumbnail_name(path), small)
    return small is not None
