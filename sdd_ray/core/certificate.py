"""What the correction C of a label cannot exceed, given mean and variance of its nonmated side.

With F_P and F_N the distribution functions of an image's mated and nonmated similarities and
H = 1 - F_P, G = 1 - F_N the shares above a similarity,

    W1 = mean(P) - mean(N) + 2 C,    C = integral of (G - H)^+ over the line above the smallest
                                         mated similarity.

G is not known, but its mean and variance are, exactly and without any pair. Two inequalities bound
C by them, and both need no look at any nonmated similarity:

- Cantelli: G(t) <= 1 / (1 + u^2) for t above the mean, u in standard deviations. The excess of
  that over H is integrated in closed form between neighbouring mated similarities.
- Scarf: the mean of (s - a)^+ is largest for a distribution of two points. It bounds the part of
  the line above the largest mated similarity, where H = 0, four times tighter than Cantelli, and
  also the whole from the smallest one on.

Shapes: B rows, W mated similarities at most (see `mated`).
"""

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.mated import PAD, MatedTile
from sdd_ray.core.wasserstein import row_sums

LARGEST_SIMILARITY = 1.0 + 1e-6
"""Similarities of unit rows, with their rounding, are at most this."""


def largest_correction(
    tile: MatedTile, mean: NDArray[np.float64], std: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return what C cannot exceed, and where on the line it can come from.

    Args:
        tile: The mated similarities.
        mean: (B,) mean nonmated similarity of each row.
        std: (B,) what its population standard deviation does not exceed.

    Returns:
        (B,) the bound, 0 for a row with no mated similarity; (B, W) whether G may exceed H anywhere
        between a mated similarity and the next one, always True for the largest.

    Source:
        Cantelli's inequality; H. Scarf, "A min-max solution of an inventory problem", 1958, for
        the mean of (s - a)^+ at a given mean and variance.
    """
    may_exceed = _may_exceed(tile, mean, std)
    inner, outer = _cantelli_integrals(tile, may_exceed, mean, std)
    above_all = scarf_bound(np.maximum(tile.largest, -1.0), mean, std)
    from_lowest = scarf_bound(np.where(tile.num_mated > 0, tile.smallest, 1.0), mean, std)
    bound = np.minimum(inner + np.minimum(outer, above_all), from_lowest)
    return np.where(tile.num_mated > 0, bound, 0.0), may_exceed


def scarf_bound(
    a: NDArray[np.floating], mean: NDArray[np.float64], std: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the largest mean of (s - a)^+ over all distributions of this mean and deviation.

    The values lie below LARGEST_SIMILARITY, which shortens the upper of the two points on which
    the worst distribution sits.

    Example:
        >>> float(scarf_bound(np.array([0.0]), np.array([0.0]), np.array([0.2]))[0])
        0.1
    """
    top = LARGEST_SIMILARITY
    distance = a - mean
    reach = np.hypot(distance, std)
    free = 0.5 * np.maximum(reach - distance, 0.0)
    mass = np.square(std) / np.maximum(np.square(std) + np.square(top - mean), 1e-300)
    at_top = mass * np.maximum(top - a, 0.0)
    return np.where(a + reach > top, at_top, free)


def _may_exceed(
    tile: MatedTile, mean: NDArray[np.float64], std: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return (B, W) whether Cantelli's bound exceeds H at a mated similarity; False at padding.

    Up to the next one H is constant and the bound falls, so where it does not exceed there, it does
    not on the whole step. In float32, and generous by more than its rounding.
    """
    width = tile.similarity.shape[1]
    num_mated = np.maximum(tile.num_mated, 1).astype(np.float32)
    left = (width - tile.num_mated).astype(np.float32)
    scale = (1.0 / np.maximum(std, 1e-12)).astype(np.float32)
    reach = (tile.similarity - mean.astype(np.float32)[:, None]) * scale[:, None]
    np.maximum(reach, 0.0, out=reach)
    reach *= reach
    reach += 1.0
    rank = np.arange(1, width + 1, dtype=np.float32)
    share = 1.0 - (rank - left[:, None]) / num_mated[:, None] - np.float32(1e-5)
    # 1 / (1 + u^2) > share, without a division
    result: NDArray[np.bool_] = (share * reach < 1.0 + 1e-5) & (tile.similarity > PAD)
    return result


def _cantelli_integrals(
    tile: MatedTile,
    may_exceed: NDArray[np.bool_],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (B,) the integrals of (Cantelli's bound - H)^+ below and above the largest mated."""
    height, width = tile.similarity.shape
    row, column = np.nonzero(may_exceed)
    start = tile.similarity[row, column].astype(np.float64)
    is_last = column == width - 1
    following = tile.similarity[row, np.minimum(column + 1, width - 1)].astype(np.float64)
    stop = np.where(is_last, LARGEST_SIMILARITY, following)
    above = 1.0 - (column + 1 - width + tile.num_mated[row]) / tile.num_mated[row]
    excess = _step_integral(start, stop, above, mean[row], np.maximum(std, 1e-12)[row])
    outer = row_sums(row[is_last], excess[is_last], height)
    return row_sums(row[~is_last], excess[~is_last], height), outer


def _step_integral(
    start: NDArray[np.float64],
    stop: NDArray[np.float64],
    above: NDArray[np.float64],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return (E,) the integral of (Cantelli's bound - above)^+ over each step."""
    stop = np.maximum(stop, start)
    with np.errstate(divide="ignore"):
        stop = np.minimum(stop, mean + std * np.sqrt(1.0 / above - 1.0))  # there bound = above
    stop = np.maximum(stop, start)
    middle = np.clip(mean, start, stop)
    tail = std * (np.arctan((stop - mean) / std) - np.arctan((middle - mean) / std))
    excess = (1.0 - above) * (middle - start) + tail - above * (stop - middle)
    integral: NDArray[np.float64] = np.maximum(excess, 0.0)
    return integral
