"""MobileFaceNet, a face recogniser of one million parameters, under the names of its publications.

It was published with weights by several authors, who named the same layers differently; weights
load without renaming:

    mobilefacenet               ReLU in place of PReLU, torchvision's names (`conv1.0.weight`,
                                `features.14.conv.3.bias`, `gdconv`); 307 tensors
    mobilefacenet_xiaoccer      Xiaoccer/MobileFaceNet_Pytorch (`blocks.0.conv.0.weight`, `linear7`)
    mobilefacenet_insightface   TreB1eN/InsightFace_Pytorch, face.evoLVe (`conv_23.conv_dw`,
                                `conv_6_dw`, `linear`, `bn`)
    mobilefacenet_tface         TFace quality, SDD-FIQA, CurricularFace: the same with
                                `output_layer` before the head's names
    mobilefacenet_torchkit      TFace recognition: the same without weights in the last batch norm
    mobilefacenet_arcface       arcface_torch's `mbf` (`layers.2.layers.0.layers.0.weight`), twice
                                as many channels between blocks
    mobilefacenet_arcface_large arcface_torch's `mbf_large`: four times, and twice the blocks

The pooling by norms (GNAP) that some of them offer as another head is left out: it makes the
embedding of an image depend on the other images of its batch.

Source: Chen et al., "MobileFaceNets", 2018, arXiv:1804.07573, table 1.
Shapes: N images, E numbers in an embedding, C channels, h and w rows and columns.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import NamedTuple

from torch import nn

from sdd_ray.core.models.trunk import Design, LayeredNetwork, Layers, Summed, named

Unit = list[nn.Module]  # convolution, batch normalisation, and an activation if it has one
Shape = tuple[int, int, int]

_STEM_CHANNELS = 64
_LAST_CHANNELS = 512
# (expansion, output channels, blocks, stride of the first block); arXiv:1804.07573, table 1.
_STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
_LARGE_STAGES = (
    (2, 64, 2, 1),
    (2, 64, 9, 2),
    (4, 128, 1, 2),
    (2, 128, 12, 1),
    (4, 128, 1, 2),
    (2, 128, 4, 1),
)


class MobileFaceNet(LayeredNetwork):
    """MobileFaceNet: (N, 3, H, W) images in, (N, E) embeddings out.

    The embeddings are **not** of unit length.

    Args:
        embedding_size: E, the length of an embedding; None leaves the embedding head out.
        width: Factor on all numbers of channels but E, which are rounded to multiples of 8.
        input_size: (H, W) of the images in pixels; each is halved four times, rounding up.
        variant: Key of `MOBILEFACENETS`.

    Raises:
        ValueError: `width` or a side of `input_size` is not positive.

    Source:
        arXiv:1804.07573; equal to the published ONNX export of the same weights
        (tests/unit/test_mobilefacenet.py).

    Example:
        >>> MobileFaceNet(input_size=(112, 96)).feature_shape
        (512, 7, 6)
    """

    def __init__(
        self,
        embedding_size: int | None = 128,
        width: float = 1.0,
        input_size: tuple[int, int] = (112, 112),
        variant: str = "mobilefacenet",
    ) -> None:
        super().__init__(MOBILEFACENETS[variant], embedding_size, width, input_size)


class _Block(NamedTuple):
    inputs: int
    hidden: int
    outputs: int
    stride: int


def _blocks(
    width: float, scale: int = 1, stages: tuple[tuple[int, int, int, int], ...] = _STAGES
) -> Iterator[_Block]:
    """Yield the sizes of the bottlenecks; `scale` widens what lies between them, not inside."""
    inputs = scale * _channels(_STEM_CHANNELS, width)
    for expansion, channels, repeats, first_stride in stages:
        outputs = scale * _channels(channels, width)
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            yield _Block(inputs, inputs * expansion // scale, outputs, stride)
            inputs = outputs


def _channels(channels: int, width: float) -> int:
    return max(8, 8 * round(channels * width / 8))


def _unit(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int] = 1,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[int], nn.Module] | None = nn.PReLU,
) -> Unit:
    padding = kernel // 2 if isinstance(kernel, int) else 0
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    layers: Unit = [conv, nn.BatchNorm2d(outputs)]
    return layers if activation is None else [*layers, activation(outputs)]


def _bottleneck(
    block: _Block,
    arrange: Callable[[Unit, Unit, Unit], Layers],
    activation: Callable[[int], nn.Module] = nn.PReLU,
) -> nn.Module:
    """Return an inverted residual block; the sum is taken where input and output have one shape."""
    inputs, hidden, outputs, stride = block
    layers = arrange(
        _unit(inputs, hidden, activation=activation),
        _unit(hidden, hidden, 3, stride, hidden, activation),
        _unit(hidden, outputs, activation=None),
    )
    return Summed(layers) if stride == 1 and inputs == outputs else named(layers)


def _pooling(shape: Shape) -> Unit:
    """Return a unit with one weight for each position and channel, in place of an average."""
    channels, height, columns = shape
    return _unit(channels, channels, (height, columns), groups=channels, activation=None)


def _labelled(unit: Unit) -> nn.Sequential:
    return named(dict(zip(("conv", "bn", "prelu"), unit, strict=False)))


def _wrapped(*layers: nn.Module) -> nn.Sequential:
    return named({"layers": nn.Sequential(*layers)})


def _relu(_: int) -> nn.Module:
    return nn.ReLU(inplace=True)


def _relu6(_: int) -> nn.Module:
    return nn.ReLU6(inplace=True)


def _separable(channels: int) -> nn.Sequential:
    """Return a depthwise and a pointwise convolution."""
    depthwise = _unit(channels, channels, 3, groups=channels, activation=_relu)
    pointwise = _unit(channels, channels, activation=_relu)
    names = ("depthwise", "bn1", "relu1", "pointwise", "bn2", "relu2")
    return named(dict(zip(names, (*depthwise, *pointwise), strict=True)))


def _relu_trunk(width: float) -> tuple[Layers, int]:
    def arrange(expand: Unit, depthwise: Unit, project: Unit) -> Layers:
        units = (nn.Sequential(*expand), nn.Sequential(*depthwise), *project)
        return {"conv": nn.Sequential(*units)}

    blocks = list(_blocks(width))
    stem, last = blocks[0].inputs, _channels(_LAST_CHANNELS, width)
    layers = {
        "conv1": nn.Sequential(*_unit(3, stem, 3, 2, activation=_relu6)),
        "dw_conv": _separable(stem),
        "features": nn.Sequential(*(_bottleneck(block, arrange, _relu6) for block in blocks)),
        "conv2": nn.Sequential(*_unit(blocks[-1].outputs, last, activation=_relu6)),
    }
    return layers, last


def _relu_head(shape: Shape, embedding_size: int) -> Layers:
    return {
        "gdconv": named(dict(zip(("depthwise", "bn"), _pooling(shape), strict=True))),
        "conv3": nn.Conv2d(shape[0], embedding_size, kernel_size=1),
        "bn": nn.BatchNorm2d(embedding_size),
    }


def _xiaoccer_trunk(width: float) -> tuple[Layers, int]:
    def arrange(expand: Unit, depthwise: Unit, project: Unit) -> Layers:
        return {"conv": nn.Sequential(*expand, *depthwise, *project)}

    blocks = list(_blocks(width))
    stem, last = blocks[0].inputs, _channels(_LAST_CHANNELS, width)
    layers = {
        "conv1": _labelled(_unit(3, stem, 3, 2)),
        "dw_conv1": _labelled(_unit(stem, stem, 3, groups=stem)),
        "blocks": nn.Sequential(*(_bottleneck(block, arrange) for block in blocks)),
        "conv2": _labelled(_unit(blocks[-1].outputs, last)),
    }
    return layers, last


def _xiaoccer_head(shape: Shape, embedding_size: int) -> Layers:
    return {
        "linear7": _labelled(_pooling(shape)),
        "linear1": _labelled(_unit(shape[0], embedding_size, activation=None)),
    }


def _stages(
    blocks: list[_Block], arrange: Callable[[Unit, Unit, Unit], Layers], name: str
) -> Iterator[nn.Module]:
    """Yield the blocks that halve the map, and the others between two of them as one module."""
    for stride, alike in groupby(blocks, key=lambda block: block.stride):
        built = [_bottleneck(block, arrange) for block in alike]
        yield built[0] if stride == 2 else named({name: nn.Sequential(*built)})


def _insightface_trunk(width: float) -> tuple[Layers, int]:
    def arrange(expand: Unit, depthwise: Unit, project: Unit) -> Layers:
        units = map(_labelled, (expand, depthwise, project))
        return dict(zip(("conv", "conv_dw", "project"), units, strict=True))

    blocks = list(_blocks(width))
    stem, last = blocks[0].inputs, _channels(_LAST_CHANNELS, width)
    names = ("conv_23", "conv_3", "conv_34", "conv_4", "conv_45", "conv_5")
    layers = {
        "conv1": _labelled(_unit(3, stem, 3, 2)),
        "conv2_dw": _labelled(_unit(stem, stem, 3, groups=stem)),
        **dict(zip(names, _stages(blocks, arrange, "model"), strict=True)),
        "conv_6_sep": _labelled(_unit(blocks[-1].outputs, last)),
    }
    return layers, last


def _insightface_head(shape: Shape, embedding_size: int, affine: bool = True) -> Layers:
    return {
        "conv_6_dw": _labelled(_pooling(shape)),
        "conv_6_flatten": nn.Flatten(),
        "linear": nn.Linear(shape[0], embedding_size, bias=False),
        "bn": nn.BatchNorm1d(embedding_size, affine=affine),
    }


def _tface_head(shape: Shape, embedding_size: int, affine: bool) -> Layers:
    return {"output_layer": named(_insightface_head(shape, embedding_size, affine))}


def _arcface_trunk(width: float, large: bool) -> tuple[Layers, int]:
    def arrange(expand: Unit, depthwise: Unit, project: Unit) -> Layers:
        units = (_wrapped(*unit) for unit in (expand, depthwise, project))
        return {"layers": nn.Sequential(*units)}

    scale, stages = (4, _LARGE_STAGES) if large else (2, _STAGES)
    blocks = list(_blocks(width, scale, stages))
    stem, last = blocks[0].inputs, _channels(_LAST_CHANNELS, width)
    layers: list[nn.Module] = [_wrapped(*_unit(3, stem, 3, 2))]
    if not large:
        layers.append(_wrapped(*_unit(stem, stem, 3, groups=stem // scale)))
    layers.extend(_stages(blocks, arrange, "layers"))
    trunk = {
        "layers": nn.Sequential(*layers),
        "conv_sep": _wrapped(*_unit(blocks[-1].outputs, last)),
    }
    return trunk, last


def _arcface_head(shape: Shape, embedding_size: int) -> Layers:
    layers = (
        _wrapped(*_pooling(shape)),
        nn.Flatten(),
        nn.Linear(shape[0], embedding_size, bias=False),
        nn.BatchNorm1d(embedding_size),
    )
    return {"features": _wrapped(*layers)}


def _tface(affine: bool) -> Design:
    return Design(
        _insightface_trunk,
        partial(_tface_head, affine=affine),
        "output_layer.linear.weight",
        "output_layer.conv_6_dw.conv.weight",
    )


def _arcface(large: bool) -> Design:
    return Design(
        partial(_arcface_trunk, large=large),
        _arcface_head,
        "features.layers.2.weight",
        "features.layers.0.layers.0.weight",
    )


MOBILEFACENETS = {
    "mobilefacenet": Design(_relu_trunk, _relu_head, "conv3.weight", "gdconv.depthwise.weight"),
    "mobilefacenet_xiaoccer": Design(
        _xiaoccer_trunk, _xiaoccer_head, "linear1.conv.weight", "linear7.conv.weight"
    ),
    "mobilefacenet_insightface": Design(
        _insightface_trunk, _insightface_head, "linear.weight", "conv_6_dw.conv.weight"
    ),
    "mobilefacenet_tface": _tface(affine=True),
    "mobilefacenet_torchkit": _tface(affine=False),
    "mobilefacenet_arcface": _arcface(large=False),
    "mobilefacenet_arcface_large": _arcface(large=True),
}
"""Designs of the MobileFaceNets by the names of their architectures."""
