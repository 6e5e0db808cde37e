"""Reading what another command has written: complete outputs, with the columns they should have."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sdd_ray.errors import InputError
from sdd_ray.store.location import Location
from sdd_ray.store.run import INCOMPLETE, MANIFEST, READ_AT_ONCE, REJECTS


@dataclass(frozen=True)
class Dataset:
    """A complete dataset: its Parquet files in order of name, and its manifest."""

    location: Location
    files: tuple[Location, ...]
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """Digest of the content, the same however the run was split over workers."""
        return str(self.manifest["digest"])

    def read(
        self, columns: Sequence[str], some: Callable[[pa.Table], pa.Table] | None = None
    ) -> pa.Table:
        """Return the columns of all files as one table.

        Args:
            columns: Names.
            some: From the rows of a file to those that are wanted; None: all.

        Raises:
            InputError: A file is damaged, or lacks a column.
        """
        return pa.concat_tables(read_tables(self.files, columns, some))


def read_tables(
    files: Sequence[Location],
    columns: Sequence[str] | None = None,
    some: Callable[[pa.Table], pa.Table] | None = None,
) -> list[pa.Table]:
    """Return the columns of Parquet files in order, of which several are read at once.

    Args:
        files: The files.
        columns: Names; None: all.
        some: From the rows of a file to those that are wanted; None: all.

    Raises:
        InputError: A file is damaged, or lacks a column.
    """

    def read(file: Location) -> pa.Table:
        table = read_parquet(file, columns)
        return table if some is None else some(table)

    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        return list(threads.map(read, files))


def open_dataset(uri: str, commands: Sequence[str]) -> Dataset:
    """Return a complete dataset that one of `commands` wrote.

    Raises:
        InputError: Nothing is there, it is not complete, or another command wrote it.
    """
    place = Location(uri).absolute()
    wanted = " or ".join(commands)
    if not (place / MANIFEST).exists():
        if (place / INCOMPLETE).exists():
            raise InputError(f"{uri} is not complete: run the command that writes it once more")
        raise InputError(f"{uri}: expected a dataset written by {wanted}, found no {MANIFEST}")
    manifest = read_json(place / MANIFEST)
    if manifest.get("command") not in commands:
        found = manifest.get("command")
        raise InputError(f"{uri}: expected a dataset written by {wanted}, found one of {found}")
    return Dataset(place, _parts(place, manifest), manifest)


def _parts(place: Location, manifest: dict[str, Any]) -> tuple[Location, ...]:
    """Return the Parquet parts that the manifest names, in order of name, all of them there."""
    files, there = manifest.get("parts"), set(place.names())
    if not isinstance(files, dict):
        raise InputError(f"{(place / MANIFEST).uri} names no parts; it is damaged")
    missing = sorted(name for name in files if name not in there)
    if missing:
        raise InputError(
            f"{place.uri}: {len(missing)} of {len(files)} parts are missing, first {missing[0]};"
            " was it copied as a whole?"
        )
    return tuple(place / name for name in sorted(files) if name.endswith(".parquet"))


def read_json(place: Location) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: The file cannot be read or holds something else.
    """
    try:
        tree = json.loads(place.read_bytes())
    except ValueError as error:
        raise InputError(f"{place.uri} is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{place.uri}: expected an object, got {type(tree).__name__}")
    return tree


def read_parquet(file: Location, columns: Sequence[str] | None = None) -> pa.Table:
    """Return one Parquet file, or some of its columns.

    Raises:
        InputError: The file is missing, damaged, or lacks a column.
    """
    with _opened(file, columns) as parquet:
        return parquet.read(columns=None if columns is None else list(columns))


def read_parquet_with_groups(file: Location, columns: Sequence[str]) -> tuple[pa.Table, list[int]]:
    """Return some columns of a Parquet file, and the number of rows of each of its row groups.

    Raises:
        InputError: The file is missing, damaged, or lacks a column.
    """
    with _opened(file, columns) as parquet:
        footer = parquet.metadata
        sizes = [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
        return parquet.read(columns=list(columns)), sizes


def read_row_groups(file: Location, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Return some columns of some row groups of a Parquet file, on this thread.

    Raises:
        InputError: The file is missing, damaged, or lacks a column.
    """
    with _opened(file, columns) as parquet:
        return parquet.read_row_groups(list(groups), columns=list(columns), use_threads=False)


@contextmanager
def _opened(file: Location, columns: Sequence[str] | None) -> Iterator[pq.ParquetFile]:
    with file.open() as stream:
        try:
            parquet = pq.ParquetFile(stream)
            missing = [c for c in columns or () if c not in parquet.schema_arrow.names]
            if missing:
                have = ", ".join(parquet.schema_arrow.names)
                raise InputError(f"{file.uri}: no column {', '.join(missing)}; it has {have}")
            yield parquet
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file.uri} is not a whole Parquet file: {error}") from error


def embedding_matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return a column of embeddings as an (N, D) float32 matrix.

    Raises:
        InputError: The column does not hold lists of one fixed length, or holds nulls.
    """
    if not pa.types.is_fixed_size_list(column.type):
        raise InputError(f"embedding: expected lists of one fixed length, got {column.type}")
    flat = (
        column.combine_chunks().flatten() if column.num_chunks != 1 else column.chunk(0).flatten()
    )
    if column.null_count or flat.null_count:
        raise InputError("embedding: expected no nulls, got some")
    values = flat.to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values.reshape(len(column), column.type.list_size), np.float32)


def content_digest(uri: str) -> str:
    """Return a digest of what `read_any` reads there.

    Raises:
        InputError: Nothing can be read there.
    """
    place = Location(uri).absolute()
    if not place.is_folder():
        return hashlib.sha256(place.read_bytes()).hexdigest()
    if (place / MANIFEST).exists():
        return str(read_json(place / MANIFEST).get("digest"))
    parts = [n + content_digest((place / n).uri) for n in place.names() if n.endswith(".parquet")]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def read_any(uri: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of a dataset, of a folder of Parquet files, or of one Parquet file.

    Raises:
        InputError: Nothing can be read there, or a column is missing.
    """
    place = Location(uri).absolute()
    if (place / INCOMPLETE).exists() and not (place / MANIFEST).exists():
        raise InputError(f"{uri} is not complete: run the command that writes it once more")
    if not place.is_folder():
        return read_parquet(place, columns)
    if (place / MANIFEST).exists():
        files = _parts(place, read_json(place / MANIFEST))
    else:
        files = tuple(place / n for n in place.names() if n.endswith(".parquet") and n != REJECTS)
    if not files:
        raise InputError(f"{uri}: expected Parquet files, found none")
    return pa.concat_tables([read_parquet(file, columns) for file in files])
