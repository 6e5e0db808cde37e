"""The embed stage: from images to unit-length embeddings with a recogniser."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdd_ray import columns
from sdd_ray.core.similarity import EMBEDDING_REASONS, check_embeddings, normalise
from sdd_ray.engine.image_worker import Network, Shard
from sdd_ray.store.recogniser import RecogniserSpec, load_recogniser
from sdd_ray.store.run import Reject


@dataclass(frozen=True)
class EmbedStage:
    """Embed images; those that cannot be read or embedded are set aside.

    Attributes:
        recogniser: What to load on each worker.
        storage: float32 or float16.
        device: Where the recogniser runs, cpu or cuda.
    """

    recogniser: RecogniserSpec
    storage: str
    device: str

    def load(self, threads: int) -> Network:
        """Load the recogniser on a worker; return a function from images to raw embeddings."""
        return load_recogniser(self.recogniser, threads, self.device).embed_many

    def rows(self, shard: Shard, outputs: NDArray[np.float32]) -> tuple[pa.Table, list[Reject]]:
        """Return the embeddings of the shard, and all its images that were set aside."""
        faults = check_embeddings(outputs)
        usable = np.flatnonzero(faults == 0)
        unit, norms = normalise(outputs[usable])
        values = unit.astype(self.storage).ravel()
        schema = columns.embeddings(outputs.shape[1], self.storage)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values), outputs.shape[1])
        table = pa.table(
            [
                pa.array([shard.image_ids[row] for row in usable], pa.string()),
                pa.array([shard.identities[row] for row in usable], pa.string()),
                column,
                norms,
                shard.content[usable],
            ],
            schema=schema,
        )
        rejects = [
            Reject(shard.image_ids[row], EMBEDDING_REASONS[faults[row]])
            for row in np.flatnonzero(faults)
        ]
        return table, shard.rejects + rejects
