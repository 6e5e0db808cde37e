"""Where images come from: list them once, in a fixed order, and read any of them by its image_id.

A source is small and travels to the workers; listing runs on the driver and is a stream.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sdd_ray.errors import InputError
from sdd_ray.formats.images import ImageRejectedError, decode_image
from sdd_ray.settings import SourceConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject
from sdd_ray.synthetic import samples
from sdd_ray.synthetic.samples import SyntheticSet
from sdd_ray.synthetic.truth import synthetic_set

UNREADABLE_FOLDER = "unreadable_folder"
"""Reason of folders that cannot be listed, which may pass."""

_MAX_FILE_BYTES = 64 << 20
"""Larger files are no face crops, and are not read."""


@dataclass
class Listing:
    """What listing a source met besides images: rows set aside, and files that are no images."""

    rejects: list[Reject] = field(default_factory=list)
    ignored_files: int = 0


class Source(Protocol):
    """Images with keys."""

    def list(self, listing: Listing) -> Iterator[tuple[str, str | None]]:
        """Yield (image_id, identity) of every image, sorted by image_id; note the rest."""

    def read(self, image_id: str) -> NDArray[np.uint8]:
        """Return the decoded RGB image, (112, 112, 3).

        Raises:
            ImageRejectedError: What is there is no usable image.
            InputError: The image cannot be read.
        """


def open_source(config: SourceConfig) -> Source:
    """Return the source that the configuration describes."""
    if config.kind == "synthetic":
        return SyntheticSource(synthetic_set(config.synthetic))
    root = Location(config.path or "").absolute()
    return FolderSource(root, config.identity, tuple(e.lower() for e in config.extensions))


@dataclass(frozen=True)
class FolderSource:
    """Image files below a folder; the image_id is the path relative to it."""

    root: Location
    identity: str
    extensions: tuple[str, ...]

    def list(self, listing: Listing) -> Iterator[tuple[str, str | None]]:
        """Yield (image_id, identity) of every image file, sorted by image_id.

        Raises:
            InputError: The root folder cannot be listed; folders below it are set aside instead.
        """
        if not self.root.is_folder():
            raise InputError(f"source.path: no folder {self.root.uri}")
        for name in self._walk(self.root, "", listing, frozenset()):
            if name.lower().rpartition(".")[2] not in self.extensions:
                listing.ignored_files += 1
                continue
            person = self._person(name)
            if person is None and self.identity != "none":
                listing.rejects.append(Reject(name, "no_identity", "not in a folder of a person"))
                continue
            yield name, person

    def read(self, image_id: str) -> NDArray[np.uint8]:
        """Return the decoded RGB image, (112, 112, 3).

        Raises:
            ImageRejectedError: What is there is no usable image, or is too large to be read.
            InputError: The file cannot be read, or the id leads out of the root.
        """
        if "\0" in image_id or not set(image_id.split("/")).isdisjoint({"", ".", ".."}):
            raise InputError(f"image_id {image_id!r} is no path below {self.root.uri}")
        place = self.root / image_id
        with place.open() as stream:
            try:
                if stream.size() > _MAX_FILE_BYTES:
                    raise ImageRejectedError("too_large", f"a file of {stream.size():,} bytes")
                content = stream.read()
            except OSError as error:
                raise InputError(f"cannot read {place.uri}: {error}") from error
        return decode_image(content)

    def _person(self, name: str) -> str | None:
        folders = name.split("/")[:-1]
        if not folders or self.identity == "none":
            return None
        return folders[0] if self.identity == "first_folder" else "/".join(folders)

    def _walk(
        self, folder: Location, prefix: str, listing: Listing, above: frozenset[Hashable]
    ) -> Iterator[str]:
        try:
            entries, key = list(folder.entries()), folder.key()
        except InputError as error:
            if not prefix:
                raise
            listing.rejects.append(Reject(prefix, UNREADABLE_FOLDER, str(error)))
            return
        if key in above:
            detail = "a link that leads back to a folder above it"
            listing.rejects.append(Reject(prefix, "folder_loop", detail))
            return
        # A folder sorts by its name with the slash, as its files do among whole paths.
        for name, is_folder, is_special in sorted(entries, key=lambda e: e[0] + "/" * e[1]):
            if not _is_text(name):
                shown = prefix + ascii(name)[1:-1]
                listing.rejects.append(Reject(shown, "unreadable_name", "the name is not UTF-8"))
            elif is_folder:
                yield from self._walk(folder / name, f"{prefix}{name}/", listing, above | {key})
            elif is_special:
                # It would keep its reader waiting for ever.
                detail = "a pipe, socket or device"
                listing.rejects.append(Reject(prefix + name, "not_a_file", detail))
            else:
                yield prefix + name


@dataclass(frozen=True)
class SyntheticSource:
    """Faces drawn by the program."""

    faces: SyntheticSet

    def list(self, listing: Listing) -> Iterator[tuple[str, str | None]]:  # noqa: ARG002
        """Yield (image_id, identity) of every face, sorted by image_id."""
        for identity, index in samples.keys(self.faces):
            image_id = samples.image_id_of(self.faces.seed, identity, index)
            yield image_id, samples.identity_name(identity)

    def read(self, image_id: str) -> NDArray[np.uint8]:
        """Return the face drawn for this image_id, (112, 112, 3)."""
        return samples.draw(self.faces, image_id).image


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
