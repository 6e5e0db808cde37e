"""Synthetic embeddings with the difficulties of real sets, for the tests of label numerics.

Shapes: N embeddings of d numbers, rows of one identity side by side, codes not decreasing.
"""

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.similarity import normalise

Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]


def people(sizes: list[int], d: int, noises: list[float], seed: int) -> Labelled:
    """Return unit embeddings around one random centre an identity, each at a random noise level."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((len(sizes), d))
    codes = np.repeat(np.arange(len(sizes)), sizes)
    noise = rng.choice(noises, len(codes))[:, None]
    embeddings = centres[codes] + noise * rng.standard_normal((len(codes), d))
    return normalise(embeddings.astype(np.float32))[0], codes


def clean(seed: int = 0, scale: int = 1) -> Labelled:
    return people([12] * 30 * scale, 64, [0.5], seed)


def degraded(seed: int = 1, scale: int = 1) -> Labelled:
    return people([12] * 30 * scale, 64, [0.5, 1.5, 4.0], seed)


def mislabelled(seed: int = 2, scale: int = 1) -> Labelled:
    unit, codes = clean(seed, scale)
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(unit), len(unit) // 7, replace=False)
    unit[wrong] = unit[rng.permutation(wrong)]
    return unit, codes


def tiny(seed: int = 3, scale: int = 1) -> Labelled:
    return people([1, 2, 3, 1, 2] * 20 * scale, 64, [0.5, 2.0], seed)


def one_big(seed: int = 4, scale: int = 1) -> Labelled:
    return people([3, 600 * scale, 5, 2] + [4] * 20 * scale, 64, [0.7, 2.5], seed)


def duplicates(seed: int = 5, scale: int = 1) -> Labelled:
    """Return a set in which half of the images are copies, also under other identities."""
    unit, codes = people([8] * 40 * scale, 64, [1.0, 2.0], seed)
    rng = np.random.default_rng(seed)
    copies = rng.choice(len(unit), len(unit) // 2, replace=False)
    unit[copies] = unit[rng.choice(len(unit), len(copies))]
    return unit, codes


def anticorrelated(seed: int = 6, scale: int = 1) -> Labelled:
    """Return a set in which an identity's images point away from each other."""
    unit, codes = people([4] * 50 * scale, 32, [0.3], seed)
    sign = np.where(np.arange(len(unit)) % 2, -1.0, 1.0)
    common = np.random.default_rng(seed).standard_normal(32)
    skewed = unit * sign[:, None] + 0.1 * common
    return normalise(skewed.astype(np.float32))[0], codes


def collinear(seed: int = 7, scale: int = 1) -> Labelled:
    """Return a set in which all similarities are within 1e-4 of 1."""
    unit, codes = people([6] * 30 * scale, 16, [1.0], seed)
    common = np.zeros(16)
    common[0] = 100.0
    return normalise((unit + common).astype(np.float32))[0], codes


SETS = {
    make.__name__: make
    for make in (
        clean, degraded, mislabelled, tiny, one_big, duplicates, anticorrelated, collinear,
    )
}  # fmt: skip
