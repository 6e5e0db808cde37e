"""Recognisers in ONNX files.

Shapes: N images, H and W rows and columns of a decoded face, h and w of the network's input, E
numbers in an embedding.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
        options = options or OnnxOptions()
        self._is_cuda = options.device == "cuda"
        self._session = OnnxSession(path, options)
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
        return self._embeddings(self._inputs(images))

    def embed_many(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Yield the embeddings of each batch, in order; see `embed`.

        On a GPU the next batch is read, and made ready by a thread, while the network runs.
        """
        return self._embed_ahead(batches) if self._is_cuda else map(self.embed, batches)

    def _embed_ahead(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        ahead: deque[Future[NDArray[np.float32]]] = deque()
        with ThreadPoolExecutor(1) as thread:
            for images in batches:
                ahead.append(thread.submit(self._inputs, images))
                if len(ahead) > 1:
                    yield self._embeddings(ahead.popleft().result())
            while ahead:
                yield self._embeddings(ahead.popleft().result())

    def _inputs(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the network takes for (N, H, W, 3) images; those and their mirror images."""
        if self._flip:
            images = np.concatenate([images, images[:, :, ::-1]])
        return self._preprocessing.apply(images)

    def _embeddings(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (N, E) embeddings for what `_inputs` returned."""
        if not len(inputs):
            return np.empty((0, self.embedding_size), np.float32)
        embeddings = self._session.run(inputs)
        if not self._flip:
            return embeddings
        plain, mirrored = np.split(embeddings, 2)
        return (plain + mirrored) / np.float32(2)


def _is_raw(preprocessing: Preprocessing) -> bool:
    raw = PRESETS["raw"]
    return replace(preprocessing, scale=raw.scale, mean=raw.mean, std=raw.std) == preprocessing
