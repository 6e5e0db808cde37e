"""MobileFaceNet, a face recogniser of one million parameters.

The variant with ReLU6 and torchvision's names of parameters, so that its published weights
(`conv1.0.weight`, `features.14.conv.3.bias`, 307 tensors at width 1) load without renaming.

Source: Chen et al., "MobileFaceNets", 2018, arXiv:1804.07573, table 1.
Shapes: N images, E numbers in an embedding, C channels, h and w rows and columns.
"""

import math

from torch import Tensor, nn

from sdd_ray.core.models.trunk import Trunk

_STEM_CHANNELS = 64
_LAST_CHANNELS = 512
# (expansion, output channels, blocks, stride of the first block); arXiv:1804.07573, table 1.
_STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class MobileFaceNetTrunk(Trunk):
    """MobileFaceNet up to its last feature map, without the embedding head.

    The weights that it starts with come from torch's global generator.

    Args:
        width: Factor on all numbers of channels, which are rounded to multiples of 8.
        input_size: (H, W) of the images in pixels; each is halved four times, rounding up.

    Raises:
        ValueError: `width` or a side of `input_size` is not positive.

    Example:
        >>> MobileFaceNetTrunk(input_size=(112, 96)).feature_shape
        (512, 7, 6)
    """

    def __init__(self, width: float = 1.0, input_size: tuple[int, int] = (112, 112)) -> None:
        super().__init__()
        if width <= 0 or min(input_size) < 1:
            raise ValueError(
                f"expected a positive width and input size, got {width} and {input_size}"
            )
        stem = _channels(_STEM_CHANNELS, width)
        last = _channels(_LAST_CHANNELS, width)
        self.conv1 = _ConvBNReLU(3, stem, kernel=3, stride=2)
        self.dw_conv = _SeparableConv(stem)
        self.features, trunk_channels = _bottlenecks(stem, width)
        self.conv2 = _ConvBNReLU(trunk_channels, last)
        self.feature_shape = (last, math.ceil(input_size[0] / 16), math.ceil(input_size[1] / 16))

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the (N, C, h, w) feature map, values in [0, 6]; images are (N, 3, H, W)."""
        features: Tensor = self.conv2(self.features(self.dw_conv(self.conv1(images))))
        return features


class MobileFaceNet(MobileFaceNetTrunk):
    """MobileFaceNet: images in, embeddings out.

    Called with (N, 3, H, W) preprocessed images it returns (N, E) embeddings that are **not** of
    unit length.

    Args:
        embedding_size: E, the length of an embedding.
        width: Factor on all numbers of channels but E.
        input_size: (H, W) of the images in pixels.

    Raises:
        ValueError: `width` or a side of `input_size` is not positive.

    Source:
        arXiv:1804.07573; equal to the published ONNX export of the same weights
        (tests/unit/test_mobilefacenet.py).
    """

    def __init__(
        self,
        embedding_size: int = 128,
        width: float = 1.0,
        input_size: tuple[int, int] = (112, 112),
    ) -> None:
        super().__init__(width=width, input_size=input_size)
        channels, height, columns = self.feature_shape
        self.gdconv = _GlobalDepthwiseConv(channels, (height, columns))
        self.conv3 = nn.Conv2d(channels, embedding_size, kernel_size=1)
        self.bn = nn.BatchNorm2d(embedding_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return the (N, E) embeddings, not normalised."""
        pooled: Tensor = self.bn(self.conv3(self.gdconv(self.feature_map(images))))
        return pooled.flatten(1)


class _ConvBNReLU(nn.Sequential):
    """Convolution, batch normalisation, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class _SeparableConv(nn.Module):
    """Depthwise 3x3, then pointwise convolution, each with batch normalisation and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.relu(self.bn1(self.depthwise(maps)))
        output: Tensor = self.relu(self.bn2(self.pointwise(maps)))
        return output


class _Bottleneck(nn.Module):
    """Inverted residual block; the sum is taken where input and output have one shape."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.is_residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            _ConvBNReLU(inputs, hidden),
            _ConvBNReLU(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, maps: Tensor) -> Tensor:
        output: Tensor = self.conv(maps)
        return maps + output if self.is_residual else output


class _GlobalDepthwiseConv(nn.Module):
    """One weight for each position and channel, in place of average pooling."""

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        output: Tensor = self.bn(self.depthwise(maps))
        return output


def _bottlenecks(inputs: int, width: float) -> tuple[nn.Sequential, int]:
    blocks: list[nn.Module] = []
    for expansion, channels, repeats, first_stride in _STAGES:
        outputs = _channels(channels, width)
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            blocks.append(_Bottleneck(inputs, outputs, expansion, stride))
            inputs = outputs
    return nn.Sequential(*blocks), inputs


def _channels(channels: int, width: float) -> int:
    return max(8, 8 * round(channels * width / 8))
