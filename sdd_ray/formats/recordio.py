"""Record files of MXNet and InsightFace (.rec), with or without an .idx beside them.

A record is a magic number, the length, and the data, filled up to a multiple of four bytes; the
data are a header with the label, and an image file. The writer takes out the magic number where it
occurs in the data, and splits the record there.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdd_ray.errors import ConfigError, InputError, SddError
from sdd_ray.formats.folder import person_in
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.indexed import (
    at_place,
    beyond_end,
    first_row,
    not_there,
    read_columns,
    size_of,
    spans,
)
from sdd_ray.formats.items import (
    MAX_FILE_BYTES,
    Content,
    Item,
    Listing,
    PackedSource,
    files_at,
    neighbours,
    read_ranges,
)
from sdd_ray.settings import SourceConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

_DAMAGED = "damaged_record"
_MAGIC = 0xCED7230A
_PART = struct.Struct("<II")
"""Before each part: magic, cflag << 29 | length. Source: dmlc-core, src/recordio.cc."""
_LENGTH_BITS = 29
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_WHOLE, _START, _MIDDLE, _END = range(4)
"""Values of cflag: a record in one part, or the parts of a split one."""
_HEADER = struct.Struct("<IfQQ")
"""Before the image: flag, label, id, id2. Source: mxnet, python/mxnet/recordio.py, IRHeader."""
_PART_AND_ID = struct.Struct("<II8xQ")
"""Magic, cflag and length, and the id in the header behind them."""

_LONGEST_WITHOUT_IMAGE = _PART.size + _HEADER.size + 2 * 4
"""Bytes of the records in which InsightFace keeps ranges of keys: two labels, no image. A record of
one label that is no longer would leave its image eight bytes, in which no format fits. The ranges
are not looked at: they are float32, and wrong beyond 2^24 keys."""

_READ_AT_ONCE = 8 << 20
_LISTED_AT_ONCE = 1 << 16


class _Records(NamedTuple):
    keys: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def where(self, mask: NDArray[np.bool_]) -> "_Records":
        return _Records(self.keys[mask], self.offsets[mask], self.lengths[mask])


@dataclass(frozen=True)
class RecordIOSource(PackedSource):
    """Images in record files.

    Attributes:
        root: Folder of the files.
        names: Of the files.
        is_folder: Whether the source is that folder: image_ids begin with the name of the file.
        identity: `label`, `first_folder`, `parent_folder` or `none`.
        keys: Key of a record in a file without .idx, `id` or `number`.
        lst: The .lst that names the images by key; None: they are named by their keys.
    """

    root: Location
    names: tuple[str, ...]
    is_folder: bool
    identity: str
    keys: str
    lst: Location | None

    def files(self) -> list[str]:
        """Return the names of the record files, sorted."""
        return list(self.names)

    def scan(self, file: str, listing: Listing) -> Iterator[Item]:
        """Yield the images of one file in the order in which they lie there.

        Records without an image are counted as ignored. With an .idx the records are not read.

        Raises:
            InputError: A file cannot be read, or is not of its format; the rest of a file that ends
                within a record is set aside instead.
        """
        names = None if self.lst is None else _Names(self.lst)
        index = self.root / str(PurePosixPath(file).with_suffix(".idx"))
        found = self._indexed(index, file, listing) if index.exists() else self._read(file, listing)
        for records in found:
            is_image = records.lengths > _LONGEST_WITHOUT_IMAGE
            listing.ignored_files += int(np.count_nonzero(~is_image))
            yield from self._items(file, records.where(is_image), names, listing)

    def groups(self, items: Sequence[Item]) -> list[list[int]]:
        """Return groups of images that lie side by side."""
        return neighbours(items)

    def fetch(self, items: Sequence[Item]) -> list[Content | SddError]:
        """Return the image files, and the labels if they name the persons.

        Raises:
            InputError: The record file cannot be read.
        """
        if items[0].file is None:
            return [*not_there(self.root, items)]
        blocks = read_ranges(self.root, items)
        return [self._content(item, block) for item, block in zip(items, blocks, strict=True)]

    def _content(self, item: Item, block: bytes) -> Content | SddError:
        try:
            label, image = _opened(_data(block))
            return Content(image, _person(label) if self.identity == "label" else None)
        except ImageRejectedError as error:
            return at_place(item, error)

    def _items(
        self, file: str, records: _Records, names: "_Names | None", listing: Listing
    ) -> Iterator[Item]:
        if names is None:
            image_ids: list[str | None] = [self._image_id(file, k) for k in records.keys.tolist()]
        else:
            image_ids = names.of(records.keys)
        columns = (column.tolist() for column in records)
        for image_id, key, offset, length in zip(image_ids, *columns, strict=True):
            if image_id is None:
                detail = f"the list of names has no line with the key {key}"
                listing.rejects.append(Reject(str(key), "not_in_list", detail))
                continue
            person = None if self.identity == "label" else person_in(image_id, self.identity)
            if person is None and self.identity not in ("label", "none"):
                listing.rejects.append(
                    Reject(image_id, "no_identity", "not in a folder of a person")
                )
                continue
            yield Item(image_id, person, file, offset, length)

    def _image_id(self, file: str, key: int) -> str:
        return f"{file}/{key}" if self.is_folder else str(key)

    def _indexed(self, index: Location, file: str, listing: Listing) -> Iterator[_Records]:
        table = read_columns(index, {"key": pa.uint64(), "offset": pa.uint64()})
        keys, offsets = (table[name].to_numpy() for name in ("key", "offset"))
        place = self.root / file
        size = size_of(place)
        if size and not len(keys):
            raise InputError(f"{index.uri} is empty: write it anew, or remove it to read {file}")
        for lost in np.flatnonzero(offsets >= np.uint64(size)).tolist():
            image_id = self._image_id(file, int(keys[lost]))
            listing.rejects.append(beyond_end(image_id, place, int(offsets[lost]), size))
        order, starts, lengths = spans(offsets, size)
        for start in range(0, len(order), _LISTED_AT_ONCE):
            chunk = slice(start, start + _LISTED_AT_ONCE)
            yield _Records(keys[order[chunk]], starts[chunk], lengths[chunk])

    def _read(self, file: str, listing: Listing) -> Iterator[_Records]:
        place = self.root / file
        with place.open() as stream:
            found = _walk(_Window(stream, place), self.keys == "id", file, listing)
            while chunk := list(islice(found, _LISTED_AT_ONCE)):
                keys, offsets, stops = zip(*chunk, strict=True)
                starts = np.array(offsets, np.int64)
                lengths = np.minimum(np.array(stops, np.int64) - starts, MAX_FILE_BYTES)
                yield _Records(np.array(keys, np.uint64), starts, lengths)


def open_recordio(config: SourceConfig, path: Location) -> RecordIOSource:
    """Return the source of one record file, or of all in a folder.

    Raises:
        InputError: There is none.
        ConfigError: A list of names is given for several files.
    """
    if path.uri.endswith((".idx", ".lst")):
        raise InputError(f"source.path: expected the .rec beside it, got {path.uri}")
    root, files = files_at(path, ".rec")
    options = config.recordio
    if options.names is not None and len(files) > 1:
        raise ConfigError(
            f"source.recordio.names: a list names the records of one file, but {path.uri} holds"
            f" {len(files)}; give one of them as source.path"
        )
    lst = None if options.names is None else Location(options.names).absolute()
    return RecordIOSource(root, tuple(files), root == path, config.identity_rule, options.keys, lst)


class _Names:
    """Names of images by key, from a .lst: lines of key, labels and path."""

    def __init__(self, lst: Location) -> None:
        labels = max(1, len(first_row(lst)) - 2)
        unread = {f"label {number + 1}": None for number in range(labels)}
        table = read_columns(lst, {"key": pa.uint64(), **unread, "path": pa.large_string()})
        keys = table["key"].to_numpy()
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._paths = table["path"].combine_chunks().take(pa.array(order))

    def of(self, keys: NDArray[np.uint64]) -> list[str | None]:
        """Return the names of some keys, None for those that have none."""
        places = np.searchsorted(self._keys, keys)
        is_last = places == len(self._keys)
        places[is_last] = 0
        is_lost = is_last if not len(self._keys) else self._keys[places] != keys
        names: list[str | None] = self._paths.take(pa.array(places, mask=is_lost)).to_pylist()
        return names


class _Window:
    """A file of which much is read at once, however little is asked for."""

    def __init__(self, stream: pa.NativeFile, place: Location) -> None:
        self._stream, self.place = stream, place
        self.size = int(stream.size())
        self._start, self._block = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from anywhere, fewer at the end of the file."""
        begin = offset - self._start
        if begin + length > len(self._block):
            try:
                self._block = self._stream.read_at(_READ_AT_ONCE, offset)
            except OSError as error:
                raise InputError(f"cannot read {self.place.uri}: {error}") from error
            self._start, begin = offset, 0
        return self._block[begin : begin + length]


def _walk(
    window: _Window, by_id: bool, file: str, listing: Listing
) -> Iterator[tuple[int, int, int]]:
    """Yield key, first byte and end of each record; note what lies behind the last whole one."""
    start, key, number = -1, 0, 0
    for offset, cflag, record_id, stop in _parts(window):
        if start < 0:
            start, key = offset, record_id if by_id else number
        if stop > window.size:
            break
        if cflag in (_WHOLE, _END):
            yield key, start, stop
            start, number = -1, number + 1
    if start >= 0:
        detail = (
            f"the record at byte {start:,} leads beyond the end of the file at {window.size:,};"
            f" only the {number:,} records before it can be used"
        )
        listing.rejects.append(Reject(file, _DAMAGED, detail))


def _parts(window: _Window) -> Iterator[tuple[int, int, int, int]]:
    """Yield first byte, cflag, id and end of each part up to the first that leads beyond the end.

    The id is of use in first parts only.
    """
    offset, allowed = 0, (_WHOLE, _START)
    while offset < window.size:
        head = window.read(offset, _PART_AND_ID.size)
        if len(head) < _PART.size:
            yield offset, _WHOLE, 0, offset + _PART.size
            return
        magic, packed, record_id = _PART_AND_ID.unpack(head.ljust(_PART_AND_ID.size, b"\0"))
        cflag = packed >> _LENGTH_BITS
        if magic != _MAGIC or cflag not in allowed:
            raise InputError(
                f"{window.place.uri}: no RecordIO file, or damaged: expected a record at byte"
                f" {offset:,} ({_MAGIC:#x}, cflag {allowed[0]} or {allowed[1]}), got {magic:#x},"
                f" cflag {cflag}"
            )
        stop = offset + _PART.size + _padded(packed & _LENGTH_MASK)
        yield offset, cflag, record_id, stop
        offset, allowed = stop, _following(cflag)


def _following(cflag: int) -> tuple[int, int]:
    return (_MIDDLE, _END) if cflag in (_START, _MIDDLE) else (_WHOLE, _START)


def _padded(length: int) -> int:
    return (length + 3) & ~3


def _data(block: bytes) -> bytes:
    """Return the data of the record that a block begins with; more may follow it."""
    parts: list[bytes] = []
    at, allowed = 0, (_WHOLE, _START)
    while True:
        if at + _PART.size > len(block):
            raise ImageRejectedError(_DAMAGED, f"expected a part, got the end after {len(parts)}")
        magic, packed = _PART.unpack_from(block, at)
        cflag, length = packed >> _LENGTH_BITS, packed & _LENGTH_MASK
        if magic != _MAGIC or cflag not in allowed:
            raise ImageRejectedError(
                _DAMAGED,
                f"expected {_MAGIC:#x} and cflag {allowed[0]} or {allowed[1]}, got {magic:#x} and"
                f" cflag {cflag}",
            )
        at += _PART.size
        if at + length > len(block):
            reason = "too_large" if at + length > MAX_FILE_BYTES else _DAMAGED
            raise ImageRejectedError(
                reason, f"expected {length:,} bytes of data, got {len(block) - at:,}"
            )
        parts.append(block[at : at + length])
        if cflag in (_WHOLE, _END):
            return struct.pack("<I", _MAGIC).join(parts)
        at, allowed = at + _padded(length), _following(cflag)


def _opened(data: bytes) -> tuple[float, bytes]:
    """Return the first label and the image file in the data of a record."""
    if len(data) < _HEADER.size:
        raise ImageRejectedError(_DAMAGED, f"expected a header, got {len(data)} bytes")
    # Without flag the label is in the header, else there are that many behind it.
    flag, label, _, _ = _HEADER.unpack_from(data)
    start = _HEADER.size + 4 * flag
    if start > len(data):
        raise ImageRejectedError(_DAMAGED, f"expected {flag:,} labels, got {len(data)} bytes")
    if flag:
        (label,) = struct.unpack_from("<f", data, _HEADER.size)
    return label, data[start:]


def _person(label: float) -> str:
    if not label.is_integer():
        raise ImageRejectedError("no_identity", f"expected a whole number as label, got {label!r}")
    return str(int(label))
