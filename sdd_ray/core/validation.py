"""Figures of one validation pass: how near the predictions are to the labels, and what they sort.

Shapes: N validation images.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from sdd_ray.core.losses import Loss
from sdd_ray.core.statistics import rank_correlation


@dataclass(frozen=True)
class ValidationResult:
    """Figures of one validation pass.

    Attributes:
        loss: Mean loss against the labels, without weights and without the ranking term.
        mae: Mean absolute difference to the labels, in label units.
        spearman: Rank correlation with the labels; NaN where a side is constant.
        kendall: Kendall's tau-b with the labels; NaN where a side is constant.
        pauc: Normalised area under the error versus discard curve of the validation comparisons, 1
            is no use, lower is better; NaN where there are none.
    """

    loss: float
    mae: float
    spearman: float
    kendall: float
    pauc: float

    @property
    def figures(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def validation_result(
    predicted: NDArray[np.float32],
    targets: NDArray[np.float32],
    loss: Loss,
    pauc: Callable[[NDArray[np.float64]], float] | None = None,
) -> ValidationResult:
    """Return the figures of a validation pass.

    Args:
        predicted: (N,) raw predictions; NaN for an image that could not be read.
        targets: (N,) labels.
        loss: What is minimised in training.
        pauc: From (N,) qualities to their normalised area, or None.

    Raises:
        ValueError: No image has a prediction.
    """
    known = ~np.isnan(predicted)
    if not known.any():
        raise ValueError("expected at least one validation image that can be read, got none")
    p, t = predicted[known].astype(np.float64), targets[known].astype(np.float64)
    mean = Loss(loss.kind, loss.huber_zeta)(
        torch.from_numpy(p), torch.from_numpy(t), torch.ones(len(p), dtype=torch.float64)
    )
    constant = len(p) < 2 or np.ptp(p) == 0 or np.ptp(t) == 0
    return ValidationResult(
        loss=float(mean),
        mae=float(np.abs(p - t).mean()),
        spearman=rank_correlation(p, t),
        kendall=float("nan") if constant else float(stats.kendalltau(p, t).statistic),
        pauc=float("nan") if pauc is None else pauc(predicted.astype(np.float64)),
    )
