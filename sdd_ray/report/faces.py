"""Faces side by side: what is shown of one finding, in groups that are to be compared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Face:
    """One image of a group.

    Attributes:
        image: JPEG or PNG file; None where the image could not be read.
        alt: What it is, in words.
        caption: Below it, such as a similarity; may be empty.
    """

    image: bytes | None
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class FaceGroup:
    """Images that belong together.

    Attributes:
        title: Above them.
        faces: In order; may be empty.
        is_subject: Whether this is what the finding is about, and is set off from the others.
    """

    title: str
    faces: tuple[Face, ...]
    is_subject: bool = False


@dataclass(frozen=True)
class Case:
    """One finding: a heading, some words, and groups of images side by side."""

    heading: str
    text: str
    groups: tuple[FaceGroup, ...]


@dataclass(frozen=True)
class Cases:
    """Findings of one kind, one below the other.

    Attributes:
        cases: In order.
        is_compact: Two side by side where there is room, for findings of few images.
    """

    cases: tuple[Case, ...]
    is_compact: bool = False
