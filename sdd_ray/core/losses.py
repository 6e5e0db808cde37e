"""What training minimises: the distance of predictions from labels, and pairs in the wrong order.

Shapes: N images of a batch; predictions and labels in label units, from 0 to 100.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional

RANKING_SCALE = 10.0
"""Label units: two predictions this far apart in the right order cost 0.31, equal ones ln 2 = 0.69.
About the error of a good fit: an order that holds by much more than it needs no further gap."""


@dataclass(frozen=True)
class Loss:
    """Weighted mean loss of a batch; the options of `sdd_ray.settings.LossConfig`.

    Attributes:
        kind: `huber`, `l1` (absolute difference) or `l2` (half the squared difference: Huber
            without its bend).
        huber_zeta: Where Huber turns from square to linear, in label units.
        ranking_weight: Weight of the added ranking term.

    Source:
        Huber: Ou et al., "SDD-FIQA", CVPR 2021, eq. 12. Ranking: Burges et al., "Learning to rank
        using gradient descent" (RankNet), ICML 2005, for pairs whose order is known.

    Example:
        >>> import torch
        >>> zero, targets = torch.zeros(2), torch.tensor([0.5, 3.0])
        >>> Loss()(zero, targets, torch.ones(2)).item()
        1.3125
    """

    kind: Literal["huber", "l1", "l2"] = "huber"
    huber_zeta: float = 1.0
    ranking_weight: float = 0.0

    def __call__(self, predicted: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the loss of a batch as a scalar; 0, with a gradient of 0, if no image has weight.

        Args:
            predicted: (N,) predictions.
            targets: (N,) labels.
            weights: (N,) how much each image counts, all >= 0; their scale is of no effect.
        """
        loss = _weighted_mean(self.each(predicted, targets), weights)
        if self.ranking_weight:
            loss = loss + self.ranking_weight * ranking_loss(predicted, targets, weights)
        return loss

    def each(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the (N,) losses of the images, without weights and ranking."""
        if self.kind == "huber":
            return functional.huber_loss(
                predicted, targets, reduction="none", delta=self.huber_zeta
            )
        if self.kind == "l1":
            return functional.l1_loss(predicted, targets, reduction="none")
        return functional.mse_loss(predicted, targets, reduction="none") / 2


def ranking_loss(predicted: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean logistic loss over all pairs of different labels; 0 if there are none.

    A pair counts with the product of its weights. Memory: a few matrices of N x N.

    Args:
        predicted: (N,) predictions.
        targets: (N,) labels.
        weights: (N,) how much each image counts, all >= 0.
    """
    # (N, N): row i holds the pairs in which image i is the better one, so each pair counts once.
    lead = (predicted[:, None] - predicted[None, :]) / RANKING_SCALE
    is_better = targets[:, None] > targets[None, :]
    return _weighted_mean(
        functional.softplus(-lead), is_better * (weights[:, None] * weights[None, :])
    )


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    total = weights.sum()
    return (weights * values).sum() / total.where(total > 0, 1)
