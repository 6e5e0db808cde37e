"""The tables of an audit, each made from what was found."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.columns import IDENTITY, IMAGE_ID, PSEUDO_LABEL
from sdd_ray.core.audit import SMALL, VERDICTS
from sdd_ray.engine.audit_findings import SIGNED_GAP, Findings, Labels


def tables(found: Findings) -> dict[str, pa.Table]:
    """Return all tables by the name of their file."""
    return {
        "suspects": _suspects(found),
        "same_person": _same_person(found),
        "mixed": _mixed(found),
        "mixed_images": _mixed_images(found),
        "duplicates": _duplicates(found),
        "shared_images": _shared_images(found),
        "identities": _identities(found),
    }


def _text(values: Any) -> pa.Array:
    return pa.array(values).cast(pa.string())


def _floats(values: Any) -> pa.Array:
    """Return a column of float32; NaN, which is no number, becomes null."""
    return pa.array(np.asarray(values, np.float32), from_pandas=True)


def _certainty(is_certain: NDArray[np.bool_]) -> pa.Array:
    return pa.array(np.where(is_certain, "high", "low").tolist(), pa.string())


def _suspects(found: Findings) -> pa.Table:
    part, evidence = found.suspects, found.suspects.evidence
    columns = {
        IMAGE_ID: _text(found.ids(part.rows)),
        IDENTITY: _text(found.names(evidence.codes)),
        "verdict": pa.array([VERDICTS[code] for code in part.verdict], pa.string()),
        "certainty": _certainty(part.certain),
        "score": _floats(part.score),
        "own_similarity": _floats(evidence.own),
        "own_match_share": _floats(part.match_share),
        "usual_similarity": _floats(evidence.usual),
        "num_mated": pa.array(evidence.num_mated, pa.int64()),
        "suggested_identity": _text(found.names(np.where(part.verdict == 0, part.nearest, -1))),
        "nearest_identity": _text(found.names(part.nearest)),
        "nearest_similarity": _floats(evidence.nearest),
        "nearest_num_images": pa.array(evidence.nearest_size, pa.int64()),
        "norm_rank": _floats(evidence.norm_rank),
    }
    if found.labels is not None:
        columns[PSEUDO_LABEL] = _floats(found.labels.pseudo_label[part.rows])
        columns[SIGNED_GAP] = _floats(found.labels.signed_gap[part.rows])
    return pa.table(columns)


def _same_person(found: Findings) -> pa.Table:
    identities, part = found.context.survey.identities, found.same
    a, b = part.first, part.second
    cosine = np.einsum(
        "pd,pd->p", identities.centroids[a], identities.centroids[b], dtype=np.float64
    )
    sizes = identities.sizes
    return pa.table(
        {
            "person": _text(found.names(part.person[a])),
            "identity_a": _text(found.names(a)),
            "identity_b": _text(found.names(b)),
            "certainty": _certainty(np.minimum(sizes[a], sizes[b]) >= SMALL),
            "likeness": _floats(part.likeness),
            "mean_similarity": _floats(cosine * identities.lengths[a] * identities.lengths[b]),
            "mated_mean_a": _floats(identities.within[a]),
            "mated_mean_b": _floats(identities.within[b]),
            "num_images_a": pa.array(sizes[a], pa.int64()),
            "num_images_b": pa.array(sizes[b], pa.int64()),
        }
    )


def _mixed(found: Findings) -> pa.Table:
    part = found.mixed
    codes = np.array([m.split.identity for m in part], np.int64)
    verdict = ["poor_images" if m.is_poor else "two_people" for m in part]
    sizes = found.context.survey.identities.sizes[codes]
    return pa.table(
        {
            IDENTITY: _text(found.names(codes)),
            "verdict": pa.array(verdict, pa.string()),
            "num_images": pa.array(sizes, pa.int64()),
            "num_groups": pa.array([m.split.num_groups for m in part], pa.int64()),
            "images_first": pa.array([len(m.groups[0]) for m in part], pa.int64()),
            "images_second": pa.array([len(m.groups[1]) for m in part], pa.int64()),
            "within_first": _floats([m.split.within[0] for m in part]),
            "within_second": _floats([m.split.within[1] for m in part]),
            "between": _floats([m.split.between for m in part]),
            "norm_rank": _floats([m.norm_rank for m in part]),
        }
    )


def _mixed_images(found: Findings) -> pa.Table:
    groups = [(rows, n) for m in found.mixed for n, rows in enumerate(m.groups, 1)]
    rows = np.concatenate([rows for rows, _ in groups] or [np.zeros(0, np.int64)])
    numbers = [n for rows, n in groups for _ in rows]
    return pa.table(
        {
            IDENTITY: _text(found.names(found.context.audited.codes[rows])),
            "group": pa.array(numbers, pa.int64()),
            IMAGE_ID: _text(found.ids(rows)),
        }
    )


def _duplicates(found: Findings) -> pa.Table:
    audited, surveyed = found.context.audited, found.context.survey
    rows = np.flatnonzero(surveyed.duplicate_of >= 0)
    first = surveyed.duplicate_of[rows]
    order = np.lexsort((rows, first))
    rows, first = rows[order], first[order]
    keys = np.stack([first.astype(np.uint64), audited.content[rows]])
    _, place, count = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
    same = (count[place.ravel()] > 1) & audited.has_content[rows]
    similarity = np.minimum(surveyed.duplicate_similarity[rows], 1)
    return pa.table(
        {
            IDENTITY: _text(found.names(audited.codes[rows])),
            "group": pa.array(np.cumsum(np.diff(first, prepend=-1) > 0) - 1, pa.int64()),
            IMAGE_ID: _text(found.ids(rows)),
            "similarity": _floats(similarity),
            "same_content": pa.array(same),
        }
    )


def _shared_images(found: Findings) -> pa.Table:
    part = found.shared
    return pa.table(
        {
            "group": pa.array(part.group, pa.int64()),
            IMAGE_ID: _text(found.ids(part.rows)),
            IDENTITY: _text(found.names(found.context.audited.codes[part.rows])),
            "similarity": _floats(part.similarity),
            "same_content": pa.array(part.same_content),
        }
    )


def _identities(found: Findings) -> pa.Table:
    surveyed, part = found.context.survey, found.suspects
    sizes = surveyed.identities.sizes
    there = np.flatnonzero(sizes > 0)

    def count(*names: str) -> pa.Array:
        codes = [VERDICTS.index(name) for name in names]
        chosen = part.evidence.codes[np.isin(part.verdict, codes)]
        return pa.array(np.bincount(chosen, minlength=len(sizes))[there], pa.int64())

    groups = np.ones(len(sizes), np.int64)
    for m in found.mixed:
        groups[m.split.identity] = 1 if m.is_poor else m.split.num_groups
    is_named_twice = np.bincount(found.same.person, minlength=len(sizes))[found.same.person] > 1
    person = np.where(is_named_twice, found.same.person, -1)
    columns = {
        IDENTITY: _text(found.names(there)),
        "num_images": pa.array(sizes[there], pa.int64()),
        "mated_mean": _floats(surveyed.identities.within[there]),
        "usual_similarity": _floats(surveyed.usual[there]),
        "num_elsewhere": count("elsewhere"),
        "num_nowhere": count("second_person", "unknown", "either"),
        "num_poor": count("poor"),
        "num_people": pa.array(groups[there], pa.int64()),
        "person": _text(found.names(person[there])),
    }
    if found.labels is not None:
        columns |= label_statistics(found.labels, found.context.audited.codes, there)
    return pa.table(columns)


def label_statistics(
    labels: Labels, codes: NDArray[np.int64], wanted: NDArray[np.int64]
) -> dict[str, pa.Array]:
    """Return how the labels of each wanted identity are spread, null where it has none."""
    known = ~np.isnan(labels.pseudo_label)
    frame = pa.table({"code": codes[known], "label": labels.pseudo_label[known].astype(np.float64)})
    functions = ["count", "mean", "stddev", "min"]
    grouped = frame.group_by("code", use_threads=False).aggregate([("label", f) for f in functions])
    place = pc.index_in(pa.array(wanted), grouped["code"].combine_chunks())
    columns = {f: grouped[f"label_{f}"].take(place) for f in functions}
    return {
        "num_labels": columns["count"].fill_null(0).combine_chunks(),
        "label_mean": columns["mean"].cast(pa.float32()).combine_chunks(),
        "label_std": columns["stddev"].cast(pa.float32()).combine_chunks(),
        "label_min": columns["min"].cast(pa.float32()).combine_chunks(),
    }
