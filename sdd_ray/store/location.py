"""Paths and URIs: one way to list, read and write local folders and s3:// prefixes.

A file is written whole or not at all: aside and renamed on a local disk; on S3 an object appears
when its upload is complete. What S3 does not answer at once is asked again (`sdd_ray.store.s3`),
and a store that stays away is a `StoreError` from whatever was asked of it.
"""

import os
import stat
import uuid
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

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
            InputError: It is forbidden to look, or there is no such bucket.
        """
        if not self.is_local:
            return bool(_s3().is_object(self._remote) or _s3().is_folder(self._remote))
        return bool(self._info().type != fs.FileType.NotFound)

    def is_folder(self) -> bool:
        """Return whether this is a folder; on S3, whether names of files begin with it and a slash.

        Raises:
            InputError: It is forbidden to look, or there is no such bucket.
        """
        if not self.is_local:
            return bool(_s3().is_folder(self._remote))
        return bool(self._info().type == fs.FileType.Directory)

    def read_bytes(self) -> bytes:
        """Return the content of the file.

        Raises:
            InputError: The file is missing or cannot be read.
        """
        content: bytes = _s3().read(self._remote) if not self.is_local else self._read_local()
        return content

    def read_small(self, most: int) -> bytes | int:
        """Return the content of the file, or its size if that is more than `most` bytes.

        One request, where opening and reading are two.

        Raises:
            InputError: The file is missing or cannot be read.
        """
        found: bytes | int = (
            _s3().read_small(self._remote, most) if not self.is_local else self._read_local(most)
        )
        return found

    def open(self) -> pa.NativeFile:
        """Return the file opened for reading at any position.

        A file on S3 that is replaced while it is open raises an `InputError` when it is read.

        Raises:
            InputError: The file is missing or cannot be opened.
        """
        if not self.is_local:
            return _s3().opened(self._remote)
        try:
            # A pipe or device would keep its reader waiting for ever.
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise InputError(f"cannot read {self.uri}: it is no regular file")
            return _system().open_input_file(str(self._path))
        except OSError as error:
            raise InputError(f"cannot read {self.uri}: {error}") from error

    def read_range(self, offset: int, length: int) -> bytes:
        """Return some bytes from the middle of the file.

        Raises:
            InputError: The file is missing, cannot be read, or ends before.
        """
        found: bytes = (
            self._read_local_range(offset, length)
            if self.is_local
            else _s3().read_range(self._remote, offset, length)
        )
        if len(found) != length:
            raise InputError(
                f"{self.uri}: expected {length:,} bytes at {offset:,}, got {len(found):,}:"
                " the file is shorter than its index says"
            )
        return found

    def write_bytes(self, content: bytes) -> None:
        """Write the file, whole or not at all; folders above it are made.

        Raises:
            OutputError: The place cannot be written, for example because the disk is full.
        """
        if not self.is_local:
            _s3().write(self._remote, content)
            return
        try:
            _write_local(self._path, content)
        except OSError as error:
            raise OutputError(f"cannot write {self.uri}: {error}") from error

    def remove(self) -> None:
        """Remove the file if it is there.

        Raises:
            OutputError: It cannot be removed.
        """
        if not self.is_local:
            _s3().remove(self._remote)
            return
        try:
            _system().delete_file(str(self._path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot remove {self.uri}: {error}") from error

    def remove_tree(self) -> None:
        """Remove the folder and everything below it.

        Raises:
            OutputError: It cannot be removed.
        """
        if not self.is_local:
            _s3().remove_below(self._remote)
            return
        try:
            _system().delete_dir(str(self._path))
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
        if not self.is_local:
            yield from sorted(Entry(*found) for found in _s3().children(self._remote))
            return
        try:
            with os.scandir(self._path) as found:
                entries = [_entry(item) for item in found]
        except OSError as error:
            raise InputError(f"cannot list the folder {self.uri}: {error}") from error
        yield from sorted(entries)

    def names_below(self) -> Iterator[str]:
        """Yield the keys of all objects below this prefix on S3, without it, in order of bytes.

        Raises:
            InputError: The prefix is missing or cannot be listed.
        """
        yield from _s3().descendants(self._remote)

    def key(self) -> Hashable:
        """Return what two locations of one folder have in common, however they were reached.

        Raises:
            InputError: Nothing is there.
        """
        if not self.is_local:
            return self.uri.rstrip("/")
        try:
            found = self._path.stat()
        except OSError as error:
            raise InputError(f"cannot look at {self.uri}: {error}") from error
        return found.st_dev, found.st_ino

    def version(self) -> Hashable:
        """Return what is another one once the file was replaced or changed.

        Raises:
            InputError: Nothing is there, or it is forbidden to look.
        """
        if not self.is_local:
            return str(_s3().tag(self._remote))
        try:
            found = self._path.stat()
        except OSError as error:
            raise InputError(f"cannot look at {self.uri}: {error}") from error
        return found.st_size, found.st_mtime_ns

    def _info(self) -> fs.FileInfo:
        try:
            return _system().get_file_info(str(self._path))
        except OSError as error:
            raise InputError(f"cannot look at {self.uri}: {error}") from error

    def _read_local(self, most: int | None = None) -> Any:
        with self.open() as stream:
            try:
                size = stream.size()
                return stream.read() if most is None or size <= most else size
            except OSError as error:
                raise InputError(f"cannot read {self.uri}: {error}") from error

    def _read_local_range(self, offset: int, length: int) -> bytes:
        with self.open() as stream:
            try:
                found: bytes = stream.read_at(length, offset)
            except (OSError, ValueError) as error:
                raise InputError(f"cannot read {self.uri}: {error}") from error
        return found

    @property
    def _path(self) -> Path:
        return Path(self.uri).expanduser()

    @property
    def _remote(self) -> str:
        if not self.uri.startswith("s3://"):
            scheme = self.uri.partition("://")[0]
            raise InputError(f"{self.uri}: unknown scheme {scheme}://; expected a path or s3://")
        return self.uri


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


def _s3() -> ModuleType:
    """Return what reaches S3, which takes as long to import as all the rest of this module."""
    from sdd_ray.store import s3

    return s3


@lru_cache(maxsize=1)
def _system() -> fs.FileSystem:
    return fs.LocalFileSystem()


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
