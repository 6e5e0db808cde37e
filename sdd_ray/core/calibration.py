"""From a network's raw predictions to qualities from 0 to 100 that mean the same in every run.

The map is fitted once, on predictions for known images, and travels with the model. Scaling each
run by its own smallest and largest value would let one outlier move every quality.

Shapes: N images, K knots.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAILED = -1
"""The integer quality of an image that could not be assessed. Source: ISO/IEC 29794-5 tools."""

_PERCENT = np.arange(101.0)


@dataclass(frozen=True)
class QuantileMap:
    """Increasing, piecewise linear map from raw predictions to [0, 100].

    A quality of q means: better than about q percent of the images it was fitted on.

    Attributes:
        raw: (K,) knots, strictly increasing.
        quality: (K,) their qualities in [0, 100], strictly increasing.

    Raises:
        ValueError: The knots are none, not finite, not increasing, of different number, or outside
            [0, 100].
    """

    raw: tuple[float, ...]
    quality: tuple[float, ...]

    def __post_init__(self) -> None:
        raw, quality = np.asarray(self.raw), np.asarray(self.quality)
        if not raw.size or raw.shape != quality.shape:
            raise ValueError(
                f"expected as many qualities as knots, at least one, got {quality.size} and"
                f" {raw.size}"
            )
        if not (
            np.isfinite(raw).all() and (np.diff(raw) > 0).all() and (np.diff(quality) > 0).all()
        ):
            raise ValueError("expected finite, strictly increasing knots and qualities")
        if not (quality[0] >= 0 and quality[-1] <= 100):
            raise ValueError(f"expected qualities in [0, 100], got {quality[0]} to {quality[-1]}")

    @classmethod
    def fit(cls, raw: NDArray[np.floating[Any]]) -> "QuantileMap":
        """Return the map whose knots are the percentiles 0, 1, ..., 100 of `raw`.

        Percentiles that share one raw value become one knot with their mean as quality, so
        constant predictions all map to 50.

        Args:
            raw: (N,) predictions, N >= 1, all finite.

        Raises:
            ValueError: There are none, or one is not finite.

        Example:
            >>> fitted = QuantileMap.fit(np.array([1.0, 2.0, 3.0]))
            >>> fitted.apply(np.array([0.0, 1.0, 1.5, 2.0, 9.0])).tolist()
            [0.0, 0.0, 25.0, 50.0, 100.0]
        """
        percentiles = np.maximum.accumulate(np.percentile(_finite(raw), _PERCENT))
        knots, groups = np.unique(percentiles, return_inverse=True)
        quality = np.bincount(groups, weights=_PERCENT) / np.bincount(groups)
        return cls(tuple(knots.tolist()), tuple(quality.tolist()))

    def apply(self, raw: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return qualities in [0, 100]: larger raw values never get a smaller one.

        Args:
            raw: Predictions of any shape; those outside the knots take the quality of the nearest.

        Returns:
            Qualities of the same shape; NaN where the prediction is not finite.
        """
        raw = np.asarray(raw, np.float64)
        return np.where(np.isfinite(raw), np.interp(raw, self.raw, self.quality), np.nan)

    def to_dict(self) -> dict[str, Any]:
        """Return the map as plain JSON values."""
        return {"kind": "quantile", "raw": list(self.raw), "quality": list(self.quality)}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "QuantileMap":
        """Return the map that `to_dict` described.

        Raises:
            ValueError: The keys are others, or the knots are not allowed.
        """
        _check_keys(description, "quality", "raw")
        return cls(
            tuple(float(knot) for knot in description["raw"]),
            tuple(float(value) for value in description["quality"]),
        )


@dataclass(frozen=True)
class SigmoidMap:
    """Logistic curve from raw predictions to (0, 100), steepest in the middle.

    Unlike quantiles it keeps apart what lies beyond all predictions it was fitted on.

    Attributes:
        centre: Raw prediction of quality 50.
        scale: Raw units; positive.

    Raises:
        ValueError: A value is not finite, or the scale is not positive.
    """

    centre: float
    scale: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.centre) and np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"expected a finite centre and a finite scale > 0, got {self}")

    @classmethod
    def fit(cls, raw: NDArray[np.floating[Any]]) -> "SigmoidMap":
        """Return the curve with the median of `raw` at 50 and its quartiles 50 qualities apart.

        Quartiles as far below the median as above it lie at 25 and 75. Where they are one value,
        the scale is 1.

        Args:
            raw: (N,) predictions, N >= 1, all finite.

        Raises:
            ValueError: There are none, or one is not finite.

        Example:
            >>> fitted = SigmoidMap.fit(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
            >>> fitted.apply(np.array([2.0, 3.0, 4.0])).round(9).tolist()
            [25.0, 50.0, 75.0]
        """
        low, middle, high = np.percentile(_finite(raw), [25, 50, 75]).tolist()
        return cls(middle, (high - low) / (2 * np.log(3.0)) if high > low else 1.0)

    def apply(self, raw: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return qualities in [0, 100]: larger raw values never get a smaller one.

        Args:
            raw: Predictions of any shape.

        Returns:
            Qualities of the same shape; NaN where the prediction is not finite.
        """
        raw = np.asarray(raw, np.float64)
        known = np.where(np.isfinite(raw), raw, np.nan)
        with np.errstate(over="ignore"):  # infinitely many scales away is 0 or 100
            # The logistic function; scipy's is imported in a fifth of a second, for one image too.
            quality: NDArray[np.float64] = 100 / (1 + np.exp((self.centre - known) / self.scale))
        return quality

    def to_dict(self) -> dict[str, Any]:
        """Return the map as plain JSON values."""
        return {"kind": "sigmoid", "centre": self.centre, "scale": self.scale}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "SigmoidMap":
        """Return the map that `to_dict` described.

        Raises:
            ValueError: The keys are others, or the values are not allowed.
        """
        _check_keys(description, "centre", "scale")
        return cls(float(description["centre"]), float(description["scale"]))


Calibration = QuantileMap | SigmoidMap


def calibration_from_dict(description: Mapping[str, Any]) -> Calibration:
    """Return the map that its `to_dict` described; without a kind it is an older quantile map.

    Raises:
        ValueError: The kind is unknown, the keys are others, or the values are not allowed.
    """
    kind = description.get("kind", "quantile")
    if kind == "quantile":
        return QuantileMap.from_dict(description)
    if kind == "sigmoid":
        return SigmoidMap.from_dict(description)
    raise ValueError(f"expected a calibration of kind quantile or sigmoid, got {kind!r}")


def _check_keys(description: Mapping[str, Any], *wanted: str) -> None:
    found = set(description) - {"kind"}
    if found != set(wanted):
        raise ValueError(f"expected the keys {' and '.join(wanted)}, got {sorted(found)}")


def _finite(raw: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    exact = np.asarray(raw, np.float64)
    if exact.ndim != 1 or not exact.size or not np.isfinite(exact).all():
        raise ValueError(
            f"expected (N,) finite predictions with N >= 1, got shape {exact.shape}"
            f" with {int((~np.isfinite(exact)).sum())} that are not finite"
        )
    return exact


def integer_quality(quality: NDArray[np.floating[Any]]) -> NDArray[np.int8]:
    """Return qualities as integers from 0 to 100, halves rounded up; FAILED for NaN.

    Args:
        quality: Qualities of any shape; values outside [0, 100] are clipped.

    Example:
        >>> integer_quality(np.array([0.5, 49.4, 140.0, np.nan])).tolist()
        [1, 49, 100, -1]
    """
    rounded = np.clip(np.floor(np.asarray(quality, np.float64) + 0.5), 0, 100)
    return np.where(np.isnan(rounded), FAILED, rounded).astype(np.int8)
