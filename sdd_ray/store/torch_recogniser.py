"""Recognisers that run in torch, on a CPU or a GPU.

Shapes: N images, H and W rows and columns of a decoded face, h and w of the network's input, E
numbers in an embedding.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.errors import ResourceError

Precision = Literal["float32", "float16", "bfloat16"]
_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Running:
    """How a network is run.

    Attributes:
        device: `cpu` or `cuda`.
        precision: Number format of convolutions and products, by torch's autocast.
        channels_last: Whether the input has its channels last in memory (its shape stays). For
            depthwise convolutions that is faster: 136 against 103 images/s, one thread of a CPU.
        flip: Whether to average the embeddings of an image and of its mirror image.
    """

    device: str = "cpu"
    precision: Precision = "float32"
    channels_last: bool = True
    flip: bool = False


class _Output(NamedTuple):
    """Embeddings of a batch on the CPU, complete when `ready` has come, if it is given."""

    embeddings: Tensor
    ready: torch.cuda.Event | None


class TorchRecogniser:
    """A network that runs in torch.

    Args:
        network: (N, 3, h, w) float32 images on the device to (N, E) embeddings.
        embedding_size: E.
        preprocessing: What the network expects.
        running: How it is run.
        description: What else decides the embeddings, as plain JSON values.

    Raises:
        ResourceError: The device is not there.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        embedding_size: int,
        preprocessing: Preprocessing,
        running: Running,
        description: dict[str, Any],
    ) -> None:
        check_device(running.device)
        self.embedding_size = embedding_size
        self._network = network
        self._preprocessing = preprocessing
        self._running = running
        self._description = description
        self._device = torch.device(running.device)
        self._is_cuda = self._device.type == "cuda"
        self._copies = torch.cuda.Stream() if self._is_cuda else None  # type: ignore[no-untyped-call]  # torch's

    def describe(self) -> dict[str, Any]:
        """Return what decides the embeddings, as plain JSON values."""
        return {
            **self._description,
            "preprocessing": self._preprocessing.to_dict(),
            "precision": self._running.precision,
            "flip": self._running.flip,
        }

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, E) embeddings of (N, H, W, 3) RGB faces, not of unit length.

        Raises:
            ValueError: The images have another type or shape, or are too small.
            ResourceError: The memory of the GPU does not suffice.
        """
        return next(self.embed_many([images]))

    def embed_many(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Yield the embeddings of each batch, in order; see `embed`.

        On a GPU a batch is handed over before the result of the one before it is waited for, so
        that reading, decoding and copying the next images goes on while the network runs.
        """
        in_flight: deque[_Output] = deque()
        for images in batches:
            in_flight.append(self._submit(images))
            if not self._is_cuda or len(in_flight) > 1:
                yield _result(in_flight.popleft())
        while in_flight:
            yield _result(in_flight.popleft())

    @torch.inference_mode()
    def _submit(self, images: NDArray[np.uint8]) -> _Output:
        if images.dtype != np.uint8:
            raise ValueError(f"expected uint8 pixels, got {images.dtype}")
        if not len(images):
            return _Output(torch.empty(0, self.embedding_size), None)
        try:
            embeddings = self._embeddings(self._inputs(images))
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"the memory of the GPU does not suffice for {len(images)} images at once; lower"
                f" batch_size ({error})"
            ) from error
        if not self._is_cuda:
            return _Output(embeddings, None)
        output = torch.empty(embeddings.shape, pin_memory=True)
        output.copy_(embeddings, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
        ready.record()
        return _Output(output, ready)

    def _inputs(self, images: NDArray[np.uint8]) -> Tensor:
        """Return what the network takes, on the device, for (N, H, W, 3) images."""
        # Numpy copies: torch takes no mirrored views, and read-only arrays only with a warning.
        # Pinned memory is what a GPU copies from without waiting; torch keeps it until then.
        pixels = torch.empty(images.shape, dtype=torch.uint8, pin_memory=self._is_cuda)
        np.copyto(pixels.numpy(), images)
        if self._copies is None:
            return self._prepared(pixels)
        # On a stream of its own: it need not wait for the network, but the network for it.
        network = torch.cuda.current_stream()
        with torch.cuda.stream(self._copies):
            inputs = self._prepared(pixels.to(self._device, non_blocking=True))
        network.wait_stream(self._copies)
        inputs.record_stream(network)
        return inputs

    def _prepared(self, pixels: Tensor) -> Tensor:
        if self._running.flip:
            pixels = torch.cat([pixels, pixels.flip(2)])
        inputs = self._preprocessing.apply_tensor(pixels)
        return inputs if self._running.channels_last else inputs.contiguous()

    def _embeddings(self, inputs: Tensor) -> Tensor:
        """Return the (N, E) float32 embeddings, on the device, for what `_inputs` returned."""
        with self._autocast():
            embeddings = self._network(inputs).float()
        if not self._running.flip:
            return embeddings
        plain, mirrored = embeddings.chunk(2)
        return (plain + mirrored) / 2

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._running.precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, _HALVES[self._running.precision])


def check_device(device: str) -> None:
    """Check that torch can run on a device.

    Raises:
        ResourceError: It cannot.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise ResourceError(f"expected the device {device}, but torch finds no CUDA device here")


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a network that torch compiles at its first batch, for batches of any size.

    Calls raise ResourceError if that fails.
    """
    compiled_network = torch.compile(network, dynamic=True)

    def run(images: Tensor) -> Tensor:
        try:
            embeddings: Tensor = compiled_network(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # The compilers' kinds of errors have no common base.
            raise ResourceError(
                "torch.compile could not compile or run the network (it needs a C++ compiler such"
                f" as g++ for a CPU, Triton for a GPU); set recogniser.compile=false: {error}"
            ) from error
        return embeddings

    return run


def _result(output: _Output) -> NDArray[np.float32]:
    if output.ready is not None:
        output.ready.synchronize()
    embeddings: NDArray[np.float32] = output.embeddings.numpy()
    return embeddings
