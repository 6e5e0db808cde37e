"""The measure stage: from images to scores that need no training."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from sdd_ray import columns
from sdd_ray.core.measures import DropoutStability, contrast, cosine, sharpness
from sdd_ray.engine.image_worker import Network, Shard
from sdd_ray.settings import DropoutConfig
from sdd_ray.store.recogniser import RecogniserSpec, load_backbone, load_recogniser
from sdd_ray.store.run import Reject
from sdd_ray.store.torch_recogniser import Running, TorchRecogniser

Pixels = NDArray[np.uint8]
Measure = Callable[[Pixels], NDArray[np.float32]]


@dataclass(frozen=True)
class MeasureStage:
    """Measure images; those that cannot be read get the reason.

    Attributes:
        measures: Some of `sdd_ray.columns.MEASURES`.
        recogniser: For `flip` and `dropout`.
        dropout: What is dropped.
        device: Where the recogniser runs, cpu or cuda.
    """

    measures: tuple[str, ...]
    recogniser: RecogniserSpec
    dropout: DropoutConfig
    device: str

    def load(self, threads: int) -> Network:
        """Load what is needed; return a function from images to one column for each measure.

        Raises:
            ResourceError: The device is not there.
        """
        torch.set_num_threads(threads)
        made = {name: self._measure(name, threads) for name in self.measures}

        def measure(batches: Iterable[Pixels]) -> Iterator[NDArray[np.float32]]:
            for images in batches:
                found = np.full((len(images), len(columns.MEASURES)), np.nan, np.float32)
                for place, name in enumerate(columns.MEASURES):
                    if name in made and len(images):
                        found[:, place] = made[name](images)
                yield found

        return measure

    def _measure(self, name: str, threads: int) -> Measure:
        if name == "sharpness":
            return sharpness
        if name == "contrast":
            return contrast
        return self._flip(threads) if name == "flip" else self._dropout()

    def _flip(self, threads: int) -> Measure:
        recogniser = load_recogniser(self.recogniser, threads, self.device)

        def flip(images: Pixels) -> NDArray[np.float32]:
            return cosine(recogniser.embed(images), recogniser.embed(images[:, :, ::-1]))

        return flip

    def _dropout(self) -> Measure:
        backbone = load_backbone(self.recogniser)
        network = backbone.network.to(self.device)
        given = self.dropout
        stability = DropoutStability(network, given.passes, given.share, given.seed)
        # It runs as a recogniser does whose embeddings are one number long.
        runner = TorchRecogniser(
            lambda inputs: stability(inputs)[:, None],
            1,
            backbone.preprocessing,
            Running(self.device, self.recogniser.precision),
            {},
        )
        return lambda images: runner.embed(images)[:, 0]

    def rows(self, shard: Shard, outputs: NDArray[np.float32]) -> tuple[pa.Table, list[Reject]]:
        """Return one row for every image of the shard, and the ones that failed."""
        failed = shard.rejects
        values = np.concatenate(
            [outputs, np.full((len(failed), len(columns.MEASURES)), np.nan, np.float32)]
        )
        table = pa.table(
            [
                shard.image_ids + [reject.image_id for reject in failed],
                *(pa.array(column, pa.float32(), from_pandas=True) for column in values.T),
                [None] * len(shard.image_ids) + [reject.reason for reject in failed],
            ],
            schema=columns.MEASURED,
        )
        return table.sort_by(columns.IMAGE_ID), failed
