"""From items to decoded faces: fetch in few requests, decode on threads, keep the order."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdd_ray.errors import InputError, SddError
from sdd_ray.formats.images import ImageRejectedError, decode_image
from sdd_ray.formats.items import Content, Item, Source, from_table
from sdd_ray.formats.source import locate

_ALBUM_THREADS = 8
"""Images read at the same time for figures: they may lie on S3."""

_FACES_AHEAD = 512
"""Faces that are read ahead, 18 MiB: enough for all threads, also of single small files."""


class Face(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: (112, 112, 3) RGB.
        identity: The person that listing or format name, or None.
        size: Bytes of the image as it lies in its file; of what is there decoded, of its pixels.
    """

    pixels: NDArray[np.uint8]
    identity: str | None
    size: int


def read_faces(
    source: Source, items: Sequence[Item], threads: ThreadPoolExecutor
) -> Iterator[Face | SddError]:
    """Yield the face of each item in order, or why it cannot be used.

    Threads fetch and decode ahead of the one that takes the faces.

    Args:
        source: Where the items are from.
        items: What to read.
        threads: Who reads.
    """
    # In the order in which their first face is needed.
    groups: list[list[int]] = sorted(source.groups(items), key=min)
    firsts = [min(group) for group in groups]
    found: dict[int, Face | SddError] = {}
    waiting: deque[tuple[list[int], Future[list[Face | SddError]]]] = deque()
    ahead = 0
    for place in range(len(items)):
        # What was read and not taken yet stays small, however many items there are.
        while ahead < len(groups) and firsts[ahead] <= place + _FACES_AHEAD:
            wanted = [items[one] for one in groups[ahead]]
            waiting.append((groups[ahead], threads.submit(_read_group, source, wanted)))
            ahead += 1
        while place not in found:
            group, done = waiting.popleft()
            found.update(zip(group, done.result(), strict=True))
        yield found.pop(place)


def read_face(source: Source, item: Item) -> NDArray[np.uint8]:
    """Return the decoded RGB image of one item, (112, 112, 3).

    Raises:
        ImageRejectedError: What is there is no usable image.
        InputError: The image cannot be read.
    """
    found = _read_group(source, [item])[0]
    if isinstance(found, SddError):
        raise found
    return found.pixels


def _read_group(source: Source, items: list[Item]) -> list[Face | SddError]:
    try:
        contents = source.fetch(items)
    except InputError as error:
        return [error] * len(items)
    return [_decoded(item, found) for item, found in zip(items, contents, strict=True)]


def _decoded(item: Item, found: Content | SddError) -> Face | SddError:
    if isinstance(found, SddError):
        return found
    identity = item.identity if found.identity is None else found.identity
    if not isinstance(found.data, bytes):
        return Face(found.data, identity, found.data.nbytes)
    try:
        pixels = decode_image(found.data, landmarks=item.landmarks)
    except ImageRejectedError as error:
        return error
    return Face(pixels, identity, len(found.data))


class Album:
    """The images of a set by row, for figures: an image that cannot be shown is None.

    The source is listed at most once, when the first image is asked for.

    Args:
        source: Where the images are.
        image_ids: Keys of the set.
    """

    def __init__(self, source: Source, image_ids: pa.ChunkedArray) -> None:
        self._source, self._image_ids = source, image_ids
        self._items: pa.Table | None = None

    def faces(self, rows: Sequence[int]) -> list[NDArray[np.uint8] | None]:
        """Return the (112, 112, 3) pixels of some images, all read at the same time.

        Raises:
            InputError: The source cannot be listed.
        """
        if self._items is None:
            self._items = locate(self._source, self._image_ids)
        items = from_table(self._items.take(pa.array(rows, pa.int64())))
        with ThreadPoolExecutor(_ALBUM_THREADS) as threads:
            found = list(read_faces(self._source, items, threads))
        return [None if isinstance(face, SddError) else face.pixels for face in found]
