"""One Parquet file with images in a column: its small columns by row, its images by row group."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from sdd_ray.errors import InputError
from sdd_ray.formats.landmarks import NUM_COORDINATES
from sdd_ray.store.location import Location

_BUFFER_BYTES = 4 << 20
"""Read at once from the image column, which has gigabytes where a file is one row group."""
_LISTED_AT_ONCE = 1 << 14
_EXACT = {16: 2**11, 32: 2**24, 64: 2**53}
"""Whole numbers up to here are exact in floats of so many bits; beyond, persons would merge."""

Row = tuple[Any, ...]
"""Values of some columns: texts, whole numbers as texts, lists of numbers, or None."""


class Column(NamedTuple):
    """A column: its name, or the two names that lead into a struct, and its type."""

    path: tuple[str, ...]
    kind: pa.DataType

    @property
    def name(self) -> str:
        """The name in the footer."""
        return ".".join(self.path)

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the values of some rows."""
        array = batch.column(self.path[0])
        for name in self.path[1:]:
            array = pc.struct_field(array, name)
        return array


class ImageFile:
    """A Parquet file that is open.

    Args:
        place: Where it is.
        pre_buffer: Whether to ask for all wanted columns at the same time and hold them, instead of
            reading them bit by bit.

    Raises:
        InputError: It cannot be read, or is no Parquet file.
    """

    def __init__(self, place: Location, *, pre_buffer: bool) -> None:
        self._uri, self._stream = place.uri, place.open()
        with self.meeting_damage():
            self._parquet = pq.ParquetFile(
                self._stream, buffer_size=_BUFFER_BYTES, pre_buffer=pre_buffer
            )
            footer = self._parquet.metadata
            self.sizes = [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
            # A false footer costs nothing, but listing all that it claims would never end.
            if self.num_rows > self._stream.size():
                raise InputError(f"{place.uri} is damaged: it claims {self.num_rows:,} rows")

    def close(self) -> None:
        """Close the file; no rows are read from it any more."""
        self._stream.close()

    @contextmanager
    def meeting_damage(self) -> Iterator[None]:
        """Make an `InputError` of what Arrow finds to be wrong with the file."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: no UTF-8
            raise InputError(f"cannot read {self._uri} as a Parquet file: {error}") from error

    @property
    def num_rows(self) -> int:
        """Rows of all row groups."""
        return sum(self.sizes)

    def column(self, option: str, name: str) -> Column:
        """Return the column that an option of `ParquetConfig` names.

        Raises:
            InputError: There is none, or its type does not fit the option.
        """
        schema = self._parquet.schema_arrow
        column = _find(schema, name)
        wanted, is_fit = _WANTED[option]
        if column is not None and is_fit(_plain(column.kind)):
            return column
        problem = "it is not there" if column is None else f"it holds {column.kind}"
        have = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise InputError(
            f"{self._uri}: source.parquet.{option}={name}: expected a column of {wanted}, but"
            f" {problem}; the columns are {have}"
        )

    def image(self, name: str) -> Column:
        """Return the column that holds the bytes of images, which may be a field of another.

        Raises:
            InputError: There is none.
        """
        column = self.column("image", name)
        if not types.is_struct(column.kind):
            return column
        return Column((*column.path, "bytes"), column.kind.field("bytes").type)

    def mean_bytes(self) -> Iterator[int]:
        """Yield for each row the mean number of bytes of a row in its row group.

        That is the image, nearly. What the footer says of single columns is not looked at: pyarrow
        ends the process where that is damaged.
        """
        footer = self._parquet.metadata
        for group, size in enumerate(self.sizes):
            yield from repeat(max(footer.row_group(group).total_byte_size, 0) // max(size, 1), size)

    def rows(self, columns: Sequence[Column | None]) -> Iterator[Row]:
        """Yield the values of each row; None in place of a column that is None.

        Raises:
            InputError: There are not as many as the footer says.
        """
        names = [column.name for column in columns if column is not None]
        number = 0
        with self.meeting_damage():
            for batch in self._parquet.iter_batches(
                _LISTED_AT_ONCE, columns=names, use_threads=False
            ):
                nothing = [None] * batch.num_rows
                yield from zip(
                    *(_values(c.of(batch)) if c else nothing for c in columns), strict=True
                )
                number += batch.num_rows
        if number != self.num_rows:
            raise InputError(
                f"{self._uri} is damaged: it holds {number:,} of {self.num_rows:,} rows"
            )

    def batches(self, column: Column, group: int, num_rows: int) -> Iterator[pa.Array]:
        """Yield the cells of a row group, so many rows at a time."""
        for batch in self._parquet.iter_batches(
            num_rows, row_groups=[group], columns=[column.name], use_threads=False
        ):
            yield column.of(batch)


def are_five_points(points: Sequence[float | None]) -> bool:
    """Return whether landmarks are x and y of five points."""
    numbers = [number for number in points if number is not None and math.isfinite(number)]
    return len(numbers) == len(points) == NUM_COORDINATES


def _find(schema: pa.Schema, name: str) -> Column | None:
    if schema.names.count(name) == 1:
        return Column((name,), schema.field(name).type)
    head, _, rest = name.partition(".")
    outer = _find(schema, head) if rest else None
    if outer is None or not types.is_struct(outer.kind) or outer.kind.get_field_index(rest) < 0:
        return None
    return Column((head, rest), outer.kind.field(rest).type)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if types.is_dictionary(kind) else kind


def _is_image(kind: pa.DataType) -> bool:
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = _plain(kind.field("bytes").type)
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view())


def _is_key(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view()) or types.is_integer(kind)


def _is_person(kind: pa.DataType) -> Any:
    return _is_key(kind) or types.is_floating(kind)


def _is_points(kind: pa.DataType) -> bool:
    are_lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    is_list = any(is_it(kind) for is_it in are_lists)
    return is_list and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


_WANTED: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "image": ("binary, or a struct with a binary field bytes", _is_image),
    "image_id": ("texts or whole numbers", _is_key),
    "identity": ("texts or numbers", _is_person),
    "landmarks": ("lists of numbers", _is_points),
}
"""Types that fit the columns which the options name."""


def _values(array: pa.Array) -> list[Any]:
    if types.is_integer(array.type):
        array = array.cast(pa.string())
    elif types.is_floating(array.type):
        most = _EXACT[array.type.bit_width]
        return [_whole(number, most) for number in array.to_pylist()]
    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        values = [_decoded(value) for value in array.cast(pa.large_binary()).to_pylist()]
    return values


def _whole(number: float | None, most: int) -> str | None:
    if number is None or not abs(number) <= most or number != int(number):
        return None
    return str(int(number))


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
