"""Publish an evaluation: tables as Parquet and CSV, the report, and the table for the terminal."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from sdd_ray.core.assessment import EDC_DISCARD_FRACTIONS, Assessment
from sdd_ray.core.edc import EVRC_DISCARD_FRACTIONS
from sdd_ray.core.ranked_sides import Protocol
from sdd_ray.engine.assessing import Evaluation, MethodResult, protocol_of
from sdd_ray.engine.differences import Difference, differences, ends_on, figures
from sdd_ray.engine.evaluation_report import caution, report_files, report_sections
from sdd_ray.engine.evaluation_sections import percent
from sdd_ray.engine.evaluation_tables import (
    Groups,
    advice_table,
    correlation_table,
    group_table,
)
from sdd_ray.settings import EvaluateConfig
from sdd_ray.store.dataset import read_json
from sdd_ray.store.location import Location
from sdd_ray.store.run import MANIFEST, OutputRun, versions, write_part

_WITH_INTERVAL = ("normalised_pauc_", "aoc", "evrc_", "edc_")
_DIFFERENCES = pa.schema(
    [
        ("recogniser", pa.string()),
        ("method", pa.string()),
        ("other", pa.string()),
        ("fmr", pa.float64()),
        ("figure", pa.string()),
        ("difference", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("verdict", pa.string()),
    ]
)
_WIDEST_NAME = 32
"""Columns of the terminal; longer names of methods are cut."""


def publish(
    config: EvaluateConfig, evaluations: list[Evaluation], groups: Groups | None, run: OutputRun
) -> None:
    """Write all tables (Parquet, CSV), report.html and the manifest.

    Args:
        config: The evaluation.
        evaluations: By each recogniser; the first is the one that the report is about.
        groups: Of its images, if there are any.
        run: The output.

    Raises:
        InputError: The report's labels or faces cannot be read.
        OutputError: The folder cannot be written.
    """
    compared, methods = evaluations[0].compared, evaluations[0].methods
    protocol = protocol_of(config)
    rows = [
        {"recogniser": one.recogniser, **row}
        for one in evaluations
        for method in one.methods
        for row in _summary_rows(method, protocol)
    ]
    found = {one.recogniser: differences(one.methods, protocol) for one in evaluations}
    results = {
        "images": len(compared.image_ids),
        "identities": int(compared.codes.max()) + 1,
        "mated_comparisons": len(compared.mated.similarities),
        "nonmated_comparisons": compared.num_made,
        "nonmated_comparisons_possible": compared.num_nonmated,
        "left_out": compared.counts,
        "discard_fractions": list(config.discard_fractions),
        "discard_limit": config.discard_limit,
        "discarded": config.discarded,
        "draws": config.bootstrap.draws,
        "recogniser": config.recogniser,
        "summary": rows,
        "verdicts": _verdicts(found[config.recogniser], config),
    }
    tables = _tables(config, evaluations[0], rows, found)
    if groups is not None:
        tables["groups"] = group_table(groups, compared, methods[:-1], protocol)
    facts = {**results, **compared.counts, **versions()}
    sections = report_sections(config, compared, methods, tables)
    for name, content in report_files(sections, facts).items():
        (run.output / name).write_bytes(content)
    results["caution"] = caution(config)
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        pa_csv.write_csv(table, sink)
        (run.output / f"{name}.csv").write_bytes(sink.getvalue().to_pybytes())
    records = [write_part(run.output, name, table) for name, table in tables.items()]
    # NaN is no JSON: a figure that is undefined is null in the manifest.
    run.complete(records, json.loads(json.dumps(results), parse_constant=lambda _: None))


def _tables(
    config: EvaluateConfig,
    first: Evaluation,
    rows: list[dict[str, Any]],
    found: dict[str, list[Difference]],
) -> dict[str, pa.Table]:
    """Return all tables but the groups by the name of their file; random is in the first two."""
    methods, protocol = first.methods, protocol_of(config)
    return {
        "summary": pa.Table.from_pylist(rows),
        "curves": _curves(methods, protocol),
        "differences": _differences(found),
        "advice": advice_table(methods[:-1], protocol),
        "correlations": correlation_table(methods[:-1]),
    }


def terminal_table(output: Location) -> str:
    """Return the main table of a complete evaluation as text."""
    results = read_json(output / MANIFEST)["results"]
    fractions = results["discard_fractions"]
    width = min(max(len(row["method"]) for row in results["summary"]), _WIDEST_NAME)
    head = "".join(f"{percent(f):>8}" for f in fractions)
    limit = results["discard_limit"]
    area = f"normalised_pauc_{limit:g}"
    head += f"{f'pAUC@{limit:g}':>10}{'95 %':>14}{'AOC':>8}"
    lines = [
        f"{results['images']:,} images of {results['identities']:,} identities,"
        f" {results['mated_comparisons']:,} mated and {results['nonmated_comparisons']:,} nonmated"
        " comparisons",
        *(f"{reason}: {count:,}" for reason, count in results["left_out"].items()),
    ]
    groups = dict.fromkeys((row["recogniser"], row["fmr"]) for row in results["summary"])
    for recogniser, fmr in groups:
        by = "" if recogniser == results["recogniser"] else f"by {recogniser}, "
        lines += ["", f"{by}FNMR in % at FMR {fmr:g}, {results['discarded']} discarded:"]
        lines.append(f"{'':<{width}}{head}")
        wanted = {"recogniser": recogniser, "fmr": fmr}
        for row in (r for r in results["summary"] if wanted.items() <= r.items()):
            errors = "".join(f"{_number(row[f'evrc_{f:g}'], 100, 2):>8}" for f in fractions)
            areas = f"{_number(row[area], 1, 3):>10}{_ends(row, area):>14}"
            areas += f"{_number(row['aoc'], 1, 3):>8}"
            lines.append(f"{row['method']:<{width}.{width}}{errors}{areas}")
    lines += ["", "pAUC: 1 = no use, lower is better; AOC: higher is better; -: undefined, too few"]
    lines += ["comparisons remain or no error is left to save", ""]
    lines += [_said(verdict, limit) for verdict in results["verdicts"]]
    lines += [""] if results["verdicts"] else []
    if results.get("caution"):
        lines += [results["caution"], ""]
    return "\n".join(lines)


def _ends(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "-" if low is None else f"{low:.3f}..{high:.3f}"


_WORDS = {
    "better": "is better than",
    "worse": "is worse than",
    "undecided": "and",
    "undefined": "and",
}


def _said(verdict: dict[str, Any], limit: float) -> str:
    """Return in words what the difference of two methods says, and no more than it says."""
    end = {
        "better": "",
        "worse": "",
        "undecided": ": no difference is shown",
        "undefined": ": too few people to say",
    }[verdict["verdict"]]
    numbers = ""
    if verdict["low"] is not None:
        numbers = (
            f" ({verdict['difference']:+.3f}, 95 %: {verdict['low']:+.3f}..{verdict['high']:+.3f})"
        )
    names = f"{verdict['method']} {_WORDS[verdict['verdict']]} {verdict['other']}"
    return f"FMR {verdict['fmr']:g}: {names}{end}, by pAUC@{limit:g}{numbers}"


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def _summary_rows(method: MethodResult, protocol: Protocol) -> list[dict[str, Any]]:
    return [
        _summary_row(method, number, found, protocol)
        for number, found in enumerate(method.assessments)
    ]


def _summary_row(
    method: MethodResult, number: int, found: Assessment, protocol: Protocol
) -> dict[str, Any]:
    """Return all figures of a method at a false match rate, each with its interval."""
    row: dict[str, Any] = {
        "method": method.name,
        "kind": method.kind,
        "failed": method.read.failed,
        "missing": method.read.missing,
        "unknown": method.read.unknown,
        "fmr": found.fmr,
        "achieved_fmr": found.point.achieved_fmr,
        "threshold": found.point.threshold,
    }
    for limit, area in found.areas.items():
        row[f"pauc_{limit:g}"] = area.raw.value
        row[f"normalised_pauc_{limit:g}"] = area.normalised.value
        row[f"best_pauc_{limit:g}"] = area.best.value
    row["aoc"] = found.aoc.value
    for curve, values in (("evrc", found.table_evrc), ("edc", found.table_edc)):
        named = zip(protocol.fractions, values.tolist(), strict=True)
        row |= {f"{curve}_{fraction:g}": error for fraction, error in named}
    known = {figure.name: figure.interval for figure in figures(method, number, protocol)}
    for name in [name for name in row if name.startswith(_WITH_INTERVAL)]:
        row[f"{name}_low"] = known[name].low if known else math.nan
        row[f"{name}_high"] = known[name].high if known else math.nan
    return row | _spread(method, number, protocol)


def _spread(method: MethodResult, number: int, protocol: Protocol) -> dict[str, Any]:
    """Return how many seeds a method has, and the standard deviation of its areas over them."""
    seeds = [found[number] for found in method.by_seed]
    areas = {
        f"normalised_pauc_{limit:g}": [found.areas[limit].normalised.value for found in seeds]
        for limit in protocol.discard_limits
    }
    areas["aoc"] = [found.aoc.value for found in seeds]
    several = len(seeds) > 1
    spreads = {
        f"{name}_seed_std": float(np.std(values, ddof=1)) if several else math.nan
        for name, values in areas.items()
    }
    return {"seeds": max(len(seeds), 1), **spreads}


def _differences(found: dict[str, list[Difference]]) -> pa.Table:
    rows = [
        {
            "recogniser": recogniser,
            "method": d.method,
            "other": d.other,
            "fmr": d.fmr,
            "figure": d.figure,
            "difference": d.value,
            "low": d.interval.low,
            "high": d.interval.high,
            "verdict": d.verdict,
        }
        for recogniser, some in found.items()
        for d in some
    ]
    return pa.Table.from_pylist(rows, schema=_DIFFERENCES)


def _verdicts(found: list[Difference], config: EvaluateConfig) -> list[dict[str, Any]]:
    """Return what is said of the first method, by the area that the tables show."""
    return [
        {
            "method": d.method,
            "other": d.other,
            "fmr": d.fmr,
            "difference": d.value,
            "low": d.interval.low,
            "high": d.interval.high,
            "verdict": d.verdict,
        }
        for d in found
        if d.method == config.methods[0].name
        and d.figure == f"normalised_pauc_{config.discard_limit:g}"
    ]


def _curves(methods: list[MethodResult], protocol: Protocol) -> pa.Table:
    """Return all curves; with the ends of their intervals where these were computed."""
    parts = []
    for method in methods:
        for number, a in enumerate(method.assessments):
            for curve, grid, errors in (
                ("edc", EDC_DISCARD_FRACTIONS, a.edc),
                ("fm_edc", EDC_DISCARD_FRACTIONS, a.fm_edc),
                ("evrc", EVRC_DISCARD_FRACTIONS, a.evrc),
            ):
                low, high = ends_on(grid, curve, method, number, protocol)
                columns = {
                    "method": [method.name] * len(grid),
                    "curve": [curve] * len(grid),
                    "fmr": np.full(len(grid), a.fmr),
                    "discard_fraction": grid,
                    "error": errors,
                    "low": low,
                    "high": high,
                }
                parts.append(pa.table(columns))
    return pa.concat_tables(parts)
