"""What all sources have in common: items, listings, and reading of byte ranges.

A source lists its images once, as items; an item says where the bytes of its image are. Workers
get items and read many of them in one request where they lie side by side.
"""

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

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

    def origins(self) -> list[Location]:
        """Return the files whose change makes an earlier listing a wrong one."""

    def groups(self, items: Sequence[Item]) -> list[list[int]]:
        """Return the places of the items that are best fetched in one request, each place once."""

    def fetch(self, items: Sequence[Item]) -> list[Content | SddError]:
        """Return what is at each item of a group, or why it cannot be used.

        That is an `ImageRejectedError`, or an `InputError` for what cannot be reached, which may
        pass.
        """


@dataclass(frozen=True)
class PackedSource:
    """Base of sources that hold many images in each of several files.

    A subclass lists one file at a time, so that files can be listed in parallel.

    Attributes:
        root: Folder of the files.
        only: Name of the file, if the source is one file; keys do not begin with its name.
        suffix: How the names of the files end.
    """

    root: Location
    only: str | None
    suffix: ClassVar[str]
    needs_listing = True

    def files(self) -> list[str]:
        """Return the names of the files, sorted.

        Raises:
            InputError: There is none.
        """
        return files_at(self.root, self.suffix)[1] if self.only is None else [self.only]

    def origins(self) -> list[Location]:
        """Return the files whose change makes an earlier listing a wrong one."""
        return [self.root / file for file in self.files()]

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

    def fetch(self, items: Sequence[Item]) -> list[Content | SddError]:
        """Return what is at each item of a group, or why it cannot be used.

        Raises:
            InputError: The file that holds them cannot be read.
        """
        file = items[0].file
        return [*not_there(self.root, items)] if file is None else self.contents(file, items)

    def contents(self, file: str, items: Sequence[Item]) -> list[Content | SddError]:
        """Return what is at each item of a group in a file; see `fetch`."""
        raise NotImplementedError

    def image_id(self, key: str, file: str) -> str:
        """Return the image_id of a key in a file."""
        return f"{file}/{key}" if self.only is None else key


class RangeSource(PackedSource):
    """Base of sources whose images can be read by byte range."""

    @property
    def holders(self) -> Location:
        """Folder of the files that hold the images."""
        return self.root

    def groups(self, items: Sequence[Item]) -> list[list[int]]:
        """Return groups of images that lie side by side."""
        return neighbours(items)

    def contents(self, file: str, items: Sequence[Item]) -> list[Content | SddError]:
        """Return what is at each item of a group in a file, read by one request."""
        start = min(item.offset for item in items)
        stop = max(item.offset + item.length for item in items)
        block = (self.holders / file).read_range(start, stop - start)
        return [
            self.content(item, block[item.offset - start : item.offset - start + item.length])
            for item in items
        ]

    def content(self, item: Item, data: bytes) -> Content | SddError:
        """Return the image in the bytes of an item, or why it cannot be used."""
        raise NotImplementedError


def not_there(root: Location, items: Sequence[Item]) -> list[InputError]:
    """Return the errors of items that the listing of a source does not hold."""
    return [InputError(f"{root.uri} holds no image {item.image_id!r}") for item in items]


def leads_below(name: str) -> bool:
    """Return whether a name is a path below a folder, that says so without . and .. in it."""
    return "\0" not in name and set(name.split("/")).isdisjoint({"", ".", ".."})


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
