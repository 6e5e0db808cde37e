"""A quality model that runs: from decoded faces to raw and calibrated qualities.

Shapes: N images.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from sdd_ray.store.model_folder import QualityModel
from sdd_ray.store.torch_recogniser import Running, TorchRecogniser

MODEL_WRITERS = ("train", "calibrate")
"""Commands that write model folders; what tune writes, train could have."""


class QualityRunner:
    """A quality model on a device; several threads may use it at the same time.

    Args:
        model: The model.
        device: `cpu` or `cuda`.

    Raises:
        ResourceError: The device is not there.
    """

    def __init__(self, model: QualityModel, device: str) -> None:
        running = Running(device)
        network = model.network
        # It runs as a recogniser does whose embeddings are one number long.
        self._runner = TorchRecogniser(
            lambda inputs: network(inputs)[:, None], 1, model.preprocessing, running, {}
        )
        network.eval().to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
        self._calibration = model.calibration

    def qualities(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Yield (N, 2) for each batch: raw qualities, and those in [0, 100] before rounding.

        Args:
            batches: (N, 112, 112, 3) RGB faces each.

        Raises:
            ValueError: The images have another type or shape.
            ResourceError: The memory of the GPU does not suffice.
        """
        for raw in self._runner.embed_many(batches):
            quality = self._calibration.apply(raw)
            yield np.concatenate([raw, quality], axis=1).astype(np.float32)
