"""Scores that need no training: how sharp an image is, how much contrast it has, how stable it is.

They are what a learnt quality has to beat.

Shapes: N images of H rows and W columns, K passes, E numbers in an embedding.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from sdd_ray.core.models.trunk import LayeredNetwork


def sharpness(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the variance of the Laplacian of the grey image, in squared grey levels.

    Args:
        images: (N, H, W, 3) RGB; H and W at least 3.

    Returns:
        (N,) values, 0 for an even image, larger is sharper (noise counts as sharp).

    Source:
        Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    grey = _grey(images)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return np.asarray((around - 4 * inner).var(axis=(1, 2)), np.float32)


def contrast(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the standard deviation of the grey image, in grey levels (RMS contrast).

    Args:
        images: (N, H, W, 3) RGB.

    Returns:
        (N,) values in [0, 127.5].

    Source:
        Peli, "Contrast in complex images", JOSA A 1990.
    """
    return np.asarray(_grey(images).std(axis=(1, 2)), np.float32)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of each two rows of (N, E) embeddings; NaN where one is zero."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found = np.full(len(a), np.nan, np.float32)
    np.divide(np.einsum("ne,ne->n", a, b), lengths, out=found, where=lengths > 0)
    return found


class DropoutStability:
    """How far the embeddings of an image stay together while parts of the features are dropped.

    In each pass a share of the numbers of the feature map, the same ones for all images, is dropped
    before the embedding head. The score is 2 / (1 + exp(d)), d being the mean distance of the unit
    embeddings of each two passes. The recogniser needs no dropout layer of its own, so this is like
    SER-FIQ, and not the same: the authors drop before the last layer of a network trained with it.

    Args:
        network: The recogniser.
        passes: K, at least 2.
        share: Dropped in each pass, in (0, 1).
        seed: Draws what is dropped.

    Raises:
        ValueError: A number is out of range.

    Source:
        Terhoerst et al., "SER-FIQ: Unsupervised Estimation of Face Image Quality Based on
        Stochastic Embedding Robustness", CVPR 2020.
    """

    def __init__(self, network: LayeredNetwork, passes: int, share: float, seed: int) -> None:
        if passes < 2 or not 0 < share < 1:
            raise ValueError(f"expected two passes and a share in (0, 1), got {passes}, {share}")
        self._network, self._passes = network, passes
        generator = torch.Generator().manual_seed(seed)
        kept = torch.rand((passes, *network.feature_shape), generator=generator) >= share
        self._masks = kept.float() / (1 - share)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the (N,) scores of (N, 3, h, w) preprocessed images, in (0, 1]."""
        features = self._network.feature_map(images)
        self._masks = self._masks.to(features.device)
        passes = [
            normalize(self._network.embedding_of(features * mask).float()) for mask in self._masks
        ]
        total = torch.zeros(len(images), device=features.device)
        for place, one in enumerate(passes):
            for other in passes[:place]:
                total += (one - other).norm(dim=1)
        return 2 * torch.sigmoid(-total / (self._passes * (self._passes - 1) / 2))


def _grey(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(images.astype(np.float32).mean(axis=3), np.float32)
