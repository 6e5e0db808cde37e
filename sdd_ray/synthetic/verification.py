"""How well a recogniser tells drawn people apart, and how damage shows in its similarities.

Shapes: N images, E numbers in an embedding, M mated and K nonmated comparisons.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sdd_ray.core.error_rates import fnmr, threshold_at_fmr
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.core.statistics import rank_correlation
from sdd_ray.synthetic.degradations import DEGRADATIONS
from sdd_ray.synthetic.samples import (
    RECOGNISER_HELD_OUT_IDENTITY,
    UNDAMAGED,
    Sample,
    SyntheticSet,
    draw_sample,
    keys,
)

CLEAN_SET = SyntheticSet(
    seed=0,
    num_identities=200,
    images_per_identity=6,
    first_identity=RECOGNISER_HELD_OUT_IDENTITY,
    degraded_share=0.0,
)
DAMAGED_SET = SyntheticSet(
    seed=0,
    num_identities=60,
    images_per_identity=12,
    first_identity=RECOGNISER_HELD_OUT_IDENTITY,
    degraded_share=0.6,
)
_BATCH = 32
_SEVERE = 0.7


def measure(network: nn.Module) -> dict[str, float]:
    """Return the figures of a recogniser on drawn people that it never saw, by name.

    Verification is measured on undamaged faces; then, on a set with damage, the rank correlation
    between an image's severity and its gap, over all images and for each kind of damage.

    Args:
        network: (N, 3, 112, 112) preprocessed images to (N, E) embeddings.
    """
    clean = [draw_sample(CLEAN_SET, *key) for key in keys(CLEAN_SET)]
    figures = verification_figures(*compared(_embedded(network, clean), _people(clean)))
    samples = [draw_sample(DAMAGED_SET, *key) for key in keys(DAMAGED_SET)]
    gap = similarity_gaps(_embedded(network, samples), _people(samples))
    severity = np.array([sample.severity for sample in samples])
    kind = np.array([sample.kind for sample in samples])
    figures["spearman_severity_gap"] = rank_correlation(severity, gap)
    figures["mean_gap_undamaged"] = float(gap[kind == UNDAMAGED].mean())
    for name in DEGRADATIONS:
        rows = kind == name
        figures[f"spearman_{name}"] = rank_correlation(severity[rows], gap[rows])
        figures[f"mean_gap_severe_{name}"] = float(gap[rows & (severity > _SEVERE)].mean())
    return {name: round(value, 4) for name, value in figures.items()}


def verification_figures(
    mated: NDArray[np.float32], nonmated: NDArray[np.float32]
) -> dict[str, float]:
    """Return the equal error rate, and FNMR and its complement at two false match rates.

    Args:
        mated: (M,) similarities of comparisons of one person.
        nonmated: (K,) similarities of comparisons of two people.

    Example:
        >>> scores = np.linspace(0, 1, 10_000, dtype=np.float32)
        >>> verification_figures(scores + 2, scores)["fnmr_at_fmr_1e-3"]
        0.0
    """
    figures = {"equal_error_rate": equal_error_rate(mated, nonmated)}
    for rate in ("1e-2", "1e-3"):
        threshold = threshold_at_fmr(nonmated, float(rate)).threshold
        figures[f"fnmr_at_fmr_{rate}"] = fnmr(mated, threshold)
        figures[f"true_accept_rate_at_fmr_{rate}"] = 1 - figures[f"fnmr_at_fmr_{rate}"]
    return figures


def equal_error_rate(mated: NDArray[np.float32], nonmated: NDArray[np.float32]) -> float:
    """Return the error rate where false matches and false non-matches are equally frequent.

    Between two thresholds the mean of both rates is taken where they are closest.

    Example:
        >>> equal_error_rate(np.float32([0.2, 0.6, 0.7, 0.8]), np.float32([0.1, 0.3, 0.4, 0.65]))
        0.25
    """
    thresholds = np.sort(np.concatenate([mated, nonmated]))
    false_non_match = np.searchsorted(np.sort(mated), thresholds, side="left") / mated.size
    false_match = 1 - np.searchsorted(np.sort(nonmated), thresholds, side="right") / nonmated.size
    closest = np.argmin(np.abs(false_match - false_non_match))
    return float((false_match[closest] + false_non_match[closest]) / 2)


def compared(
    unit: NDArray[np.float32], people: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mated (M,) and nonmated (K,) similarities of all pairs of (N, E) unit embeddings."""
    first, second = np.triu_indices(len(unit), 1)
    similarity = (unit @ unit.T)[first, second]
    is_mated = people[first] == people[second]
    return similarity[is_mated], similarity[~is_mated]


def similarity_gaps(unit: NDArray[np.float32], people: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (N,) how far each image's mean mated lies above its mean nonmated similarity."""
    similarity = (unit @ unit.T).astype(np.float64)
    mated = people[:, None] == people[None, :]
    nonmated = ~mated
    np.fill_diagonal(mated, val=False)
    gaps: NDArray[np.float64] = (similarity * mated).sum(axis=1) / mated.sum(axis=1) - (
        similarity * nonmated
    ).sum(axis=1) / nonmated.sum(axis=1)
    return gaps


def _embedded(network: nn.Module, samples: list[Sample]) -> NDArray[np.float32]:
    """Return (N, E) embeddings of unit length."""
    pixels = np.stack([sample.image for sample in samples])
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(Preprocessing().apply(pixels[start : start + _BATCH])))
            for start in range(0, len(pixels), _BATCH)
        ]
        unit: NDArray[np.float32] = nn.functional.normalize(torch.cat(parts)).numpy()
    return unit


def _people(samples: list[Sample]) -> NDArray[np.int64]:
    """Return (N,) the number of the person in each sample."""
    return np.array([int(sample.identity) for sample in samples])
