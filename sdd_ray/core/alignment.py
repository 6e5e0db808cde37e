"""Faces brought to one place: five landmarks, the turn and scale that fits them, and the warp.

Coordinates are x to the right and y downwards; whole numbers are the centres of pixels. Landmarks
are the eye at the left of the picture, the eye at the right, the tip of the nose, and the left and
the right corner of the mouth.

Shapes: H and W rows and columns in pixels.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

CROP_PX = 112
"""Height and width of an aligned face."""

ARCFACE_TEMPLATE: NDArray[np.float64] = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
"""(5, 2) x and y of the landmarks in an aligned face of 112 x 112, in pixels. Source: InsightFace,
whose recognisers and most others were trained on faces aligned to it."""


def similarity_transform(
    points: ArrayLike, target: NDArray[np.float64] = ARCFACE_TEMPLATE
) -> NDArray[np.float64]:
    """Return the turn, scale and shift that bring points closest to a target, in least squares.

    It never mirrors: points of a mirrored face are turned and scaled as well as that allows, and
    `misfit` is large.

    Args:
        points: (5, 2) x and y of the landmarks in a picture, in pixels.
        target: (5, 2) where they should be.

    Returns:
        (2, 3) matrix that takes (x, y, 1) of the picture to (x, y) of the target.

    Raises:
        ValueError: The shapes differ, a number is not finite, or all points are the same.

    Source:
        Umeyama, "Least-squares estimation of transformation parameters between two point
        patterns", PAMI 1991. In the plane, with points as complex numbers, its solution is one
        division, and the constraint against mirroring holds by itself.

    Example:
        >>> matrix = similarity_transform(2 * ARCFACE_TEMPLATE)
        >>> matrix.dot([100, 50, 1]).round(6).tolist()
        [50.0, 25.0]
    """
    source = np.asarray(points, np.float64)
    if source.shape != target.shape:
        raise ValueError(f"expected points of shape {target.shape}, got {source.shape}")
    if not np.isfinite(source).all():
        raise ValueError(f"expected finite points, got {source.tolist()}")
    if not np.ptp(source, axis=0).any():
        raise ValueError(f"expected different points, got all at {source[0].tolist()}")
    from_z, to_z = source @ (1, 1j), target @ (1, 1j)
    z, w = from_z - from_z.mean(), to_z - to_z.mean()
    turn = np.vdot(z, w) / np.vdot(z, z).real
    shift = to_z.mean() - turn * from_z.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def misfit(
    points: ArrayLike,
    matrix: NDArray[np.float64],
    target: NDArray[np.float64] = ARCFACE_TEMPLATE,
) -> float:
    """Return which share of the target's spread the transformed points leave unexplained.

    Args:
        points: (5, 2) landmarks in the picture.
        matrix: (2, 3) their `similarity_transform`.
        target: (5, 2) the target of that.

    Returns:
        Sum of squared distances to the target over that of the target to its centre: 0 for points
        of the target's shape, 1 for points that tell nothing. A face in full profile, whose eyes
        fall together, has some 0.4; left and right taken for one another, or x and y, give 0.95.
    """
    moved = np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]
    spread = ((target - target.mean(axis=0)) ** 2).sum()
    return float(((moved - target) ** 2).sum() / spread)


def sample_points(
    matrix: NDArray[np.float64], height: int = CROP_PX, width: int = CROP_PX
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where in the picture each pixel of an aligned face comes from.

    Args:
        matrix: (2, 3) from the picture to the aligned face.
        height: H of the aligned face.
        width: W of the aligned face.

    Returns:
        x and y in the picture, (H, W) each.

    Raises:
        ValueError: The matrix cannot be inverted.
    """
    try:
        inverse = np.linalg.inv(matrix[:, :2])
    except np.linalg.LinAlgError as error:
        raise ValueError(f"expected an invertible transform, got {matrix.tolist()}") from error
    x = np.arange(width) - matrix[0, 2]
    y = np.arange(height)[:, None] - matrix[1, 2]
    (xx, xy), (yx, yy) = inverse
    return xx * x + xy * y, yx * x + yy * y


def bilinear(
    image: NDArray[np.uint8], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Return an image at any points, interpolated between the four pixels around each.

    Outside of the image it is black, and fades to black within one pixel of its edge. There is no
    averaging over more pixels where the result is smaller than what it shows.

    Args:
        image: (H, W, 3) pixels.
        x: Columns, of any shape S.
        y: Rows, of shape S.

    Returns:
        (*S, 3) pixels.

    Source:
        The convention of OpenCV's warpAffine with its default border, by which InsightFace aligns.
        OpenCV rounds positions to 1/32 of a pixel; here they are exact.
    """
    # Only what is looked at, with one black pixel around it: images may be large.
    columns, rows = _span(x, image.shape[1]), _span(y, image.shape[0])
    window = np.pad(image[rows, columns], ((1, 1), (1, 1), (0, 0)))
    height, width = window.shape[:2]
    left, to_right = _between(x - columns.start + 1, width)
    top, down = _between(y - rows.start + 1, height)
    pixels = window.reshape(-1, image.shape[2])
    place = top * width + left
    corners = [pixels.take(place + step, axis=0) for step in (0, 1, width, width + 1)]
    upper = _mixed(corners[0], corners[1], to_right)
    lower = _mixed(corners[2], corners[3], to_right)
    found: NDArray[np.uint8] = np.rint(_mixed(upper, lower, down)).astype(np.uint8)
    return found


def _span(at: NDArray[np.float64], size: int) -> slice:
    """Return the pixels of a side that are needed to interpolate at some positions."""
    start, stop = np.clip((np.floor(at.min()), np.floor(at.max()) + 2), 0, size)
    return slice(int(start), int(stop))


def _between(at: NDArray[np.float64], size: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the pixel before each position, and which part of the way to the next it has gone."""
    at = np.clip(at, 0, size - 1)
    before = np.minimum(at.astype(np.intp), size - 2)
    return before, (at - before).astype(np.float32)[..., None]


def _mixed(
    first: NDArray[np.uint8 | np.float32],
    second: NDArray[np.uint8 | np.float32],
    share: NDArray[np.float32],
) -> NDArray[np.float32]:
    mixed = second.astype(np.float32)
    mixed -= first
    mixed *= share
    mixed += first
    return mixed
