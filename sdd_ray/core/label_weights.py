"""How much each training label counts: more where labels are rare, less where they are uncertain.

Shapes: N rows. Labels and their errors in label units, from 0 to 100.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Weighting = Literal["none", "error_bound", "num_mated"]

NUM_BINS = 20
"""Bins of five label units, over which the density of labels is counted."""

KERNEL_BINS = 1.0
"""Standard deviation, in bins, of the Gaussian that smooths the counts: neighbouring labels are
nearly the same thing to learn, and a bin that happens to be empty is not infinitely rare."""

HALF_WEIGHT_MATED = 2.0
"""Mated images at which a label has half the weight of one with ever so many: b / a, where the
variance of a label with n of them is a + b / n. b is the variance of one image's mated
similarities: 0.7 (faces in the wild, 21 images an identity) to 1.7 (posed, 14 an identity) times
that of the true labels, measured with a MobileFaceNet. a is what no network can predict of the true
labels; about half of their variance, for a rank correlation of 0.7. So b / a is 1.5 to 3.5."""

NEGLIGIBLE_ERROR = 1.0
"""Label units: a bound on the error as large as this halves a weight. Labels are read, compared and
drawn in whole units, so errors far below one are of no effect on anything."""

_LARGEST_DISTANCE = 2.0
"""Of cosine similarities; no bound on the error of a distance says more."""


@dataclass(frozen=True)
class LabelWeights:
    """Weights fitted on training rows, whose mean is 1 there; they apply to any rows.

    Attributes:
        balance: Power of the density of labels that weights are divided by.
        weighting: What makes a label uncertain: `error_bound`, `num_mated` or `none`.
        label_per_distance: Label units of a unit of distance, in which error bounds are given.
        density: Share of the fitted labels around each of `NUM_BINS` bins, all > 0.
        scale: Factor that makes the mean over the fitted rows 1.

    Source:
        Density: Yang et al., "Delving into deep imbalanced regression", ICML 2021 (label
        distribution smoothing).

    Example:
        >>> targets = np.array([50, 50, 50, 90], np.float32)
        >>> fitted = LabelWeights.fit(targets, 1.0, "none", label_per_distance=100.0)
        >>> print(fitted.apply(targets).round(2))
        [0.69 0.69 0.69 1.94]
    """

    balance: float
    weighting: Weighting
    label_per_distance: float
    density: tuple[float, ...]
    scale: float = 1.0

    @classmethod
    def fit(
        cls,
        targets: NDArray[np.float32],
        balance: float,
        weighting: Weighting,
        *,
        num_mated: NDArray[Any] | None = None,
        error_bound: NDArray[Any] | None = None,
        label_per_distance: float,
    ) -> "LabelWeights":
        """Return the weights whose mean over these rows is 1.

        Args:
            targets: (N,) labels, N >= 1.
            balance: In [0, 1]: 0 leaves the labels as they are distributed, 1 makes all labels
                count the same in all.
            weighting: See the class.
            num_mated: (N,) mated images behind each label; only needed for that weighting.
            error_bound: (N,) of the distance; only needed for that weighting.
            label_per_distance: See the class.

        Raises:
            ValueError: There are no labels, one is not finite, or what `weighting` needs is
                missing.
        """
        if not targets.size:
            raise ValueError("expected at least one label to fit weights on, got none")
        density = tuple(_density(targets).tolist())
        unscaled = cls(balance, weighting, label_per_distance, density)
        weights = unscaled._weights(targets, num_mated, error_bound)
        return cls(balance, weighting, label_per_distance, density, 1.0 / float(weights.mean()))

    def apply(
        self,
        targets: NDArray[np.float32],
        num_mated: NDArray[Any] | None = None,
        error_bound: NDArray[Any] | None = None,
    ) -> NDArray[np.float32]:
        """Return the (N,) weights of rows, all > 0.

        Args:
            targets: (N,) labels; one rarer than all that were fitted counts as the rarest of them.
            num_mated: (N,); NaN and numbers below 1 count as 1, the least that a label rests on.
            error_bound: (N,) of the distance; NaN counts as 0: nothing is known to be
                wrong.

        Raises:
            ValueError: A label is not finite, or what `weighting` needs is missing.
        """
        return self._weights(targets, num_mated, error_bound).astype(np.float32)

    def _weights(
        self,
        targets: NDArray[np.float32],
        num_mated: NDArray[Any] | None,
        error_bound: NDArray[Any] | None,
    ) -> NDArray[np.float64]:
        weights = self.scale * np.asarray(self.density)[_bins(targets)] ** -self.balance
        if self.weighting == "num_mated":
            mated = np.fmax(_needed(num_mated, "num_mated"), 1.0)
            weights *= mated / (mated + HALF_WEIGHT_MATED)
        elif self.weighting == "error_bound":
            bound = np.nan_to_num(_needed(error_bound, "error_bound")).clip(0, _LARGEST_DISTANCE)
            weights /= 1 + (bound * self.label_per_distance / NEGLIGIBLE_ERROR) ** 2
        return weights


def _bins(targets: NDArray[np.float32]) -> NDArray[np.int64]:
    wrong = int((~np.isfinite(targets)).sum())
    if wrong:
        raise ValueError(f"expected finite labels, got {wrong} of {len(targets)} that are not")
    bins: NDArray[np.int64] = np.clip(targets * (NUM_BINS / 100), 0, NUM_BINS - 1).astype(np.int64)
    return bins


def _density(targets: NDArray[np.float32]) -> NDArray[np.float64]:
    counts = np.bincount(_bins(targets), minlength=NUM_BINS)
    place = np.arange(NUM_BINS)
    kernel = np.exp(-(((place[:, None] - place) / KERNEL_BINS) ** 2) / 2)
    # Row by row the kernel adds up to 1 within the scale: its ends are no rarer for being ends.
    shares = (kernel / kernel.sum(axis=1, keepdims=True)) @ (counts / counts.sum())
    density: NDArray[np.float64] = np.maximum(shares, shares[counts > 0].min())
    return density


def _needed(values: NDArray[Any] | None, name: str) -> NDArray[np.float64]:
    if values is None:
        raise ValueError(f"expected {name}, which these weights are made of, got none")
    return np.asarray(values, np.float64)
