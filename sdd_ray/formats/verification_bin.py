"""InsightFace's verification sets (.bin): pickles of image files, and which pairs are one person.

A pickle comes from a stranger and may hold code. These are read by an unpickler that knows nothing
but lists, bytes and the names under which numpy writes arrays of bytes; and what those names stand
for here are classes of this module: numpy's own trust the numbers in a pickle.
"""

import pickle
import pickletools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from sdd_ray.errors import InputError, SddError
from sdd_ray.formats.indexed import place_of
from sdd_ray.formats.items import Content, Item, Listing, PackedSource
from sdd_ray.settings import SourceConfig
from sdd_ray.store.location import Location

MAX_BIN_BYTES = 2 << 30
"""Larger files are not read; InsightFace's have some hundred megabytes."""

_MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")
_LIST_OPCODES = ("EMPTY_LIST", "LIST")
_OTHER_OPCODES = ("EMPTY_DICT", "DICT", "EMPTY_SET", "FROZENSET")
"""Make what is in no verification set: of a byte in the file, hundreds in memory."""
_NUM_LISTS = 2
_FEWEST_OPCODES = 1000
_BYTES_PER_OPCODE = 16
"""An image takes 23 opcodes as an array and 2 as bytes, and has some thousand bytes."""


@dataclass(frozen=True)
class BinSource(PackedSource):
    """Images of verification sets; which pairs are one person names no persons.

    Attributes:
        root, only: See `PackedSource`.
    """

    suffix = ".bin"

    def scan(self, file: str, listing: Listing) -> Iterator[Item]:  # noqa: ARG002
        """Yield the images of one file, two a pair; the offset is the number of the image.

        Raises:
            InputError: The file cannot be read, or is no verification set.
        """
        for number in range(len(_images(self.root / file))):
            yield Item(self.image_id(f"{number:06d}", file), None, file, number)

    def groups(self, items: Sequence[Item]) -> list[list[int]]:
        """Return one group a file, which can only be read as a whole."""
        groups: dict[str | None, list[int]] = {}
        for place, item in enumerate(items):
            groups.setdefault(item.file, []).append(place)
        return list(groups.values())

    def contents(self, file: str, items: Sequence[Item]) -> list[Content | SddError]:
        """Return the image files.

        Raises:
            InputError: The file cannot be read, is none, or has fewer images than were listed.
        """
        images = _images(self.root / file)
        last = max(item.offset for item in items)
        if last >= len(images):
            raise InputError(f"{file}: expected an image {last}, got {len(images)} images")
        return [Content(images[item.offset]) for item in items]


def open_bin(_: SourceConfig, path: Location) -> BinSource:
    """Return the source of one verification set, or of all in a folder.

    Raises:
        InputError: Nothing is at the path.
    """
    return BinSource(*place_of(path, ".bin"))


def read_bin(location: Location) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Return a verification set.

    Returns:
        2N image files, and (N,) whether images 2n and 2n + 1 show the same person.

    Raises:
        InputError: The file cannot be read, is larger than `MAX_BIN_BYTES`, or is a pickle of
            anything else. Nothing that it names is run.
    """
    try:
        with location.open() as stream:
            size = stream.size()
            if size > MAX_BIN_BYTES:
                raise InputError(
                    f"{location.uri}: expected a verification set of at most {MAX_BIN_BYTES:,}"
                    f" bytes, got {size:,}"
                )
            content = stream.read()
    except OSError as error:
        raise InputError(f"cannot read {location.uri}: {error}") from error
    try:
        return _checked(_unpickled(content))
    except _UnfitError as error:
        raise InputError(f"{location.uri}: no verification set: {error}") from error


class _UnfitError(Exception):
    """What is not in a verification set."""


class _ByteType:
    """Stands for numpy's dtype of bytes, and is made for no other."""

    def __new__(cls, kind: object, *_: object) -> "_ByteType":
        if kind not in ("u1", b"u1"):
            raise _UnfitError(f"expected arrays of uint8, got dtype {_short(kind)}")
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Take what a pickle says of byte order and alignment, which bytes have not."""


class _Array:
    """Stands for a numpy array of bytes with one axis, as `_reconstruct` makes it."""

    content: bytes | None = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _, shape, kind, _, data = state
        if not isinstance(kind, _ByteType) or not isinstance(data, bytes | bytearray):
            raise _UnfitError("expected arrays of uint8")
        # OpenCV before 4.5.3 gave encoded images a second axis of one.
        if shape not in ((len(data),), (len(data), 1)):
            raise _UnfitError(f"expected arrays of one axis, {len(data)} bytes")
        self.content = bytes(data)


class _ArrayFromBuffer(_Array):
    """The same, as `_frombuffer` makes it in protocol 5."""

    def __init__(self, data: object, kind: object, shape: object, order: object) -> None:
        self.__setstate__((1, shape, kind, order, data))


_KNOWN: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _ByteType,
}
for _package in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_package}.multiarray", "_reconstruct"] = _Array
    _KNOWN[f"{_package}.numeric", "_frombuffer"] = _ArrayFromBuffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _KNOWN[module, name]
        except KeyError:
            shown = f"{_short(module)}.{_short(name)}"
            raise _UnfitError(f"the pickle asks for {shown}, which could run code") from None


def _unpickled(content: bytes) -> object:
    try:
        _check_opcodes(content)
        return _Unpickler(BytesIO(content), encoding="bytes").load()
    except _UnfitError:
        raise
    except Exception as error:  # Damaged pickles raise many kinds.
        raise _UnfitError(f"a damaged pickle: {type(error).__name__}: {error}") from error


def _check_opcodes(content: bytes) -> None:
    """Refuse what takes much more memory than the file has bytes.

    These are objects of which a verification set has none or few, and places of the memo beyond
    what can be in use: it is an array with room for all.
    """
    used = num_lists = 0
    most = _FEWEST_OPCODES + len(content) // _BYTES_PER_OPCODE
    for number, (opcode, value, _) in enumerate(pickletools.genops(content)):
        num_lists += opcode.name in _LIST_OPCODES
        if opcode.name in _OTHER_OPCODES:
            raise _UnfitError(f"expected lists, tuples and bytes, got {opcode.name}")
        if num_lists > _NUM_LISTS or number >= most:
            raise _UnfitError(
                f"expected {_NUM_LISTS} lists and at most {most:,} opcodes in {len(content):,}"
                " bytes, got more"
            )
        if opcode.name in _MEMO_OPCODES:
            used += 1
            if isinstance(value, int) and value > used:
                raise _UnfitError(f"a damaged pickle: place {value} of the memo, {used} in use")


def _checked(found: object) -> tuple[list[bytes], NDArray[np.bool_]]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise _UnfitError(f"expected a pair, images and which pairs are same, got {_kind(found)}")
    images, same = found
    if not isinstance(images, list) or not isinstance(same, list):
        raise _UnfitError(f"expected two lists, got {_kind(images)} and {_kind(same)}")
    if len(images) != 2 * len(same):
        raise _UnfitError(f"expected two images a pair, got {len(images)} and {len(same)} pairs")
    for number, value in enumerate(same):
        if not isinstance(value, bool):
            raise _UnfitError(f"pair {number}: expected True or False, got {_kind(value)}")
    return [_image(number, value) for number, value in enumerate(images)], np.array(same, np.bool_)


def _image(number: int, value: object) -> bytes:
    content = value.content if isinstance(value, _Array) else value
    if not isinstance(content, bytes):
        raise _UnfitError(f"image {number}: expected bytes, got {_kind(value)}")
    return content


def _images(location: Location) -> list[bytes]:
    return _images_of(location, location.version())


@lru_cache(maxsize=1)
def _images_of(location: Location, version: Hashable) -> list[bytes]:  # noqa: ARG001
    """Keep the images of the file that was read last, which a worker asks for shard by shard."""
    return read_bin(location)[0]


def _kind(value: object) -> str:
    return type(value).__name__.removeprefix("_")


def _short(value: object) -> str:
    """Return a text of a pickle for a message; other objects may be too large to be written out."""
    return ascii(value[:40])[1:-1] if isinstance(value, str | bytes) else _kind(value)
