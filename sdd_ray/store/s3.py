"""Objects on S3: read, written, listed and removed as a whole or not at all.

A read is one request, and what comes is compared with what the store promised. A write is one
request with the digest of the content, which the store compares: nothing half-written is ever seen.
"""

import base64
import hashlib
import io
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
from botocore.exceptions import ClientError

from sdd_ray.errors import InputError, OutputError
from sdd_ray.store import s3_client
from sdd_ray.store.s3_client import WrongAnswerError, attempted, bucket_and_key, status_of

_BLOCK_BYTES = 64 << 10
"""Received at a time."""
_AHEAD_BYTES = 1 << 20
"""Least that an opened object is asked for: its readers take small pieces that lie together."""
_NAMES_AT_ONCE = 1000
"""Listed or removed by one request. Source: API reference of S3, ListObjectsV2, DeleteObjects."""


def read(uri: str) -> bytes:
    """Return a whole object.

    Raises:
        InputError: It is missing or cannot be read.
        StoreError: The store does not answer.
    """

    def call(s3: Any) -> bytes:
        with _got(s3, uri) as answer:
            return _received(answer)

    return attempted("read", uri, call, InputError)


def read_small(uri: str, most: int) -> bytes | int:
    """Return a whole object, or its size if that is more than `most` bytes.

    Raises:
        InputError: It is missing or cannot be read.
        StoreError: The store does not answer.
    """

    def call(s3: Any) -> bytes | int:
        with _got(s3, uri) as answer:
            size = int(answer["ContentLength"])
            return size if size > most else _received(answer)

    return attempted("read", uri, call, InputError)


def read_range(uri: str, offset: int, length: int, tag: str | None = None) -> bytes:
    """Return some bytes of an object; fewer if it ends before.

    Args:
        uri: The object.
        offset: First byte.
        length: Bytes.
        tag: ETag that the object must still have.

    Raises:
        InputError: It is missing, is another one than before, or cannot be read.
        StoreError: The store does not answer.
    """
    if length == 0:
        return b""
    asked = f"bytes={offset}-{offset + length - 1}"

    def call(s3: Any) -> bytes:
        try:
            piece = _piece(s3, uri, asked, tag)
        except ClientError as error:
            if _is_beyond_the_end(error):
                return b""
            raise
        if piece.offset != offset or len(piece.content) != min(length, piece.size - offset):
            raise WrongAnswerError(
                f"asked for {length:,} bytes at {offset:,} of {piece.size:,}, got"
                f" {len(piece.content):,} at {piece.offset:,}"
            )
        return piece.content

    return attempted("read", uri, call, InputError)


def opened(uri: str) -> pa.NativeFile:
    """Return an object opened for reading at any position, as it is now.

    Raises:
        InputError: It is missing or cannot be read.
        StoreError: The store does not answer.
    """
    return pa.PythonFile(_OpenedObject(uri), mode="r")


def write(uri: str, content: bytes) -> None:
    """Write an object.

    Raises:
        OutputError: It cannot be written.
        StoreError: The store does not answer.
    """
    digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    attempted(
        "write",
        uri,
        lambda s3: s3.put_object(**_named(uri), Body=content, ContentMD5=digest),
        OutputError,
    )


def is_object(uri: str) -> bool:
    """Return whether an object has this name.

    Raises:
        InputError: It is forbidden to look.
        StoreError: The store does not answer.
    """

    def call(s3: Any) -> bool:
        try:
            s3.head_object(**_named(uri))
        except ClientError as error:
            if status_of(error) == 404:
                return False
            raise
        return True

    return bool(bucket_and_key(uri)[1]) and attempted("look at", uri, call, InputError)


def tag(uri: str) -> str:
    """Return the ETag of an object, which is another one when the object was written anew.

    Raises:
        InputError: It is missing, or it is forbidden to look.
        StoreError: The store does not answer.
    """
    answer = attempted("look at", uri, lambda s3: s3.head_object(**_named(uri)), InputError)
    return str(answer["ETag"])


def is_folder(uri: str) -> bool:
    """Return whether names of objects begin with this one and a slash; or it is a bucket.

    Raises:
        InputError: There is no such bucket, or it is forbidden to look.
        StoreError: The store does not answer.
    """
    page = attempted("look at", uri, lambda s3: _page(s3, uri, MaxKeys=1), InputError)
    return not bucket_and_key(uri)[1] or bool(page.get("Contents"))


def children(uri: str) -> Iterator[tuple[str, bool]]:
    """Yield the names directly below a folder, and whether they are folders.

    Raises:
        InputError: The folder is missing or cannot be listed.
        StoreError: The store does not answer.
    """
    start = len(_prefix(uri))
    is_there = not start
    for page in _pages("list the folder", uri, InputError, Delimiter="/"):
        folders = [found["Prefix"] for found in page.get("CommonPrefixes", ())]
        objects = [found["Key"] for found in page.get("Contents", ())]
        is_there = is_there or bool(folders or objects)
        yield from ((key[start:-1], True) for key in folders)
        # Some tools put an empty object in the place of a folder.
        yield from ((key[start:], False) for key in objects if len(key) > start)
    if not is_there:
        raise InputError(f"cannot list the folder {uri}: nothing is there")


def descendants(uri: str) -> Iterator[str]:
    """Yield the names of all objects below a folder, in order: a thousand by one request.

    Raises:
        InputError: The folder is missing or cannot be listed.
        StoreError: The store does not answer.
    """
    start = len(_prefix(uri))
    is_there = not start
    for page in _pages("list the folder", uri, InputError):
        keys = [found["Key"] for found in page.get("Contents", ())]
        is_there = is_there or bool(keys)
        # Some tools put an empty object in the place of a folder.
        yield from (key[start:] for key in keys if len(key) > start and not key.endswith("/"))
    if not is_there:
        raise InputError(f"cannot list the folder {uri}: nothing is there")


def remove(uri: str) -> None:
    """Remove an object if it is there.

    Raises:
        OutputError: It cannot be removed.
        StoreError: The store does not answer.
    """
    attempted("remove", uri, lambda s3: s3.delete_object(**_named(uri)), OutputError)


def remove_below(uri: str) -> None:
    """Remove all objects below a folder.

    Raises:
        OutputError: They cannot be removed.
        StoreError: The store does not answer.
    """
    for page in _pages("remove", uri, OutputError):
        objects = [{"Key": found["Key"]} for found in page.get("Contents", ())]
        if objects:
            attempted("remove", uri, partial(_removed, uri, objects), OutputError)


class _Piece(NamedTuple):
    """Part of an object: where it lies there, the size of the whole, and its ETag."""

    content: bytes
    offset: int
    size: int
    tag: str | None


class _OpenedObject(io.RawIOBase):
    """An object as a file that keeps the piece read last, at first its end.

    Files with an index, such as Parquet, are read from the end; a small one is there as a whole.
    Should less have come than the end, the rest is asked for when it is read.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._piece = attempted("read", uri, self._end, InputError)
        self._position = 0

    def _end(self, s3: Any) -> _Piece:
        try:
            return _piece(s3, self._uri, f"bytes=-{_AHEAD_BYTES}")
        except ClientError as error:
            if _is_beyond_the_end(error):
                return _Piece(b"", 0, 0, None)  # an empty object has no last bytes
            raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._piece.size}
        self._position = bases[whence] + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, self._piece.size - self._position)
        length = rest if size is None or size < 0 else min(size, rest)
        if length == 0:
            return b""
        start = self._position - self._piece.offset
        if start < 0 or start + length > len(self._piece.content):
            self._fetch(length)
            start = 0
        self._position += length
        return self._piece.content[start : start + length]

    def _fetch(self, length: int) -> None:
        size, tag = self._piece.size, self._piece.tag
        wanted = min(max(length, _AHEAD_BYTES), size - self._position)
        content = read_range(self._uri, self._position, wanted, tag)
        if len(content) != wanted:
            raise InputError(f"cannot read {self._uri}: it has become shorter while it was read")
        self._piece = _Piece(content, self._position, size, tag)


def _named(uri: str) -> dict[str, str]:
    bucket, key = bucket_and_key(uri)
    return {"Bucket": bucket, "Key": key}


def _prefix(uri: str) -> str:
    key = bucket_and_key(uri)[1]
    return key and key + "/"


def _removed(uri: str, objects: list[dict[str, str]], s3: Any) -> None:
    request = {"Objects": objects, "Quiet": True}
    answer = s3.delete_objects(Bucket=bucket_and_key(uri)[0], Delete=request)
    for error in answer.get("Errors", ()):
        raise WrongAnswerError(f"{error['Key']}: {error['Code']} {error.get('Message', '')}")


@contextmanager
def _got(s3: Any, uri: str, **options: str) -> Iterator[dict[str, Any]]:
    """Give out the answer to a request for an object, whose body is not yet received."""
    answer = s3.get_object(**_named(uri), **options)
    with closing(answer["Body"]):
        if "ContentLength" not in answer:
            raise WrongAnswerError("the answer does not say how long it is")
        yield answer


def _piece(s3: Any, uri: str, asked: str, tag: str | None = None) -> _Piece:
    condition = {} if tag is None else {"IfMatch": tag}
    with _got(s3, uri, Range=asked, **condition) as answer:
        content = _received(answer)
    # Without a range it is the whole: some stores say so of an empty object.
    said = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.get("ContentRange", ""))
    offset, size = (int(said[1]), int(said[2])) if said else (0, len(content))
    return _Piece(content, offset, size, answer.get("ETag"))


def _is_beyond_the_end(error: ClientError) -> bool:
    return status_of(error) == 416


def _received(answer: dict[str, Any]) -> bytes:
    """Return the body of an answer; botocore compares its length with what was promised."""
    blocks = []
    seconds = answer["ContentLength"] / s3_client.SLOWEST_BYTES_PER_SECOND
    end = time.monotonic() + s3_client.SILENT_SECONDS + seconds
    while block := answer["Body"].read(_BLOCK_BYTES):
        blocks.append(block)
        if time.monotonic() > end:
            raise WrongAnswerError(f"only {sum(map(len, blocks)):,} bytes came in time")
    return b"".join(blocks)


def _page(s3: Any, uri: str, **options: Any) -> dict[str, Any]:
    bucket = bucket_and_key(uri)[0]
    page: dict[str, Any] = s3.list_objects_v2(Bucket=bucket, Prefix=_prefix(uri), **options)
    if "KeyCount" not in page and "IsTruncated" not in page:
        # A web page, say of the store's console, looks like an empty listing.
        raise WrongAnswerError("the answer is no listing of S3; is AWS_ENDPOINT_URL its address?")
    return page


def _pages(
    doing: str, uri: str, failure: type[InputError] | type[OutputError], **options: Any
) -> Iterator[dict[str, Any]]:
    """Yield pages of names below a folder, each asked for when it is needed."""
    page: dict[str, Any] = {"IsTruncated": True}
    while page.get("IsTruncated"):
        options["MaxKeys"] = _NAMES_AT_ONCE
        if "NextContinuationToken" in page:
            options["ContinuationToken"] = page["NextContinuationToken"]
        page = attempted(doing, uri, lambda s3: _page(s3, uri, **options), failure)
        yield page
