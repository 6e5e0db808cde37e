"""From the bytes of an image file to a face of fixed size.

Image files come from anywhere: what cannot be decoded as it should be is rejected with a reason,
one image at a time, and never decoded in part.

Shapes: H and W rows and columns in pixels.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sdd_ray.errors import SddError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Formats that are decoded, found by content and not by the file's name."""

BACKGROUND = 127
"""Grey level behind transparent pixels and beside images that are not of the target's shape: the
margin of aligned face crops, and close to zero in the usual preprocessing."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a stored image upright, by EXIF orientation. Source: EXIF 2.3, table 6."""

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # Older Pillow gives their 16-bit pixels the mode I.
_TO_EIGHT_BITS = 257  # 65535 / 255


class ImageRejectedError(SddError):
    """An image that cannot be used.

    Attributes:
        reason: Short and fit for counting: `empty`, `not_an_image`, `truncated`, `damaged`,
            `too_small`, `too_large` or `unsupported_pixels`.
        detail: What was expected and what was found, for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class ImageLimits:
    """Sizes outside of which an image is rejected, checked before it is decoded.

    Attributes:
        min_side_px: Smallest allowed side.
        max_pixels: Largest allowed number of pixels; a small file can claim to hold gigabytes.
    """

    min_side_px: int = 8
    max_pixels: int = 64_000_000


DEFAULT_LIMITS = ImageLimits()


def decode_image(
    data: bytes, height: int = 112, width: int = 112, limits: ImageLimits = DEFAULT_LIMITS
) -> NDArray[np.uint8]:
    """Return the face in an image file, upright, in RGB, with the asked size.

    EXIF orientation is applied; of several frames the first is taken; grey, palette, CMYK and
    16-bit images become 8-bit RGB; what is transparent shows `BACKGROUND`.

    An image of another size is scaled, bilinear over the covered area, until it just fits inside,
    and centred on `BACKGROUND` where its shape differs. So geometry is kept: an aligned crop of
    112 x 96 lies where it lay in the crop of 112 x 112.

    Args:
        data: The whole file.
        height: H of the result.
        width: W of the result.
        limits: What is too small or too large.

    Returns:
        (H, W, 3) pixels.

    Raises:
        ImageRejectedError: The file is empty, no image, damaged, too small or too large.
    """
    if not data:
        raise ImageRejectedError("empty", "expected an image file, got no bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The outcome says what a user must know.
        with _open(data, limits) as image:
            upright = _upright(_rgb(image), _orientation(image))
            pixels: NDArray[np.uint8] = np.array(_fit(upright, height, width))
    return pixels


@contextmanager
def _open(data: bytes, limits: ImageLimits) -> Iterator[Image.Image]:
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageRejectedError(
            "not_an_image", f"expected one of {', '.join(FORMATS)}, got {len(data)} other bytes"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageRejectedError("too_large", str(error)) from error
    except Exception as error:  # Damaged headers raise many kinds.
        raise ImageRejectedError("damaged", _text(error)) from error
    with image:
        _check_size(image.size, limits)
        try:
            image.load()
        except Exception as error:  # Damaged bytes raise many kinds.
            reason = "truncated" if "truncated" in str(error).lower() else "damaged"
            raise ImageRejectedError(reason, _text(error)) from error
        yield image


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if min(size) < limits.min_side_px:
        raise ImageRejectedError(
            "too_small",
            f"expected sides of at least {limits.min_side_px} pixels, got {height} x {width}",
        )
    if width * height > limits.max_pixels:
        raise ImageRejectedError(
            "too_large", f"expected at most {limits.max_pixels} pixels, got {height} x {width}"
        )


def _orientation(image: Image.Image) -> int | None:
    try:
        orientation: int | None = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - a damaged remark about a picture does not damage the picture
        return None
    return orientation


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT_MODES or (
        image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS
    ):
        image = _eight_bits(image)
    elif image.mode in ("I", "F"):
        raise ImageRejectedError(
            "unsupported_pixels", f"expected 8 or 16 bits, got Pillow's mode {image.mode}"
        )
    try:
        return _flat(image) if image.has_transparency_data else image.convert("RGB")
    except ValueError as error:
        raise ImageRejectedError("unsupported_pixels", _text(error)) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float32) / _TO_EIGHT_BITS
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _flat(image: Image.Image) -> Image.Image:
    """Return a picture with transparent parts on the background."""
    layer = image.convert("RGBA")
    background = Image.new("RGBA", layer.size, (BACKGROUND, BACKGROUND, BACKGROUND, 255))
    return Image.alpha_composite(background, layer).convert("RGB")


def _fit(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    factor = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    scaled = image.resize(size, Image.Resampling.BILINEAR)
    if size == (width, height):
        return scaled
    canvas = Image.new("RGB", (width, height), (BACKGROUND, BACKGROUND, BACKGROUND))
    canvas.paste(scaled, ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
