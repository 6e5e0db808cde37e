"""Sections of an evaluation's report that show its tables: which is better, advice, groups."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdd_ray.engine.assessing import RANDOM
from sdd_ray.engine.audit_output import finding_rows
from sdd_ray.report.page import Cell, Section, Table
from sdd_ray.settings import EvaluateConfig
from sdd_ray.store.dataset import open_dataset, read_json
from sdd_ray.store.run import MANIFEST


def percent(fraction: float) -> str:
    """Return a fraction as the heading of its column, unrounded: 0.125 is 12.5%."""
    return f"{100 * fraction:.4g}%"


def seeds_in_words(config: EvaluateConfig) -> str:
    """Return which methods have several seeds, and what that means; nothing if none has."""
    several = [f"{m.name} ({1 + len(m.seeds)})" for m in config.methods if m.seeds]
    if not several:
        return ""
    return (
        f" Means over several seeds: {', '.join(several)}; their faces and groups are of the first,"
        " and qualities to ask for are advised for single models only."
    )


def better_section(config: EvaluateConfig, differences: pa.Table) -> list[Section]:
    """Return the paired differences of the methods by the area that tables show."""
    wanted = f"normalised_pauc_{config.discard_limit:g}"
    chosen = pc.and_(
        pc.equal(differences["figure"], wanted),
        pc.equal(differences["recogniser"], config.recogniser),
    )
    first = config.methods[0].name
    shown = [
        row
        for row in differences.filter(chosen).to_pylist()
        if row["method"] == first or row["other"] == RANDOM
    ]
    if not shown:
        return []
    rows: list[list[Cell]] = [
        [
            f"{d['method']} and {d['other']}",
            f"{d['fmr']:g}",
            f"{d['difference']:+.3f}",
            ends_in_words(d, "+.3f"),
            {"better": f"{d['method']} is better", "worse": f"{d['other']} is better"}.get(
                d["verdict"], "no difference is shown"
            ),
        ]
        for d in shown
    ]
    text = (
        f"People are drawn with replacement {config.bootstrap.draws} times, and all figures are"
        " computed again, the threshold too, for all methods on the same draws. The first method of"
        " a pair is better where the whole interval of the difference is below zero. All pairs and"
        " figures: differences.csv."
    )
    heads = ["pair", "FMR", "difference", "95 % of the draws", "says"]
    title = f"Differences of normalised pAUC@{config.discard_limit:g}"
    return [Section("Which is better", text, tables=[Table(heads, rows, title)])]


def ends_in_words(row: Mapping[str, Any], form: str) -> str | None:
    """Return the ends of an interval, or None if there is none."""
    if np.isnan(row["low"]):
        return None
    # Not to be broken: on a phone a table scrolls, and its rows stay low.
    return f"{row['low']:{form}}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{row['high']:{form}}"


def advice_section(config: EvaluateConfig, advice: pa.Table) -> list[Section]:
    """Return which quality of the first method to ask for."""
    first = config.methods[0].name
    rows: list[list[Cell]] = []
    for row in advice.filter(pc.equal(advice["method"], first)).to_pylist():
        by_share = row["aim"] == "discard"
        aim = "discard at most" if by_share else "FNMR at most"
        lacks = np.isnan(row["threshold"])
        rows.append(
            [
                f"{row['fmr']:g}",
                f"{aim} {percent(row['asked'])}",
                "not reached" if lacks else f"{row['threshold']:.4g}",
                ends_in_words(row, ".4g"),
                None if lacks else f"{row['discarded']:.1%}",
                None if lacks else f"{row['fnmr']:.2%}",
            ]
        )
    if not rows:
        return []
    text = (
        f"Images of a quality below the threshold, by {first}, are to be discarded. The similarity"
        " threshold is the one at the FMR before anything is discarded. Thresholds hold for images"
        " like these; where the interval is wide, so is the doubt. All methods: advice.csv."
    )
    heads = ["FMR", "aim", "quality", "95 % of the draws", "discards", "FNMR left"]
    return [Section("Which quality to ask for", text, tables=[Table(heads, rows)])]


def alike_section(correlations: pa.Table) -> list[Section]:
    """Return how alike the orders of the methods are."""
    if correlations.num_rows == 0:
        return []
    rows: list[list[Cell]] = [
        [f"{row['method']} and {row['other']}", row["images"], row["spearman"]]
        for row in correlations.to_pylist()
    ]
    text = (
        "Spearman's correlation of two methods over the images that both assessed: near 1 they"
        " discard the same images, and one of them is enough."
    )
    table = Table(["pair", "images", "Spearman"], rows)
    return [Section("How alike the methods are", text, tables=[table])]


def groups_section(config: EvaluateConfig, groups: pa.Table) -> Section:
    """Return what the first method does to groups of people."""
    first = groups.filter(pc.equal(groups["method"], config.methods[0].name))
    last = max(config.discard_fractions)
    tables = []
    for fmr in config.fmr:
        of_rate = first.filter(pc.equal(first["fmr"], fmr)).to_pylist()
        by_group: dict[str, dict[float, Any]] = {}
        for row in of_rate:
            by_group.setdefault(row["group"], {})[row["discard_fraction"]] = row
        rows: list[list[Cell]] = [
            [
                name,
                by[last]["images"],
                by[last]["mated"],
                100 * by[last]["group_fmr"],
                100 * by[0.0]["fnmr"],
                100 * by[last]["discarded"],
                100 * by[last]["fnmr"],
            ]
            for name, by in by_group.items()
        ]
        heads = ["group", "images", "mated", "FMR %", "FNMR %", "discarded %", "FNMR % left"]
        tables.append(Table(heads, rows, f"FMR {fmr:g}, {percent(last)} of all images discarded"))
    text = (
        f"All groups share the thresholds of the whole set; discarded by {config.methods[0].name}."
        " A group that loses more images than others pays for them. All methods, rates and"
        " fractions: groups.csv."
    )
    return Section("Groups", text, tables=tables)


def recognisers_section(config: EvaluateConfig, summary: pa.Table) -> list[Section]:
    """Return what the methods are worth by each recogniser; nothing if there is one alone."""
    if not config.others:
        return []
    names = [config.recogniser, *(other.name for other in config.others)]
    figure = f"normalised_pauc_{config.discard_limit:g}"
    tables = []
    for fmr in config.fmr:
        found = summary.filter(pc.equal(summary["fmr"], fmr)).to_pylist()
        by = {(row["method"], row["recogniser"]): row for row in found}
        rows: list[list[Cell]] = []
        for method in dict.fromkeys(row["method"] for row in found):
            cells: list[Cell] = [method]
            for name in names:
                row = by[method, name]
                ends = {"low": row[f"{figure}_low"], "high": row[f"{figure}_high"]}
                within = ends_in_words(ends, ".3f")
                value = "–" if np.isnan(row[figure]) else f"{row[figure]:.3f}"
                cells.append(f"{value} ({within})" if within else value)
            rows.append(cells)
        title = f"Normalised pAUC@{config.discard_limit:g} at FMR {fmr:g} (95 % of the draws)"
        tables.append(Table(["method", *names], rows, title))
    text = (
        "The same qualities by the errors of other recognisers: a quality of one may be worth less"
        " to another."
    )
    return [Section("By recogniser", text, tables=tables)]


def audit_section(path: str) -> Section:
    """Return what an audit of the identities found.

    Raises:
        InputError: There is no audit.
    """
    manifest = read_json(open_dataset(path, ["audit"]).location / MANIFEST)
    rows: list[list[Cell]] = [[words, count] for count, words in finding_rows(manifest["results"])]
    text = (
        "Wrong names make errors that no quality can foresee: a mated comparison of two people is"
        " missed however good its images are. This is what the audit of the identities found."
    )
    return Section("The identities", text, tables=[Table(["finding", "number"], rows)])
