"""Record files of MXNet and InsightFace (.rec), with or without an .idx beside them.

A record is a magic number, the length, and the data, filled up to a multiple of four bytes; the
data are a header with the label, and an image file. The writer takes out the magic number where it
occurs in the data at a multiple of four bytes, and splits the record there.
"""

import struct
from collections.abc import Iterator
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
    place_of,
    read_columns,
    size_of,
    spans,
)
from sdd_ray.formats.items import (
    MAX_FILE_BYTES,
    Content,
    Item,
    Listing,
    RangeSource,
)
from sdd_ray.formats.recordio_parts import DAMAGED, PART, Window, data_in, walk
from sdd_ray.settings import SourceConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

_HEADER = struct.Struct("<IfQQ")
"""Before the image: flag, label, id, id2. Source: mxnet, python/mxnet/recordio.py, IRHeader."""
_LONGEST_WITHOUT_IMAGE = PART.size + _HEADER.size + 2 * 4
"""Bytes of the records in which InsightFace keeps ranges of keys: two labels, no image. A record of
one label that is no longer would leave its image eight bytes, in which no format fits. The ranges
are not looked at: they are float32, and wrong beyond 2^24 keys."""

_LISTED_AT_ONCE = 1 << 16


class _Records(NamedTuple):
    keys: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def where(self, mask: NDArray[np.bool_]) -> "_Records":
        return _Records(self.keys[mask], self.offsets[mask], self.lengths[mask])


@dataclass(frozen=True)
class RecordIOSource(RangeSource):
    """Images in record files.

    Attributes:
        root, only: See `PackedSource`.
        identity: `label`, `first_folder`, `parent_folder` or `none`.
        keys: Key of a record in a file without .idx, `id` or `number`.
        lst: The .lst that names the images by key; None: they are named by their keys.
    """

    identity: str
    keys: str
    lst: Location | None
    suffix = ".rec"

    def origins(self) -> list[Location]:
        """Return the record files, their indexes, and the list of names."""
        records = super().origins()
        indexes = [self._index(file) for file in self.files()]
        lists = [] if self.lst is None else [self.lst]
        return [*records, *(place for place in indexes if place.exists()), *lists]

    def scan(self, file: str, listing: Listing) -> Iterator[Item]:
        """Yield the images of one file in the order in which they lie there.

        Records without an image are counted as ignored. With an .idx the records are not read.

        Raises:
            InputError: A file cannot be read, or is not of its format; damaged places between
                records, which are found without an .idx only, are set aside instead.
        """
        names = None if self.lst is None else _Names(self.lst)
        index = self._index(file)
        found = self._indexed(index, file, listing) if index.exists() else self._read(file, listing)
        for records in found:
            is_image = records.lengths > _LONGEST_WITHOUT_IMAGE
            listing.ignored_files += int(np.count_nonzero(~is_image))
            yield from self._items(file, records.where(is_image), names, listing)

    def content(self, item: Item, data: bytes) -> Content | SddError:
        """Return the image file in a record, and the label if that names the person."""
        try:
            label, image = _opened(data_in(data))
            return Content(image, _person(label) if self.identity == "label" else None)
        except ImageRejectedError as error:
            return at_place(item, error)

    def _items(
        self, file: str, records: _Records, names: "_Names | None", listing: Listing
    ) -> Iterator[Item]:
        if names is None:
            image_ids: list[str | None] = [
                self.image_id(str(k), file) for k in records.keys.tolist()
            ]
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

    def _index(self, file: str) -> Location:
        return self.root / str(PurePosixPath(file).with_suffix(".idx"))

    def _indexed(self, index: Location, file: str, listing: Listing) -> Iterator[_Records]:
        table = read_columns(index, {"key": pa.uint64(), "offset": pa.uint64()})
        keys, offsets = (table[name].to_numpy() for name in ("key", "offset"))
        place = self.root / file
        size = size_of(place)
        if size and not len(keys):
            raise InputError(f"{index.uri} is empty: write it anew, or remove it to read {file}")
        for lost in np.flatnonzero(offsets >= np.uint64(size)).tolist():
            image_id = self.image_id(str(keys[lost]), file)
            listing.rejects.append(beyond_end(image_id, place, int(offsets[lost]), size))
        order, starts, lengths = spans(offsets, size)
        for start in range(0, len(order), _LISTED_AT_ONCE):
            chunk = slice(start, start + _LISTED_AT_ONCE)
            yield _Records(keys[order[chunk]], starts[chunk], lengths[chunk])

    def _read(self, file: str, listing: Listing) -> Iterator[_Records]:
        place = self.root / file
        with place.open() as stream:
            found = walk(Window(stream, place), self.keys == "id", file, listing)
            while chunk := list(islice(found, _LISTED_AT_ONCE)):
                keys, offsets, stops = zip(*chunk, strict=True)
                starts = np.array(offsets, np.int64)
                lengths = np.minimum(np.array(stops, np.int64) - starts, MAX_FILE_BYTES)
                yield _Records(np.array(keys, np.uint64), starts, lengths)


def open_recordio(config: SourceConfig, path: Location) -> RecordIOSource:
    """Return the source of one record file, or of all in a folder.

    Raises:
        InputError: Nothing is at the path, or a list of names is given and there is no file.
        ConfigError: A list of names is given for several files.
    """
    if path.uri.endswith((".idx", ".lst")):
        raise InputError(f"source.path: expected the .rec beside it, got {path.uri}")
    root, only = place_of(path, ".rec")
    options, lst = config.recordio, None
    if options.names is not None:
        lst = Location(options.names).absolute()
    source = RecordIOSource(root, only, config.identity_rule, options.keys, lst)
    if lst is not None:
        number = len(source.files())
        if number > 1:
            raise ConfigError(
                f"source.recordio.names: a list names the records of one file, but {path.uri} holds"
                f" {number}; give one of them as source.path"
            )
    return source


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


def _opened(data: bytes) -> tuple[float, bytes]:
    """Return the first label and the image file in the data of a record."""
    if len(data) < _HEADER.size:
        raise ImageRejectedError(DAMAGED, f"expected a header, got {len(data)} bytes")
    # Without flag the label is in the header, else there are that many behind it.
    flag, label, _, _ = _HEADER.unpack_from(data)
    start = _HEADER.size + 4 * flag
    if start > len(data):
        raise ImageRejectedError(DAMAGED, f"expected {flag:,} labels, got {len(data)} bytes")
    if flag:
        (label,) = struct.unpack_from("<f", data, _HEADER.size)
    return label, data[start:]


def _person(label: float) -> str:
    if not label.is_integer():
        raise ImageRejectedError("no_identity", f"expected a whole number as label, got {label!r}")
    return str(int(label))
