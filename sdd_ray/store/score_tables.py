"""Qualities in the formats that other programs read."""

from collections.abc import Callable
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

FILES = {"csv": "qualities.csv", "ofiq": "qualities.csv", "text": "qualities.txt"}


def writer(form: Format, header: bool = True) -> Callable[[pa.Table], bytes]:
    """Return a function from rows of qualities to the bytes of a format.

    Args:
        form: See `sdd_ray.settings.ScoreConfig`.
        header: Whether the names of the columns come first, where the format has them.
    """
    if form == "text":
        return _text
    if form == "ofiq":
        return lambda table: csv_bytes(_as_ofiq(table), ";", header)
    return lambda table: csv_bytes(table, ",", header)


def _as_ofiq(table: pa.Table) -> pa.Table:
    first = list(_OFIQ)
    rest = [name for name in table.column_names if name not in first]
    return table.select(first + rest).rename_columns([*_OFIQ.values(), *rest])


def _text(table: pa.Table) -> bytes:
    """Return lines of path and raw quality; the shortest digits that are the float32 again."""
    raw = table[columns.RAW_QUALITY].to_numpy().astype(np.float32)
    ids = table[columns.IMAGE_ID].to_pylist()
    return "".join(f"{name} {value!s}\n" for name, value in zip(ids, raw, strict=True)).encode()
