"""The comparisons of an evaluation, and their ranks under a quality.

Shapes: N images, M mated and K nonmated comparisons, T largest nonmated ones, U ranks, F discard
fractions, L discard limits, P discard fractions of the EVRC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.comparisons import ComparedPairs
from sdd_ray.core.discarding import (
    Ranks,
    Sums,
    TopNonmated,
    at_least,
    of_each,
    rank_qualities,
    top_nonmated,
)
from sdd_ray.core.edc import EVRC_DISCARD_FRACTIONS
from sdd_ray.core.error_rates import OperatingPoint, check_similarities

PairQuality = Literal["minimum", "maximum", "mean"]


@dataclass(frozen=True)
class Protocol:
    """What is computed.

    Attributes:
        fmrs: False match rates, in (0, 1).
        discard_limits: (L,) where partial areas end, in (0, 1].
        fractions: (F,) discard fractions of the tables, in [0, 1).
        pair_quality: From the qualities of two images to that of their comparison. Only by the
            minimum are the comparisons below a quality those of the images below it.
        discarded: What the fractions of the EVRC are shares of. Images go with the minimum only.
        advice_discards: Shares of the images to advise quality thresholds for, in [0, 1).
        advice_fnmrs: False non-match rates to advise them for, in [0, 1). Advice is for the minimum
            only.
    """

    fmrs: tuple[float, ...]
    discard_limits: tuple[float, ...] = (0.3,)
    fractions: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
    pair_quality: PairQuality = "minimum"
    discarded: Literal["images", "comparisons"] = "images"
    advice_discards: tuple[float, ...] = ()
    advice_fnmrs: tuple[float, ...] = ()

    @property
    def grid(self) -> NDArray[np.float64]:
        """(P,) discard fractions at which the EVRC is computed: the paper's and the tables'."""
        return np.union1d(EVRC_DISCARD_FRACTIONS, np.asarray(self.fractions, np.float64))


@dataclass(frozen=True, eq=False)
class ComparedSides:
    """The comparisons of an evaluation, ready to be assessed by any number of qualities.

    Attributes:
        mated: M comparisons.
        top: The largest nonmated similarities in order, and how many nonmated comparisons there
            are.
        nonmated: K comparisons; None where they are all those between images of two people (and
            `mated` all others), too many to be held.
    """

    mated: ComparedPairs
    top: TopNonmated
    nonmated: ComparedPairs | None = None

    @classmethod
    def of(
        cls, mated: ComparedPairs, nonmated: ComparedPairs, fmrs: Sequence[float], least: int = 0
    ) -> "ComparedSides":
        """Sort what is needed for some false match rates, and as many as `least` if there are.

        Raises:
            ValueError: A kind of comparison is missing, or a similarity is NaN.
        """
        check_similarities(mated.similarities, "mated")
        given = (nonmated.first, nonmated.second, nonmated.similarities)
        return cls(mated, top_nonmated(*given, max(fmrs), least), nonmated)

    def points(self, fmrs: Sequence[float]) -> list[OperatingPoint]:
        """Return threshold and achieved rate before anything is discarded, for each rate."""
        top, size = self.top, self.top.size
        everything = np.zeros(1, np.int64), np.array([size])
        ranks, all_ranks = np.zeros(len(top.sorted), np.int32), None
        if top.all is not None:
            all_ranks = np.zeros(size, np.int32)
        solved = top.solve(ranks, *everything, fmrs, all_ranks)
        return [
            OperatingPoint(float(threshold[0]), rate, float(achieved[0]), size)
            for rate, threshold, achieved in zip(
                fmrs, solved.thresholds, solved.achieved, strict=True
            )
        ]


@dataclass(frozen=True, eq=False)
class RankedSides:
    """The rank of every image and comparison under one quality.

    Attributes:
        images: Of the N images.
        mated: (M,) of the mated comparisons.
        top: (T,) of the largest nonmated ones.
        nonmated: (K,) of all of them, if they are held.
        number: U, ranks of comparisons there are.
    """

    images: Ranks
    mated: NDArray[np.int32]
    top: NDArray[np.int32]
    nonmated: NDArray[np.int32] | None
    number: int


@dataclass(frozen=True, eq=False)
class Weights:
    """How often images and comparisons count; see `sdd_ray.core.resampling`.

    Attributes:
        images: (N,) of the images, whole numbers.
        mated: (M,) of the mated comparisons.
        nonmated: (K,) of the nonmated ones, if they are held.
        top: (T,) of the largest nonmated ones.
    """

    images: NDArray[np.float64]
    mated: NDArray[np.float64]
    nonmated: NDArray[np.float64] | None
    top: NDArray[np.float64]


def rank_sides(
    sides: ComparedSides, qualities: NDArray[np.float64], protocol: Protocol
) -> RankedSides:
    """Return the ranks of all comparisons under a quality.

    Raises:
        ValueError: Images are discarded by another pair quality than the minimum, or comparisons
            that are not held are.
    """
    how = protocol.pair_quality
    if how != "minimum" and protocol.discarded == "images":
        raise ValueError(f"images cannot be discarded by the {how}")
    if how != "minimum" and sides.nonmated is None:
        raise ValueError(f"the {how} needs all nonmated comparisons at hand")
    ends = [(c.first, c.second) for c in (sides.mated, sides.top)]
    ends += [(c.first, c.second) for c in (sides.nonmated,) if c is not None]
    images = rank_qualities(qualities)
    if how == "mean":
        means = [(qualities[first] + qualities[second]) / 2 for first, second in ends]
        ranks = rank_qualities(np.concatenate(means))
        cuts = np.cumsum([len(part) for part in means])[:-1]
        number, of = ranks.number, np.split(ranks.of, cuts)
    else:
        lower = np.minimum if how == "minimum" else np.maximum
        of = [lower(images.of[first], images.of[second]) for first, second in ends]
        number = images.number
    return RankedSides(images, of[0], of[1], of[2] if len(of) > 2 else None, number)


def nonmated_at_least(ranked: RankedSides, weights: Weights | None = None) -> Sums:
    """Return (U,) how many nonmated comparisons have each rank or a higher one, or their weights.

    Where they are not held they are counted by their images: all pairs of these but the mated ones.
    """
    if ranked.nonmated is not None:
        given = None if weights is None else weights.nonmated
        held: Sums = np.bincount(ranked.nonmated, given, ranked.number)
        return at_least(held)
    if weights is None:
        images = at_least(np.bincount(ranked.images.of, minlength=ranked.number))
        mated = at_least(np.bincount(ranked.mated, minlength=ranked.number))
        counted: Sums = images * (images - 1) // 2 - mated
        return counted
    # A mated pair is one of two copies of a person drawn w times: its product would be w * w.
    own = np.bincount(ranked.images.of, weights.images, ranked.number)
    squares = np.bincount(ranked.images.of, weights.images**2, ranked.number)
    mated_squares = np.bincount(ranked.mated, weights.mated**2, ranked.number)
    pairs = (at_least(own) ** 2 - at_least(squares)) / 2
    return np.asarray(np.round(pairs - at_least(mated_squares)))


def leaving(
    ranked: RankedSides, protocol: Protocol, up_from: Sums, weights: Weights | None = None
) -> Sums:
    """Return (U,) how many of what the EVRC discards have each rank, or their weights.

    Args:
        ranked: The ranks.
        protocol: Says what is discarded.
        up_from: What `nonmated_at_least` says of them.
        weights: None: each counts once.
    """
    if protocol.discarded == "images":
        images = None if weights is None else weights.images
        return np.asarray(np.bincount(ranked.images.of, images, ranked.number))
    mated = np.bincount(ranked.mated, None if weights is None else weights.mated, ranked.number)
    return np.asarray(mated + of_each(up_from))
