"""The records of a RecordIO file: parts, split records, and what is damaged between records."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from sdd_ray.errors import InputError
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import MAX_FILE_BYTES, Listing
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

DAMAGED = "damaged_record"
_MAGIC = 0xCED7230A
PART = struct.Struct("<II")
"""Before each part: magic, cflag << 29 | length. Source: dmlc-core, src/recordio.cc."""
_LENGTH_BITS = 29
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_WHOLE, _START, _MIDDLE, _END = range(4)
"""Values of cflag: a record in one part, or the parts of a split one."""
_PART_AND_ID = struct.Struct("<II8xQ")
"""Magic, cflag and length, and the id in the header behind them."""

_MOST_GAPS = 256
"""Damaged places of a file behind each of which the next record is looked for."""
_READ_AT_ONCE = 8 << 20
_SEARCHED_AT_ONCE = 1 << 18


class Window:
    """A file of which much is read at once, however little is asked for."""

    def __init__(self, stream: pa.NativeFile, place: Location) -> None:
        self._stream, self.place = stream, place
        self.size = int(stream.size())
        self._start, self._block = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from anywhere, fewer at the end of the file."""
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._block):
            try:
                self._block = self._stream.read_at(_READ_AT_ONCE, offset)
            except OSError as error:
                raise InputError(f"cannot read {self.place.uri}: {error}") from error
            self._start, begin = offset, 0
        return self._block[begin : begin + length]


def walk(
    window: Window, by_id: bool, file: str, listing: Listing
) -> Iterator[tuple[int, int, int]]:
    """Yield key, first byte and end of each record; note what is damaged between them.

    Where no record follows on one, it goes on at the next place that looks like the begin of one.
    If keys are numbers of records it does not: how many were lost is not known.

    Raises:
        InputError: The file does not begin with a record, and has none soon.
    """
    _check_format(window)
    at = number = gaps = 0
    while at < window.size:
        record = _record(window, at)
        problem = record.problem or _problem_at(window, record.stop)
        good, following = (at if record.problem else record.stop), record.stop
        if problem:
            gaps += 1
            is_known = by_id and gaps <= _MOST_GAPS
            following = _next_start(window, record.rest, window.size) if is_known else window.size
            # A length that is too large leads over others: the writer leaves no magic in data.
            good = at if following < good else good
        if good > at:
            yield record.id if by_id else number, at, good
            number += 1
        if problem:
            detail = f"nothing from byte {good:,} to {following:,} can be used: {problem}"
            listing.rejects.append(Reject(f"{file} from byte {good}", DAMAGED, detail))
        at = following


class _Record(NamedTuple):
    """A record, its end if there is no problem, and from where to look for another if there is."""

    id: int
    stop: int
    rest: int
    problem: str | None


def _record(window: Window, start: int) -> _Record:
    at, rest, allowed, first_id = start, start + 4, (_WHOLE, _START), 0
    while True:
        head = window.read(at, _PART_AND_ID.size)
        if problem := _problem(head, at, allowed):
            return _Record(first_id, at, rest, problem)
        _, packed, record_id = _PART_AND_ID.unpack(head.ljust(_PART_AND_ID.size, b"\0"))
        cflag, rest = packed >> _LENGTH_BITS, at + PART.size
        first_id = record_id if at == start else first_id
        stop = rest + _padded(packed & _LENGTH_MASK)
        if stop > window.size:
            problem = f"the record at byte {start:,} leads beyond the end at {window.size:,}"
            return _Record(first_id, stop, rest, problem)
        if cflag in (_WHOLE, _END):
            return _Record(first_id, stop, rest, None)
        at, allowed = stop, _following(cflag)


def _problem(head: bytes, at: int, allowed: tuple[int, int]) -> str | None:
    """Return why a part does not begin with some bytes, or None."""
    if len(head) < PART.size:
        return f"expected a record at byte {at:,}, got {len(head)} bytes"
    magic, packed = PART.unpack_from(head)
    if magic == _MAGIC and packed >> _LENGTH_BITS in allowed:
        return None
    return (
        f"expected a record at byte {at:,} ({_MAGIC:#x}, cflag {allowed[0]} or {allowed[1]}), got"
        f" {magic:#x}, cflag {packed >> _LENGTH_BITS}"
    )


def _problem_at(window: Window, at: int) -> str | None:
    """Return why no record begins behind another, or None; behind the last there need be none."""
    if at >= window.size:
        return None
    return _problem(window.read(at, PART.size), at, (_WHOLE, _START))


def _check_format(window: Window) -> None:
    problem = _problem_at(window, 0)
    soon = min(window.size, MAX_FILE_BYTES)
    if problem and _next_start(window, 4, soon) == soon:
        raise InputError(f"{window.place.uri}: no RecordIO file, or damaged: {problem}")


def _next_start(window: Window, offset: int, end: int) -> int:
    """Return the next place where a record seems to begin, or the end of the search."""
    at = _padded(offset)
    while at + PART.size <= end:
        block = window.read(at, min(_SEARCHED_AT_ONCE, end - at))
        words = np.frombuffer(block, "<u4", len(block) // 4)
        packed = words[1:]
        lengths = (packed & _LENGTH_MASK).astype(np.int64)
        stops = at + 4 * np.arange(len(packed)) + PART.size + lengths
        is_start = (words[:-1] == _MAGIC) & (packed >> _LENGTH_BITS <= _START)
        found = np.flatnonzero(is_start & (lengths <= MAX_FILE_BYTES) & (stops <= window.size))
        if len(found):
            return at + 4 * int(found[0])
        at += 4 * len(packed)
    return end


def _following(cflag: int) -> tuple[int, int]:
    return (_MIDDLE, _END) if cflag in (_START, _MIDDLE) else (_WHOLE, _START)


def _padded(length: int) -> int:
    return (length + 3) & ~3


def data_in(block: bytes) -> bytes:
    """Return the data of the record that a block begins with; more may follow it."""
    parts: list[bytes] = []
    at, allowed = 0, (_WHOLE, _START)
    while True:
        if at + PART.size > len(block):
            raise ImageRejectedError(DAMAGED, f"expected a part, got the end after {len(parts)}")
        magic, packed = PART.unpack_from(block, at)
        cflag, length = packed >> _LENGTH_BITS, packed & _LENGTH_MASK
        if magic != _MAGIC or cflag not in allowed:
            raise ImageRejectedError(
                DAMAGED,
                f"expected {_MAGIC:#x} and cflag {allowed[0]} or {allowed[1]}, got {magic:#x} and"
                f" cflag {cflag}",
            )
        at += PART.size
        if at + length > len(block):
            reason = "too_large" if at + length > MAX_FILE_BYTES else DAMAGED
            raise ImageRejectedError(
                reason, f"expected {length:,} bytes of data, got {len(block) - at:,}"
            )
        parts.append(block[at : at + length])
        if cflag in (_WHOLE, _END):
            return struct.pack("<I", _MAGIC).join(parts)
        at, allowed = at + _padded(length), _following(cflag)
