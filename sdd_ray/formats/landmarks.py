"""Landmarks from a text file, for the images of any source.

Each line holds an image_id and the x and y of five points, in pixels of the upright image: eyes,
nose and corners of the mouth, what is at the left of the image first. One more number may follow,
the confidence of a detector; it is not used. IJB's lists have this form. Ten numbers are either
`interleaved`, x1 y1 x2 y2 ... x5 y5, or `split`, x1 x2 ... x5 y1 y2 ... y5; nothing in a file says
which.

Shapes: N images in the file.
"""

import io
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.columns import IMAGE_ID
from sdd_ray.errors import InputError, SddError
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import Content, Item, Listing, Source
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

NO_LANDMARKS = "no_landmarks"
"""Reason of images that the file does not name."""

NUM_COORDINATES = 10
"""Numbers of five points."""
_AT_ONCE = 65_536
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class LandmarkTable:
    """The landmarks of many images in some eighty bytes each.

    Attributes:
        image_ids: (N,) keys, in the order of the file.
        points: (N, 10) x and y of five points, in pixels.
        hashes: (N,) hashes of the keys, rising. Of 10^8 keys two have the same one with a chance of
            3e-4; an image would then seem to have no landmarks, but never has those of another.
        rows: (N,) which row has each hash.
    """

    image_ids: pa.LargeStringArray
    points: NDArray[np.float32]
    hashes: NDArray[np.int64]
    rows: NDArray[np.int64]

    def find(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each image, -1 where there is none."""
        place = np.searchsorted(self.hashes, _hashes(image_ids))
        rows = self.rows[np.minimum(place, len(self.rows) - 1)]
        found = pc.equal(
            self.image_ids.take(pa.array(rows)), pa.array(image_ids, pa.large_string())
        )
        return np.where(found.to_numpy(zero_copy_only=False), rows, -1)


class WithLandmarks:
    """A source whose images are aligned by the landmarks in a file.

    The file is read by the process that lists or locates the images; what is sent to workers is
    small, and the items bring their landmarks along.

    Args:
        source: The images.
        landmarks: The file.
        order: Of its numbers, `interleaved` or `split`.
    """

    def __init__(self, source: Source, landmarks: Location, order: str = "interleaved") -> None:
        self.source, self.landmarks, self.order = source, landmarks, order
        self.needs_listing = source.needs_listing

    def items(self, listing: Listing) -> Iterator[Item]:
        """Yield all images that have landmarks; note the rest.

        Raises:
            InputError: The source cannot be listed, or the file is none of landmarks.
        """
        return self.with_landmarks(self.source.items(listing), listing)

    def with_landmarks(self, items: Iterable[Item], listing: Listing) -> Iterator[Item]:
        """Yield the items of the source that have landmarks, with them; note the rest.

        Raises:
            InputError: The file is none of landmarks.
        """
        table, rest = read_landmarks(self.landmarks, self.order), iter(items)
        while group := list(itertools.islice(rest, _AT_ONCE)):
            rows = table.find([item.image_id for item in group])
            for item, row in zip(group, rows.tolist(), strict=True):
                if row >= 0:
                    yield item._replace(landmarks=tuple(table.points[row].tolist()))
                else:
                    listing.rejects.append(Reject(item.image_id, NO_LANDMARKS, self._not_there()))

    def located(self, items: pa.Table) -> pa.Table:
        """Return items of the source, a table of `columns.INDEX`, with the landmarks they have.

        Raises:
            InputError: The file is none of landmarks.
        """
        table = read_landmarks(self.landmarks, self.order)
        keys = items[IMAGE_ID]
        parts = [keys.slice(start, _AT_ONCE) for start in range(0, len(keys), _AT_ONCE)]
        rows = np.concatenate(
            [table.find(part.to_pylist()) for part in parts] or [np.zeros(0, int)]
        )
        offsets = np.arange(0, NUM_COORDINATES * len(rows) + 1, NUM_COORDINATES, dtype=np.int32)
        points = pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(table.points[rows].ravel()), mask=pa.array(rows < 0)
        )
        place = items.schema.get_field_index("landmarks")
        return items.set_column(place, items.schema.field(place), points)

    def origins(self) -> list[Location]:
        """Return the files of the source, and the landmarks."""
        return [*self.source.origins(), self.landmarks]

    def groups(self, items: Sequence[Item]) -> list[list[int]]:
        """Return the groups of the source."""
        return self.source.groups(items)

    def fetch(self, items: Sequence[Item]) -> list[Content | SddError]:
        """Return what the source has; nothing for items that `located` found no landmarks for."""
        known = [item for item in items if item.landmarks is not None]
        found = iter(self.source.fetch(known) if known else ())
        return [
            ImageRejectedError(NO_LANDMARKS, self._not_there())
            if item.landmarks is None
            else next(found)
            for item in items
        ]

    def _not_there(self) -> str:
        return f"no line in {self.landmarks.uri}"


def interleaved(numbers: Sequence[float], order: str) -> tuple[float, ...]:
    """Return x1 y1 ... x5 y5 of ten numbers in some order, `interleaved` or `split`."""
    if order == "interleaved":
        return tuple(numbers)
    half = NUM_COORDINATES // 2
    return tuple(itertools.chain(*zip(numbers[:half], numbers[half:], strict=True)))


def read_landmarks(place: Location, order: str = "interleaved") -> LandmarkTable:
    """Return the landmarks in a text file, whose ten numbers are `interleaved` or `split`.

    Lines are separated into columns by tabs, by commas or by white space, in this order of
    preference. An image_id may hold white space; one that ends in a space and a number needs tabs
    or commas, or the number is taken for the first of eleven. Empty lines are skipped.

    Raises:
        InputError: The file cannot be read, a line is not of this form, an image has two, or there
            is none.
    """
    keys, numbers = [], array("f")
    lines = read_lines(place)
    while group := list(itertools.islice(lines, _AT_ONCE)):
        keys.append(pa.array([key for key, _ in group], pa.large_string()))
        for _, values in group:
            numbers.extend(interleaved(values, order))
    if not keys:
        raise InputError(f"{place.uri}: expected lines of image_id and ten numbers, got none")
    hashes = np.concatenate([_hashes(chunk.to_pylist()) for chunk in keys])
    image_ids = pa.chunked_array(keys).combine_chunks()
    rows = np.argsort(hashes, kind="stable")
    hashes = hashes[rows]
    for at in np.flatnonzero(hashes[1:] == hashes[:-1]):
        first, second = (image_ids[int(row)].as_py() for row in rows[at : at + 2])
        if first == second:
            raise InputError(f"{place.uri}: expected one line an image, got more for {first!r}")
    points = np.frombuffer(numbers, np.float32).reshape(-1, NUM_COORDINATES)
    return LandmarkTable(image_ids, points, hashes, rows)


def read_lines(place: Location) -> Iterator[tuple[str, list[float]]]:
    """Yield image_id and ten numbers of each line."""
    with place.open() as stream:
        for number, line in enumerate(_raw_lines(stream, place), 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield _parsed(text)
            except ValueError as error:
                shown = ascii(line.rstrip()[:_SHOWN_CHARACTERS])[1:]
                raise InputError(
                    f"{place.uri}, line {number:,}: expected image_id and ten numbers, in UTF-8,"
                    f" got {shown}"
                ) from error


def _raw_lines(stream: pa.NativeFile, place: Location) -> Iterator[bytes]:
    try:
        yield from io.BufferedReader(stream, 1 << 20)
    except OSError as error:
        raise InputError(f"cannot read {place.uri}: {error}") from error


def _parsed(text: str) -> tuple[str, list[float]]:
    for separator in ("\t", ",", None):
        for count in (NUM_COORDINATES + 1, NUM_COORDINATES):
            key, *numbers = text.rsplit(separator, count)
            key = key.strip()
            if key and len(numbers) == count:
                try:
                    return key, list(map(float, numbers))[:NUM_COORDINATES]
                except ValueError:
                    continue
    raise ValueError(text)


def _hashes(image_ids: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, image_ids), np.int64, len(image_ids))
