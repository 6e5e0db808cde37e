"""From distribution distances to pseudo-labels, the training targets.

A scale is found once over all labelled images and stored with the labels: without it a label
cannot be turned back into a distance, and labels of two runs cannot be compared. What it is found
from merges exactly, over shards in any order.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

ScaleMethod = Literal["min_max", "quantile", "none"]

LARGEST_DISTANCE = 2.0
"""Similarities lie in [-1, 1], so no two distributions of them are further apart."""

NUM_BINS = 1 << 16
"""Bins of [0, 2] in which distances are counted: quantiles are exact to half of 3e-5."""

NUM_KNOTS = 101
"""Distances of a ``quantile`` scale: one for each percent."""


@dataclass(frozen=True, eq=False)
class DistanceSummary:
    """What a scale is found from: extremes and counts of distances.

    Attributes:
        low: Smallest distance; infinity if there is none.
        high: Largest distance; minus infinity if there is none.
        counts: (NUM_BINS,) distances in each bin of [0, 2].
    """

    low: float
    high: float
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, distances: NDArray[np.float64]) -> "DistanceSummary":
        """Return the summary of distances; NaN, an image without a label, is left out.

        Raises:
            ValueError: A distance is outside [0, 2], but for rounding by 1e-6.
        """
        known = distances[~np.isnan(distances)]
        low, high = float(known.min(initial=np.inf)), float(known.max(initial=-np.inf))
        if low < -1e-6 or high > LARGEST_DISTANCE + 1e-6:
            raise ValueError(f"expected distances in [0, 2], got some from {low} to {high}")
        bins = (known * (NUM_BINS / LARGEST_DISTANCE)).astype(np.int64)
        counts = np.bincount(np.clip(bins, 0, NUM_BINS - 1), minlength=NUM_BINS)
        return cls(low, high, counts.astype(np.int64))

    def merge(self, other: "DistanceSummary") -> "DistanceSummary":
        """Return the summary of both sets of distances; exact, so in any order."""
        return DistanceSummary(
            min(self.low, other.low), max(self.high, other.high), self.counts + other.counts
        )

    def quantiles(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distances below which the shares, in [0, 1], lie; 0 and 1 give the extremes.

        The others are middles of bins.
        """
        cumulative = np.cumsum(self.counts)
        bins = np.searchsorted(cumulative, shares * cumulative[-1])
        middles = (np.minimum(bins, NUM_BINS - 1) + 0.5) * (LARGEST_DISTANCE / NUM_BINS)
        inner = np.clip(middles, self.low, self.high)
        return np.where(shares <= 0, self.low, np.where(shares >= 1, self.high, inner))


@dataclass(frozen=True)
class LabelScale:
    """A fitted scale.

    Attributes:
        method: How it was fitted.
        knots: Distances, not decreasing, that get the labels 0 to 100 at even intervals: 2 for
            ``min_max``, NUM_KNOTS for ``quantile``, and none for ``none``.
    """

    method: ScaleMethod
    knots: tuple[float, ...]

    def apply(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N,) pseudo-labels, linear between the knots; NaN stays NaN.

        Distances beyond the knots get 0 or 100. If all images had equal distances, all get 50:
        nothing tells them apart, and neither end of the scale would be true. Without knots the
        label is the distance itself.

        Example:
            >>> scale = LabelScale("min_max", (0.2, 0.6))
            >>> scale.apply(np.array([0.2, 0.5, 0.7, np.nan])).round(6).tolist()
            [0.0, 75.0, 100.0, nan]
        """
        if not self.knots:
            return distances.copy()
        if self.knots[0] == self.knots[-1]:
            return np.where(np.isnan(distances), np.nan, 50.0)
        return np.interp(distances, self.knots, np.linspace(0.0, 100.0, len(self.knots)))

    def to_dict(self) -> dict[str, Any]:
        """Return the scale as plain values, for a manifest."""
        return {**asdict(self), "knots": list(self.knots)}


def fit_scale(summary: DistanceSummary, method: ScaleMethod = "min_max") -> LabelScale:
    """Return the scale for a set of distances.

    Args:
        summary: Of all labelled images of the run.
        method: ``min_max``: 0 for the smallest and 100 for the largest distance, as in the paper;
            two unusual images then decide every label. ``quantile``: the rank in percent.
            ``none``: the distance itself, which does not change when images are added.

    Raises:
        ValueError: No image is labelled (but for ``none``), or the method is not one of these.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, equations (8) and (9), for ``min_max``.

    Example:
        >>> fit_scale(DistanceSummary.of(np.array([0.25, 0.75, np.nan]))).to_dict()
        {'method': 'min_max', 'knots': [0.25, 0.75]}
    """
    if method not in get_args(ScaleMethod):
        raise ValueError(f"expected a method of {get_args(ScaleMethod)}, got {method!r}")
    if method == "none":
        return LabelScale(method, ())
    if summary.low > summary.high:
        raise ValueError("expected at least one labelled image, got none")
    if method == "min_max":
        return LabelScale(method, (summary.low, summary.high))
    knots = summary.quantiles(np.linspace(0.0, 1.0, NUM_KNOTS))
    return LabelScale(method, tuple(knots.tolist()))
