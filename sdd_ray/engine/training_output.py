"""Publish a trained network: the model folder, with its splits, its calibration and its record."""

import math
from typing import Any

from sdd_ray.core.calibration import QuantileMap, SigmoidMap
from sdd_ray.engine.training import TrainedNetwork
from sdd_ray.engine.training_rows import TrainingData
from sdd_ray.settings import TrainConfig
from sdd_ray.store.model_folder import DESCRIPTION_NAME, SPLITS_NAME, QualityModel, save_model
from sdd_ray.store.run import OutputRun, PartRecord, parquet_bytes, peak_memory_mib

EVENTS_NAME = "tensorboard"
"""Folder of TensorBoard's files: figures of every epoch while training goes on."""


def publish(
    config: TrainConfig, data: TrainingData, trained: TrainedNetwork, output: OutputRun
) -> None:
    """Write the model folder and complete the output.

    The calibration to [0, 100] is fitted on the validation predictions of the best epoch: images
    whose labels no weight was fitted to.

    Raises:
        OutputError: The folder cannot be written.
    """
    rows = data.train.num_rows + data.validation.num_rows
    record = {
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.history),
        "validation": _plain(trained.figures),
        "history": [_plain(figures) for figures in trained.history],
        "train_images": data.train.num_rows,
        "validation_images": data.validation.num_rows,
        "identities": data.num_identities,
    }
    kind = QuantileMap if config.calibration == "quantile" else SigmoidMap
    model = QualityModel(
        network=trained.network,
        architecture=trained.architecture,
        preprocessing=trained.preprocessing,
        calibration=kind.fit(trained.predicted),
        record=record,
        calibrated={
            "version": 1,
            "images": len(trained.predicted),
            "of": "validation images of the training",
        },
    )
    (output.output / SPLITS_NAME).write_bytes(parquet_bytes(data.splits))
    (output.output / DESCRIPTION_NAME).remove()  # of a run that was interrupted right here
    digest = save_model(output.output, model)
    part = PartRecord(
        name="model",
        rows_in=rows,
        rows_out=rows - len(trained.rejects),
        digest=digest,
        peak_memory_mib=peak_memory_mib(),
        rejects=trained.rejects,
        suffix=".safetensors",
    )
    output.complete([part], record)


def _plain(figures: dict[str, float]) -> dict[str, Any]:
    """Return figures as JSON has them, without NaN."""
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
