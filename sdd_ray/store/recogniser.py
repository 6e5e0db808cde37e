"""Face recognisers: from decoded faces to embeddings, whatever format the weights have.

Shapes: N images, H and W rows and columns of a decoded face, h and w of the network's input, E
numbers in an embedding.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdd_ray import synthetic
from sdd_ray.core.models import (
    Architecture,
    architecture_names,
    build_backbone,
    detect,
    without_prefix,
)
from sdd_ray.core.models.trunk import LayeredNetwork
from sdd_ray.core.preprocess import PRESETS, Preprocessing
from sdd_ray.errors import ConfigError, InputError, WeightsError
from sdd_ray.settings import PreprocessingConfig, RecogniserConfig
from sdd_ray.store.onnx_files import onnx_digest
from sdd_ray.store.onnx_recogniser import OnnxRecogniser
from sdd_ray.store.onnx_session import Layout, OnnxOptions
from sdd_ray.store.programs import load_program
from sdd_ray.store.torch_recogniser import (
    Precision,
    Running,
    TorchRecogniser,
    check_device,
    compiled,
)
from sdd_ray.store.weights import digest, fit_weights, load_weights

Kind = Literal["demo", "onnx", "torch", "program"]

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

    def embed_many(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Yield the embeddings of each batch, in order; a GPU works on the next one meanwhile."""


@dataclass(frozen=True)
class RecogniserSpec:
    """Which recogniser to load; small, and may travel to workers.

    Attributes:
        kind: `demo`: the small network of the package. `onnx`: an ONNX file. `torch`: weights of a
            built-in architecture. `program`: a file of torch.export or TorchScript.
        path: Local file (all but `demo`).
        architecture: Name of the network of the weights, None to find out (`torch`).
        preprocessing: What the network expects (all but `demo`, which knows its own).
        flip: Whether to average the embeddings of an image and of its mirror image.
        layout: Whether the channels of the input come first or last, None to find out (`onnx`).
        output: Name of the output to take, None to find out (`onnx`).
        precision: Number format that is computed in (all but `onnx`).
        compile: Whether torch compiles the network (`demo`, `torch`).
        trust: Whether the code in the file may run (`program`).
    """

    kind: Kind = "demo"
    path: str | None = None
    architecture: str | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    flip: bool = False
    layout: Layout | None = None
    output: str | None = None
    precision: Precision = "float32"
    compile: bool = False
    trust: bool = False


class Backbone(NamedTuple):
    """A recogniser whose weights can be trained further.

    Attributes:
        network: (N, 3, h, w) preprocessed images to (N, E) embeddings, on the CPU.
        architecture: How it is built.
        preprocessing: What it expects of its input.
        dropped: Names of tensors of the weight file that are no part of it, such as the classifier
            that it was trained with.
    """

    network: LayeredNetwork
    architecture: Architecture
    preprocessing: Preprocessing
    dropped: tuple[str, ...] = ()


def recogniser_spec(config: RecogniserConfig) -> RecogniserSpec:
    """Return the recogniser that a configuration asks for.

    Raises:
        ConfigError: The architecture's name is not known.
    """
    if config.architecture is not None and config.architecture not in architecture_names():
        raise ConfigError(
            f"recogniser.architecture: expected one of {', '.join(architecture_names())}, got"
            f" {config.architecture}"
        )
    # Workers have a working directory of their own.
    path = None if config.path is None else str(Path(config.path).expanduser().absolute())
    return RecogniserSpec(
        kind=config.kind,
        path=path,
        architecture=config.architecture,
        preprocessing=_preprocessing(config.preprocessing),
        flip=config.flip,
        layout=config.layout,
        output=config.output,
        precision=config.precision,
        compile=config.compile,
        trust=config.trust,
    )


def load_recogniser(spec: RecogniserSpec, threads: int = 1, device: str = "cpu") -> Recogniser:
    """Return a recogniser, loaded and ready.

    Args:
        spec: Which one.
        threads: CPU threads it may use. Torch has one number for the whole process.
        device: `cpu` or `cuda`; there is no fall-back from the one to the other.

    Raises:
        ConfigError: The specification contradicts itself or the file, or a program is not trusted.
        InputError: The weight file is missing.
        WeightsError: The weights are damaged, unsafe, or do not fit.
        ResourceError: The device or onnxruntime is not there.
    """
    path = _path(spec)
    if spec.kind == "onnx":
        options = OnnxOptions(threads, device, spec.layout, spec.output)
        return OnnxRecogniser(path, spec.preprocessing, spec.flip, options)
    check_device(device)
    torch.set_num_threads(threads)
    if spec.kind == "program":
        return _program(spec, path, device)
    backbone = load_backbone(spec)
    network = backbone.network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types
    return TorchRecogniser(
        compiled(network) if spec.compile else network,
        backbone.architecture.embedding_size,
        backbone.preprocessing,
        Running(device, spec.precision, channels_last=True, flip=spec.flip),
        {
            "kind": "torch",
            "weights_sha256": digest(path),
            "architecture": backbone.architecture.to_dict(),
            "dropped_tensors": list(backbone.dropped),
            "compile": spec.compile,
        },
    )


def weights_digest(spec: RecogniserSpec) -> str:
    """Return the SHA-256 of a recogniser's weights, in whatever files they are.

    Raises:
        InputError: A file is missing.
        WeightsError: An ONNX file is damaged, or names weights outside its folder.
    """
    path = _path(spec)
    return onnx_digest(path) if spec.kind == "onnx" else digest(path)


def load_backbone(spec: RecogniserSpec) -> Backbone:
    """Return a recogniser's network with its weights, set to evaluation.

    Raises:
        ConfigError: The recogniser is an ONNX file or a program, or its input size is not the
            preprocessing's.
        InputError: The weight file is missing.
        WeightsError: The weights are damaged, unsafe, or do not fit.
    """
    if spec.kind == "demo":
        return _demo()
    if spec.kind != "torch":
        raise ConfigError(
            f"a network of recogniser.kind={spec.kind} cannot be trained further; give the same"
            " network as PyTorch weights (recogniser.kind=torch)"
        )
    path = _path(spec)
    weights = load_weights(path)
    network, architecture = _built(weights, spec.architecture, path)
    size = (spec.preprocessing.height, spec.preprocessing.width)
    if architecture.input_size != size:
        raise ConfigError(
            f"{path}: the network takes images of {architecture.input_size} pixels, but"
            f" recogniser.preprocessing makes them {size} (height, width)"
        )
    names = without_prefix(weights)
    dropped = tuple(sorted(weights.keys() - names.keys()))
    fitting = {bare: weights[name] for name, bare in names.items()}
    fit_weights(network, fitting, f"{path} as {architecture.name}")
    network.eval()
    return Backbone(network, architecture, spec.preprocessing, dropped)


def _preprocessing(config: PreprocessingConfig) -> Preprocessing:
    base = PRESETS[config.preset or "arcface"]
    if config.channel_order == "bgr":  # presets are written for rgb
        base = replace(base, mean=base.mean[::-1], std=base.std[::-1])
    return replace(
        base,
        height=config.height,
        width=config.width,
        channel_order=config.channel_order,
        scale=base.scale if config.scale is None else config.scale,
        mean=config.mean or base.mean,
        std=config.std or base.std,
    )


def _path(spec: RecogniserSpec) -> Path:
    if spec.kind == "demo":
        return DEMO_WEIGHTS
    if spec.path is None:
        raise ConfigError(f"recogniser.kind={spec.kind} needs recogniser.path, the weight file")
    return Path(spec.path).expanduser()


def _program(spec: RecogniserSpec, path: Path, device: str) -> TorchRecogniser:
    program = load_program(path, spec.trust, spec.preprocessing, device)
    # A program may rely on the memory order it was saved with, which is the usual one.
    running = Running(device, spec.precision, channels_last=False, flip=spec.flip)
    return TorchRecogniser(
        program.run,
        program.embedding_size,
        spec.preprocessing,
        running,
        {"kind": "program", "weights_sha256": digest(path), "format": program.format},
    )


def _built(
    weights: dict[str, Tensor], name: str | None, path: Path
) -> tuple[LayeredNetwork, Architecture]:
    """Return the network that the weights belong to, with random weights."""
    try:
        found = detect({key: tuple(value.shape) for key, value in weights.items()})
        if name not in (None, found.name):  # of the same tensors, or `fit_weights` will tell
            found = Architecture(name, found.embedding_size, input_size=found.input_size)
        return build_backbone(found), found
    except ValueError as error:
        raise WeightsError(
            f"{path}: expected weights of a built-in architecture: {error}"
        ) from error


def _demo() -> Backbone:
    """Return the network of the package, which is described beside its weights."""
    path = DEMO_WEIGHTS.with_suffix(".json")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        architecture = Architecture.from_dict(description["architecture"])
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
        network = build_backbone(architecture).eval()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the description of a recogniser: {error!r}") from error
    fit_weights(network, load_weights(DEMO_WEIGHTS), str(DEMO_WEIGHTS))
    return Backbone(network, architecture, preprocessing)
