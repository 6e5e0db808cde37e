"""Improved residual networks (IR), the usual large face recognisers, under their published names.

Their blocks begin with a batch normalisation and hold two 3x3 convolutions; the embedding is a
linear layer on all positions of the last map, and a batch normalisation.

    iresnet50                   arcface_torch, CR-FIQA (`layer1.0.bn1.weight`, `fc`, `features`);
                                depths 18, 34, 50, 100, 200
    iresnet50_magface           MagFace: the same with another epsilon in the batch norms; depths
                                18, 34, 50, 100
    ir_50, ir_se_50             AdaFace, TFace, CVLFace (`body.0.res_layer.0.weight`); depths 18,
                                34, 50, 101 and with squeeze-and-excitation 50, 101
    ir_50_evolve, ...           face.evoLVe, InsightFace_Pytorch: no batch norm between the two
                                convolutions; depths 50, 101, 152
    ir_50_curricular, ...       CurricularFace: the same without weights in the last batch norm

Dropout before the linear layer, which all of them train with, is left out.

Sources: Deng et al., "ArcFace", CVPR 2019, arXiv:1801.07698, section 3.1 (the blocks); Hu et al.,
"Squeeze-and-Excitation Networks", CVPR 2018, arXiv:1709.01507.
Shapes: N images, E numbers in an embedding, C channels, h and w rows and columns.
"""

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from sdd_ray.core.models.trunk import Design, LayeredNetwork, Layers, Summed, named

_CHANNELS = (64, 128, 256, 512)
_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    101: (3, 13, 30, 3),  # the same network: the two families number it differently
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
_EPSILON = 1e-5
_MAGFACE_EPSILON = 2e-5
_REDUCTION = 16


class IResNet(LayeredNetwork):
    """Improved residual network: (N, 3, H, W) images in, (N, E) embeddings out.

    The embeddings are **not** of unit length. The feature map is what the last block gives, before
    any batch normalisation: there the authors of SDD-FIQA put their quality head.

    Args:
        embedding_size: E, the length of an embedding; None leaves the embedding head out.
        width: Must be 1.
        input_size: (H, W) of the images in pixels; each is halved four times, rounding up.
        variant: Key of `IRESNETS`.

    Raises:
        ValueError: `width` is not 1, or a side of `input_size` is not positive.

    Example:
        >>> IResNet(embedding_size=None, variant="ir_18").feature_shape
        (512, 7, 7)
    """

    def __init__(
        self,
        embedding_size: int | None = 512,
        width: float = 1.0,
        input_size: tuple[int, int] = (112, 112),
        variant: str = "iresnet50",
    ) -> None:
        super().__init__(IRESNETS[variant], embedding_size, width, input_size)


class _Excitation(nn.Module):
    """Squeeze and excitation: each channel times a factor in (0, 1) computed from all means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // _REDUCTION, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // _REDUCTION, channels, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the (N, C, h, w) maps, scaled."""
        means = maps.mean((2, 3), keepdim=True)
        factors: Tensor = self.fc2(self.relu(self.fc1(means))).sigmoid()
        return maps * factors


class _Block(NamedTuple):
    inputs: int
    outputs: int
    stride: int


class _Style(NamedTuple):
    """What differs among the publications of the IR family.

    Attributes:
        middle_norm: Whether there is a batch normalisation between the two convolutions.
        excitation: Name of squeeze and excitation within the block.
        affine: Whether the last batch normalisation has weights.
    """

    middle_norm: bool
    excitation: str
    affine: bool


_STYLES = {
    "": (_Style(middle_norm=True, excitation="se_block", affine=False), (18, 34, 50, 101)),
    "_evolve": (_Style(middle_norm=False, excitation="5", affine=True), (50, 101, 152)),
    "_curricular": (_Style(middle_norm=False, excitation="5", affine=False), (50, 101, 152)),
}


def _stages(width: float, depth: int) -> list[list[_Block]]:
    """Return the sizes of the blocks in each of the four stages."""
    if width != 1:
        raise ValueError(f"expected width 1, the only one of these networks, got {width}")
    stages, inputs = [], _CHANNELS[0]
    for outputs, repeats in zip(_CHANNELS, _BLOCKS[depth], strict=True):
        later = [_Block(outputs, outputs, 1)] * (repeats - 1)
        stages.append([_Block(inputs, outputs, 2), *later])
        inputs = outputs
    return stages


def _stem(epsilon: float = _EPSILON) -> list[nn.Module]:
    channels = _CHANNELS[0]
    conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels, epsilon), nn.PReLU(channels)]


def _residual(
    block: _Block, epsilon: float = _EPSILON, middle_norm: bool = True
) -> list[nn.Module]:
    inputs, outputs, stride = block
    middle = [nn.BatchNorm2d(outputs, epsilon)] if middle_norm else []
    return [
        nn.BatchNorm2d(inputs, epsilon),
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        *middle,
        nn.PReLU(outputs),
        nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs, epsilon),
    ]


def _projection(block: _Block, epsilon: float = _EPSILON) -> nn.Sequential:
    conv = nn.Conv2d(block.inputs, block.outputs, 1, block.stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(block.outputs, epsilon))


def _iresnet_block(block: _Block, epsilon: float) -> nn.Module:
    names = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")
    layers = dict(zip(names, _residual(block, epsilon), strict=True))
    shortcut = {"downsample": _projection(block, epsilon)} if block.stride == 2 else {}
    return Summed(layers, shortcut)


def _iresnet_trunk(width: float, depth: int, epsilon: float) -> tuple[Layers, int]:
    layers = dict(zip(("conv1", "bn1", "prelu"), _stem(epsilon), strict=True))
    for number, stage in enumerate(_stages(width, depth), 1):
        layers[f"layer{number}"] = nn.Sequential(*(_iresnet_block(b, epsilon) for b in stage))
    return layers, _CHANNELS[-1]


def _iresnet_head(shape: tuple[int, int, int], embedding_size: int, epsilon: float) -> Layers:
    channels, height, columns = shape
    last = nn.BatchNorm1d(embedding_size, epsilon)
    last.weight.requires_grad_(False)  # stays 1, so that only the linear layer sets the scale
    return {
        "bn2": nn.BatchNorm2d(channels, epsilon),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(channels * height * columns, embedding_size),
        "features": last,
    }


def _ir_block(block: _Block, style: _Style, excited: bool) -> nn.Module:
    residual = enumerate(_residual(block, middle_norm=style.middle_norm))
    layers: dict[str, nn.Module] = {str(number): layer for number, layer in residual}
    if excited:
        layers[style.excitation] = _Excitation(block.outputs)
    shortcut: dict[str, nn.Module] = {}
    if block.inputs != block.outputs:
        shortcut["shortcut_layer"] = _projection(block)
    elif block.stride == 2:
        shortcut["shortcut_layer"] = nn.MaxPool2d(1, 2)  # every second row and column
    return Summed({"res_layer": named(layers)}, shortcut)


def _ir_trunk(width: float, depth: int, style: _Style, excited: bool) -> tuple[Layers, int]:
    blocks = [block for stage in _stages(width, depth) for block in stage]
    layers: Layers = {
        "input_layer": nn.Sequential(*_stem()),
        "body": nn.Sequential(*(_ir_block(block, style, excited) for block in blocks)),
    }
    return layers, _CHANNELS[-1]


def _ir_head(shape: tuple[int, int, int], embedding_size: int, affine: bool) -> Layers:
    channels, height, columns = shape
    layers: Layers = {  # 1 is dropout
        "0": nn.BatchNorm2d(channels),
        "2": nn.Flatten(),
        "3": nn.Linear(channels * height * columns, embedding_size),
        "4": nn.BatchNorm1d(embedding_size, affine=affine),
    }
    return {"output_layer": named(layers)}


def _iresnet(depth: int, epsilon: float = _EPSILON) -> Design:
    return Design(
        partial(_iresnet_trunk, depth=depth, epsilon=epsilon),
        partial(_iresnet_head, epsilon=epsilon),
        "fc.weight",
        "fc.weight",
    )


def _ir(depth: int, style: _Style, excited: bool) -> Design:
    return Design(
        partial(_ir_trunk, depth=depth, style=style, excited=excited),
        partial(_ir_head, affine=style.affine),
        "output_layer.3.weight",
        "output_layer.3.weight",
    )


IRESNETS = {
    **{f"iresnet{depth}": _iresnet(depth) for depth in (18, 34, 50, 100, 200)},
    **{f"iresnet{depth}_magface": _iresnet(depth, _MAGFACE_EPSILON) for depth in (18, 34, 50, 100)},
    **{
        f"ir_{depth}{suffix}": _ir(depth, style, excited=False)
        for suffix, (style, depths) in _STYLES.items()
        for depth in depths
    },
    **{
        f"ir_se_{depth}{suffix}": _ir(depth, style, excited=True)
        for suffix, (style, depths) in _STYLES.items()
        for depth in depths
        if depth >= 50
    },
}
"""Designs of the improved residual networks by the names of their architectures."""
