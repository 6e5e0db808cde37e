"""Compare the images of a set with each other on Ray, and join the qualities to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from sdd_ray.columns import EMBEDDING, IDENTITY, IMAGE_ID
from sdd_ray.core.assessment import Assessment, assess, mean_assessment
from sdd_ray.core.calibration import FAILED
from sdd_ray.core.comparisons import ComparedPairs, compare_tile, count_nonmated
from sdd_ray.core.similarity import check_embeddings, normalise
from sdd_ray.engine.progress import Progress
from sdd_ray.errors import InputError
from sdd_ray.report.curves import CurveKind
from sdd_ray.settings import ComparisonsConfig, EvaluateConfig, MethodConfig
from sdd_ray.store.dataset import Dataset, embedding_matrix, read_any, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import INCOMPLETE, MANIFEST

_ROWS_PER_TILE = 256


@dataclass(frozen=True)
class ComparedSet:
    """The images of an evaluation and their comparisons.

    Attributes:
        image_ids: (N,) sorted keys.
        codes: (N,) number of the identity of each image.
        unit: (N, D) embeddings of unit length.
        mated, nonmated: Comparisons made.
        num_nonmated: Nonmated comparisons there are; fewer may have been made.
    """

    image_ids: list[str]
    codes: NDArray[np.int64]
    unit: NDArray[np.float32]
    mated: ComparedPairs
    nonmated: ComparedPairs
    num_nonmated: int


def compare_all(dataset: Dataset, config: ComparisonsConfig) -> ComparedSet:
    """Return the comparisons between the images of the configured identities.

    Raises:
        InputError: No mated or no nonmated comparison can be made, or a file is damaged.
    """
    table = dataset.read([IMAGE_ID, IDENTITY, EMBEDDING])
    if config.splits is not None:
        splits = _read_splits(Location(config.splits).absolute())
        wanted = splits.filter(pc.equal(splits["part"], config.part))[IDENTITY]
        table = table.filter(pc.is_in(table[IDENTITY], wanted.combine_chunks()))
    table = table.filter(pc.is_valid(table[IDENTITY])).sort_by(IMAGE_ID).combine_chunks()
    uri = dataset.location.uri
    if table.num_rows == 0:
        raise InputError(f"{uri}: no image of the identities to compare")
    unit = _unit(embedding_matrix(table[EMBEDDING]), uri)
    codes = np.asarray(pc.dictionary_encode(table[IDENTITY]).combine_chunks().indices, np.int64)
    total = count_nonmated(codes)
    limit = config.max_nonmated
    share = 1.0 if limit is None or total <= limit else limit / total
    tiles = _tiles(unit, codes, share, config.seed)
    mated, nonmated = (_joined([tile[side] for tile in tiles]) for side in (0, 1))
    for kind, pairs in (("mated", mated), ("nonmated", nonmated)):
        if len(pairs.similarities) == 0:
            raise InputError(f"{uri}: {table.num_rows} images make no {kind} comparison")
    ids = table[IMAGE_ID].to_pylist()
    return ComparedSet(ids, codes, unit, mated, nonmated, total)


def _read_splits(file: Location) -> pa.Table:
    folder = Location(file.uri.rpartition("/")[0])
    if (folder / INCOMPLETE).exists() and not (folder / MANIFEST).exists():
        raise InputError(f"{file.uri} is of a model that is not complete: train it to the end")
    return read_parquet(file, [IDENTITY, "part"])


def _unit(embeddings: NDArray[np.float32], uri: str) -> NDArray[np.float32]:
    """Return the rows scaled to unit length, which float16 storage takes from them."""
    faulty = int(np.count_nonzero(check_embeddings(embeddings)))
    if faulty:
        raise InputError(f"{uri}: {faulty} embeddings are zero or not finite")
    return normalise(embeddings)[0]


def read_qualities(method: MethodConfig, image_ids: Sequence[str]) -> NDArray[np.float64]:
    """Return the quality of each image, (N,), larger is better; NaN where there is none.

    Raises:
        InputError: The file cannot be read, its values are no numbers, it names an image twice, or
            none of the images.
    """
    table = read_any(method.path, [IMAGE_ID, method.column])
    try:  # the file may be of any program, with other types of text and numbers
        ids = pc.cast(table[IMAGE_ID], pa.string()).combine_chunks()
        values = pc.cast(table[method.column], pa.float64()).combine_chunks()
    except pa.ArrowException as error:
        raise InputError(
            f"{method.path}: expected text in {IMAGE_ID}, numbers in {method.column}: {error}"
        ) from error
    if len(pc.unique(ids)) != table.num_rows:
        raise InputError(f"{method.path}: an image_id occurs more than once")
    place = pc.index_in(pa.array(image_ids, pa.string()), ids)
    if place.null_count == len(image_ids):
        raise InputError(f"{method.path}: none of the {len(image_ids)} compared images is in it")
    qualities = np.array(values.take(place).to_numpy(zero_copy_only=False), np.float64)
    if pa.types.is_integer(table.schema.field(method.column).type):
        qualities[qualities == FAILED] = np.nan
    return qualities * method.sign


@dataclass(frozen=True)
class MethodResult:
    """What one method is worth.

    Attributes:
        name: Name of the method.
        kind: What its values are, see `sdd_ray.settings.MethodConfig`, or random.
        qualities: (N,) quality of each image, larger is better, NaN where it failed.
        assessments: One for each false match rate.
    """

    name: str
    kind: CurveKind
    qualities: NDArray[np.float64]
    assessments: list[Assessment]

    @property
    def num_failed(self) -> int:
        """Images without a quality."""
        return int(np.isnan(self.qualities).sum())


def evaluate_methods(config: EvaluateConfig, compared: ComparedSet) -> list[MethodResult]:
    """Return what every method is worth, a random one last.

    Raises:
        InputError: The qualities of a method cannot be read, or a false match rate asks for more
            nonmated comparisons than there are.
    """
    needed = 1.0 / min(config.fmr)
    made = len(compared.nonmated.similarities)
    if made < needed:
        raise InputError(
            f"fmr={min(config.fmr):g} needs at least {needed:,.0f} nonmated comparisons, there are"
            f" {made:,}; ask for a larger fmr or compare more images"
        )
    work: list[tuple[str, CurveKind, list[NDArray[np.float64]]]] = [
        (m.name, m.kind, [read_qualities(m, compared.image_ids)]) for m in config.methods
    ]
    generator = np.random.default_rng([config.comparisons.seed, 0])
    draws = [generator.random(len(compared.image_ids)) for _ in range(config.random_repeats)]
    work.append(("random", "random", draws))
    task: Any = ray.remote(assess).options(num_cpus=1, name="assess")
    pairs = (ray.put(compared.mated), ray.put(compared.nonmated))
    rest = (config.discard_limit, config.discard_fractions)
    refs = [
        [[task.remote(*pairs, q, fmr, *rest) for q in qualities] for fmr in config.fmr]
        for _, _, qualities in work
    ]
    progress = Progress("evaluate", len(work), unit="methods")
    results = []
    for (name, kind, qualities), by_fmr in zip(work, refs, strict=True):
        assessments = [mean_assessment(ray.get(repeats)) for repeats in by_fmr]
        results.append(MethodResult(name, kind, qualities[0], assessments))
        progress.update(1)
    progress.close()
    return results


def _tiles(
    unit: NDArray[np.float32], codes: NDArray[np.int64], share: float, seed: int
) -> list[tuple[ComparedPairs, ComparedPairs]]:
    task = ray.remote(compare_tile).options(num_cpus=1, name="compare")
    data = (ray.put(unit), ray.put(codes))
    starts = range(0, len(unit), _ROWS_PER_TILE)
    refs = [
        task.remote(*data, (s, min(s + _ROWS_PER_TILE, len(unit))), share, seed) for s in starts
    ]
    progress = Progress("compare", len(unit))
    tiles = []
    for ref, start in zip(refs, starts, strict=True):
        tiles.append(ray.get(ref))
        progress.update(min(_ROWS_PER_TILE, len(unit) - start))
    progress.close()
    return tiles


def _joined(parts: Sequence[ComparedPairs]) -> ComparedPairs:
    return ComparedPairs(
        np.concatenate([p.first for p in parts]),
        np.concatenate([p.second for p in parts]),
        np.concatenate([p.similarities for p in parts]),
    )
