"""What every backbone offers: the feature map on which a head is put.

Shapes: N images, C channels, h and w rows and columns of the feature map.
"""

from torch import Tensor, nn


class Trunk(nn.Module):
    """A network from images to a feature map; recognisers extend it with an embedding head.

    Attributes:
        feature_shape: (C, h, w) of the feature map for the input size it was built for.
    """

    feature_shape: tuple[int, int, int]

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the (N, C, h, w) feature map of (N, 3, H, W) preprocessed images."""
        raise NotImplementedError
