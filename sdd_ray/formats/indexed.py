"""What packed formats have in common: their files, keys, and index files.

An index is a text with a line a record, which says where the record lies. They have up to tens of
millions of lines, which are read as columns and never as Python objects.

Shapes: N records of one file.
"""

import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from sdd_ray.errors import InputError
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import MAX_FILE_BYTES, Item, files_at
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

_HEAD_BYTES = 64 << 10
_READ_AT_ONCE = 8 << 20
_SHOWN_CHARACTERS = 80


def place_of(path: Location, suffix: str) -> tuple[Location, str | None]:
    """Return the folder of one format's files, and the name of the file if the path is only one.

    Raises:
        InputError: Nothing is at the path.
    """
    if path.is_folder():
        return path, None
    root, [only] = files_at(path, suffix)
    return root, only


def read_columns(place: Location, kinds: Mapping[str, pa.DataType | None]) -> pa.Table:
    """Return columns of a text file whose lines are separated into columns by tabs.

    Args:
        place: The file; empty lines are skipped.
        kinds: Type of each column of a line by name: an unsigned integer or a text; None for
            columns that are not looked at.

    Raises:
        InputError: The file cannot be read, or a line is not of these columns.
    """
    wanted = {name: kind for name, kind in kinds.items() if kind is not None}
    with place.open() as stream:
        try:
            if not first_row(place):
                return pa.schema(list(wanted.items())).empty_table()
            return csv.read_csv(
                stream,
                csv.ReadOptions(column_names=list(kinds), block_size=_READ_AT_ONCE),
                csv.ParseOptions(delimiter="\t", quote_char=False),
                csv.ConvertOptions(
                    column_types=wanted, include_columns=list(wanted), null_values=[]
                ),
            )
        except pa.ArrowInvalid as error:
            reason = _wrong_line(place, kinds) or str(error)
            raise InputError(f"{place.uri}: {reason}") from error
        except OSError as error:
            raise InputError(f"cannot read {place.uri}: {error}") from error


def first_row(place: Location) -> list[str]:
    """Return the columns of the first line that is not empty, or none.

    Raises:
        InputError: The file cannot be read.
    """
    with place.open() as stream:
        try:
            head = stream.read(_HEAD_BYTES)
        except OSError as error:
            raise InputError(f"cannot read {place.uri}: {error}") from error
    line, _, _ = head.lstrip(b"\r\n").partition(b"\n")
    return line.decode(errors="replace").rstrip("\r").split("\t") if line else []


def spans(
    offsets: NDArray[np.uint64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return where the records of a file lie, in the order in which they lie there.

    A record reaches to the next one of the index, so that what the index leaves out is read with
    the record before it. Most bytes of one are `MAX_FILE_BYTES`.

    Args:
        offsets: (N,) first byte of each record, in any order.
        size: Bytes of the file.

    Returns:
        Three arrays of the M <= N records that begin within the file: (M,) places in `offsets`,
        (M,) first bytes, rising, and (M,) numbers of bytes.
    """
    inside = np.flatnonzero(offsets < np.uint64(size))
    order = inside[np.argsort(offsets[inside], kind="stable")]
    starts = offsets[order].astype(np.int64)
    # To the next other offset: an index may name one record twice.
    stops = np.append(starts, size)[np.searchsorted(starts, starts, side="right")]
    return order, starts, np.minimum(stops - starts, MAX_FILE_BYTES)


def beyond_end(image_id: str, place: Location, offset: int, size: int) -> Reject:
    """Return the note on a record that begins where its file has ended."""
    detail = f"its index says byte {offset:,} of {place.uri}, which ends at {size:,}"
    return Reject(image_id, "damaged_record", detail)


def size_of(place: Location) -> int:
    """Return the number of bytes of a file.

    Raises:
        InputError: It is missing or cannot be opened.
    """
    with place.open() as stream:
        return int(stream.size())


def at_place(item: Item, error: ImageRejectedError) -> ImageRejectedError:
    """Return an error that also says where the record is."""
    detail = f"record at byte {item.offset:,} of {item.file}: {error.detail}"
    return ImageRejectedError(error.reason, detail)


def _wrong_line(place: Location, kinds: Mapping[str, pa.DataType | None]) -> str | None:
    with place.open() as stream:
        for number, line in enumerate(io.BufferedReader(stream), 1):
            text = line.rstrip(b"\r\n")
            reason = text and _reason(text.split(b"\t"), kinds)
            if reason:
                shown = ascii(text[:_SHOWN_CHARACTERS])[1:]
                return f"line {number:,}: expected {reason}, got {shown}"
    return None


def _reason(values: list[bytes], kinds: Mapping[str, pa.DataType | None]) -> str | None:
    if len(values) != len(kinds):
        return f"{len(kinds)} columns with tabs between them ({', '.join(kinds)})"
    for value, (name, kind) in zip(values, kinds.items(), strict=True):
        if kind is None:
            continue
        if pa.types.is_integer(kind):
            digits = value.strip()
            if not digits.isdigit() or len(digits) > 20 or int(digits) >> kind.bit_width:
                return f"a whole number of at most {kind.bit_width} bits as {name}"
        elif not _is_text(value):
            return f"{name} in UTF-8"
    return None


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
