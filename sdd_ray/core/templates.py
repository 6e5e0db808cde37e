"""Templates: several images of one person compared as one, as IJB-B and IJB-C do.

Shapes: I images with D numbers each, N templates.

Source:
    Whitelam et al., "IARPA Janus Benchmark-B Face Dataset", CVPRW 2017; the averaging of frames
    within a medium before the media are summed is that of InsightFace's IJB evaluation.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.similarity import normalise


def average_templates(
    unit: NDArray[np.float32], templates: NDArray[np.int64], media: NDArray[np.int64], number: int
) -> NDArray[np.float32]:
    """Return the (N, D) unit embedding of each template: frames are averaged, media are summed.

    Args:
        unit: (I, D) embeddings of unit length.
        templates: (I,) number of the template of each image, in [0, N).
        media: (I,) number of the medium: images of one template and medium are frames of one video.
        number: N; every template has an image.

    Returns:
        Rows of unit length; a row of zeros where the images of a template cancel out.
    """
    order = np.lexsort((media, templates))
    t, m = templates[order], media[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (t[1:] != t[:-1]) | (m[1:] != m[:-1])
    starts = np.flatnonzero(is_first)
    frames = np.diff(np.append(starts, len(order)))
    means = np.add.reduceat(unit[order].astype(np.float64), starts) / frames[:, None]
    owners = t[starts]
    return _unit(np.add.reduceat(means, np.searchsorted(owners, np.arange(number))))


def weighted_templates(
    unit: NDArray[np.float32],
    weights: NDArray[np.floating[Any]],
    templates: NDArray[np.int64],
    number: int,
) -> NDArray[np.float32]:
    """Return the (N, D) unit embedding of each template: images count by weights.

    Args:
        unit: (I, D) embeddings of unit length.
        weights: (I,) such as the qualities of the images, not negative; NaN counts as 0. A template
            whose weights are all 0 is the plain mean of its images.
        templates: (I,) number of the template of each image, in [0, N).
        number: N; every template has an image.

    Returns:
        Rows of unit length; a row of zeros where the images of a template cancel out.

    Raises:
        ValueError: A weight is negative or infinite.
    """
    known = np.where(np.isnan(weights), 0.0, weights).astype(np.float64)
    if not (np.isfinite(known).all() and (known >= 0).all()):
        raise ValueError("expected finite weights of at least 0")
    largest = np.zeros(number)
    np.maximum.at(largest, templates, known)
    used = np.where(largest[templates] > 0, known, 1.0)
    sums = np.zeros((number, unit.shape[1]))
    np.add.at(sums, templates, used[:, None] * unit)
    return _unit(sums)


def _unit(sums: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the rows scaled to unit length; those of zeros stay."""
    rows = sums.astype(np.float32)
    is_some = rows.any(axis=1)
    rows[is_some] = normalise(rows[is_some])[0]
    return rows


def template_qualities(
    qualities: NDArray[np.float64], templates: NDArray[np.int64], number: int
) -> NDArray[np.float64]:
    """Return the (N,) quality of each template: the mean of its images that have one.

    Args:
        qualities: (I,) of the images, NaN where there is none.
        templates: (I,) number of the template of each image.
        number: N.

    Returns:
        NaN where no image of a template has a quality.

    Example:
        >>> template_qualities(np.array([1.0, 3.0, np.nan]), np.array([0, 0, 1]), 2).tolist()
        [2.0, nan]
    """
    known = ~np.isnan(qualities)
    counts = np.bincount(templates[known], minlength=number)
    sums = np.bincount(templates[known], qualities[known], number)
    means = np.full(number, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means
