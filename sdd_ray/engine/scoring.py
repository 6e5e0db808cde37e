"""The score stage: from images to qualities with a model folder."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from sdd_ray import columns
from sdd_ray.core.calibration import FAILED, integer_quality
from sdd_ray.core.thresholds import Acceptance
from sdd_ray.engine.image_worker import Network, Shard
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import load_model
from sdd_ray.store.quality import QualityRunner
from sdd_ray.store.run import Reject
from sdd_ray.store.torch_recogniser import check_device


@dataclass(frozen=True)
class ScoreStage:
    """Score images; those that cannot be read get quality -1 and the reason.

    Attributes:
        model: Folder of the model.
        device: Where the network runs, cpu or cuda.
        acceptance: Adds the column `accepted`.
        identities: Adds the column `identity`.
    """

    model: Location
    device: str
    acceptance: Acceptance | None = None
    identities: bool = False

    def load(self, threads: int) -> Network:
        """Load the model on a worker; return a function from images to raw and calibrated values.

        Its result is (N, 2): the raw prediction, and the quality in [0, 100] before rounding.

        Raises:
            ResourceError: The device is not there.
        """
        check_device(self.device)
        torch.set_num_threads(threads)
        return QualityRunner(load_model(self.model), self.device).qualities

    def rows(self, shard: Shard, outputs: NDArray[np.float32]) -> tuple[pa.Table, list[Reject]]:
        """Return one row for every image of the shard, and the ones that failed."""
        failed = shard.rejects
        raw = np.concatenate([outputs[:, 0], np.full(len(failed), np.nan, np.float32)])
        quality = np.concatenate(
            [integer_quality(outputs[:, 1]), np.full(len(failed), FAILED, np.int8)]
        )
        table = pa.table(
            [
                shard.image_ids + [reject.image_id for reject in failed],
                quality,
                pa.array(raw, pa.float32(), from_pandas=True),
                [None] * len(shard.image_ids) + [reject.reason for reject in failed],
            ],
            schema=columns.QUALITIES,
        )
        if self.acceptance is not None:
            table = table.append_column(
                columns.ACCEPTED, pa.array(self.acceptance.of(raw, quality), pa.bool_())
            )
        if self.identities:
            people = shard.identities + [None] * len(failed)
            table = table.append_column(columns.IDENTITY, pa.array(people, pa.string()))
        return table.sort_by(columns.IMAGE_ID), failed
