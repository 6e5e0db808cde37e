"""Damage of a known kind and strength to a face picture.

Every kind takes a severity in [0, 1]: 0 returns the picture unchanged, 1 leaves hardly anything to
recognise, and in between more is always worse. What is random about a kind (its side, its colour,
its grain) is drawn from the generator before the severity is looked at, so one generator state
gives one row of pictures that only get worse.

JPEG goes through Pillow's encoder: a grey level may differ between two versions of it. All else is
plain arithmetic.

Shapes: a picture is (H, W, 3) uint8, RGB.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Picture = NDArray[np.uint8]
_Damage = Callable[[Picture, float, np.random.Generator], NDArray[np.float32]]


def degrade(image: Picture, kind: str, severity: float, generator: np.random.Generator) -> Picture:
    """Return a damaged copy of a picture.

    Args:
        image: (H, W, 3) RGB.
        kind: One of `DEGRADATIONS`.
        severity: 0 (unchanged) to 1 (hardly recognisable).
        generator: Decides side, colour and grain of the damage.

    Raises:
        ValueError: The picture has another shape or type, the kind is unknown, or the severity lies
            outside [0, 1].

    Example:
        >>> grey = np.full((112, 112, 3), 128, np.uint8)
        >>> dark = degrade(grey, "under_exposure", 0.5, np.random.default_rng(0))
        >>> bool(dark.mean() < 64)
        True
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if kind not in _DAMAGES:
        raise ValueError(f"expected one of {', '.join(DEGRADATIONS)}, got {kind!r}")
    if not 0 <= severity <= 1:
        raise ValueError(f"expected a severity in [0, 1], got {severity}")
    if severity == 0:
        return image.copy()
    damaged = _DAMAGES[kind](image, float(severity), generator)
    return np.rint(np.clip(damaged, 0, 255)).astype(np.uint8)


def _blur(image: Picture, severity: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Blur as a lens out of focus does; at most a sigma of a tenth of the width."""
    del generator  # nothing about blur is random
    sigma = image.shape[1] / 10 * severity
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(blurred, dtype=np.float32)


def _low_resolution(
    image: Picture, severity: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Shrink, at most to a twenty-fourth, and enlarge again."""
    del generator  # nothing about shrinking is random
    height, width = image.shape[:2]
    share = (1 / 24) ** severity
    small = (max(1, round(width * share)), max(1, round(height * share)))
    picture = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


def _noise(image: Picture, severity: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Add grain, half of it the same in the three colours."""
    height, width = image.shape[:2]
    colour = generator.standard_normal((height, width, 3), dtype=np.float32)
    light = generator.standard_normal((height, width, 1), dtype=np.float32)
    return image + np.float32(130 * severity**1.4) * (colour + light) * np.float32(0.707)


def _jpeg(image: Picture, severity: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Compress, as a thumbnail of at least a third of the size; in the end only blocks are left."""
    del generator  # nothing about compression is random
    height, width = image.shape[:2]
    share = (1 / 3) ** severity
    small = (max(1, round(width * share)), max(1, round(height * share)))
    quality = round(80 * (3 / 80) ** severity)
    stream = io.BytesIO()
    picture = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    picture.save(stream, "JPEG", quality=quality, subsampling=2)
    whole = Image.open(stream).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(whole, dtype=np.float32)


def _occlusion(
    image: Picture, severity: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Push a striped sheet over the face, from a random side; at most four fifths are hidden."""
    angle, wave, *colours = generator.random(8)
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5) / width - 0.5, (y + 0.5) / height - 0.58
    turn = 2 * np.pi * angle
    forward = x * np.cos(turn) + y * np.sin(turn)
    sideways = y * np.cos(turn) - x * np.sin(turn)
    edge = 0.42 - 0.72 * severity + 0.02 * np.sin(20 * sideways + 6 * wave)
    hidden = np.clip((forward - edge) * width, 0, 1)[:, :, None]
    stripes = (np.sin(60 * sideways) > 0)[:, :, None]
    sheet = 255 * np.where(stripes, np.array(colours[:3]), np.array(colours[3:]))
    covered: NDArray[np.float32] = (image * (1 - hidden) + sheet * hidden).astype(np.float32)
    return covered


def _over_exposure(
    image: Picture, severity: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Brighten until nearly everything is white."""
    del generator  # nothing about brightening is random
    return image * np.float32(1 + 5 * severity**2) + np.float32(130 * severity**2)


def _under_exposure(
    image: Picture, severity: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Darken until a few grey levels and the sensor's own noise are left."""
    noise = generator.standard_normal(image.shape, dtype=np.float32)
    return image * np.float32(2 ** (-6.5 * severity)) + np.float32(2 * severity) * noise


def _misalignment(
    image: Picture, severity: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Turn, shift and resize, as a face detector that erred; at most by 50 degrees and a third."""
    height, width = image.shape[:2]
    side, direction, growth = generator.random(3)
    turn = np.radians(50) * severity * (1 if side < 0.5 else -1)
    scale = np.exp(0.45 * severity * (1 if growth < 0.5 else -1))
    shift = (
        0.3 * severity * np.array([np.cos(2 * np.pi * direction), np.sin(2 * np.pi * direction)])
    )
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5) / width - 0.5 - shift[0], (y + 0.5) / height - 0.5 - shift[1]
    x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    return _looked_up(image, (x * scale + 0.5) * width - 0.5, (y * scale + 0.5) * height - 0.5)


def _pose(image: Picture, severity: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Turn the head to a side, as if wound around a cylinder; at most 80 degrees."""
    height, width = image.shape[:2]
    side = 1 if generator.random() < 0.5 else -1
    radius = 0.5 * width
    angle = np.arcsin((np.arange(width, dtype=np.float32) + 0.5 - radius) / radius)
    # Nothing was seen of what turns into view: its edge is drawn out over it.
    seen = np.clip(angle + side * np.radians(80) * severity, -np.pi / 2, np.pi / 2)
    start = radius * np.sin(seen) + radius - 0.5
    y, x = np.broadcast_arrays(np.arange(height, dtype=np.float32)[:, None], start[None, :])
    return _looked_up(image, x, y)


def _looked_up(
    image: Picture, x: NDArray[np.floating], y: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Return the colours at (H, W) positions between the pixels; outside, the edge goes on."""
    height, width = image.shape[:2]
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left = np.minimum(x.astype(np.intp), width - 2)
    top = np.minimum(y.astype(np.intp), height - 2)
    right_share = (x - left)[:, :, None].astype(np.float32)
    low_share = (y - top)[:, :, None].astype(np.float32)
    upper = image[top, left] * (1 - right_share) + image[top, left + 1] * right_share
    lower = image[top + 1, left] * (1 - right_share) + image[top + 1, left + 1] * right_share
    between: NDArray[np.float32] = upper * (1 - low_share) + lower * low_share
    return between


_DAMAGES: dict[str, _Damage] = {
    "blur": _blur,
    "low_resolution": _low_resolution,
    "noise": _noise,
    "jpeg": _jpeg,
    "occlusion": _occlusion,
    "over_exposure": _over_exposure,
    "under_exposure": _under_exposure,
    "misalignment": _misalignment,
    "pose": _pose,
}

DEGRADATIONS: tuple[str, ...] = tuple(_DAMAGES)
