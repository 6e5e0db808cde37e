"""Tar files, such as WebDataset shards: images are read by byte range, and nothing is extracted."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader

from sdd_ray.errors import InputError, SddError
from sdd_ray.formats.folder import person_in
from sdd_ray.formats.indexed import place_of
from sdd_ray.formats.items import (
    MAX_FILE_BYTES,
    Content,
    Item,
    Listing,
    RangeSource,
    leads_below,
)
from sdd_ray.formats.tar_members import DamagedArchiveError, Member, Members
from sdd_ray.settings import SourceConfig, TarConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

_READ_BYTES = 4 << 20
"""Read ahead while listing: on S3 one request, in which the headers of hundreds of faces lie."""
_LONGEST_LABEL_FILE = 1 << 16
_LONGEST_LABEL = 256
_UNREADABLE = "unreadable_name"


@dataclass(frozen=True)
class TarSource(RangeSource):
    """Images in tar files that are not compressed.

    Attributes:
        root, only: See `PackedSource`.
        identity: `first_folder` or `parent_folder` of the member's name, `label` or `none`.
        extensions: Of images, lower case, without the dot.
        label: Where the person is named under the rule `label`.
    """

    identity: str
    extensions: tuple[str, ...]
    label: TarConfig
    suffix = ".tar"

    def scan(self, file: str, listing: Listing) -> Iterator[Item]:
        """Yield the images of one archive as they lie there; what cannot be used is set aside.

        Of an archive that is damaged, the images before the damage are yielded.

        Raises:
            InputError: It cannot be read, is compressed, or no tar archive.
        """
        place = self.root / file
        try:
            with place.open() as opened, BufferedReader(opened, _READ_BYTES) as stream:
                members = self._files(file, Members(stream, opened.size(), place.uri), listing)
                # A sample is what lies side by side: a key that comes again is another one.
                for _, sample in itertools.groupby(members, key=lambda member: _key(member.name)):
                    yield from self._images(file, list(sample), stream, listing)
        except OSError as error:
            raise InputError(f"cannot read {place.uri}: {error}") from error

    def content(self, item: Item, data: bytes) -> Content | SddError:  # noqa: ARG002
        """Return the image of a member."""
        return Content(data)

    def _files(self, file: str, members: Members, listing: Listing) -> Iterator[Member]:
        """Yield the regular files with usable names; note the rest, and where the archive ends."""
        try:
            for member in members:
                name = member.name.removeprefix("./")
                if member.is_folder:
                    continue
                if problem := _problem(name, member):
                    shown = ascii(name)[1:-1] if problem[0] == _UNREADABLE else name
                    listing.rejects.append(Reject(self.image_id(shown, file), *problem))
                else:
                    yield member._replace(name=name)
        except DamagedArchiveError as error:
            listing.rejects.append(Reject(file, "damaged_archive", str(error)))

    def _images(
        self, file: str, sample: list[Member], stream: BufferedReader, listing: Listing
    ) -> Iterator[Item]:
        """Yield the images among members with one key."""
        person, missing = self._labelled(sample, stream)
        for member in sample:
            if member.name.lower().rpartition(".")[2] not in self.extensions:
                listing.ignored_files += not self._is_label(member)
                continue
            image_id = self.image_id(member.name, file)
            who = person if self.identity == "label" else person_in(member.name, self.identity)
            if member.size > MAX_FILE_BYTES:
                detail = f"a member of {member.size:,} bytes"
                listing.rejects.append(Reject(image_id, "too_large", detail))
            elif who is None and self.identity != "none":
                listing.rejects.append(Reject(image_id, "no_identity", missing))
            else:
                yield Item(image_id, who, file, member.offset, member.size)

    def _labelled(self, sample: list[Member], stream: BufferedReader) -> tuple[str | None, str]:
        """Return the person whom the label of a sample names, or None and why there is none."""
        if self.identity != "label":
            return None, "not in a folder of a person"
        label = next(filter(self._is_label, sample), None)
        if label is None:
            return None, f"no member with its name and .{self.label.label} beside it"
        stream.seek(label.offset)
        content = stream.read(min(label.size, _LONGEST_LABEL_FILE + 1))
        try:
            return _person(content, self.label.field), ""
        except (ValueError, RecursionError) as error:
            return None, f"{label.name} names no person: {error}"

    def _is_label(self, member: Member) -> bool:
        extension = member.name[len(_key(member.name)) + 1 :]
        return self.identity == "label" and extension.lower() == self.label.label.lower()


def open_tar(config: SourceConfig, path: Location) -> TarSource:
    """Return the source of one tar file, or of all in a folder.

    Raises:
        InputError: Nothing is at the path.
    """
    root, only = place_of(path, ".tar")
    return TarSource(root, only, config.identity_rule, config.suffixes, config.tar)


def _problem(name: str, member: Member) -> tuple[str, str] | None:
    """Return reason and detail why a member is no file with a usable name, or None."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return _UNREADABLE, "the name is not UTF-8"
    if not leads_below(name):
        return "unsafe_name", "expected a relative path without empty parts, '.', '..' and NUL"
    if not member.is_regular:
        return "not_a_file", "a link, device, sparse file or other special member"
    return None


def _key(name: str) -> str:
    """Return what the members of a sample have in common: the name up to its first dot."""
    folders, slash, base = name.rpartition("/")
    return folders + slash + base.partition(".")[0]


def _person(content: bytes, field: str | None) -> str:
    """Return the person in a label: its text, or a value in its JSON.

    Raises:
        ValueError: There is none.
    """
    if len(content) > _LONGEST_LABEL_FILE:
        raise ValueError(f"it has more than {_LONGEST_LABEL_FILE:,} bytes")
    if field is None:
        return _short(content.decode())
    tree = json.loads(content)
    if not isinstance(tree, dict) or field not in tree:
        raise ValueError(f"expected a JSON object with {field!r}")
    value = tree[field]
    if isinstance(value, str) or type(value) is int:  # True is an int, too
        return _short(str(value))
    raise ValueError(f"{field!r}: expected a text or whole number, got {value!r:.40}")


def _short(text: str) -> str:
    text = text.strip()
    if not 0 < len(text) <= _LONGEST_LABEL:
        raise ValueError(f"expected 1 to {_LONGEST_LABEL} characters, got {len(text):,}")
    return text
