"""Batches for fits, without a dataset."""

import numpy as np

from sdd_ray.core.fitting import Batch


def batch_of(images, targets, weights=None, first=0) -> Batch:
    """Return a batch whose rows, keys and names count on from `first`."""
    rows = np.arange(first, first + len(targets))
    return Batch(
        images=images,
        targets=np.asarray(targets, np.float32),
        weights=np.ones(len(rows), np.float32) if weights is None else np.float32(weights),
        keys=rows.astype(np.uint64),
        rows=rows,
        image_ids=np.array([f"image {row}" for row in rows], object),
    )
