"""The quality network: a recogniser's trunk with a head for one number.

Shapes: N images, C channels, h and w rows and columns of the trunk's feature map.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from sdd_ray.core.models.trunk import Trunk

Head = Literal["flatten", "average"]

_HEAD_STD = 0.1


class QualityNetwork(nn.Module):
    """Quality of face images in label units.

    Called with (N, 3, H, W) preprocessed images it returns (N,) raw qualities: larger is better,
    in the units of the labels, [0, 100] up to errors of the prediction; there is no output
    activation.

    The prediction starts near `initial_quality`: it is the last bias, and the last weights are
    drawn so small that they add some tenths of a unit. The Huber loss has slope 1 however far off
    a prediction is and Adam moves a parameter by about the learning rate a step, so a bias
    that starts at 0 would need half a million steps of 1e-4 to reach 50; instead the trunk's
    weights would be bent to bridge the gap, which spoils what they learnt as a recogniser. The
    weights are not zero, so that the trunk is trained from the first step on.

    Args:
        backbone: Trunk that makes the feature map.
        head: `flatten`: every position of the map has its own weight (the paper); PReLU, dropout,
            linear layer. `average`: the same on the mean over all positions.
        dropout: Share of head inputs dropped in training, in [0, 1).
        initial_quality: Prediction before training, in label units.

    Raises:
        ValueError: `head` is unknown, or `dropout` is outside [0, 1).

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, with the head of the authors' code: TFace,
        quality/generate_pseudo_labels/extract_embedding/model/model.py. The slope of PReLU has no
        effect on a trunk that ends in a ReLU.
    """

    def __init__(
        self,
        backbone: Trunk,
        head: Head = "flatten",
        dropout: float = 0.5,
        initial_quality: float = 50.0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"expected a dropout in [0, 1), got {dropout}")
        self.backbone = backbone
        pooling, inputs = _pooling(head, backbone.feature_shape)
        last = nn.Linear(inputs, 1)
        nn.init.normal_(last.weight, std=_HEAD_STD * inputs**-0.5)
        nn.init.constant_(last.bias, initial_quality)
        self.head = nn.Sequential(*pooling, nn.PReLU(inputs), nn.Dropout(dropout), last)
        self._still: tuple[nn.Module, ...] = ()

    def freeze(self, share: float, batch_norm: bool = False) -> None:
        """Keep a part of the trunk as it is from now on, also in training.

        Args:
            share: Share of the trunk's layers, counted from the image, whose weights and batch
                statistics stay, in [0, 1]; rounded to whole layers.
            batch_norm: Whether the batch statistics of all others stay, too.

        Raises:
            ValueError: `share` is outside [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"expected a share of layers in [0, 1], got {share}")
        layers = [
            layer
            for layer in self.backbone.modules()
            if [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
        ]
        frozen = layers[: round(share * len(layers))]
        for layer in frozen:
            layer.requires_grad_(False)
        norms = (layer for layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm))
        self._still = (*frozen, *(norms if batch_norm else ()))

    def train(self, mode: bool = True) -> "QualityNetwork":
        """Set training or evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        for layer in self._still:
            layer.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the (N,) raw qualities; the head computes in float32, under autocast, too.

        In bfloat16 neighbouring qualities above 64 are half a unit apart.
        """
        features = self.backbone.feature_map(images)
        with torch.autocast(features.device.type, enabled=False):
            quality: Tensor = self.head(features.float())
        return quality.squeeze(1)

    @torch.no_grad()
    def start_from(self, recogniser: nn.Module) -> None:
        """Copy the trunk's weights from a recogniser of the same architecture.

        Args:
            recogniser: Network whose parameters have the trunk's names; its embedding head is
                not used.

        Raises:
            ValueError: A parameter of the trunk is missing there or has another shape.
        """
        theirs = recogniser.state_dict()
        ours = self.backbone.state_dict()
        unfit = [
            name for name in ours if name not in theirs or theirs[name].shape != ours[name].shape
        ]
        if unfit:
            raise ValueError(
                f"expected a recogniser with the trunk's {len(ours)} parameters; {len(unfit)} are"
                f" missing or have another shape, first {unfit[0]}"
            )
        self.backbone.load_state_dict({name: theirs[name] for name in ours})


def _pooling(head: Head, feature_shape: tuple[int, int, int]) -> tuple[list[nn.Module], int]:
    channels, height, width = feature_shape
    if head == "flatten":
        return [nn.Flatten()], channels * height * width
    if head == "average":
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten()], channels
    raise ValueError(f"expected the head 'flatten' or 'average', got {head!r}")
