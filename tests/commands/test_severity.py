"""Training on a known function of the damage done to drawn faces finds it in strangers' faces."""

from dataclasses import replace

import numpy as np
import pytest
from labelled_faces import OFFLINE, train_config, write_labels
from scipy.stats import spearmanr

from sdd_ray import score, train
from sdd_ray.settings import (
    NetworkConfig,
    OptimiserConfig,
    ScoreConfig,
    SourceConfig,
    SplitConfig,
    SyntheticConfig,
)
from sdd_ray.store.dataset import open_dataset
from sdd_ray.synthetic.samples import damage_of, keys
from sdd_ray.synthetic.truth import synthetic_set

# All are damaged: with equal labels of undamaged faces no order could reach 1.
TRAINED = SyntheticConfig(num_identities=300, images_per_identity=8, degraded_share=1.0)
STRANGERS = replace(TRAINED, num_identities=60, first_identity=5_000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("ray_session")
def test_damage_of_new_identities_is_recovered(tmp_path):
    labels = write_labels(tmp_path / "labels", faces=TRAINED)
    model = tmp_path / "model"
    train.run(
        train_config(
            labels,
            model,
            source=SourceConfig(kind="synthetic", synthetic=TRAINED),
            network=NetworkConfig(dropout=0.2),
            optimiser=OptimiserConfig(
                epochs=4, batch_size=32, learning_rate=1e-3, schedule="cosine"
            ),
            split=SplitConfig(holdout_share=0.02, validation_share=0.05),
        )
    )
    output = str(tmp_path / "qualities")
    source = SourceConfig(kind="synthetic", synthetic=STRANGERS)
    score.run(ScoreConfig(model=str(model), output=output, source=source, ray=OFFLINE))

    found = open_dataset(output, ["score"]).read(["image_id", "raw"]).sort_by("image_id")
    drawn = synthetic_set(STRANGERS)
    damage = np.array([damage_of(drawn, *key)[1] for key in keys(drawn)])
    assert len(found) == len(damage) == 480
    assert spearmanr(found["raw"], 1 - damage).statistic >= 0.9
