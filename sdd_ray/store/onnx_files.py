"""What belongs to an ONNX file: itself, and weights that it may keep in files beside it.

Exports of large networks leave the tensors in "external data" files and name them by path. Those
files decide the embeddings, so they are part of the digest; and a path that leads out of the folder
of the model would read a file that its author has no business with. onnxruntime checks that itself
since some version after 1.19, which read it.

Source: onnx.proto3 of ONNX 1.16 (field numbers) and the protocol buffers encoding.
"""

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path

from sdd_ray.errors import InputError, WeightsError
from sdd_ray.store.weights import digest

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10

# The messages on the way from a model to its tensors: kind, field number, kind of the field.
_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2


def onnx_digest(path: Path) -> str:
    """Return the SHA-256 of an ONNX file; with external data, of the digests of all its files.

    Raises:
        InputError: A file is missing or cannot be read.
        WeightsError: See `external_files`.
    """
    others = external_files(path)
    if not others:
        return digest(path)
    return hashlib.sha256("".join(map(digest, (path, *others))).encode()).hexdigest()


def external_files(path: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold tensors of it, sorted.

    Raises:
        InputError: The ONNX file is missing or cannot be read.
        WeightsError: It is not ONNX, or one of the files is missing or not in its folder.
    """
    try:
        content = _content(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    try:
        locations = sorted(set(_locations(content)))
    except (ValueError, IndexError) as error:
        raise WeightsError(f"{path}: not an ONNX file, or damaged: {error}") from error
    return [_beside(path, location) for location in locations]


def _content(path: Path) -> mmap.mmap | bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such weight file")
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            return b""
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _beside(path: Path, location: str) -> Path:
    """Return the file that a tensor's location means, which must lie in the model's folder."""
    # Either folder of a model that is a link itself, as in caches of downloaded models.
    folders = (path.parent.resolve(), path.resolve().parent)
    try:
        file = (path.parent / location).resolve()
        is_there = file.is_file()
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: its weights are in no file {location!r}: {error}") from error
    if not any(file.is_relative_to(folder) for folder in folders):
        raise WeightsError(
            f"{path}: refused; expected weights in the folder of the file, got the location"
            f" {location!r}"
        )
    if not is_there:
        raise WeightsError(f"{path}: its weights {location!r} are not there; copy them beside it")
    return file


def _locations(content: mmap.mmap | bytes) -> Iterator[str]:
    """Yield the `location` of every tensor's external data in a serialised model."""
    todo = [("model", 0, len(content))]
    while todo:
        kind, start, end = todo.pop()
        if kind == "entry":
            found = {number: content[a:b] for number, a, b in _fields(content, start, end)}
            if found.get(_KEY) == b"location":
                yield found.get(_VALUE, b"").decode()
            continue
        parts = _PARTS[kind]
        todo += [(parts[n], a, b) for n, a, b in _fields(content, start, end) if n in parts]


def _fields(content: mmap.mmap | bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field of a message that holds bytes or a message."""
    position = start
    while position < end:
        tag, position = _varint(content, position)
        number, wire_type = (tag & 0xFFFFFFFF) >> 3, tag & 7
        if wire_type == _VARINT:
            _, position = _varint(content, position)
        elif wire_type in _FIXED_SIZES:
            position += _FIXED_SIZES[wire_type]
        elif wire_type == _BYTES:
            size, position = _varint(content, position)
            yield number, position, position + size
            position += size
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if position > end:
            raise ValueError(f"a field ends at byte {position}, its message at byte {end}")


def _varint(content: mmap.mmap | bytes, position: int) -> tuple[int, int]:
    """Return the number in base 128 at a position, and the position after it."""
    number = 0
    for count in range(_LONGEST_VARINT):
        byte = content[position + count]
        number |= (byte & 127) << 7 * count
        if byte < 128:
            return number, position + count + 1
    raise ValueError(f"a number at byte {position} does not end")
