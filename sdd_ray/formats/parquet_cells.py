"""Images in cells of Parquet files, read forwards.

Whoever wants a row must read the column from the start of its row group. So what was opened stays
open for a while: a reader waits where it stopped and goes on from there when rows behind it are
asked for, be it by another thread. And threads that want rows of one row group stand in line by
these rows, and read it once: taking images out of pages is quick beside decoding them.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Condition

import pyarrow as pa

from sdd_ray.errors import InputError, SddError
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import MAX_FILE_BYTES, Content
from sdd_ray.formats.parquet_file import ImageFile
from sdd_ray.store.location import Location

_MOST_WAITING = 8
"""Readers of a process that wait; each holds some megabytes."""
_DECODED_BYTES = 4 << 20
"""Bytes of images, if they are of mean size, that are taken out of their pages at once."""
_MOST_ROWS = 256
"""Rows that are taken out at once."""


def read_cells(
    place: Location, name: str, rows: Sequence[int], mean_bytes: Sequence[int]
) -> dict[int, Content | SddError]:
    """Return what is in some cells, or why it cannot be used.

    Args:
        place: The file.
        name: Of the column with images.
        rows: Numbers of rows, rising; at least one.
        mean_bytes: Of an image in the row group of each row. Where two are equal, the row group is
            taken to be the same one: if it is not, threads wait in vain.

    Returns:
        The images by row, without those that are not there.

    Raises:
        InputError: The file cannot be read, or has no such column.
    """
    at_once = _DECODED_BYTES // max(sum(mean_bytes) // len(rows), 1)
    turn = _Turn((place.uri, name), rows[0], rows[-1], mean_bytes[0], mean_bytes[-1])
    reader = _begun(turn)
    try:
        reader = reader or _Reader(place, name)
        return reader.read(rows, min(max(at_once, 1), _MOST_ROWS))
    finally:
        _end(turn, reader)


class _Reader:
    """Reads the images of one file, best in rising order."""

    def __init__(self, place: Location, name: str) -> None:
        self.uri, self.column = place.uri, (place.uri, name)
        self.row = 0  # the first of the cells at hand; those before it have gone by
        self._file = ImageFile(place, pre_buffer=False)
        self._column = self._file.image(name)
        self._group: int | None = None
        self._cells: pa.Array = pa.array([], self._column.kind)
        self._rest: Iterator[pa.Array] = iter(())

    def read(self, rows: Sequence[int], at_once: int) -> dict[int, Content | SddError]:
        found: dict[int, Content | SddError] = {}
        start = 0
        for group, size in enumerate(self._file.sizes):
            inside = rows[bisect_left(rows, start) : bisect_left(rows, start + size)]
            try:
                with self._file.meeting_damage():
                    for row in inside:
                        self._go_to(row, group, start, at_once)
                        found[row] = _content(self._cells[row - self.row])
            except InputError as error:
                found = dict.fromkeys(inside, error) | found
                self._group = None
            start += size
        return found

    def close(self) -> None:
        self._file.close()

    def _go_to(self, row: int, group: int, start: int, at_once: int) -> None:
        """Read on in a row group, or from its start, until the cells at hand hold a later row."""
        if group != self._group:
            self._group, self.row, self._cells = group, start, self._cells[:0]
            self._rest = self._file.batches(self._column, group, at_once)
        while row >= self.row + len(self._cells):
            self.row += len(self._cells)
            self._cells = next(self._rest, self._cells[:0])
            if not len(self._cells):
                raise InputError(f"{self.uri} is damaged: it has no row {row:,}")


@dataclass(frozen=True, eq=False)
class _Turn:
    """Rows of a column that a thread wants to read, or reads.

    Attributes:
        column: File and name.
        first: The first row.
        last: The last row.
        first_group: What is the same for all rows of the row group of the first row.
        last_group: The same for the last row.
    """

    column: tuple[str, str]
    first: int
    last: int
    first_group: int
    last_group: int

    def follows(self, other: "_Turn") -> bool:
        """Return whether the other one leads up to the first row, in its row group."""
        is_near = other.column == self.column and other.last_group == self.first_group
        return is_near and other.last < self.first


_waiting: list[_Reader] = []
_turns: list[_Turn] = []  # in line or reading; those that lead up to others go before them
_changed = Condition()


def _begun(turn: _Turn) -> _Reader | None:
    """Wait for those before; return the waiting reader that is closest before the first row."""
    with _changed:
        _turns.append(turn)
        _changed.wait_for(lambda: not any(map(turn.follows, _turns)))
        fit = [r for r in _waiting if r.column == turn.column and r.row <= turn.first]
        if not fit:
            return None
        reader = max(fit, key=lambda reader: reader.row)
        _waiting.remove(reader)
        return reader


def _end(turn: _Turn, reader: _Reader | None) -> None:
    with _changed:
        _turns.remove(turn)
        _waiting.extend([reader] if reader else [])
        oldest = _waiting[:-_MOST_WAITING]
        del _waiting[:-_MOST_WAITING]
        _changed.notify_all()
    for other in oldest:
        other.close()


def _content(cell: pa.Scalar) -> Content | SddError:
    if not cell.is_valid:
        return ImageRejectedError("empty", "expected an image file, got null")
    # Not the column at once: a dictionary may hold one large image for many rows.
    data = (cell.value if isinstance(cell, pa.DictionaryScalar) else cell).as_buffer()
    if data.size > MAX_FILE_BYTES:
        return ImageRejectedError("too_large", f"a cell of {data.size:,} bytes")
    return Content(data.to_pybytes())
