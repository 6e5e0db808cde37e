"""Distributions of similarities: of each image, of each identity, and of the whole set.

Mated similarities are all counted; nonmated ones are those to a random sample of the run that all
images share. Counts are integers, so they add up exactly in any order.

Shapes: N rows of a shard, G identities in it, K bins of [-1, 1], B rows of a tile, R sampled
columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.mated import PAD, MatedTile, Shard
from sdd_ray.core.reference import Block, Rows, similarities
from sdd_ray.core.shard_statistics import QUANTILES

NUM_BINS = 4096
"""Bins of [-1, 1] for the whole set."""

IDENTITY_BINS = 128
"""Bins of [-1, 1] for one identity; each holds the same number of the set's bins."""

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class SetHistograms:
    """Counts of similarities of a set, or of a part of it.

    Attributes:
        mated: (NUM_BINS,) comparisons; each pair of images counts twice, once for each of them.
        nonmated: (NUM_BINS,) comparisons with the sample.
    """

    mated: NDArray[np.int64]
    nonmated: NDArray[np.int64]

    @classmethod
    def empty(cls) -> "SetHistograms":
        """Return the counts of nothing."""
        return cls(np.zeros(NUM_BINS, np.int64), np.zeros(NUM_BINS, np.int64))

    def merge(self, other: "SetHistograms") -> "SetHistograms":
        """Return the counts of both parts; exact, so in any order."""
        return SetHistograms(self.mated + other.mated, self.nonmated + other.nonmated)


@dataclass(frozen=True, eq=False)
class ErrorRates:
    """FMR and FNMR of a set at thresholds between its bins.

    Attributes:
        threshold: (NUM_BINS + 1,) from -1 to 1.
        fmr: Share of nonmated comparisons above each threshold.
        fnmr: Share of mated comparisons below it.
        auc: Chance that a mated similarity exceeds a nonmated one, equal bins counting half.
    """

    threshold: NDArray[np.float64]
    fmr: NDArray[np.float64]
    fnmr: NDArray[np.float64]
    auc: float

    def at_fmr(self, fmr: float) -> tuple[float, float]:
        """Return the smallest threshold of at most this FMR, and the FNMR there; or NaN."""
        if np.isnan(self.fmr[0]):
            return np.nan, np.nan
        place = int(np.argmax(self.fmr <= fmr))
        return float(self.threshold[place]), float(self.fnmr[place])


def error_rates(histograms: SetHistograms) -> ErrorRates:
    """Return the error rates of a set; NaN where it has no comparison of a kind.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, equations (1) and (2), on bins.

    Example:
        >>> counts = SetHistograms.empty()
        >>> counts.mated[[3000, 1000]], counts.nonmated[[2000, 1000]] = 1, 1
        >>> rates = error_rates(counts)
        >>> rates.auc, rates.fmr[[0, 1500, -1]].tolist(), rates.fnmr[[0, 1500, -1]].tolist()
        (0.625, [1.0, 0.5, 0.0], [0.0, 0.5, 1.0])
    """
    below = {
        name: np.concatenate([[0], np.cumsum(counts)])
        for name, counts in (("mated", histograms.mated), ("nonmated", histograms.nonmated))
    }
    with np.errstate(invalid="ignore"):
        fnmr = below["mated"] / below["mated"][-1]
        fmr = (below["nonmated"][-1] - below["nonmated"]) / below["nonmated"][-1]
        higher = np.dot(
            histograms.mated.astype(float), below["nonmated"][:-1] + 0.5 * histograms.nonmated
        )
        auc = higher / (float(below["mated"][-1]) * float(below["nonmated"][-1]))
    threshold = np.linspace(-1.0, 1.0, NUM_BINS + 1)
    return ErrorRates(threshold, fmr, fnmr, float(auc))


class ShardTally:
    """Counts the similarities of a shard.

    Args:
        shard: The rows.
        part: Rows to count, from and to.
        sample: Random images of the run, sorted by identity; None counts no nonmated similarity.
    """

    def __init__(self, shard: Shard, part: tuple[int, int], sample: Block | None) -> None:
        self._shard, self._part = shard, part
        size = part[1] - part[0]
        self.set = SetHistograms.empty()
        num_identities = len(shard.identities)
        self.mated_by_identity = np.zeros((num_identities, IDENTITY_BINS), np.int64)
        self.nonmated_by_identity = np.zeros((num_identities, IDENTITY_BINS), np.int64)
        self.nonmated_quantiles = np.full((size, len(QUANTILES)), np.nan)
        if sample is not None:
            self._count_nonmated(sample)

    def count_mated(self, tile: MatedTile) -> None:
        """Count the mated similarities of a tile."""
        bins = _bins(tile.similarity)
        self._count(bins, tile.similarity > PAD, tile.rows, self.set.mated, self.mated_by_identity)

    def _count_nonmated(self, sample: Block) -> None:
        first, last = self._part
        for start in range(first, last, _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, last))
            chosen = Rows(self._shard.unit[rows], self._shard.codes[rows])
            found = similarities(chosen, sample)
            found.sort(axis=1)
            number = np.count_nonzero(found > PAD, axis=1)
            self.nonmated_quantiles[rows - first] = _quantiles(found, number)
            self._count(
                _bins(found), found > PAD, rows, self.set.nonmated, self.nonmated_by_identity
            )

    def _count(
        self,
        bins: NDArray[np.int32],
        is_there: NDArray[np.bool_],
        rows: NDArray[np.int64],
        of_set: NDArray[np.int64],
        by_identity: NDArray[np.int64],
    ) -> None:
        group = self._shard.group[rows]
        if not is_there.all():
            group = np.broadcast_to(group[:, None], bins.shape)[is_there]
            bins = bins[is_there]
        else:
            group, bins = np.repeat(group, bins.shape[1]), bins.ravel()
        of_set += np.bincount(bins, minlength=NUM_BINS)
        coarse = group * IDENTITY_BINS + bins // (NUM_BINS // IDENTITY_BINS)
        flat = np.bincount(coarse, minlength=by_identity.size)
        by_identity += flat.reshape(by_identity.shape)


def quantile_names(side: str) -> Sequence[str]:
    """Return the names of the columns of quantiles of one side.

    Example:
        >>> quantile_names("mated")
        ['mated_q05', 'mated_q25', 'mated_q50', 'mated_q75', 'mated_q95']
    """
    return [f"{side}_q{round(100 * share):02d}" for share in QUANTILES]


def _bins(similarity: NDArray[np.float32]) -> NDArray[np.int32]:
    bins = ((similarity + np.float32(1.0)) * np.float32(NUM_BINS / 2)).astype(np.int32)
    return np.clip(bins, 0, NUM_BINS - 1, out=bins)


def _quantiles(ordered: NDArray[np.float32], number: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (B, len(QUANTILES)) of the last `number` values of ascending rows, linear."""
    width, line = ordered.shape[1], np.arange(len(ordered))
    found = np.full((len(ordered), len(QUANTILES)), np.nan)
    for column, share in enumerate(QUANTILES):
        place = np.clip(width - number + share * (number - 1), 0, width - 1)
        low = np.floor(place).astype(np.int64)
        below = ordered[line, low].astype(np.float64)
        above = ordered[line, np.minimum(low + 1, width - 1)]
        found[:, column] = below + (place - low) * (above - below)
    found[number == 0] = np.nan
    return found
