"""Labels written by hand, with any columns and in any number of files, for tests of training."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from sdd_ray import columns
from sdd_ray.settings import LabelConfig
from sdd_ray.store.dataset import Dataset, open_dataset
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun, write_part


def label_table(image_ids, identities, **known) -> pa.Table:
    """Return rows of labels; columns that are not given are null."""
    known = {columns.IMAGE_ID: image_ids, columns.IDENTITY: identities, **known}
    nulls = [None] * len(image_ids)
    return pa.table(
        {
            name: pa.array(known.get(name, nulls), columns.LABELS.field(name).type)
            for name in columns.LABELS.names
        }
    )


def random_labels(people: int, images: int, seed: int = 0, suffix: str = "jpg") -> pa.Table:
    """Return labels between 0 and 100 of images <person>/<number>.<suffix>, some of them null."""
    draws = np.random.default_rng(seed)
    ids = [f"{p:04d}/{n:03d}.{suffix}" for p in range(people) for n in range(images)]
    distances = draws.beta(8, 4, len(ids))
    has_label = draws.random(len(ids)) > 0.1
    return label_table(
        ids,
        [name.split("/")[0] for name in ids],
        distance=distances,
        pseudo_label=[
            float(100 * d) if has else None for d, has in zip(distances, has_label, strict=True)
        ],
        error_bound=[None if d < 0.5 else float(d / 50) for d in distances],
        num_mated=draws.integers(1, 20, len(ids)),
    )


def write_label_table(
    folder: Path, table: pa.Table, files: int = 1, embeddings: str = "not there", digest: str = ""
) -> Dataset:
    """Write rows as label would, cut into files; `digest` is that of the embeddings."""
    config = LabelConfig(embeddings=embeddings, output=str(folder))
    run = OutputRun(Location(str(folder)), "label", config, {"embeddings": digest})
    cuts = np.linspace(0, table.num_rows, files + 1).astype(int)
    parts = [
        write_part(run.output, f"part-{n:06d}", table.slice(start, stop - start))
        for n, (start, stop) in enumerate(pairwise(cuts))
    ]
    run.complete(parts)
    return open_dataset(str(folder), ["label"])
