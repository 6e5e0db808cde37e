"""The score stage: from images to qualities with a model folder."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from sdd_ray import columns
from sdd_ray.core.calibration import FAILED, integer_quality
from sdd_ray.core.fitting import predict
from sdd_ray.engine.image_worker import Network, Shard
from sdd_ray.errors import ResourceError
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import load_model
from sdd_ray.store.run import Reject


@dataclass(frozen=True)
class ScoreStage:
    """Score images; those that cannot be read get quality -1 and the reason.

    Attributes:
        model: Folder of the model.
        device: Where the network runs, cpu or cuda.
    """

    model: Location
    device: str

    def load(self, threads: int) -> Network:
        """Load the model on a worker; return a function from images to raw and calibrated values.

        Its result is (N, 2): the raw prediction, and the quality in [0, 100] before rounding.
        """
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ResourceError(
                f"expected the device {self.device}, but torch finds no CUDA device here"
            )
        torch.set_num_threads(threads)
        model = load_model(self.model)
        network = model.network.to(self.device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs

        def score(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            if len(images) == 0:
                return np.zeros((0, 2), np.float32)
            pixels = torch.tensor(images).to(self.device)
            raw = predict(network, model.preprocessing.apply_tensor(pixels))
            return np.stack([raw, model.calibration.apply(raw)], axis=1).astype(np.float32)

        return partial(map, score)

    def rows(self, shard: Shard, outputs: NDArray[np.float32]) -> tuple[pa.Table, list[Reject]]:
        """Return one row for every image of the shard, and the ones that failed."""
        failed = shard.rejects
        nothing = [None] * len(failed)
        raw, quality = outputs[:, 0], integer_quality(outputs[:, 1])
        table = pa.table(
            [
                shard.image_ids + [reject.image_id for reject in failed],
                quality.tolist() + [FAILED] * len(failed),
                raw.tolist() + nothing,
                [None] * len(shard.image_ids) + [reject.reason for reject in failed],
            ],
            schema=columns.QUALITIES,
        )
        return table.sort_by(columns.IMAGE_ID), failed
