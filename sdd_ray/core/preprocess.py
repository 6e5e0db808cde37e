"""From decoded faces to what a network expects: the only copy of this arithmetic.

Shapes: N images, H and W rows and columns of a decoded face, h and w of the network's input.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Images = TypeVar("Images", NDArray[np.uint8], Tensor)


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its input: (pixel / scale - mean) / std, channels first.

    Images larger than (height, width) are cropped to their centre, never resized: a recogniser
    for 112 x 96 expects columns 8 to 103 of an aligned face of 112 x 112.

    Attributes:
        height: h, rows of the input in pixels.
        width: w, columns of the input in pixels.
        channel_order: Order of the colour channels that the network expects.
        scale: Pixels 0..255 are divided by this first.
        mean: Subtracted from each channel, in the order of `channel_order`.
        std: Divides each channel after that, in the order of `channel_order`.

    Raises:
        ValueError: A size, the scale or a standard deviation is not positive, or the channel order
            is not known.

    Example:
        >>> images = np.full((1, 112, 112, 3), 255, np.uint8)
        >>> Preprocessing(width=96).apply(images).shape
        (1, 3, 112, 96)
    """

    height: int = 112
    width: int = 112
    channel_order: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1.0
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.scale, *self.std) <= 0:
            raise ValueError(f"expected positive height, width, scale and std, got {self}")
        if self.channel_order not in ("rgb", "bgr"):
            raise ValueError(f"expected the channel order rgb or bgr, got {self.channel_order!r}")

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the network's input for decoded faces.

        Args:
            images: (N, H, W, 3) RGB pixels, H >= h and W >= w.

        Returns:
            (N, 3, h, w) values, contiguous.

        Raises:
            ValueError: The images have another type or shape, or are smaller than (h, w).
        """
        if images.dtype != np.uint8:
            raise ValueError(f"expected uint8 pixels, got {images.dtype}")
        window = self._window(images)
        if self.channel_order == "bgr":
            window = window[..., ::-1]
        values = window.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        factor, offset = self._line()
        values *= factor[:, None, None]
        values += offset[:, None, None]
        return values

    def apply_tensor(self, images: Tensor) -> Tensor:
        """Return the same as `apply` for a tensor, on the tensor's device.

        Bytes are a quarter of the floats, so move the bytes to a GPU and call this there.

        Args:
            images: (N, H, W, 3) RGB pixels, H >= h and W >= w.

        Returns:
            (N, 3, h, w) float32 values in channels-last memory order.

        Raises:
            ValueError: The images have another type or shape, or are smaller than (h, w).
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"expected uint8 pixels, got {images.dtype}")
        window = self._window(images)
        if self.channel_order == "bgr":
            window = window.flip(3)  # a list of indices would be copied to the device each time
        values = window.permute(0, 3, 1, 2).to(torch.float32)
        # What a tracer makes of the two is no number that others could use: it is not kept.
        line_on = _line_on.__wrapped__ if torch.compiler.is_exporting() else _line_on
        factor, offset = line_on(values.device, self)
        return values.mul_(factor).add_(offset)

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "Preprocessing":
        """Return the preprocessing that `to_dict` described; missing keys take the defaults.

        Raises:
            ValueError: A key is not known, a value is not allowed, or mean or std are not three.
        """
        names = {item.name for item in fields(cls)}
        unknown = sorted(set(description) - names)
        if unknown:
            raise ValueError(f"expected keys among {sorted(names)}, got also {unknown}")
        values = dict(description)
        for name in ("mean", "std"):
            if name in values:
                first, second, third = values[name]
                values[name] = (float(first), float(second), float(third))
        return cls(**values)

    def _window(self, images: Images) -> Images:
        if images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"expected (N, H, W, 3) images, got shape {tuple(images.shape)}")
        top, left = images.shape[1] - self.height, images.shape[2] - self.width
        if top < 0 or left < 0:
            raise ValueError(
                f"expected images of at least {self.height} x {self.width} pixels,"
                f" got {images.shape[1]} x {images.shape[2]}"
            )
        return images[:, top // 2 :, left // 2 :][:, : self.height, : self.width]

    def _line(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return factor and offset of each channel; in float64 first, so they are rounded once."""
        std = np.array(self.std, np.float64)
        factor = 1.0 / (self.scale * std)
        offset = -np.array(self.mean, np.float64) / std
        return factor.astype(np.float32), offset.astype(np.float32)


@cache
def _line_on(device: torch.device, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Return factor and offset on a device, (3, 1, 1) each.

    Kept, since a copy from ordinary memory waits for all that its stream was given before.
    """
    with torch.inference_mode(False):  # training takes them too
        factor, offset = (
            torch.from_numpy(line[:, None, None]).to(device) for line in preprocessing._line()
        )
    return factor, offset


PRESETS = {
    "arcface": Preprocessing(),
    "arcface_128": Preprocessing(std=(128.0, 128.0, 128.0)),
    "imagenet": Preprocessing(scale=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "raw": Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
}
"""Well-known conventions: (x - 127.5) / 127.5 (InsightFace, arcface_torch), (x - 127.5) / 128
(older ArcFace and MobileFaceNet code), x / 255 with ImageNet's mean and standard deviation, and
pixels as they are. For the channel order rgb."""
