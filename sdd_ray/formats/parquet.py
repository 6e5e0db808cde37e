"""Parquet files with encoded images in a column, as Hugging Face writes them.

A row of Parquet cannot be read by itself: whoever wants the last row of a row group reads the image
column of that group from its start. So many rows are fetched together, and those that follow are
read on from there, also where many threads read: 4,096 faces in row groups of 4,096, 1,000, 100 or
10 rows are taken out of their pages once, by 1 and by 16 threads of `read_faces`. For reading in
another order, as in training, small row groups are best.

Source: Apache Parquet format, sections "File format" and "Data Pages".
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from sdd_ray.errors import ConfigError, InputError, SddError
from sdd_ray.formats.folder import person_in
from sdd_ray.formats.indexed import place_of
from sdd_ray.formats.items import Content, Item, Listing, PackedSource
from sdd_ray.formats.landmarks import interleaved
from sdd_ray.formats.parquet_cells import read_cells
from sdd_ray.formats.parquet_file import Column, ImageFile, Row, are_five_points
from sdd_ray.settings import ParquetConfig, SourceConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

_MOST_ROWS = 256
"""Rows fetched together."""
_ENOUGH_ROWS = 64
"""Rows after which a group ends with its row group."""
_MOST_BYTES = 32 << 20
"""Bytes of images fetched together, if they are as large as the mean of their row group."""


@dataclass(frozen=True)
class ParquetSource(PackedSource):
    """Images in a column of Parquet files.

    The offset of an item is the number of its row in the file, and its length the mean number of
    bytes of a row of its row group, by which groups of items are kept small.

    Attributes:
        root, only: See `PackedSource`.
        identity: `label`, `none`, or `first_folder` or `parent_folder` of the key in the file.
        columns: Their names.
        landmark_order: Of the ten numbers of landmarks, `interleaved` or `split`.
    """

    identity: str
    columns: ParquetConfig
    landmark_order: str
    suffix = ".parquet"

    def scan(self, file: str, listing: Listing) -> Iterator[Item]:
        """Yield the rows of one file in order; the images are not read.

        Raises:
            InputError: The file is damaged, or lacks a column that is wanted.
        """
        with closing(ImageFile(self.root / file, pre_buffer=True)) as parquet:
            parquet.image(self.columns.image)  # found to be missing now, not by the workers
            rows = parquet.rows(self._small_columns(parquet))
            for number, (row, length) in enumerate(zip(rows, parquet.mean_bytes(), strict=False)):
                found = self._item(file, number, length, row)
                if isinstance(found, Reject):
                    listing.rejects.append(found)
                else:
                    yield found

    def groups(self, items: Sequence[Item]) -> list[list[int]]:
        """Return the rows of each file, in groups that fit in memory and seldom share row groups.

        Where the mean number of bytes is another one, another row group has begun.
        """
        order = sorted(range(len(items)), key=lambda i: (items[i].file or "", items[i].offset))
        groups: list[list[int]] = []
        last, size = None, 0
        for place in order:
            item = items[place]
            size += item.length
            is_near = last is not None and item.file == last.file and size <= _MOST_BYTES
            most = _MOST_ROWS if last and item.length == last.length else _ENOUGH_ROWS
            if is_near and len(groups[-1]) < most:
                groups[-1].append(place)
            else:
                groups.append([place])
                size = item.length
            last = item
        return groups

    def contents(self, file: str, items: Sequence[Item]) -> list[Content | SddError]:
        """Return the images of a group; those at a damaged place and behind it cannot be reached.

        Raises:
            InputError: The file cannot be read.
        """
        place, rows = self.root / file, dict(sorted((item.offset, item.length) for item in items))
        found = read_cells(place, self.columns.image, list(rows), list(rows.values()))
        missing = InputError(f"{place.uri} has fewer rows than when it was listed")
        return [found.get(item.offset, missing) for item in items]

    def _small_columns(self, parquet: ImageFile) -> list[Column | None]:
        """Return the columns of keys, persons and landmarks, as far as they are wanted."""
        names = self.columns
        person = names.identity if self.identity == "label" else None
        wanted = {"image_id": names.image_id, "identity": person, "landmarks": names.landmarks}
        return [
            None if name is None else parquet.column(option, name)
            for option, name in wanted.items()
        ]

    def _item(self, file: str, number: int, length: int, row: Row) -> Item | Reject:
        key, person, points = row
        if self.columns.image_id is None:
            key = str(number)
        if not key:
            detail = f"{self.columns.image_id} is null, empty or not UTF-8"
            return Reject(self.image_id(f"row {number}", file), "no_image_id", detail)
        image_id = self.image_id(key, file)
        if self.identity != "label":
            person = person_in(key, self.identity)
        if not person and self.identity != "none":
            return Reject(image_id, "no_identity", self._no_person())
        if points is not None and not are_five_points(points):
            detail = f"expected ten finite numbers, got {points!r:.80}"
            return Reject(image_id, "bad_landmarks", detail)
        landmarks = None
        if points is not None:
            landmarks = interleaved([float(number) for number in points], self.landmark_order)
        return Item(image_id, person, file, number, length, landmarks)

    def _no_person(self) -> str:
        if self.identity != "label":
            return "not in a folder of a person"
        return f"{self.columns.identity} is null, empty, not UTF-8, or no exact whole number"


def open_parquet(config: SourceConfig, path: Location) -> ParquetSource:
    """Return the source of one Parquet file, or of all in a folder.

    Raises:
        InputError: Nothing is at the path.
        ConfigError: Persons are to be found in keys that are numbers of rows.
    """
    rule = config.identity_rule
    if rule in ("first_folder", "parent_folder") and config.parquet.image_id is None:
        raise ConfigError(
            f"source.identity={rule} finds persons in image_ids: name the column that holds them"
            " in source.parquet.image_id"
        )
    root, only = place_of(path, ".parquet")
    return ParquetSource(root, only, rule, config.parquet, config.landmark_order)
