"""What every backbone offers: the feature map on which a head is put.

Shapes: N images, E numbers in an embedding, C channels, H and W rows and columns of an image, h and
w of the feature map.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

Layers = Mapping[str, nn.Module]
"""Layers that run one after another, under the names that their parameters have in a checkpoint."""

_PIXELS_PER_POSITION = 16  # every backbone halves its input four times


class Design(NamedTuple):
    """The layers of a backbone, and which of its parameters give its sizes away.

    Attributes:
        trunk: From the factor on all numbers of channels to the layers up to the feature map, and
            to C, its number of channels.
        head: From (C, h, w) and E to the layers that make the embedding of the feature map.
        embedding: Name of the first parameter whose shape begins with E.
        pooling: Name of the parameter that weighs the positions of the feature map: (C, 1, h, w) of
            a convolution, or (E, C*h*w) of a linear layer.
    """

    trunk: Callable[[float], tuple[Layers, int]]
    head: Callable[[tuple[int, int, int], int], Layers]
    embedding: str
    pooling: str


class Trunk(nn.Module):
    """A network from images to a feature map; recognisers extend it with an embedding head.

    Attributes:
        feature_shape: (C, h, w) of the feature map for the input size it was built for.
    """

    feature_shape: tuple[int, int, int]

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the (N, C, h, w) feature map of (N, 3, H, W) preprocessed images."""
        raise NotImplementedError


class LayeredNetwork(Trunk):
    """A backbone built from a design: images in, embeddings out.

    Called with (N, 3, H, W) preprocessed images it returns (N, E) embeddings that are **not** of
    unit length. The weights that it starts with come from torch's global generator.

    Args:
        design: Its layers.
        embedding_size: E; None leaves the embedding head out, and only `feature_map` is of use.
        width: Factor on all numbers of channels but E.
        input_size: (H, W) of the images in pixels; each is halved four times, rounding up.

    Raises:
        ValueError: `embedding_size`, `width` or a side of `input_size` is not positive.
    """

    def __init__(
        self,
        design: Design,
        embedding_size: int | None,
        width: float,
        input_size: tuple[int, int],
    ) -> None:
        super().__init__()
        if min(width, *input_size, 1 if embedding_size is None else embedding_size) <= 0:
            raise ValueError(
                "expected a positive embedding size, width and input size, got"
                f" {embedding_size}, {width} and {input_size}"
            )
        trunk, channels = design.trunk(width)
        height, columns = (math.ceil(side / _PIXELS_PER_POSITION) for side in input_size)
        self.feature_shape = (channels, height, columns)
        head = {} if embedding_size is None else design.head(self.feature_shape, embedding_size)
        self._trunk, self._head = tuple(trunk), tuple(head)
        for name, layer in {**trunk, **head}.items():
            self.add_module(name, layer)

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the (N, C, h, w) feature map of (N, 3, H, W) preprocessed images."""
        return _run(self, self._trunk, images)

    def embedding_of(self, features: Tensor) -> Tensor:
        """Return the (N, E) embeddings, not normalised, of (N, C, h, w) feature maps."""
        return _run(self, self._head, features).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the (N, E) embeddings, not normalised."""
        return self.embedding_of(self.feature_map(images))


class Summed(nn.Module):
    """Layers whose result is added to their input.

    Args:
        layers: Run one after another.
        shortcut: Run on the input before it is added, where the shapes differ.
    """

    def __init__(self, layers: Layers, shortcut: Layers | None = None) -> None:
        super().__init__()
        shortcut = shortcut or {}
        self._layers, self._shortcut = tuple(layers), tuple(shortcut)
        for name, layer in {**layers, **shortcut}.items():
            self.add_module(name, layer)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the sum, of the shape that the layers give."""
        return _run(self, self._shortcut, maps) + _run(self, self._layers, maps)


def named(layers: Layers) -> nn.Sequential:
    """Return one module of layers that run one after another under the given names."""
    return nn.Sequential(OrderedDict(layers))


def pixels_seen(positions: int) -> int:
    """Return the rows (or columns) of an image whose feature map has `positions` of them.

    Sixteen numbers fit, since each halving rounds up; this is the largest.
    """
    return positions * _PIXELS_PER_POSITION


def _run(module: nn.Module, names: Iterable[str], maps: Tensor) -> Tensor:
    for name in names:
        maps = getattr(module, name)(maps)
    return maps
