"""Publish an evaluation: tables as Parquet and CSV, the report, and the table for the terminal."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from sdd_ray.core.assessment import EDC_DISCARD_FRACTIONS
from sdd_ray.core.edc import EVRC_DISCARD_FRACTIONS
from sdd_ray.engine.evaluating import ComparedSet, MethodResult
from sdd_ray.engine.evaluation_report import caution, percent, report_html
from sdd_ray.settings import EvaluateConfig
from sdd_ray.store.dataset import read_json
from sdd_ray.store.location import Location
from sdd_ray.store.run import MANIFEST, OutputRun, versions, write_part

CURVES, SUMMARY, REPORT = "curves", "summary", "report.html"
_WIDEST_NAME = 32
"""Columns of the terminal; longer names of methods are cut."""


def publish(
    config: EvaluateConfig, compared: ComparedSet, methods: list[MethodResult], run: OutputRun
) -> None:
    """Write curves and summary (Parquet, CSV), report.html and the manifest.

    Raises:
        InputError: The report's labels or faces cannot be read.
        OutputError: The folder cannot be written.
    """
    rows = [row for method in methods for row in _summary_rows(config, method)]
    results = {
        "images": len(compared.image_ids),
        "identities": int(compared.codes.max()) + 1,
        "mated_comparisons": len(compared.mated.similarities),
        "nonmated_comparisons": len(compared.nonmated.similarities),
        "nonmated_comparisons_possible": compared.num_nonmated,
        "discard_fractions": list(config.discard_fractions),
        "discard_limit": config.discard_limit,
        "summary": rows,
    }
    html = report_html(config, compared, methods, {**results, **versions()})
    (run.output / REPORT).write_bytes(html.encode())
    results["caution"] = caution(config)
    summary, curves = pa.Table.from_pylist(_flat(rows)), _curves(methods)
    for name, table in ((SUMMARY, summary), (CURVES, curves)):
        sink = pa.BufferOutputStream()
        pa_csv.write_csv(table, sink)
        (run.output / f"{name}.csv").write_bytes(sink.getvalue().to_pybytes())
    records = [write_part(run.output, SUMMARY, summary), write_part(run.output, CURVES, curves)]
    # NaN is no JSON: a figure that is undefined is null in the manifest.
    run.complete(records, json.loads(json.dumps(results), parse_constant=lambda _: None))


def terminal_table(output: Location) -> str:
    """Return the main table of a complete evaluation as text."""
    results = read_json(output / MANIFEST)["results"]
    fractions = results["discard_fractions"]
    limit = results["discard_limit"]
    width = min(max(len(row["method"]) for row in results["summary"]), _WIDEST_NAME)
    head = "".join(f"{percent(f):>8}" for f in fractions) + f"{f'pAUC@{limit:g}':>10}{'AOC':>8}"
    lines = [
        f"{results['images']:,} images of {results['identities']:,} identities,"
        f" {results['mated_comparisons']:,} mated and {results['nonmated_comparisons']:,} nonmated"
        " comparisons"
    ]
    for fmr in sorted({row["fmr"] for row in results["summary"]}, reverse=True):
        lines += ["", f"FNMR in % at FMR {fmr:g}, images discarded:", f"{'':<{width}}{head}"]
        for row in (r for r in results["summary"] if r["fmr"] == fmr):
            errors = "".join(f"{_number(e, 100, 2):>8}" for e in row["evrc"])
            areas = f"{_number(row['normalised_pauc'], 1, 3):>10}{_number(row['aoc'], 1, 3):>8}"
            lines.append(f"{row['method']:<{width}.{width}}{errors}{areas}")
    lines += ["", "pAUC: 1 = no use, lower is better; AOC: higher is better; -: undefined, too few"]
    lines += ["comparisons remain or no error is left to save", ""]
    if results.get("caution"):
        lines += [results["caution"], ""]
    return "\n".join(lines)


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def _summary_rows(config: EvaluateConfig, method: MethodResult) -> list[dict[str, Any]]:
    return [
        {
            "method": method.name,
            "kind": method.kind,
            "failed": method.num_failed,
            "fmr": a.fmr,
            "achieved_fmr": a.point.achieved_fmr,
            "threshold": a.point.threshold,
            "normalised_pauc": a.normalised_pauc.value,
            "aoc": a.aoc.value,
            "evrc": a.table_evrc.tolist(),
            "edc": a.table_edc.tolist(),
            "fractions": list(config.discard_fractions),
        }
        for a in method.assessments
    ]


def _flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with one column for each curve and discard fraction."""
    flat = []
    for row in rows:
        plain = {k: v for k, v in row.items() if k not in ("evrc", "edc", "fractions")}
        for curve in ("evrc", "edc"):
            named = zip(row["fractions"], row[curve], strict=True)
            plain |= {f"{curve}_{fraction:g}": error for fraction, error in named}
        flat.append(plain)
    return flat


def _curves(methods: list[MethodResult]) -> pa.Table:
    parts = []
    for method in methods:
        for a in method.assessments:
            for curve, grid, errors in (
                ("edc", EDC_DISCARD_FRACTIONS, a.edc),
                ("evrc", EVRC_DISCARD_FRACTIONS, a.evrc),
            ):
                parts.append(
                    pa.table(
                        {
                            "method": [method.name] * len(grid),
                            "curve": [curve] * len(grid),
                            "fmr": np.full(len(grid), a.fmr),
                            "discard_fraction": grid,
                            "fnmr": errors,
                        }
                    )
                )
    return pa.concat_tables(parts)
