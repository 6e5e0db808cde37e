"""Face recognisers: from decoded faces to embeddings, whatever format the weights have.

Shapes: N images, H and W rows and columns of a decoded face, E numbers in an embedding.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sdd_ray import synthetic
from sdd_ray.core.models import Architecture, build_backbone
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.errors import ConfigError, InputError, ResourceError
from sdd_ray.settings import RecogniserConfig
from sdd_ray.store.onnx_session import OnnxSession
from sdd_ray.store.weights import digest, fit_weights, load_weights

Kind = Literal["demo", "onnx", "torch"]

DEMO_WEIGHTS = Path(synthetic.__file__).parent / "recogniser.safetensors"
"""Weights of the small recogniser of the package; recogniser.json beside them describes it."""


class Recogniser(Protocol):
    """What the embed stage needs of a recogniser."""

    @property
    def embedding_size(self) -> int:
        """Return E, the length of an embedding."""

    def describe(self) -> dict[str, Any]:
        """Return what decides the embeddings, as plain JSON values for a manifest."""

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, E) embeddings of (N, H, W, 3) RGB faces, not of unit length."""


@dataclass(frozen=True)
class RecogniserSpec:
    """Which recogniser to load; small, and may travel to workers.

    Attributes:
        kind: `demo`: the small network of the package. `onnx`: an ONNX file. `torch`: weights of a
            built-in architecture.
        path: Local weight file (`onnx`, `torch`).
        architecture: Network of the weights (`torch`).
        preprocessing: What the network expects (`onnx`, `torch`); `demo` knows its own.
        flip: Whether to average the embeddings of an image and of its mirror image.
    """

    kind: Kind = "demo"
    path: str | None = None
    architecture: Architecture = field(default_factory=Architecture)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    flip: bool = False


class Backbone(NamedTuple):
    """A recogniser whose weights can be trained further.

    Attributes:
        network: (N, 3, h, w) preprocessed images to (N, E) embeddings, on the CPU.
        architecture: How it is built.
        preprocessing: What it expects of its input.
    """

    network: nn.Module
    architecture: Architecture
    preprocessing: Preprocessing


def recogniser_spec(config: RecogniserConfig) -> RecogniserSpec:
    """Return the recogniser that a configuration asks for."""
    preprocessing = Preprocessing.from_dict(asdict(config.preprocessing))
    architecture = Architecture(
        name=config.architecture,
        embedding_size=config.embedding_size,
        input_size=(preprocessing.height, preprocessing.width),
    )
    # Workers have a working directory of their own.
    path = None if config.path is None else str(Path(config.path).expanduser().absolute())
    return RecogniserSpec(config.kind, path, architecture, preprocessing, config.flip)


def load_recogniser(spec: RecogniserSpec, threads: int = 1, device: str = "cpu") -> Recogniser:
    """Return a recogniser, loaded and ready.

    Args:
        spec: Which one.
        threads: CPU threads it may use. Torch has one number for the whole process.
        device: `cpu` or `cuda`; there is no fall-back from the one to the other.

    Raises:
        ConfigError: The specification contradicts itself.
        InputError: The weight file is missing.
        WeightsError: The weights are damaged, unsafe, or do not fit.
        ResourceError: The device or onnxruntime is not there.
    """
    recogniser: Recogniser
    if spec.kind == "onnx":
        recogniser = OnnxRecogniser(_path(spec), spec.preprocessing, threads, device)
    else:
        backbone = load_backbone(spec)
        recogniser = TorchRecogniser(backbone, digest(_path(spec)), threads, device)
    return MirrorAveraged(recogniser) if spec.flip else recogniser


def weights_digest(spec: RecogniserSpec) -> str:
    """Return the SHA-256 of a recogniser's weight file.

    Raises:
        InputError: The file is missing.
    """
    return digest(_path(spec))


def load_backbone(spec: RecogniserSpec) -> Backbone:
    """Return a recogniser's network with its weights, set to evaluation.

    Raises:
        ConfigError: The recogniser is an ONNX file, or its input size is not the preprocessing's.
        InputError: The weight file is missing.
        WeightsError: The weights are damaged, unsafe, or do not fit.
    """
    if spec.kind == "onnx":
        raise ConfigError(
            "an ONNX file cannot be trained further; give the same network as PyTorch weights"
            " (recogniser.kind=torch)"
        )
    backbone = _described() if spec.kind == "demo" else _built(spec)
    fit_weights(backbone.network, load_weights(_path(spec)), str(_path(spec)))
    return backbone


class TorchRecogniser:
    """A built-in network with weights from a file.

    Args:
        backbone: The network; it is moved to the device.
        weights_sha256: Digest of its weight file.
        threads: CPU threads of the whole process.
        device: `cpu` or `cuda`.

    Raises:
        ResourceError: The device is not there.
    """

    def __init__(
        self, backbone: Backbone, weights_sha256: str, threads: int = 1, device: str = "cpu"
    ) -> None:
        if device != "cpu" and not torch.cuda.is_available():
            raise ResourceError(
                f"expected the device {device}, but torch finds no CUDA device here"
            )
        torch.set_num_threads(threads)
        self._backbone = backbone
        self._weights_sha256 = weights_sha256
        self._device = torch.device(device)
        self._network = backbone.network.to(self._device)

    @property
    def embedding_size(self) -> int:
        """Return E, the length of an embedding."""
        return self._backbone.architecture.embedding_size

    def describe(self) -> dict[str, Any]:
        """Return what decides the embeddings, as plain JSON values."""
        return {
            "kind": "torch",
            "weights_sha256": self._weights_sha256,
            "architecture": self._backbone.architecture.to_dict(),
            "preprocessing": self._backbone.preprocessing.to_dict(),
            "flip": False,
        }

    @torch.inference_mode()
    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, E) embeddings of (N, H, W, 3) RGB faces, not of unit length.

        Raises:
            ValueError: The images have another type or shape, or are too small.
        """
        # A copy: torch takes no mirrored views, and read-only arrays only with a warning.
        pixels = torch.from_numpy(images.copy()).to(self._device)
        # As a tensor, the input has its channels last in memory, which is faster for depthwise
        # convolutions: 207 against 139 images/s, measured on one thread of a shared CPU.
        embeddings = self._network(self._backbone.preprocessing.apply_tensor(pixels))
        result: NDArray[np.float32] = embeddings.float().cpu().numpy()
        return result


class OnnxRecogniser:
    """Any network in an ONNX file with one (N, 3, h, w) input; its first output is the embedding.

    Args:
        path: The file.
        preprocessing: What it expects of its input.
        threads: CPU threads.
        device: `cpu` or `cuda`.

    Raises:
        InputError: The file is missing.
        WeightsError: The file is damaged, or its input is another.
        ResourceError: onnxruntime or the device is not there.
    """

    def __init__(
        self, path: Path, preprocessing: Preprocessing, threads: int = 1, device: str = "cpu"
    ) -> None:
        self._preprocessing = preprocessing
        self._weights_sha256 = digest(path)
        self._session = OnnxSession(path, threads, device)
        self._session.check_input((3, preprocessing.height, preprocessing.width))
        probe = np.zeros((1, 3, preprocessing.height, preprocessing.width), np.float32)
        self._embedding_size: int = self._session.run(probe).shape[1]

    @property
    def embedding_size(self) -> int:
        """Return E, the length of an embedding."""
        return self._embedding_size

    def describe(self) -> dict[str, Any]:
        """Return what decides the embeddings, as plain JSON values."""
        return {
            "kind": "onnx",
            "weights_sha256": self._weights_sha256,
            "preprocessing": self._preprocessing.to_dict(),
            "flip": False,
        }

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, E) embeddings of (N, H, W, 3) RGB faces, not of unit length.

        Raises:
            ValueError: The images have another type or shape, or are too small.
        """
        if not len(images):
            return np.empty((0, self._embedding_size), np.float32)
        return self._session.run(self._preprocessing.apply(images))


class MirrorAveraged:
    """A recogniser that averages the embeddings of each image and of its mirror image."""

    def __init__(self, recogniser: Recogniser) -> None:
        self._recogniser = recogniser

    @property
    def embedding_size(self) -> int:
        """Return E, the length of an embedding."""
        return self._recogniser.embedding_size

    def describe(self) -> dict[str, Any]:
        """Return what decides the embeddings, as plain JSON values."""
        return {**self._recogniser.describe(), "flip": True}

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, E) mean embeddings of (N, H, W, 3) RGB faces, not of unit length."""
        total = self._recogniser.embed(images) + self._recogniser.embed(images[:, :, ::-1])
        return total / np.float32(2)


def _path(spec: RecogniserSpec) -> Path:
    if spec.kind == "demo":
        return DEMO_WEIGHTS
    if spec.path is None:
        raise ConfigError(f"recogniser.kind={spec.kind} needs recogniser.path, the weight file")
    return Path(spec.path).expanduser()


def _built(spec: RecogniserSpec) -> Backbone:
    """Return the network of a specification with random weights, set to evaluation."""
    size = (spec.preprocessing.height, spec.preprocessing.width)
    if spec.architecture.input_size != size:
        raise ConfigError(
            f"expected preprocessing to the network's input of {spec.architecture.input_size}"
            f" pixels, got {size}"
        )
    network = build_backbone(spec.architecture).eval()
    return Backbone(network, spec.architecture, spec.preprocessing)


def _described() -> Backbone:
    """Return the network that lies beside the weights of the package, with random weights."""
    path = DEMO_WEIGHTS.with_suffix(".json")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        architecture = Architecture.from_dict(description["architecture"])
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the description of a recogniser: {error!r}") from error
    return _built(RecogniserSpec("torch", None, architecture, preprocessing))
