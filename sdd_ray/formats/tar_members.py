"""The members of a tar file in their order, as a stream of headers: data are skipped.

Headers are decoded by `tarfile`, one block at a time, but `tarfile.TarFile` does not walk: it takes
a damaged header in the middle for the end, reads pax headers of any size, and calls itself for each
of them. Here an archive ends where zeros say so and nothing else follows, or it is damaged.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
"Basic Tar Format" (long names, sparse files, numbers above 8 GiB).
"""

import tarfile
from collections.abc import Iterator
from io import BufferedReader
from typing import NamedTuple

from sdd_ray.errors import InputError

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)

_LONGEST_REMARK = 1 << 20
"""Bytes of a long name or pax header; larger ones are no names of images, and are not read."""
_LONGEST_END = 1 << 20
"""Bytes of zeros that end an archive, two blocks and the rest of a record: 10 KiB by GNU tar and
Python. What was reserved on the disk and never written looks like more."""
_MOST_DIGITS = 20

_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_REMARKS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX)
"""Types that say something about the next member, or about all that follow."""
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
"""Types whose size, if there is one, counts no bytes in the archive."""

_MAP_GOES_ON = 482
"""Byte of an old GNU sparse header that says whether a block with more of its map follows."""
_MAP_GOES_ON_STILL = 504
"""The same in each of these blocks."""

_COMPRESSED = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}
"""How compressed files begin, and what unpacks them."""


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: Its name as written; bytes that are no UTF-8 are surrogates.
        kind: Type in the header.
        offset: First byte of its data.
        size: Bytes of its data in the archive.
        is_sparse: Whether these bytes are the file without its holes.
    """

    name: str
    kind: bytes
    offset: int
    size: int
    is_sparse: bool

    @property
    def is_regular(self) -> bool:
        """Whether the data are the file."""
        return self.kind in tarfile.REGULAR_TYPES and not self.is_sparse

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder; old archives know them by their names only."""
        return self.kind == tarfile.DIRTYPE or (self.is_regular and self.name.endswith("/"))


class DamagedArchiveError(Exception):
    """An archive that cannot be read beyond some place, which the message names."""


class Members:
    """Iterable over the members of an archive that is not compressed.

    Args:
        stream: The archive; others may move its position between two members.
        size: Bytes of the archive.
        uri: Its place, for messages.

    Raises:
        InputError: It is compressed, or no archive at all.
    """

    def __init__(self, stream: BufferedReader, size: int, uri: str) -> None:
        self._stream, self._size = stream, size
        self._at = 0  # of the header that is looked at
        self._block = stream.read(_BLOCK)
        self._of_all: dict[str, bytes] = {}
        _check_format(self._block, uri)

    def __iter__(self) -> Iterator[Member]:
        """Yield the members, which are all there with all their data.

        Raises:
            DamagedArchiveError: The archive is cut, or holds what is no header.
        """
        of_next: dict[str, bytes] = {}
        while (header := self._header()) is not None:
            if header.type not in _REMARKS:
                yield self._member(header, self._of_all | of_next)
                of_next = {}
            elif header.type == tarfile.XGLTYPE:
                self._of_all |= self._remark(header)
            else:
                of_next |= self._remark(header)

    def _header(self) -> tarfile.TarInfo | None:
        self._stream.seek(self._at)
        self._block = self._stream.read(_BLOCK)
        if len(self._block) < _BLOCK:
            raise self._damaged("the file ends without the zeros that end an archive")
        if self._block == _ZEROS:
            self._check_end()
            return None
        try:
            return _decoded(self._block)
        except tarfile.HeaderError as error:
            raise self._damaged(f"expected the header of a member, got {error}") from error

    def _check_end(self) -> None:
        """Zeros in the middle are no end: files glued together, or a copy that has holes."""
        rest = self._size - self._at
        if rest > _LONGEST_END or self._stream.read(rest - _BLOCK).strip(b"\0"):
            raise self._damaged(
                f"zeros end the archive, but the file has {rest:,} more bytes: archives glued"
                " together (join them by tar --concatenate), or a copy that is not finished"
            )

    def _remark(self, header: tarfile.TarInfo) -> dict[str, bytes]:
        """Return what a long name or pax header says, as records of a pax header."""
        if header.type == tarfile.GNUTYPE_LONGLINK:
            self._go_on(self._at + _BLOCK, header.size)
            return {}
        if header.size > _LONGEST_REMARK:
            raise self._damaged(
                f"a name or pax header of {header.size:,} bytes, expected at most"
                f" {_LONGEST_REMARK:,}"
            )
        content = self._stream.read(max(header.size, 0))
        self._go_on(self._at + _BLOCK, header.size)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            return {"path": content.partition(b"\0")[0]}
        try:
            return dict(_records(content))
        except ValueError as error:
            raise self._damaged(f"in the pax header before it, {error}") from error

    def _member(self, header: tarfile.TarInfo, records: dict[str, bytes]) -> Member:
        is_old_sparse = header.type == tarfile.GNUTYPE_SPARSE
        start = self._after_map() if is_old_sparse else self._at + _BLOCK
        size = int(records.get("size") or header.size)
        if header.type in _WITHOUT_DATA:
            size = 0
        self._go_on(start, size)
        path = records.get("path")
        name = path.decode("utf-8", "surrogateescape") if path else header.name
        return Member(name, header.type, start, size, is_old_sparse or "sparse" in records)

    def _after_map(self) -> int:
        """Return the place after the blocks that say where the pieces of a sparse file lie."""
        start, flag = self._at + _BLOCK, _MAP_GOES_ON
        while self._block[flag]:
            self._block = self._stream.read(_BLOCK)
            if len(self._block) < _BLOCK:
                raise self._damaged("the file ends within a header")
            start, flag = start + _BLOCK, _MAP_GOES_ON_STILL
        return start

    def _go_on(self, start: int, size: int) -> None:
        """Set the place of the next header."""
        rest = self._size - start
        if not 0 <= size <= rest:
            raise self._damaged(
                f"a member claims {size:,} bytes, but the file has {rest:,} more: it was cut, or"
                " the header is damaged"
            )
        self._at = start + -(-size // _BLOCK) * _BLOCK

    def _damaged(self, text: str) -> DamagedArchiveError:
        return DamagedArchiveError(f"at byte {self._at:,}: {text}; what follows is not read")


def _check_format(start: bytes, uri: str) -> None:
    for magic, command in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(
                f"{uri} is compressed, so images cannot be read by their place in it: unpack it"
                f" once to a plain .tar ({command})"
            )
    try:
        if start != _ZEROS:
            _decoded(start)
    except tarfile.HeaderError as error:
        raise InputError(f"{uri} is no tar archive: {error}") from error


def _decoded(block: bytes) -> tarfile.TarInfo:
    return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")


def _records(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield path and size of a pax header, and whether it describes a sparse file.

    Raises:
        ValueError: It is damaged.
    """
    start = 0
    while start < len(content):
        digits = content[start : start + _MOST_DIGITS].partition(b" ")[0]
        stop = start + int(digits) if digits.isdigit() else start
        name, equals, value = content[start + len(digits) + 1 : stop - 1].partition(b"=")
        if not equals or content[stop - 1 : stop] != b"\n":
            raise ValueError(f"expected a record at its byte {start:,}")
        start = stop
        if name == b"size" and value and not (value.isdigit() and len(value) <= _MOST_DIGITS):
            raise ValueError(f"expected a size, got {value!r:.40}")
        if name in (b"path", b"size"):
            yield name.decode(), value
        elif name.startswith(b"GNU.sparse."):
            yield "sparse", value
