"""What all sources have in common: items, listings, and reading of byte ranges.

A source lists its images once, as items; an item says where the bytes of its image are. Workers
get items and read many of them in one request where they lie side by side.
"""

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdd_ray import columns
from sdd_ray.errors import InputError, SddError
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

MAX_FILE_BYTES = 64 << 20
"""Larger files and records are no face crops, and are not read."""

_REQUEST_BYTES = 1 << 20
"""Most bytes of several images in one request: some hundred faces, so that decoding can begin."""
_GAP_BYTES = 32 << 10
"""Bytes between two images that are read and dropped, rather than asking twice."""


_ROWS_AT_ONCE = 65_536


class Item(NamedTuple):
    """An image of a source, and where it is.

    Attributes:
        image_id: Its key.
        identity: The person; None where the source names none, or says so beside the image only.
        file: Name of the file that holds it, below the source's root. None: the image_id says it.
        offset: First byte in that file, or row.
        length: Bytes there; 0 where the format needs none.
        landmarks: x and y of five points in pixels, ten numbers, of an image to be aligned.
    """

    image_id: str
    identity: str | None = None
    file: str | None = None
    offset: int = 0
    length: int = 0
    landmarks: tuple[float, ...] | None = None


class Content(NamedTuple):
    """What is there: an encoded image or, from a source that makes its images, (H, W, 3) pixels.

    Attributes:
        data: The image.
        identity: The person that the format names beside the image, None if the listing says it.
    """

    data: bytes | NDArray[np.uint8]
    identity: str | None = None


@dataclass
class Listing:
    """What listing a source met besides images: rows set aside, and files that are no images."""

    rejects: list[Reject] = field(default_factory=list)
    ignored_files: int = 0


class Source(Protocol):
    """Images with keys; small, and sent to the workers.

    Attributes:
        needs_listing: Whether an image_id alone does not lead to its image.
    """

    needs_listing: bool

    def items(self, listing: Listing) -> Iterator[Item]:
        """Yield all images in a fixed order; note the rest.

        Raises:
            InputError: The source is missing or cannot be listed.
        """

    def groups(self, items: Sequence[Item]) -> list[list[int]]:
        """Return the places of the items that are best fetched in one request, each place once."""

    def fetch(self, items: Sequence[Item]) -> list[Content | SddError]:
        """Return what is at each item of a group, or why it cannot be used.

        That is an `ImageRejectedError`, or an `InputError` for what cannot be reached, which may
        pass.
        """


class PackedSource:
    """Base of sources that hold many images in each of several files.

    A subclass lists one file at a time, so that files can be listed in parallel.
    """

    needs_listing = True

    def files(self) -> list[str]:
        """Return the names of the files in a fixed order.

        Raises:
            InputError: There is none.
        """
        raise NotImplementedError

    def scan(self, file: str, listing: Listing) -> Iterator[Item]:
        """Yield the images of one file in the order in which they lie there; note the rest.

        Raises:
            InputError: The file cannot be read, or is not of this format.
        """
        raise NotImplementedError

    def items(self, listing: Listing) -> Iterator[Item]:
        """Yield all images by file and place."""
        for file in self.files():
            yield from self.scan(file, listing)


def files_at(path: Location, suffix: str) -> tuple[Location, list[str]]:
    """Return the files of one format at a path: the folder they lie in, and their names.

    The path is such a file, or a folder that holds some at any depth; names are relative, sorted.

    Raises:
        InputError: There is none, or the folder cannot be listed.
    """
    if not path.is_folder():
        if not path.exists():
            raise InputError(f"source.path: nothing is at {path.uri}")
        folder, _, name = path.uri.rpartition("/")
        return Location(folder or "/"), [name]
    names = sorted(_below(path, "", suffix, frozenset()))
    if not names:
        raise InputError(f"source.path: no *{suffix} file in {path.uri}")
    return path, names


def _below(folder: Location, prefix: str, suffix: str, above: frozenset[Hashable]) -> Iterator[str]:
    key = folder.key()
    if key in above:  # a link that leads back: its files are found where they lie
        return
    for entry in folder.entries():
        if not entry.name:
            raise InputError(f"{folder.uri}/ holds keys with an empty name between two slashes")
        if entry.is_folder:
            name = f"{prefix}{entry.name}/"
            yield from _below(folder / entry.name, name, suffix, above | {key})
        elif entry.name.endswith(suffix):
            yield prefix + entry.name


def neighbours(items: Sequence[Item], most: int = _REQUEST_BYTES) -> list[list[int]]:
    """Return the places of items by byte ranges that one request reads, in order of the file."""
    order = sorted(range(len(items)), key=lambda i: (items[i].file or "", items[i].offset))
    groups: list[list[int]] = []
    start = stop = 0
    file: str | None = None
    for place in order:
        item = items[place]
        is_near = groups and item.file == file and item.offset - stop <= _GAP_BYTES
        if is_near and item.offset + item.length - start <= most:
            groups[-1].append(place)
            stop = max(stop, item.offset + item.length)
        else:
            groups.append([place])
            file, start, stop = item.file, item.offset, item.offset + item.length
    return groups


def read_ranges(root: Location, items: Sequence[Item]) -> list[bytes]:
    """Return the bytes of each item of one file, by one request over all of them.

    Raises:
        InputError: The file cannot be read, or ends before.
    """
    start = min(item.offset for item in items)
    stop = max(item.offset + item.length for item in items)
    block = (root / (items[0].file or "")).read_range(start, stop - start)
    return [block[i.offset - start : i.offset - start + i.length] for i in items]


def to_table(items: Iterable[Item]) -> pa.Table:
    """Return items as a table of `columns.INDEX`; of a stream, some thousands are held at once."""
    stream = iter(items)
    tables = [columns.INDEX.empty_table()]
    while rows := list(itertools.islice(stream, _ROWS_AT_ONCE)):
        arrays = [
            pa.array(list(column), kind)
            for column, kind in zip(zip(*rows, strict=True), columns.INDEX.types, strict=True)
        ]
        tables.append(pa.table(arrays, schema=columns.INDEX))
    return pa.concat_tables(tables)


def from_table(table: pa.Table) -> list[Item]:
    """Return the items of a table of `columns.INDEX`."""
    values = [table[name].to_pylist() for name in columns.INDEX.names]
    *places, landmarks = values
    points = [None if numbers is None else tuple(numbers) for numbers in landmarks]
    return [Item(*row) for row in zip(*places, points, strict=True)]
