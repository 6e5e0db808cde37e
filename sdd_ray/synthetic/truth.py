"""What is known about drawn faces: their severities, to be compared with labels."""

import numpy as np
import pyarrow as pa

from sdd_ray.columns import IMAGE_ID, PSEUDO_LABEL
from sdd_ray.core.statistics import rank_correlation
from sdd_ray.settings import SyntheticConfig
from sdd_ray.store.dataset import read_any
from sdd_ray.store.location import Location
from sdd_ray.store.run import parquet_bytes
from sdd_ray.synthetic.samples import SyntheticSet, damage_of, image_id_of, keys


def synthetic_set(config: SyntheticConfig) -> SyntheticSet:
    """Return the set of drawn faces that a configuration describes."""
    return SyntheticSet(
        seed=config.seed,
        num_identities=config.num_identities,
        images_per_identity=config.images_per_identity,
        first_identity=config.first_identity,
        degraded_share=config.degraded_share,
    )


def write_severity(config: SyntheticConfig, file: Location) -> None:
    """Write image_id, kind and severity of every drawn face as Parquet."""
    faces = synthetic_set(config)
    rows = [
        {IMAGE_ID: image_id_of(faces.seed, *key), "kind": kind, "severity": severity}
        for key in keys(faces)
        for kind, severity in [damage_of(faces, *key)]
    ]
    file.write_bytes(parquet_bytes(pa.Table.from_pylist(rows)))


def label_ranks_severity(labels: str, severity: str) -> str:
    """Return in words how well the labels rank the known severities."""
    known = read_any(severity, [IMAGE_ID, "severity"])
    joined = read_any(labels, [IMAGE_ID, PSEUDO_LABEL]).join(known, IMAGE_ID)
    pairs = np.stack([np.asarray(joined[c], np.float64) for c in (PSEUDO_LABEL, "severity")])
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
    correlation = -rank_correlation(*pairs)
    return (
        f"labels against known severity, {pairs.shape[1]:,} images: Spearman {correlation:.3f}"
        " (1 would be the same order; faces without damage differ in quality too)"
    )
