"""Mated comparisons between the validation images: what the figure pauc is computed from.

The embeddings of the images are compared once, before training: which comparisons are false
non-matches at a fixed threshold depends on no prediction.

Shapes: N images compared, d numbers of an embedding, M mated comparisons.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from sdd_ray.columns import EMBEDDING, IDENTITY, IMAGE_ID
from sdd_ray.core.comparisons import ComparedPairs, compare_tile, count_nonmated
from sdd_ray.core.edc import Comparisons, fnm_edc, pair_qualities
from sdd_ray.core.edc_areas import normalised_pauc
from sdd_ray.core.error_rates import is_false_non_match, threshold_at_fmr
from sdd_ray.core.similarity import usable_rows
from sdd_ray.engine.tasks import on_fetched, run_tasks
from sdd_ray.engine.training_labels import image_keys
from sdd_ray.engine.training_rows import Rows
from sdd_ray.errors import InputError, SddError
from sdd_ray.settings import TrainConfig
from sdd_ray.store.dataset import (
    Dataset,
    embedding_matrix,
    open_dataset,
    read_parquet_with_groups,
    read_row_groups,
)
from sdd_ray.store.location import Location

DISCARD_LIMIT = 0.3
"""Share of the comparisons up to which the area is taken."""

_MOST_NONMATED = 5_000_000
"""Nonmated comparisons made at most; a false match rate of 1e-5 then still rests on fifty."""

_ROWS_PER_TILE = 256
_NAMES = [IMAGE_ID, IDENTITY, "row"]


@dataclass(frozen=True, eq=False)
class ValidationComparisons:
    """Mated comparisons between validation images, at one threshold.

    Attributes:
        first, second: (M,) `row` of the two images.
        wrong: (M,) whether it is a false non-match.
        fmr: False match rate asked for.
        threshold: Similarity that holds it.
    """

    first: NDArray[np.int32]
    second: NDArray[np.int32]
    wrong: NDArray[np.bool_]
    fmr: float
    threshold: float

    def normalised_pauc(self, qualities: NDArray[np.floating[Any]]) -> float:
        """Return the partial area under the error versus discard curve of some qualities.

        Args:
            qualities: (rows,) quality of each validation image by `row`, larger is better; NaN
                where it failed.

        Returns:
            The area up to `DISCARD_LIMIT` over that of no gain: 1 is useless, lower is better; NaN
            where it is undefined.
        """
        paired = pair_qualities(qualities[self.first], qualities[self.second])
        # Which side of the threshold a similarity is on is all that the curve asks.
        mated = Comparisons((~self.wrong).astype(np.float32), paired)
        return normalised_pauc(fnm_edc(mated, threshold=0.5), DISCARD_LIMIT).value


def validation_comparisons(
    config: TrainConfig, labels: Dataset, validation: Rows
) -> tuple[ValidationComparisons | None, str]:
    """Return the comparisons; or None, and in words why there are none.

    Raises:
        InputError: There are none, but the configuration asks for them.
    """
    is_needed = config.best == "pauc" or config.validation.embeddings is not None
    try:
        with _asked_for(config):
            return _compared(config, labels, validation), ""
    except InputError as error:
        if is_needed:
            raise
        return None, str(error)


def check_comparisons(config: TrainConfig, labels: Dataset) -> None:
    """Check before any work that the embeddings are there, where the configuration needs them.

    Raises:
        InputError: They are not.
    """
    if config.best == "pauc" or config.validation.embeddings is not None:
        with _asked_for(config):
            _embeddings(config, labels)


@contextmanager
def _asked_for(config: TrainConfig) -> Iterator[None]:
    """Say in errors which key of the configuration needs the comparisons."""
    try:
        yield
    except InputError as error:
        if config.best == "pauc":
            raise InputError(
                f"best=pauc needs comparisons of validation images: {error}"
            ) from error
        if config.validation.embeddings is not None:
            raise InputError(f"validation.embeddings: {error}") from error
        raise


def _compared(config: TrainConfig, labels: Dataset, validation: Rows) -> ValidationComparisons:
    embeddings = _embeddings(config, labels)
    rows = _drawn(validation, config.validation.max_images)
    rows, unit = _with_embeddings(rows, embeddings)
    codes = np.asarray(rows[IDENTITY].dictionary_encode().combine_chunks().indices, np.int64)
    mated, nonmated = _compare(unit, codes)
    fmr, threshold = config.validation.fmr, np.nan
    if nonmated.size:
        threshold = threshold_at_fmr(nonmated, fmr).threshold
    if np.isnan(threshold):
        raise InputError(
            f"validation.fmr={fmr:g} allows no false match among {nonmated.size:,} nonmated"
            f" comparisons of {len(codes):,} validation images; it needs a larger rate, or more"
            " images"
        )
    wrong = is_false_non_match(mated.similarities, threshold)
    if not wrong.any():
        raise InputError(
            f"none of {wrong.size:,} mated comparisons of {len(codes):,} validation images is a"
            f" false non-match at validation.fmr={fmr:g}: there is no error that quality could save"
        )
    number = np.asarray(rows["row"]).astype(np.int32)
    return ValidationComparisons(
        number[mated.first], number[mated.second], wrong, fmr, float(threshold)
    )


def _embeddings(config: TrainConfig, labels: Dataset) -> Dataset:
    """Return the dataset that the configuration names, or the one that was labelled.

    Raises:
        InputError: It is not there, or was made again since it was labelled.
    """
    if config.validation.embeddings is not None:
        return open_dataset(config.validation.embeddings, ["embed"])
    uri = str(labels.manifest.get("config", {}).get("embeddings"))
    dataset = open_dataset(uri, ["embed"])
    if dataset.digest != labels.manifest.get("inputs", {}).get("embeddings"):
        raise InputError(f"{uri} holds other embeddings than those that were labelled")
    return dataset


def _drawn(validation: Rows, most: int) -> pa.Table:
    """Return image_id, identity and row of at most so many images, of whole identities.

    Identities come in the order of a hash; one that does not fit any more is passed over.

    Raises:
        InputError: No identity fits.
    """
    counts: Counter[str] = Counter()
    for part in validation.parts([IDENTITY]):
        for found in pc.value_counts(part[IDENTITY]).to_pylist():
            counts[found["values"]] += found["counts"]
    names = sorted(counts)
    taken, total = [], 0
    for place in np.argsort(image_keys(names), kind="stable"):
        name = names[place]
        if total + counts[name] <= most:
            taken.append(name)
            total += counts[name]
    if not taken:
        raise InputError(
            f"validation.max_images={most:,} is fewer than the images of any of {len(names):,}"
            " validation identities"
        )
    wanted = pa.array(taken, pa.string())
    return pa.concat_tables(
        part.filter(pc.is_in(part[IDENTITY], wanted)) for part in validation.parts(_NAMES)
    )


def _with_embeddings(rows: pa.Table, dataset: Dataset) -> tuple[pa.Table, NDArray[np.float32]]:
    """Return the rows that have a usable embedding, by image_id, and (N, d) these at unit length.

    Raises:
        InputError: A file is damaged, or lengths of embeddings differ.
    """
    task: Any = ray.remote(_read).options(name="read embeddings", max_retries=3)
    wanted = ray.put(rows[IMAGE_ID].combine_chunks())
    ids: list[str] = []
    matrices: list[NDArray[np.float32]] = []
    calls = ((partial(task.remote, file, wanted), file) for file in dataset.files)
    for found, file in run_tasks(calls):
        if isinstance(found, SddError):
            raise found
        if not len(found[0]):
            continue
        ids += found[0]
        matrices.append(found[1])
        if found[1].shape[1] != matrices[0].shape[1]:
            raise InputError(
                f"{file.uri}: embeddings of {found[1].shape[1]} numbers, others have"
                f" {matrices[0].shape[1]}"
            )
    unit, faults = usable_rows(np.concatenate(matrices or [np.zeros((0, 1), np.float32)]))
    if not len(unit):
        raise InputError(f"{dataset.location.uri} holds none of the validation images")
    usable = pa.array(np.array(ids, dtype=object)[faults == 0], pa.string())
    order = pc.sort_indices(usable)
    place = pc.index_in(usable.take(order), rows[IMAGE_ID].combine_chunks())
    return rows.take(place), unit[np.asarray(order)]


def _read(file: Location, wanted: pa.Array) -> tuple[list[str], NDArray[np.float32]] | SddError:
    """Return image_ids and embeddings of the wanted images in a file; runs on a worker."""
    try:
        ids, sizes = read_parquet_with_groups(file, [IMAGE_ID])
        is_wanted = np.asarray(pc.is_in(ids[IMAGE_ID], wanted))
        starts = np.cumsum([0, *sizes])
        groups = [n for n in range(len(sizes)) if is_wanted[starts[n] : starts[n + 1]].any()]
        if not groups:
            return [], np.zeros((0, 0), np.float32)
        table = read_row_groups(file, groups, [IMAGE_ID, EMBEDDING])
        table = table.filter(pc.is_in(table[IMAGE_ID], wanted))
        return table[IMAGE_ID].to_pylist(), embedding_matrix(table[EMBEDDING])
    except SddError as error:
        return error


def _compare(
    unit: NDArray[np.float32], codes: NDArray[np.int64]
) -> tuple[ComparedPairs, NDArray[np.float32]]:
    """Return all mated comparisons, and the similarities of a sample of the nonmated ones."""
    share = min(1.0, _MOST_NONMATED / max(1, count_nonmated(codes)))
    task: Any = ray.remote(on_fetched).options(name="compare", max_retries=3)
    held = [ray.put(unit), ray.put(codes)]
    starts = range(0, len(unit), _ROWS_PER_TILE)
    tiles = ((start, min(start + _ROWS_PER_TILE, len(unit))) for start in starts)
    calls = ((partial(task.remote, _tile, held, rows, share), None) for rows in tiles)
    mated, nonmated = zip(*(found for found, _ in run_tasks(calls)), strict=True)
    joined = [
        np.concatenate([getattr(tile, name) for tile in mated])
        for name in ("first", "second", "similarities")
    ]
    return ComparedPairs(*joined), np.concatenate(nonmated)


def _tile(
    unit: NDArray[np.float32], codes: NDArray[np.int64], rows: tuple[int, int], share: float
) -> tuple[ComparedPairs, NDArray[np.float32]]:
    mated, nonmated = compare_tile(unit, codes, rows, share, seed=0)
    return mated, nonmated.similarities
