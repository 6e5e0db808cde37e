"""Recognisers in ONNX files.

Shapes: N images, H and W rows and columns of a decoded face, h and w of the network's input, E
numbers in an embedding.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.preprocess import PRESETS, Preprocessing
from sdd_ray.errors import ConfigError
from sdd_ray.store.onnx_files import onnx_digest
from sdd_ray.store.onnx_session import OnnxOptions, OnnxSession


class OnnxRecogniser:
    """Any network in an ONNX file with one image input.

    A network whose input is uint8 does its own arithmetic, so the preprocessing must be `raw`.

    Args:
        path: The file.
        preprocessing: What the network expects of its input.
        flip: Whether to average the embeddings of an image and of its mirror image.
        options: See `OnnxSession`.

    Raises:
        InputError: The file, or one that holds weights of it, is missing.
        ConfigError: The input is uint8, and the preprocessing is not `raw`.
        WeightsError: The file is damaged, its input or output is another, or cannot be told.
        ResourceError: onnxruntime or the device is not there.
    """

    def __init__(
        self,
        path: Path,
        preprocessing: Preprocessing,
        flip: bool = False,
        options: OnnxOptions | None = None,
    ) -> None:
        self._weights_sha256 = onnx_digest(path)
        self._preprocessing = preprocessing
        self._flip = flip
        self._session = OnnxSession(path, options or OnnxOptions())
        self._session.check_input(preprocessing.height, preprocessing.width)
        if self._session.input_type == "uint8" and not _is_raw(preprocessing):
            raise ConfigError(
                f"{path}: its input is uint8, so the network does its own arithmetic on the pixels;"
                " expected recogniser.preprocessing.preset=raw (and no scale, mean or std)"
            )
        probe = np.zeros((1, 3, preprocessing.height, preprocessing.width), np.float32)
        self.embedding_size = self._session.run(probe).shape[1]

    def describe(self) -> dict[str, Any]:
        """Return what decides the embeddings, as plain JSON values."""
        return {
            "kind": "onnx",
            "weights_sha256": self._weights_sha256,
            "layout": self._session.layout,
            "input_type": self._session.input_type,
            "output": self._session.output,
            "preprocessing": self._preprocessing.to_dict(),
            "flip": self._flip,
        }

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, E) embeddings of (N, H, W, 3) RGB faces, not of unit length.

        Raises:
            ValueError: The images have another type or shape, or are too small.
        """
        if not len(images):
            return np.empty((0, self.embedding_size), np.float32)
        if not self._flip:
            return self._session.run(self._preprocessing.apply(images))
        both = np.concatenate([images, images[:, :, ::-1]])
        plain, mirrored = np.split(self._session.run(self._preprocessing.apply(both)), 2)
        return (plain + mirrored) / np.float32(2)

    def embed_many(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Yield the embeddings of each batch, in order; see `embed`."""
        return map(self.embed, batches)


def _is_raw(preprocessing: Preprocessing) -> bool:
    raw = PRESETS["raw"]
    return replace(preprocessing, scale=raw.scale, mean=raw.mean, std=raw.std) == preprocessing
