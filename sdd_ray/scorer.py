"""Qualities of face images in three lines of Python, without Ray.

    >>> import sdd_ray
    >>> model = sdd_ray.load_model("runs/model")  # doctest: +SKIP
    >>> model.score(["a.jpg", "b.jpg"]).quality  # doctest: +SKIP
    array([71, 12], dtype=int8)

Shapes: N images, H and W rows and columns of an image.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.calibration import integer_quality
from sdd_ray.errors import SddError
from sdd_ray.formats.folder import read_whole
from sdd_ray.formats.images import decode_image, fit_pixels, reason_of
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import load_model as read_model
from sdd_ray.store.quality import QualityRunner

ImageLike = str | os.PathLike[str] | bytes | NDArray[np.uint8]
"""A path (or s3:// URI), the bytes of an image file, or RGB or grey pixels."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The qualities of N images, in their order.

    Attributes:
        quality: (N,) int8, 0 to 100, larger is better; -1 where an image could not be assessed.
        value: (N,) float32, the same before rounding; NaN.
        raw: (N,) float32, as the network gives it, in units of the label; NaN.
        reasons: (N,) why an image could not be assessed, fit for counting; None where it was.
        details: (N,) the same in full, for people.
        accepted: (N,) whether the threshold that was asked for is reached; None without one.
    """

    quality: NDArray[np.int8]
    value: NDArray[np.float32]
    raw: NDArray[np.float32]
    reasons: tuple[str | None, ...]
    details: tuple[str | None, ...]
    accepted: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.quality)


class Scorer:
    """A quality model in this process. Threads may share one.

    An image's quality does not depend on the other images, but for the last bits of `raw`, which
    may differ between batches of different size.

    Made by `sdd_ray.load_model`, which says what its arguments and errors are.
    """

    def __init__(
        self, path: str | os.PathLike[str], device: str = "cpu", batch_size: int = 32
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"expected a positive batch_size, got {batch_size}")
        self.model = read_model(Location(os.fspath(path)).absolute())
        self._runner = QualityRunner(self.model, device)
        self._batch_size = batch_size

    def score(
        self,
        images: ImageLike | Iterable[ImageLike],
        landmarks: Sequence[Sequence[float]] | None = None,
        threshold: int | str | None = None,
    ) -> Scores:
        """Return the qualities of images.

        Args:
            images: One image or many: paths or s3:// URIs, contents of image files, or uint8 pixels
                of shape (H, W, 3) in RGB, (H, W), or (N, H, W, 3). Aligned face crops; those that
                are not 112 x 112 are scaled as the commands do it, see
                `sdd_ray.formats.images.decode_image`.
            landmarks: (N, 10) x and y of eyes, nose and corners of the mouth in pixels, where the
                images are not aligned.
            threshold: An integer quality or the name of one of the model's thresholds, for
                `Scores.accepted`.

        Raises:
            InputError: The model has no threshold of this name.
            TypeError: An image is of another type.
            ValueError: Pixels have another type or shape, or there are more or fewer landmarks than
                images.
        """
        acceptance = None if threshold is None else self.model.acceptance(threshold)
        errors: list[SddError | None] = []
        outputs = list(self._runner.qualities(self._batches(_each(images, landmarks), errors)))
        found = np.full((len(errors), 2), np.nan, np.float32)
        good = np.array([error is None for error in errors], bool)
        if outputs:
            found[good] = np.concatenate(outputs)
        raw, value = np.ascontiguousarray(found.T)
        quality = integer_quality(value)
        return Scores(
            quality,
            value,
            raw,
            tuple(None if error is None else reason_of(error) for error in errors),
            tuple(None if error is None else str(error) for error in errors),
            None if acceptance is None else acceptance.of(raw, quality),
        )

    def _batches(
        self,
        images: Iterator[tuple[ImageLike, Sequence[float] | None]],
        errors: list[SddError | None],
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield batches of faces; note for every image why it is in none of them, or None."""
        batch: list[NDArray[np.uint8]] = []
        for image, points in images:
            try:
                batch.append(_face(image, points))
                errors.append(None)
            except SddError as error:
                errors.append(error)
            if len(batch) == self._batch_size:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)


def _each(
    images: ImageLike | Iterable[ImageLike], landmarks: Sequence[Sequence[float]] | None
) -> Iterator[tuple[ImageLike, Sequence[float] | None]]:
    """Yield each image with its landmarks."""
    is_one = isinstance(images, (str, os.PathLike, bytes)) or (
        # of paths or of bytes, such as a column of a table, it is many
        isinstance(images, np.ndarray) and images.ndim < 4 and images.dtype.kind not in "OUS"
    )
    listed = cast("Iterable[ImageLike]", [images] if is_one else images)
    if landmarks is None:
        yield from ((image, None) for image in listed)
        return
    for image, points in zip(listed, landmarks, strict=True):
        yield image, list(points)


def _face(image: ImageLike, landmarks: Sequence[float] | None) -> NDArray[np.uint8]:
    """Return one face, (112, 112, 3)."""
    if isinstance(image, np.ndarray):
        return fit_pixels(image, landmarks=landmarks)
    if isinstance(image, bytes):
        return decode_image(image, landmarks=landmarks)
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(f"expected a path, bytes or an array of pixels, got {type(image).__name__}")
    found = read_whole(Location(os.fspath(image)).absolute())
    if isinstance(found, SddError):
        raise found
    assert isinstance(found.data, bytes)  # noqa: S101 - of files
    return decode_image(found.data, landmarks=landmarks)
