"""From distribution distances to pseudo-labels, the training targets.

A scale is found once over all labelled images and stored with the labels: without it a label
cannot be turned back into a distance, and labels of two runs cannot be compared.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

ScaleMethod = Literal["min_max", "quantile", "none"]

NUM_KNOTS = 101
"""Values of a ``quantile`` scale: one for each percent."""


@dataclass(frozen=True)
class LabelScale:
    """A fitted scale.

    Attributes:
        method: How it was fitted.
        knots: Values, not decreasing, that get the labels 0 to 100 at even intervals: 2 for
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


def fit_scale(values: NDArray[np.float64], method: ScaleMethod = "min_max") -> LabelScale:
    """Return the scale for a set of values, larger for better images.

    Args:
        values: (N,) distances of all images of the run, or other values; NaN where an image has no
            label. In any order.
        method: ``min_max``: 0 for the smallest and 100 for the largest value, as in the paper; two
            unusual images then decide every label. ``quantile``: the rank in percent. ``none``: the
            value itself, which does not change when images are added.

    Raises:
        ValueError: No image is labelled (but for ``none``), or the method is not one of these.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, equations (8) and (9), for ``min_max``.

    Example:
        >>> fit_scale(np.array([0.25, 0.75, np.nan])).to_dict()
        {'method': 'min_max', 'knots': [0.25, 0.75]}
    """
    if method not in get_args(ScaleMethod):
        raise ValueError(f"expected a method of {get_args(ScaleMethod)}, got {method!r}")
    if method == "none":
        return LabelScale(method, ())
    known = values[~np.isnan(values)]
    if len(known) == 0:
        raise ValueError("expected at least one labelled image, got none")
    if method == "min_max":
        return LabelScale(method, (float(known.min()), float(known.max())))
    knots = np.quantile(known, np.linspace(0.0, 1.0, NUM_KNOTS))
    return LabelScale(method, tuple(knots.tolist()))
