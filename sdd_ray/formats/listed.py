"""Images named by the lines of a text file, as many training sets are handed on.

A line is a path, below a folder or absolute, or an s3:// URI, with what belongs to the image beside
it. Paths may lead anywhere: the list is the user's own.

Between columns is a tab, comma or semicolon, or white space. A path may hold white space itself: so
there the columns before it are counted from the left, those behind it from the right.
"""

import codecs
import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import accumulate, count
from typing import NamedTuple

from sdd_ray.errors import ConfigError, InputError, SddError
from sdd_ray.formats.folder import person_in, read_whole
from sdd_ray.formats.items import Content, Item, Listing, not_there
from sdd_ray.formats.landmarks import NUM_COORDINATES, interleaved
from sdd_ray.settings import ListConfig, SourceConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

_READ_BYTES = 1 << 20
_LONGEST_LINE = 1 << 16
_DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";"}
_BAD_LINE = "bad_line"
_SCHEME, _S3 = "://", "s3://"
_NO_PERSON = {
    "label": "its column is empty",
    "first_folder": "expected a path that begins with a folder of a person",
    "parent_folder": "expected a path in a folder of a person",
}


@dataclass(frozen=True)
class ListSource:
    """Images in the lines of a text file.

    Attributes:
        path: The list.
        root: Folder that relative paths start from.
        identity: `label`, `none`, or `first_folder` or `parent_folder` of the image_id.
        layout: What is in its lines.
        landmark_order: Of the ten numbers of landmarks, `interleaved` or `split`.
    """

    path: Location
    root: Location
    identity: str
    layout: ListConfig
    landmark_order: str
    needs_listing = True

    def items(self, listing: Listing) -> Iterator[Item]:
        """Yield the images in the order of their lines.

        Raises:
            InputError: The list cannot be read, or is in UTF-16.
        """
        columns, has_begun = None, False
        for number, line in self._lines():
            is_header = self.layout.header and number == 1
            is_remark = not has_begun and line.startswith(b"#")  # later it begins a path
            if not is_header and (is_remark or not line.strip()):
                listing.ignored_files += 1
                continue
            has_begun = not is_header
            try:
                text = _text(line)
                columns = columns or _Columns(self.layout, text)
                if not is_header:
                    yield self._item(columns.values(text))
            except _LineError as error:
                image_id = error.image_id or f"line {number}"
                listing.rejects.append(Reject(image_id, error.reason, str(error)))

    def origins(self) -> list[Location]:
        """Return the list."""
        return [self.path]

    def groups(self, items: Sequence[Item]) -> list[list[int]]:
        """Return one group a file."""
        return [[place] for place in range(len(items))]

    def fetch(self, items: Sequence[Item]) -> list[Content | SddError]:
        """Return the content of each file."""
        return [self._fetch(item) for item in items]

    def _fetch(self, item: Item) -> Content | SddError:
        if item.file is None:
            return not_there(self.path, [item])[0]
        is_whole = item.file.startswith(("/", _S3))
        return read_whole(Location(item.file) if is_whole else self.root / item.file)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines with their numbers; of longer ones than allowed the beginning."""
        try:
            with self.path.open() as opened, BufferedReader(opened, _READ_BYTES) as stream:
                for number in count(1):
                    line = part = stream.readline(_LONGEST_LINE + 1)
                    while len(part) > _LONGEST_LINE and not part.endswith(b"\n"):
                        part = stream.readline(_LONGEST_LINE + 1)
                    if not line:
                        return
                    if number == 1:
                        line = self._without_mark(line)
                    yield number, line
        except OSError as error:
            raise InputError(f"cannot read {self.path.uri}: {error}") from error

    def _without_mark(self, line: bytes) -> bytes:
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise InputError(f"{self.path.uri}: expected UTF-8, got UTF-16 or UTF-32")
        return line.removeprefix(codecs.BOM_UTF8)

    def _item(self, values: "_Values") -> Item:
        path, image_id, person, landmarks = values
        if _SCHEME in path and not path.startswith(_S3):
            detail = f"expected a path or an {_S3} URI, got {path}: download the images first"
            raise _LineError("unsupported_uri", detail, image_id)
        if self.identity != "label":
            person = self._person_in(image_id)
        if not person and self.identity != "none":
            raise _LineError("no_identity", _NO_PERSON[self.identity], image_id)
        points = landmarks and interleaved(landmarks, self.landmark_order)
        return Item(image_id, person, path, landmarks=points)

    def _person_in(self, image_id: str) -> str | None:
        """Return the person in an image_id; the start of an absolute path or URI is no person."""
        person = person_in(image_id.removeprefix("./"), self.identity)
        is_whole = image_id.startswith("/") or _SCHEME in image_id
        if self.identity == "first_folder" and (is_whole or person in (".", "..")):
            return None
        return person


def open_list(config: SourceConfig, path: Location) -> ListSource:
    """Return the source of a list.

    Raises:
        ConfigError: The columns do not hold one path, or not the persons that are wanted.
    """
    layout, rule = config.list_file, config.identity_rule
    named = [column for column in layout.columns if column != "skip"]
    if "path" not in named or len(named) != len(set(named)):
        raise ConfigError(
            "source.list_file.columns: expected one path, and the others once at most, got"
            f" {', '.join(layout.columns)}"
        )
    if rule == "label" and "identity" not in named:
        raise ConfigError(
            "source.list_file.columns name no identity, but source.identity=label looks for it"
            " there; add it, or set source.identity to none, first_folder or parent_folder"
        )
    folder = path.uri.rpartition("/")[0] or "/"
    root = Location(layout.root or folder).absolute()
    return ListSource(path, root, rule, layout, config.landmark_order)


class _LineError(Exception):
    """A line that names no image that can be used; `image_id` is None where it names none."""

    def __init__(self, reason: str, detail: str, image_id: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.image_id = image_id


class _Values(NamedTuple):
    path: str
    image_id: str
    identity: str | None
    landmarks: tuple[float, ...] | None


class _Columns:
    """Takes lines apart.

    Args:
        layout: What is in the lines.
        first: The first line, which shows what is between columns.
    """

    def __init__(self, layout: ListConfig, first: str) -> None:
        self._names = layout.columns
        widths = [NUM_COORDINATES if name == "landmarks" else 1 for name in layout.columns]
        starts = list(accumulate(widths, initial=0))
        self._number = starts.pop()
        self._at = dict(zip(layout.columns, starts, strict=True))
        self._before = self._at["path"]
        self._behind = self._number - 1 - self._before
        guessed = "tab" if "\t" in first else "comma" if "," in first else "space"
        self._delimiter = _DELIMITERS.get(layout.delimiter or guessed)

    def values(self, line: str) -> _Values:
        """Return what is in a line.

        Raises:
            _LineError: It has too few columns, or numbers that are none.
        """
        fields = self._fields(line)
        if len(fields) < self._number:
            expected = f"expected {self._number} columns ({', '.join(self._names)})"
            raise _LineError(_BAD_LINE, f"{expected}, got {len(fields)}")
        path = fields[self._before]
        image_id = fields[self._at.get("image_id", self._before)]
        if not path or not image_id:
            raise _LineError(_BAD_LINE, "path or image_id is empty")
        person = fields[self._at["identity"]] if "identity" in self._at else None
        return _Values(path, image_id, person, self._landmarks(fields))

    def _fields(self, line: str) -> list[str]:
        if self._delimiter is None:
            *fields, rest = line.split(None, self._before)
            return fields + rest.rsplit(None, self._behind)
        fields = line.split(self._delimiter)
        if '"' in line and self._delimiter != "\t":
            try:
                fields = next(csv.reader([line], delimiter=self._delimiter))
            except csv.Error as error:
                raise _LineError(_BAD_LINE, str(error)) from error
        return [field.strip() for field in fields]

    def _landmarks(self, fields: list[str]) -> tuple[float, ...] | None:
        start = self._at.get("landmarks")
        if start is None:
            return None
        texts = fields[start : start + NUM_COORDINATES]
        try:
            points = tuple(map(float, texts))
        except ValueError as error:
            raise _LineError(_BAD_LINE, f"landmarks: {error}") from error
        if not all(map(math.isfinite, points)):
            raise _LineError(_BAD_LINE, f"landmarks: expected finite numbers, got {texts}")
        return points


def _text(line: bytes) -> str:
    if len(line) > _LONGEST_LINE:
        raise _LineError(_BAD_LINE, f"expected at most {_LONGEST_LINE:,} bytes")
    if b"\0" in line:
        raise _LineError(_BAD_LINE, "expected a text, got one with NUL")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise _LineError("unreadable_name", "the line is not UTF-8") from error
