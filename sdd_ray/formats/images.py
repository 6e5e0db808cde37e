"""From the bytes of an image file to a face of fixed size.

Image files come from anywhere: what cannot be decoded as it should be is rejected with a reason,
one image at a time. Damage within the compressed data of a JPEG that is whole is the exception:
Pillow does not tell of it.

Shapes: H and W rows and columns in pixels.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sdd_ray.core.alignment import (
    ARCFACE_TEMPLATE,
    CROP_PX,
    bilinear,
    misfit,
    sample_points,
    similarity_transform,
)
from sdd_ray.errors import SddError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Formats that are decoded, found by content and not by the file's name."""

UNREADABLE = "unreadable"
"""Reason of images that cannot be reached; unlike the others it may pass."""

BACKGROUND = 127
"""Grey level behind transparent pixels and beside images that are not of the target's shape: the
margin of aligned face crops, and close to zero in the usual preprocessing."""

# What Pillow remarks on, the outcome says. A filter set for each image would not do: threads that
# set and restore filters at the same time leave the whole process with one of theirs.
warnings.filterwarnings("ignore", module=r"PIL\.")

_JPEG = ("JPEG", "MPO")
_END_OF_JPEG = b"\xff\xd9"
_MOST_MISFIT = 0.8
"""Points that resemble a face less are something else, or in another order."""
_DOUBTFUL_MISFIT = 0.15
"""From here on the numbers are also read in the order that `source.landmark_order` was not. Of
faces turned by up to 45 degrees and jittered by 3 % of a crop, 98 % of those read in the wrong
order are found, and no right one of 40,000 is; of those turned by up to 90 degrees 95 % and 0.9 %.
"""
_LEAST_INSIDE = 0.25
"""Share of an aligned face that the image must show: all of it that a face at its corner has."""

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
            `too_small`, `too_large`, `unsupported_pixels` or `bad_landmarks`.
        detail: What was expected and what was found, for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def reason_of(error: SddError) -> str:
    """Return why an image is set aside, fit for counting."""
    return error.reason if isinstance(error, ImageRejectedError) else UNREADABLE


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
    data: bytes,
    height: int = CROP_PX,
    width: int = CROP_PX,
    limits: ImageLimits = DEFAULT_LIMITS,
    landmarks: Sequence[float] | None = None,
) -> NDArray[np.uint8]:
    """Return the face in an image file, upright, in RGB, with the asked size.

    EXIF orientation is applied; of several frames the first is taken; grey, palette, CMYK and
    16-bit images become 8-bit RGB; what is transparent shows `BACKGROUND`.

    With landmarks the face is warped to the ArcFace template of 112 x 112, as InsightFace does it
    and recognisers were trained on: bilinear without averaging, however large the face is in the
    image, and black beside the image.

    An image of another size is scaled, bilinear over the covered area, until it just fits inside,
    and centred on `BACKGROUND` where its shape differs. So geometry is kept: an aligned crop of
    112 x 96 lies where it lay in the crop of 112 x 112.

    Args:
        data: The whole file.
        height: H of the result.
        width: W of the result.
        limits: What is too small or too large.
        landmarks: x and y of both eyes, nose and both corners of the mouth, left in the image
            first: ten numbers, in pixels of the upright image (OpenCV reads images upright, too).

    Returns:
        (H, W, 3) pixels.

    Raises:
        ImageRejectedError: The file is empty, no image, damaged, too small or too large; or the
            landmarks are no face in it.
    """
    if not data:
        raise ImageRejectedError("empty", "expected an image file, got no bytes")
    with _open(data, limits) as image:
        upright = _upright(_rgb(image), _orientation(image))
        if landmarks is not None:
            upright = Image.fromarray(_aligned(np.asarray(upright), landmarks, limits))
        return _pixels(_fit(upright, height, width))


def fit_pixels(
    pixels: NDArray[np.uint8],
    limits: ImageLimits = DEFAULT_LIMITS,
    landmarks: Sequence[float] | None = None,
) -> NDArray[np.uint8]:
    """Return the face in a decoded image as `decode_image` returns that of a file.

    Args:
        pixels: (H, W, 3) in RGB, or (H, W) in grey.
        limits: What is too small or too large.
        landmarks: As for `decode_image`.

    Returns:
        (112, 112, 3) pixels.

    Raises:
        ImageRejectedError: The image is empty, too small or too large; or the landmarks are no face
            in it.
        ValueError: The pixels have another type or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(
            "expected uint8 pixels of shape (H, W, 3) in RGB or (H, W), got"
            f" {pixels.dtype} of shape {pixels.shape}"
        )
    if not pixels.size:
        raise ImageRejectedError("empty", f"expected pixels, got shape {pixels.shape}")
    _check_size((pixels.shape[1], pixels.shape[0]), limits)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if landmarks is not None:
        pixels = _aligned(pixels, landmarks, limits)
    if pixels.shape == (CROP_PX, CROP_PX, 3):
        return pixels
    return _pixels(_fit(Image.fromarray(pixels), CROP_PX, CROP_PX))


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    content = bytearray(image.tobytes())  # faster than np.array
    return np.frombuffer(content, np.uint8).reshape(image.height, image.width, 3)


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
        if image.format in _JPEG and data.rfind(_END_OF_JPEG) < 0:
            # Where zeros follow, as after a broken download, Pillow would take them for pixels.
            raise ImageRejectedError("truncated", "a JPEG without its end")
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
    if image.format == "JPEG" and "exif" not in image.info and "xmp" not in image.info:
        return None  # Nearly all face crops: most of the time beside decoding goes into looking.
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


def _aligned(
    image: NDArray[np.uint8], landmarks: Sequence[float], limits: ImageLimits
) -> NDArray[np.uint8]:
    """Return the aligned face, (112, 112, 3)."""
    if len(landmarks) != ARCFACE_TEMPLATE.size:
        raise ImageRejectedError("bad_landmarks", f"expected ten numbers, got {len(landmarks)}")
    points = np.asarray(landmarks, np.float64).reshape(ARCFACE_TEMPLATE.shape)
    try:
        matrix = similarity_transform(points)
    except ValueError as error:
        raise ImageRejectedError("bad_landmarks", str(error)) from error
    shown = ", ".join(f"({x:g}, {y:g})" for x, y in points)
    _check_face(points, matrix, shown)
    side = CROP_PX / np.hypot(*matrix[:, 0])
    if side < limits.min_side_px:
        raise ImageRejectedError(
            "too_small",
            f"expected a face of at least {limits.min_side_px} pixels, got {side:.2g}: {shown}",
        )
    height, width = image.shape[:2]
    x, y = sample_points(matrix)
    is_inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    if is_inside.mean() < _LEAST_INSIDE:
        raise ImageRejectedError(
            "bad_landmarks", f"expected a face in an image of {height} x {width}, got {shown}"
        )
    return bilinear(image, x, y)


def _check_face(points: NDArray[np.float64], matrix: NDArray[np.float64], shown: str) -> None:
    """Refuse points that are unlike a face, or much more like one when read in another order."""
    found = misfit(points, matrix)
    if found < _DOUBTFUL_MISFIT:
        return
    for other in (points.reshape(2, -1).T, points.T.reshape(points.shape)):
        is_face = np.ptp(other, axis=0).any()
        if is_face and misfit(other, similarity_transform(other)) < found / 2:
            raise ImageRejectedError(
                "bad_landmarks",
                "x1 y1 x2 y2 ... and x1 x2 ... y1 y2 ... seem to be taken for one another: set"
                f" source.landmark_order to the other order; got {shown}",
            )
    if found > _MOST_MISFIT:
        raise ImageRejectedError(
            "bad_landmarks",
            f"expected x y of left eye, right eye, nose, left and right mouth, got {shown}",
        )


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
