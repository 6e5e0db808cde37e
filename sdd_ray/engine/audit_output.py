"""Publish an audit: tables as Parquet, audit.html, the manifest, and the lines at the end."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdd_ray.core.audit import VERDICTS
from sdd_ray.engine.audit_findings import Findings
from sdd_ray.engine.audit_report import REPORT, report_html
from sdd_ray.engine.audit_tables import tables
from sdd_ray.store.dataset import read_json
from sdd_ray.store.location import Location
from sdd_ray.store.run import MANIFEST, OutputRun, versions, write_part


def publish(found: Findings, run: OutputRun) -> None:
    """Write all tables, audit.html and the manifest.

    Raises:
        InputError: The faces of the report cannot be reached at all.
        OutputError: The folder cannot be written.
    """
    made, said = tables(found), results(found)
    html = report_html(found, made, said, versions())
    (run.output / REPORT).write_bytes(html.encode())
    images = len(found.context.audited.codes)
    records = [
        write_part(run.output, name, table, rows_in=images if name == "identities" else 0)
        for name, table in made.items()
    ]
    run.complete(records, said, found.context.audited.rejects)


def results(found: Findings) -> dict[str, Any]:
    """Return what the manifest says: thresholds, counts of findings, how they were found."""
    rates, levels = found.context.config.thresholds, found.context.levels
    audited, surveyed = found.context.audited, found.context.survey
    sizes, verdict = surveyed.identities.sizes, found.suspects.verdict
    people = np.bincount(found.same.person, minlength=1)
    duplicate_of, shared = surveyed.duplicate_of, found.shared
    return {
        "images": len(audited.codes),
        "identities": int((sizes > 0).sum()),
        "identities_of_one_image": int((sizes == 1).sum()),
        "thresholds": {
            "match": levels.match,
            "match_fmr": rates.fmr,
            "chance": levels.chance,
            "chance_fmr": rates.chance_fmr,
            "elsewhere": found.suspects.elsewhere,
            "elsewhere_fpir": rates.fpir,
            "sample_images": len(audited.sample.codes),
            "sample_nonmated_comparisons": found.num_nonmated,
        },
        "suspects": {
            "below_match": found.suspects.num_weak,
            "searched": len(verdict),
            **{name: int((verdict == code).sum()) for code, name in enumerate(VERDICTS)},
        },
        "same_person": {
            "pairs": found.same.count,
            "people": int((people > 1).sum()),
            "identities": int(people[people > 1].sum()),
        },
        "mixed": {
            "two_people": sum(not m.is_poor for m in found.mixed),
            "poor_images": sum(m.is_poor for m in found.mixed),
        },
        "duplicates": {
            "pairs": surveyed.num_duplicate_pairs,
            "groups": int(np.count_nonzero(duplicate_of == np.arange(len(duplicate_of)))),
            "images": int((duplicate_of >= 0).sum()),
        },
        "shared_images": {
            "pairs": shared.num_pairs,
            "groups": int(shared.group.max(initial=-1)) + 1,
            "images": len(shared.rows),
            "same_content": int(shared.same_content.sum()),
            "method": shared.method,
            "recall": round(shared.recall, 4),
        },
    }


def finding_rows(found: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return how many there are of each finding, and what it is, from the results of an audit."""
    suspects_, same, shared = found["suspects"], found["same_person"], found["shared_images"]
    duplicates, mixed = found["duplicates"], found["mixed"]
    fits_nowhere = suspects_["unknown"] + suspects_["second_person"] + suspects_["either"]
    return [
        (suspects_["elsewhere"], "images belong to another identity, which is named"),
        (fits_nowhere, "images fit nowhere: unknown people, or one of two in an identity"),
        (suspects_["poor"], "images fit nowhere for their poor quality"),
        (same["identities"], f"identities share a person with another ({same['people']:,} people)"),
        (mixed["two_people"], "identities hold two people or more"),
        (
            duplicates["images"],
            f"images are near-duplicates within their identity ({duplicates['groups']:,} groups)",
        ),
        (
            shared["images"],
            f"images stand under several identities ({shared['groups']:,} groups, {_how(shared)})",
        ),
    ]


def findings_text(output: Location) -> str:
    """Return the lines that a complete audit ends with."""
    manifest = read_json(output / MANIFEST)
    found, counts = manifest["results"], manifest["counts"]["rejected"]
    rejected = "".join(f", rejected {reason} {n:,}" for reason, n in sorted(counts.items()))
    rows = finding_rows(found)
    width = max(len(f"{count:,}") for count, _ in rows) + 2
    head = (
        f"audit: {found['images']:,} images of {found['identities']:,} identities{rejected},"
        f" {manifest['seconds']:,.1f} s -> {output.uri}"
    )
    return "\n".join([head, *(f"{count:>{width},} {text}" for count, text in rows)])


def _how(shared: dict[str, Any]) -> str:
    if shared["method"] == "exact":
        return "all pairs compared"
    return f"candidates by hashes, expected recall {shared['recall']:.1%}"
