"""What a command says when it is done, and qualities as CSV."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from sdd_ray.store.dataset import read_json, read_tables
from sdd_ray.store.location import Location
from sdd_ray.store.run import MANIFEST, OutputRun, PartRecord

_ROWS_A_FILE = 5_000_000
"""Rows of a table that are held at once, some 300 MB."""


def say_done(run: OutputRun, rows: str = "images") -> None:
    """Print one line on what a complete output holds; `rows` is what was counted."""
    manifest = read_json(run.output / MANIFEST)
    counts = manifest["counts"]
    parts = [f"{run.command}: {counts['rows_out']:,} of {counts['rows_in']:,} {rows}"]
    if counts["rejected"]:
        parts.append("rejected " + _counted(counts["rejected"]))
    unlabelled = manifest["results"].get("unlabelled")
    if unlabelled:
        parts.append("without a label " + _counted(unlabelled))
    parts.append(f"{manifest['seconds']:,.1f} s")
    sys.stdout.write(f"{', '.join(parts)} -> {run.output.uri}\n")


def write_csv(output: Location, records: Sequence[PartRecord], name: str) -> None:
    """Write all parts as one CSV file, in the order of the parts."""
    write_tables(output, records, name, csv_bytes)


def csv_bytes(table: pa.Table, delimiter: str = ",", header: bool = True) -> bytes:
    """Return a table as the bytes of a CSV file, with quotes only where a value needs them."""
    try:
        return _csv(table, delimiter, header, "none")
    except pa.ArrowInvalid:  # a value needs quotes; Arrow then gives them to all texts
        return _csv(table, delimiter, header, "needed")


def _csv(table: pa.Table, delimiter: str, header: bool, quotes: str) -> bytes:
    sink = pa.BufferOutputStream()
    if header:  # Arrow quotes the names, which need none; before pyarrow 22 it must
        sink.write((delimiter.join(table.column_names) + "\n").encode())
    options = pa_csv.WriteOptions(include_header=False, quoting_style=quotes, delimiter=delimiter)
    pa_csv.write_csv(table, sink, options)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def portions(records: Sequence[PartRecord]) -> list[list[PartRecord]]:
    """Return parts in their order, in portions of as many rows as are held at once."""
    groups: list[list[PartRecord]] = [[]]
    rows = 0
    for record in records:
        if groups[-1] and rows + record.rows_out > _ROWS_A_FILE:
            groups.append([])
            rows = 0
        groups[-1].append(record)
        rows += record.rows_out
    return groups


def write_tables(
    output: Location,
    records: Sequence[PartRecord],
    name: str,
    to_bytes: Callable[[pa.Table], bytes],
) -> None:
    """Write all parts in another format, in their order: one file, or several if they are large.

    Args:
        output: Folder of the parts.
        records: The parts.
        name: Of the file; several are numbered, `name-000000.csv`.
        to_bytes: From rows to the content of a file.
    """
    groups = portions(records)
    stem, _, suffix = name.rpartition(".")
    for number, group in enumerate(groups):
        table = pa.concat_tables(read_tables([output / record.file for record in group]))
        file = name if len(groups) == 1 else f"{stem}-{number:06d}.{suffix}"
        (output / file).write_bytes(to_bytes(table))


def _counted(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))
