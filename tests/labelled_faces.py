"""Drawn faces with labels written by hand: what training needs, without embedding or labelling."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from sdd_ray import columns
from sdd_ray.settings import (
    LabelConfig,
    OptimiserConfig,
    RayConfig,
    SourceConfig,
    SplitConfig,
    SyntheticConfig,
    TrainConfig,
)
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun, write_part
from sdd_ray.synthetic.samples import damage_of, identity_name, image_id_of, keys
from sdd_ray.synthetic.truth import synthetic_set

FACES = SyntheticConfig(num_identities=12, images_per_identity=6)
OFFLINE = RayConfig(num_cpus=2, dashboard=False)


def write_labels(
    folder: Path,
    targets: Sequence[float | None] | None = None,
    backwards: bool = False,
    faces: SyntheticConfig = FACES,
) -> str:
    """Write labels of faces as label would; a label is 100 * (1 - severity) unless given."""
    drawn = synthetic_set(faces)
    pairs = list(keys(drawn))
    if targets is None:
        targets = [100 * (1 - damage_of(drawn, *key)[1]) for key in pairs]
    known = {
        columns.IMAGE_ID: [image_id_of(drawn.seed, *key) for key in pairs],
        columns.IDENTITY: [identity_name(identity) for identity, _ in pairs],
        columns.PSEUDO_LABEL: list(targets),
    }
    table = pa.table(
        {
            name: pa.array(known.get(name, [None] * len(pairs)), columns.LABELS.field(name).type)
            for name in columns.LABELS.names
        }
    )
    if backwards:
        table = table.take(np.arange(len(pairs))[::-1])
    config = LabelConfig(embeddings="written by hand", output=str(folder))
    run = OutputRun(Location(str(folder)).absolute(), "label", config)
    run.complete([write_part(run.output, "labels", table)])
    return str(folder)


def train_config(labels: str, output: Path, **changes) -> TrainConfig:
    """Return a training of two short epochs; `changes` replace whole keys."""
    optimiser = OptimiserConfig(epochs=2, batch_size=16, learning_rate=1e-3)
    defaults = {
        "labels": labels,
        "output": str(output),
        "source": SourceConfig(kind="synthetic", synthetic=FACES),
        "optimiser": optimiser,
        "split": SplitConfig(holdout_share=0.25, validation_share=0.25),
        "ray": OFFLINE,
    }
    return TrainConfig(**{**defaults, **changes})
