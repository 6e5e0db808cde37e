"""Qualities in the formats that other programs read."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from sdd_ray import columns
from sdd_ray.store.summary import csv_bytes

Format = Literal["csv", "ofiq", "text"]

_OFIQ = {
    columns.IMAGE_ID: "Filename",
    columns.RAW_QUALITY: "UnifiedQualityScore",
    columns.QUALITY: "UnifiedQualityScore.scalar",
}
"""Source: the tables that the command line of OFIQ (BSI) writes; we have only these columns."""

_SEMICOLON = ";"

FILES = {"csv": "qualities.csv", "ofiq": "qualities.csv", "text": "qualities.txt"}


def writer(form: Format) -> Callable[[pa.Table], bytes]:
    """Return a function from rows of qualities to the bytes of a file of a format.

    Args:
        form: See `sdd_ray.settings.ScoreConfig`.
    """
    if form == "text":
        return _text
    if form == "ofiq":
        return lambda table: csv_bytes(_as_ofiq(table), _SEMICOLON)
    return csv_bytes


def lines(form: Format, rows: Sequence[Mapping[str, object]], header: bool) -> bytes:
    """Return some rows as `writer` writes them.

    Args:
        form: See `writer`.
        rows: By the names of `sdd_ray.columns`, at least one, all of the same columns.
        header: Whether the names of the columns come first, where the format has them.
    """
    stream = io.StringIO()
    if form == "text":
        stream.writelines(
            f"{row[columns.IMAGE_ID]} {_shown(row[columns.RAW_QUALITY])}\n" for row in rows
        )
        return stream.getvalue().encode()
    names = {name: name for name in rows[0]}
    if form == "ofiq":
        names = _OFIQ | {name: name for name in rows[0] if name not in _OFIQ}
    table = csv.writer(stream, delimiter=_SEMICOLON if form == "ofiq" else ",", lineterminator="\n")
    if header:
        table.writerow(names.values())
    table.writerows([row[name] for name in names] for row in rows)
    return stream.getvalue().encode()


def _as_ofiq(table: pa.Table) -> pa.Table:
    first = list(_OFIQ)
    rest = [name for name in table.column_names if name not in first]
    return table.select(first + rest).rename_columns([*_OFIQ.values(), *rest])


def _text(table: pa.Table) -> bytes:
    raw = table[columns.RAW_QUALITY].to_numpy().astype(np.float32)
    ids = table[columns.IMAGE_ID].to_pylist()
    return "".join(f"{name} {_shown(r)}\n" for name, r in zip(ids, raw, strict=True)).encode()


def _shown(raw: object) -> str:
    """Return the shortest digits that are the float32 again; nan for none."""
    return "nan" if raw is None else str(raw)
