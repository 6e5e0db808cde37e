"""TFace's TFRecord files with an .index: lines of record file, shard, byte and label.

A record is the length of its data, a checksum of the length, the data, and a checksum of these;
the data are a protocol buffer, tf.train.Example, of which one feature is an image file.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdd_ray.errors import InputError, SddError
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
from sdd_ray.settings import SourceConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

_DAMAGED = "damaged_record"
_LENGTH = struct.Struct("<QI")
"""Before the data: number of bytes, and its masked CRC-32C. Source: TensorFlow, tfrecord format."""
_CHECKSUM_BYTES = 4
_CRC_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), bits reversed; RFC 3720, appendix B.4
_CRC_MASK = 0xA282EAD8
_COLUMNS = {
    "name": pa.string(),
    "shard": pa.uint32(),
    "offset": pa.uint64(),
    "label": pa.large_string(),
}
_LISTED_AT_ONCE = 1 << 16
_LONGEST_VARINT = 10
_SHOWN = 5
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
"""Wire types of a protocol buffer; groups (3, 4) are in no tf.train.Example."""


@dataclass(frozen=True)
class TFRecordSource(RangeSource):
    """Images in TFRecord files that index files name.

    Attributes:
        root, only: Of the index files, see `PackedSource`.
        records: Folder of the record files; None: that of each index.
        identity: `label` or `none`.
        image: Feature that holds the image file.
    """

    records: Location | None
    identity: str
    image: str
    suffix = ".index"

    def scan(self, file: str, listing: Listing) -> Iterator[Item]:
        """Yield the images of one index by record file and place; the records are not read.

        Raises:
            InputError: The index cannot be read or is none, or a record file is missing.
        """
        for name, shard, table in _by_file(self.root / file):
            key = f"{self._folder(file)}{name}-{shard:05d}"
            records = f"{self._folder(file)}{name}/{name}-{shard:05d}.tfrecord"
            if not (self.holders / records).exists():
                raise InputError(
                    f"{(self.root / file).uri} names {(self.holders / records).uri}, which is"
                    f" not there; source.tfrecord.root is the folder that holds {name}/"
                )
            yield from self._items(key, records, table, listing)

    @property
    def holders(self) -> Location:
        """Folder of the record files."""
        return self.records or self.root

    def _folder(self, file: str) -> str:
        return "" if self.records else file[: file.rfind("/") + 1]

    def _items(self, key: str, file: str, table: pa.Table, listing: Listing) -> Iterator[Item]:
        offsets = table["offset"].to_numpy()
        place = self.holders / file
        size = size_of(place)
        for offset in offsets[offsets >= np.uint64(size)].tolist():
            listing.rejects.append(beyond_end(f"{key}/{offset}", place, offset, size))
        order, starts, lengths = spans(offsets, size)
        labels = table["label"].take(pa.array(order))
        for first in range(0, len(order), _LISTED_AT_ONCE):
            chunk = slice(first, first + _LISTED_AT_ONCE)
            for offset, length, label in zip(
                starts[chunk].tolist(),
                lengths[chunk].tolist(),
                labels[chunk].to_pylist(),
                strict=True,
            ):
                image_id = f"{key}/{offset}"
                if self.identity == "none":
                    yield Item(image_id, None, file, offset, length)
                elif label.strip():
                    yield Item(image_id, label.strip(), file, offset, length)
                else:
                    detail = "its line in the index has no label"
                    listing.rejects.append(Reject(image_id, "no_identity", detail))

    def content(self, item: Item, data: bytes) -> Content | SddError:
        """Return the image file in a record."""
        try:
            return Content(_image_in(_data(data), self.image.encode()))
        except ImageRejectedError as error:
            return at_place(item, error)


def open_tfrecord(config: SourceConfig, path: Location) -> TFRecordSource:
    """Return the source of the records that one index names, or all indexes in a folder.

    Raises:
        InputError: Nothing is at the path.
    """
    indexes, only = place_of(path, ".index")
    options = config.tfrecord
    root = None if options.root is None else Location(options.root).absolute()
    return TFRecordSource(indexes, only, root, config.identity_rule, options.image)


def _masked_crc32c(data: bytes) -> int:
    """Return the checksum of TFRecord files.

    Source: RFC 3720, appendix B.4 (CRC-32C); TensorFlow, core/lib/hash/crc32c.h (the mask).
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF


def _crc_of_byte(crc: int) -> int:
    for _ in range(8):
        crc = (crc >> 1) ^ (_CRC_POLYNOMIAL if crc & 1 else 0)
    return crc


_CRC_TABLE = [_crc_of_byte(byte) for byte in range(256)]


def _read_index(index: Location) -> pa.Table:
    found = len(first_row(index))
    if found == 2:
        raise InputError(
            f"{index.uri}: lines of path and label name image files; they are for source.kind=list"
        )
    if found == 3:
        raise InputError(
            f"{index.uri}: lines of path, shard and byte name no persons; expected the index that"
            " TFace is trained with, lines of name, shard, byte and label"
        )
    return read_columns(index, _COLUMNS)


def _by_file(index: Location) -> Iterator[tuple[str, int, pa.Table]]:
    """Yield name, shard and rows of each record file, in order of name and shard."""
    table = _read_index(index)
    names = sorted(table["name"].unique().to_pylist())
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise InputError(
                f"{index.uri} names the TFRecord set {name!r}, which is no name of a folder"
            )
    codes = pc.index_in(table["name"], pa.array(names, pa.string())).to_numpy().astype(np.int64)
    files = codes << 32 | table["shard"].to_numpy()
    order = np.argsort(files, kind="stable")
    starts = np.flatnonzero(np.diff(files[order], prepend=-1))
    for start, stop in pairwise([*starts, len(order)]):
        file = int(files[order[start]])
        yield names[file >> 32], file & 0xFFFFFFFF, table.take(pa.array(order[start:stop]))


def _data(block: bytes) -> memoryview:
    """Return the data of the record that a block begins with; more may follow it."""
    if len(block) < _LENGTH.size + _CHECKSUM_BYTES:
        raise ImageRejectedError(_DAMAGED, f"expected a record, got {len(block)} bytes")
    length, checksum = _LENGTH.unpack_from(block)
    # Not that of the data: in Python it takes longer than decoding the image (0.49 and 0.29 ms for
    # 6.6 kB), and no other source has any.
    if checksum != _masked_crc32c(block[:8]):
        raise ImageRejectedError(_DAMAGED, f"the checksum of the length {length:,} is wrong")
    if length > len(block) - _LENGTH.size - _CHECKSUM_BYTES:
        reason = "too_large" if length > MAX_FILE_BYTES else _DAMAGED
        raise ImageRejectedError(
            reason, f"expected {length:,} bytes of data, got {len(block) - _LENGTH.size:,}"
        )
    return memoryview(block)[_LENGTH.size : _LENGTH.size + length]


def _image_in(example: memoryview, feature: bytes) -> bytes:
    """Return the first bytes of a feature of a tf.train.Example.

    Source: tensorflow/core/example/example.proto and feature.proto: Example.features = 1,
    Features.feature = 1 (a map: key = 1, value = 2), Feature.bytes_list = 1, BytesList.value = 1.
    """
    found = list[bytes]()
    for features in _fields(example, 1):
        for entry in _fields(features, 1):
            key = b"".join(_fields(entry, 1))
            if key == feature:
                values = (v for value in _fields(entry, 2) for v in _fields(value, 1))
                return bytes(next((each for value in values for each in _fields(value, 1)), b""))
            found.append(key)
    names = ", ".join(ascii(key)[1:] for key in found[:_SHOWN]) or "none"
    raise ImageRejectedError("missing_feature", f"expected {feature!r}, got the features {names}")


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the contents of the fields with one number that are bytes or messages."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire_type = tag & 7
        if wire_type == _VARINT:
            _, stop = _varint(message, at)
        elif wire_type == _BYTES:
            length, at = _varint(message, at)
            stop = at + length
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            stop = at + (8 if wire_type == _EIGHT_BYTES else 4)
        else:
            raise ImageRejectedError(_DAMAGED, f"no protocol buffer: wire type {wire_type}")
        if stop > len(message):
            raise ImageRejectedError(_DAMAGED, "a protocol buffer that ends within a field")
        if wire_type == _BYTES and tag >> 3 == number:
            yield message[at:stop]
        at = stop


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, and the place behind it."""
    value = 0
    for shift, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise ImageRejectedError(_DAMAGED, "a protocol buffer that ends within a number")
