"""The score stage: from images to qualities with a model folder."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from sdd_ray import columns
from sdd_ray.core.calibration import FAILED, integer_quality
from sdd_ray.engine.image_worker import Network, Shard
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import load_model
from sdd_ray.store.run import Reject
from sdd_ray.store.torch_recogniser import Running, TorchRecogniser, check_device


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

        Raises:
            ResourceError: The device is not there.
        """
        check_device(self.device)
        torch.set_num_threads(threads)
        model = load_model(self.model)
        network = model.network.eval().to(self.device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
        # It runs as a recogniser does whose embeddings are one number long.
        runner = TorchRecogniser(
            lambda inputs: network(inputs)[:, None],
            1,
            model.preprocessing,
            Running(self.device),
            {},
        )

        def score(batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
            for raw in runner.embed_many(batches):
                quality = model.calibration.apply(raw)
                yield np.concatenate([raw, quality], axis=1).astype(np.float32)

        return score

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
