"""What a command says when it is done, and qualities as CSV."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from sdd_ray.store.dataset import read_json, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import MANIFEST, OutputRun, PartRecord


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
    tables = [read_parquet(output / f"{record.name}.parquet") for record in records]
    sink = pa.BufferOutputStream()
    options = pa_csv.WriteOptions(quoting_style="needed", quoting_header="needed")
    pa_csv.write_csv(pa.concat_tables(tables), sink, options)
    (output / name).write_bytes(sink.getvalue().to_pybytes())


def _counted(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))
