"""Paths and URIs: one way to list, read and write local folders and s3:// prefixes.

A file is written whole or not at all: aside and renamed on a local disk; on S3 an object appears
when its upload is complete.
"""

import os
import stat
import uuid
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from sdd_ray.errors import InputError, OutputError

_PARTIAL = ".partial"


class Entry(NamedTuple):
    """What a folder holds under one name: a file, unless it is one of the others.

    Attributes:
        name: Name within the folder.
        is_folder: Whether it is a folder, or a link to one.
        is_special: Whether it is a pipe, socket or device, or a link to one.
    """

    name: str
    is_folder: bool = False
    is_special: bool = False


@dataclass(frozen=True)
class Location:
    """A file or folder on a local path or an s3:// URI. Small, and may travel to workers."""

    uri: str

    def __truediv__(self, name: str) -> "Location":
        """Return the location of `name` below this one."""
        return Location(f"{self.uri.rstrip('/')}/{name}")

    @property
    def is_local(self) -> bool:
        """Whether this is a path of the local file system."""
        return "://" not in self.uri

    def absolute(self) -> "Location":
        """Return the same place for processes with another working directory."""
        return Location(str(Path(self.uri).expanduser().absolute())) if self.is_local else self

    def exists(self) -> bool:
        """Return whether a file or folder is there.

        Raises:
            InputError: The store does not answer, or forbids to look.
        """
        return bool(self._info().type != fs.FileType.NotFound)

    def is_folder(self) -> bool:
        """Return whether this is a folder."""
        return bool(self._info().type == fs.FileType.Directory)

    def read_bytes(self) -> bytes:
        """Return the content of the file.

        Raises:
            InputError: The file is missing or cannot be read.
        """
        with self.open() as stream:
            try:
                content: bytes = stream.read()
            except OSError as error:
                raise InputError(f"cannot read {self.uri}: {error}") from error
        return content

    def open(self) -> pa.NativeFile:
        """Return the file opened for reading at any position.

        Raises:
            InputError: The file is missing or cannot be opened.
        """
        system, path = resolve(self.uri)
        try:
            # A pipe or device would keep its reader waiting for ever.
            if self.is_local and not stat.S_ISREG(Path(path).stat().st_mode):
                raise InputError(f"cannot read {self.uri}: it is no regular file")
            return system.open_input_file(path)
        except OSError as error:
            raise InputError(f"cannot read {self.uri}: {error}") from error

    def read_range(self, offset: int, length: int) -> bytes:
        """Return some bytes from the middle of the file.

        Raises:
            InputError: The file is missing, cannot be read, or ends before.
        """
        try:
            found: bytes = self._readable().read_at(length, offset)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {self.uri}: {error}") from error
        if len(found) != length:
            raise InputError(
                f"{self.uri}: expected {length:,} bytes at {offset:,}, got {len(found):,}:"
                " the file is shorter than its index says"
            )
        return found

    def _readable(self) -> pa.NativeFile:
        # On S3 every opening asks for the size first, which takes as long as reading.
        return self.open() if self.is_local else _open_remote(self.uri)

    def write_bytes(self, content: bytes) -> None:
        """Write the file, whole or not at all; folders above it are made.

        Raises:
            OutputError: The place cannot be written, for example because the disk is full.
        """
        try:
            if self.is_local:
                _write_local(Path(self.uri), content)
            else:
                system, path = resolve(self.uri)
                with system.open_output_stream(path) as stream:
                    stream.write(content)
        except OSError as error:
            raise OutputError(f"cannot write {self.uri}: {error}") from error

    def remove(self) -> None:
        """Remove the file if it is there.

        Raises:
            OutputError: It cannot be removed.
        """
        system, path = resolve(self.uri)
        try:
            system.delete_file(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot remove {self.uri}: {error}") from error

    def remove_tree(self) -> None:
        """Remove the folder and everything below it.

        Raises:
            OutputError: It cannot be removed.
        """
        system, path = resolve(self.uri)
        try:
            system.delete_dir(path)
        except OSError as error:
            raise OutputError(f"cannot remove {self.uri}: {error}") from error

    def names(self) -> list[str]:
        """Return the sorted names of the files and folders directly in this folder.

        Raises:
            InputError: The folder cannot be listed.
        """
        return [entry.name for entry in self.entries()]

    def entries(self) -> Iterator[Entry]:
        """Yield everything directly in this folder, sorted by name.

        Raises:
            InputError: The folder is missing or cannot be listed.
        """
        system, path = resolve(self.uri)
        try:
            if self.is_local:
                with os.scandir(path) as found:
                    entries = [_entry(item) for item in found]
            else:
                listed = system.get_file_info(fs.FileSelector(path))
                folder = fs.FileType.Directory
                entries = [Entry(info.base_name, info.type == folder) for info in listed]
        except OSError as error:
            raise InputError(f"cannot list the folder {self.uri}: {error}") from error
        yield from sorted(entries)

    def key(self) -> Hashable:
        """Return what two locations of one folder have in common, however they were reached.

        Raises:
            InputError: Nothing is there.
        """
        if not self.is_local:
            return self.uri
        try:
            found = os.stat(resolve(self.uri)[1])
        except OSError as error:
            raise InputError(f"cannot look at {self.uri}: {error}") from error
        return found.st_dev, found.st_ino

    def _info(self) -> fs.FileInfo:
        system, path = resolve(self.uri)
        try:
            return system.get_file_info(path)
        except OSError as error:
            raise InputError(f"cannot look at {self.uri}: {error}") from error


def is_partial(name: str) -> bool:
    """Return whether a file of this name is one that `write_bytes` had not finished."""
    return name.startswith(".") and name.endswith(_PARTIAL)


def output_location(text: str) -> Location:
    """Return where an output is to be written, for processes with any working directory.

    Raises:
        OutputError: It is a relative path inside a Ray job, whose working directory is a copy of
            the submitted one that Ray removes.
    """
    place = Location(text)
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if in_job and place.is_local and not Path(text).expanduser().is_absolute():
        raise OutputError(
            f"output={text} is relative, and a Ray job works in a copy of its folder that Ray"
            " removes: give an absolute path that all nodes reach, or s3://"
        )
    return place.absolute()


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path within it.

    S3 takes credentials, region and ``AWS_ENDPOINT_URL`` from the environment.

    Raises:
        InputError: The scheme is not known.
    """
    if "://" not in uri:
        return _local(), str(Path(uri).expanduser())
    scheme, _, rest = uri.partition("://")
    if scheme == "s3":
        return _s3(), rest.rstrip("/")
    raise InputError(f"{uri}: unknown scheme {scheme}://; expected a local path or s3://")


@lru_cache(maxsize=1)
def _local() -> fs.FileSystem:
    return fs.LocalFileSystem()


@lru_cache(maxsize=1)
def _s3() -> fs.FileSystem:
    # Arrow looks at these variables only where it parses a URI itself.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=8)
    return fs.S3FileSystem(endpoint_override=endpoint, retry_strategy=retries)


@lru_cache(maxsize=256)
def _open_remote(uri: str) -> pa.NativeFile:
    return Location(uri).open()


def _entry(found: "os.DirEntry[str]") -> Entry:
    try:
        if found.is_dir():
            return Entry(found.name, is_folder=True)
        # A link that leads nowhere is a file that cannot be read, until what it names is there.
        is_special = not found.is_file() and Path(found.path).exists()
        return Entry(found.name, is_special=is_special)
    except OSError:
        # A link to itself is one entry that cannot be read, not a folder that cannot be listed.
        return Entry(found.name)


def _write_local(path: Path, content: bytes) -> None:
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        with aside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
