"""Image files below a folder; the image_id is the path relative to it."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from sdd_ray.errors import InputError, SddError
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import MAX_FILE_BYTES, Content, Item, Listing, leads_below
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

UNREADABLE_FOLDER = "unreadable_folder"
"""Reason of folders that cannot be listed, which may pass."""


@dataclass(frozen=True)
class FolderSource:
    """Image files below a folder.

    Attributes:
        root: The folder.
        identity: `first_folder`, `parent_folder` or `none`.
        extensions: Of image files, lower case, without the dot.
    """

    root: Location
    identity: str
    extensions: tuple[str, ...]
    needs_listing = False

    def items(self, listing: Listing) -> Iterator[Item]:
        """Yield every image file, sorted by image_id.

        Raises:
            InputError: The root folder cannot be listed; folders below it are set aside instead.
        """
        if not self.root.is_folder():
            raise InputError(f"source.path: no folder {self.root.uri}")
        names = (
            self._walk(self.root, "", listing, frozenset())
            if self.root.is_local
            else _sound(self.root.names_below(), listing)
        )
        for name in names:
            if name.lower().rpartition(".")[2] not in self.extensions:
                listing.ignored_files += 1
                continue
            person = person_in(name, self.identity)
            if person is None and self.identity != "none":
                listing.rejects.append(Reject(name, "no_identity", "not in a folder of a person"))
                continue
            yield Item(name, person)

    def origins(self) -> list[Location]:
        """Return nothing: images are found by their paths."""
        return []

    def groups(self, items: Sequence[Item]) -> list[list[int]]:
        """Return one group a file."""
        return [[place] for place in range(len(items))]

    def fetch(self, items: Sequence[Item]) -> list[Content | SddError]:
        """Return the content of each file."""
        return [self._fetch(item.image_id) for item in items]

    def _fetch(self, image_id: str) -> Content | SddError:
        if not leads_below(image_id):
            return InputError(f"image_id {image_id!r} is no path below {self.root.uri}")
        return read_whole(self.root / image_id)

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


def _sound(names: Iterator[str], listing: Listing) -> Iterator[str]:
    """Yield the keys below a prefix on S3 that can be read by their names."""
    for name in names:
        if leads_below(name):
            yield name
        else:
            detail = "expected names between slashes, none of them empty, . or .."
            listing.rejects.append(Reject(name, "unsafe_name", detail))


def person_in(path: str, rule: str) -> str | None:
    """Return the person that a path names by `first_folder` or `parent_folder`, or None."""
    folders = path.split("/")[:-1]
    if not folders or rule == "none":
        return None
    return folders[0] if rule == "first_folder" else "/".join(folders)


def read_whole(place: Location) -> Content | SddError:
    """Return the content of an image file, or why it cannot be used."""
    try:
        found = place.read_small(MAX_FILE_BYTES)
    except InputError as error:
        return error
    if isinstance(found, int):
        return ImageRejectedError("too_large", f"a file of {found:,} bytes")
    return Content(found)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
