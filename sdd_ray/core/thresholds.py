"""Quality thresholds that travel with a model, and which images they accept.

Shapes: N images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.discarding import lowest_ranks, rank_qualities


@dataclass(frozen=True)
class Threshold:
    """A raw quality that an accepted image has at least.

    Attributes:
        raw: The quality, before calibration: another map to 0-100 does not move it.
        record: What it is for and what it does on the images it was found on: plain JSON values.

    Raises:
        ValueError: It is not finite.
    """

    raw: float
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not np.isfinite(self.raw):
            raise ValueError(f"expected a finite threshold, got {self.raw}")

    def to_dict(self) -> dict[str, Any]:
        """Return the threshold as plain JSON values."""
        return {"raw": self.raw, **self.record}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "Threshold":
        """Return the threshold that `to_dict` described.

        Raises:
            ValueError: It has no finite `raw`.
        """
        if "raw" not in description:
            raise ValueError("expected a threshold with its raw quality")
        rest = {name: value for name, value in description.items() if name != "raw"}
        return cls(float(description["raw"]), rest)


@dataclass(frozen=True)
class Acceptance:
    """Which images are good enough.

    Attributes:
        least: What an accepted image has at least.
        is_raw: Whether that is a raw quality, or an integer one from 0 to 100.
    """

    least: float
    is_raw: bool

    def of(
        self, raw: NDArray[np.floating[Any]], quality: NDArray[np.integer[Any]]
    ) -> NDArray[np.bool_]:
        """Return whether each image is accepted; one that could not be assessed is not.

        Args:
            raw: (N,) raw qualities, NaN where there is none.
            quality: (N,) from 0 to 100, -1 where there is none.
        """
        # In float64: a threshold is one of the float32 values it was found among.
        values = raw.astype(np.float64) if self.is_raw else quality.astype(np.float64)
        return (quality >= 0) & (values >= self.least)


def discard_thresholds(
    raw: NDArray[np.floating[Any]], shares: Sequence[float]
) -> list[tuple[float, float]]:
    """Return the highest thresholds that discard at most some shares of images.

    Args:
        raw: (N,) raw qualities, NaN where an image could not be assessed: it is discarded first.
        shares: In [0, 1), increasing.

    Returns:
        Threshold and the share that it discards, for each.

    Raises:
        ValueError: No image has a quality.

    Example:
        >>> discard_thresholds(np.array([1.0, 2.0, 2.0, 5.0]), [0.0, 0.3, 0.8])
        [(1.0, 0.0), (2.0, 0.25), (5.0, 0.75)]
    """
    ranks = rank_qualities(raw)
    lowest_known = int(not np.isfinite(ranks.qualities[0])) if ranks.number else 0
    if lowest_known == ranks.number:
        raise ValueError(f"expected qualities, got {len(raw)} images without one")
    counts = np.bincount(ranks.of, minlength=ranks.number)
    # Failures are never accepted, so that a threshold below all others discards them too.
    lowest = np.maximum(lowest_ranks(counts, np.asarray(shares, np.float64)), lowest_known)
    before = np.concatenate([[0], counts.cumsum()])[lowest] / len(raw)
    return [(float(ranks.qualities[r]), float(b)) for r, b in zip(lowest, before, strict=True)]
