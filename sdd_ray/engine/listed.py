"""Compare what a list names: pairs of images, pairs with their similarities, IJB's templates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.columns import IDENTITY, IMAGE_ID
from sdd_ray.core.comparisons import ComparedPairs, similarities_between
from sdd_ray.core.resampling import subjects_of
from sdd_ray.core.templates import average_templates
from sdd_ray.engine.evaluating import ComparedSet, Members, compare_all
from sdd_ray.engine.verifying import NOT_EMBEDDED, read_images
from sdd_ray.errors import InputError
from sdd_ray.formats.comparisons import read_comparisons
from sdd_ray.formats.pair_tables import (
    NumberedPairs,
    number_pairs,
    read_ijb,
    read_scored,
)
from sdd_ray.settings import ComparisonsConfig, TemplatesConfig
from sdd_ray.store.dataset import Dataset


def compare(
    dataset: Dataset | None, config: ComparisonsConfig, fmrs: Sequence[float], depth: int = 1
) -> ComparedSet:
    """Return the comparisons of a list if one is configured, else all of the embeddings.

    Args:
        dataset: Embeddings; None where the list has the similarities.
        config: What to compare.
        fmrs: False match rates that will be asked for.
        depth: See `compare_all`.

    Raises:
        InputError: See `compare_listed` and `compare_all`.
    """
    if dataset is None or config.is_listed:
        return compare_listed(dataset, config)
    return compare_all(dataset, config, fmrs, depth)


def compare_listed(dataset: Dataset | None, config: ComparisonsConfig) -> ComparedSet:
    """Return the comparisons of the configured list.

    Args:
        dataset: Embeddings; None where the list has the similarities.
        config: Names one of the lists.

    Raises:
        InputError: The list or the embeddings are not as they should be, or no mated or no nonmated
            comparison can be made.
    """
    if config.scored is not None:
        return _scored(config.scored)
    if dataset is None:
        raise InputError("embeddings: expected a dataset written by embed, as the list has none")
    if config.templates is not None:
        return _templates(dataset, config.templates)
    if config.pairs is None:
        raise ValueError("expected a configuration with a list")
    pairs = number_pairs(read_comparisons(config.pairs), config.pairs.path)
    ids, unit, reasons = read_images(dataset, pairs.ids)
    order = pc.sort_indices(ids)  # or random qualities would depend on the order of the rows
    ids, unit = ids.take(order), unit[order.to_numpy()]
    return _made(pairs, ids, unit, reasons, _identities(dataset, ids))


def _scored(path: str) -> ComparedSet:
    pairs = read_scored(path)
    if pairs.similarities is None:
        raise InputError(f"{path}: no column similarity")
    mated, nonmated = _sides(pairs.first, pairs.second, pairs.similarities, pairs.mated, path)
    ids = pairs.ids.to_pylist()
    counts = _counts({}, pairs.repeated)
    subjects = subjects_of(mated, len(ids))
    return ComparedSet(ids, subjects, None, mated, nonmated, len(nonmated.first), counts=counts)


def _made(
    pairs: NumberedPairs,
    ids: pa.Array,
    unit: NDArray[np.float32],
    reasons: Mapping[str, str],
    identities: pa.Array | None,
) -> ComparedSet:
    """Return the comparisons of images that have an embedding; those of others are counted."""
    rows = pc.index_in(pairs.ids, ids).to_numpy(zero_copy_only=False)
    place = np.where(np.isnan(rows), -1, rows).astype(np.int64) if rows.dtype.kind == "f" else rows
    first, second = place[pairs.first], place[pairs.second]
    made = (first >= 0) & (second >= 0)
    lacking = np.where(first[~made] < 0, pairs.first[~made], pairs.second[~made])
    numbers, times = np.unique(lacking, return_counts=True)
    counted: dict[str, int] = {}
    for number, count in zip(numbers.tolist(), times.tolist(), strict=True):
        reason = reasons.get(pairs.ids[number].as_py(), NOT_EMBEDDED)
        counted[reason] = counted.get(reason, 0) + count
    first, second = first[made], second[made]
    similarities = similarities_between(unit, first, second).astype(np.float32)
    # Only compared images count: shares of images are of those.
    used, numbered = np.unique(np.concatenate([first, second]), return_inverse=True)
    ends = numbered.astype(np.int32).reshape(2, -1)
    what = f"{len(pairs.first):,} comparisons"
    mated, nonmated = _sides(ends[0], ends[1], similarities, pairs.mated[made], what)
    people = None if identities is None else identities.take(pa.array(used))
    codes = subjects_of(mated, len(used))
    if people is not None:
        codes = np.asarray(pc.dictionary_encode(people).indices, np.int64)
    return ComparedSet(
        ids.take(pa.array(used)).to_pylist(),
        codes,
        unit[used],
        mated,
        nonmated,
        len(nonmated.first),
        counts=_counts(counted, pairs.repeated),
        identities=None if people is None else people.to_pylist(),
    )


def _sides(
    first: NDArray[np.int32],
    second: NDArray[np.int32],
    similarities: NDArray[np.float32],
    mated: NDArray[np.bool_],
    what: str,
) -> tuple[ComparedPairs, ComparedPairs]:
    sides = []
    for kind, rows in (("mated", mated), ("nonmated", ~mated)):
        if not rows.any():
            raise InputError(f"{what}: {len(mated):,} can be made, of which none is {kind}")
        sides.append(ComparedPairs(first[rows], second[rows], similarities[rows]))
    return sides[0], sides[1]


def _identities(dataset: Dataset, ids: pa.Array) -> pa.Array | None:
    """Return the identity of each image, or None if an image has none."""
    table = dataset.read([IMAGE_ID, IDENTITY])
    place = pc.index_in(ids, table[IMAGE_ID].combine_chunks())
    names = table[IDENTITY].combine_chunks().take(place)
    return None if names.null_count else names


def _counts(reasons: Mapping[str, int], repeated: int) -> dict[str, int]:
    counts = {f"comparisons not made, {name}": count for name, count in sorted(reasons.items())}
    return counts | ({"comparisons left out, repeated": repeated} if repeated else {})


def _templates(dataset: Dataset, config: TemplatesConfig) -> ComparedSet:
    listed = read_ijb(config.images, config.pairs)
    ids, unit, _ = read_images(dataset, pc.unique(listed.image_ids))
    place = pc.index_in(listed.image_ids, ids)
    known = place.is_valid().to_numpy(zero_copy_only=False)
    rows = place.drop_null().to_numpy().astype(np.int64)
    numbers, of = np.unique(listed.templates[known], return_inverse=True)
    averaged = average_templates(unit[rows], of, listed.media[known], len(numbers))
    found = _made(
        listed.pairs, listed.pairs.ids.take(pa.array(numbers)), averaged, {}, identities=None
    )
    place_of = {name: number for number, name in enumerate(found.image_ids)}
    names = listed.pairs.ids.take(pa.array(listed.templates)).to_pylist()
    there = np.array([place_of.get(name, -1) for name in names])
    members = Members(listed.image_ids.filter(pa.array(there >= 0)).to_pylist(), there[there >= 0])
    lacking = {"images of templates without an embedding": int(np.count_nonzero(~known))}
    lacking = {name: count for name, count in lacking.items() if count}
    return replace(found, members=members, counts=found.counts | lacking)
