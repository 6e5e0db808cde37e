"""A folder of small pictures of three persons, and what a source makes of such pictures."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from sdd_ray.formats.items import Listing
from sdd_ray.formats.reading import Face, read_faces
from sdd_ray.formats.source import open_source
from sdd_ray.settings import SourceConfig

LONG = "/".join(["long " + "x" * 60] * 3)
NAMES = (
    "anna/1.png",
    "anna/2.jpg",
    "anna/10.jpg",
    "bert/album 1/ä 1.png",
    "bert/album 1/b.tar.jpg",
    f"bert/{LONG}.png",
    "李/1.jpg",
)


def write_pictures(folder):
    """Write pictures of 112 x 112 pixels, no two of them equal; return the folder."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        coarse = rng.integers(0, 256, (7, 7, 3)).astype(np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse.repeat(16, 0).repeat(16, 1)).save(folder / name)
    return folder


def listed(source):
    """Return the items of a source, and what it met besides."""
    listing = Listing()
    return list(source.items(listing)), listing


def fetched(source, items):
    """Return what is at each item, fetched in the groups of the source."""
    found = [None] * len(items)
    for group in source.groups(items):
        for place, content in zip(group, source.fetch([items[i] for i in group]), strict=True):
            found[place] = content
    return found


def contents_of(source):
    """Return image_id, identity and bytes of each image of a source, in its order."""
    items = listed(source)[0]
    pairs = zip(items, fetched(source, items), strict=True)
    return [(item.image_id, item.identity or found.identity, found.data) for item, found in pairs]


def faces_of(source):
    """Return image_id, identity and pixels of all images of a source, in its order."""
    items, listing = listed(source)
    assert listing.rejects == []
    with ThreadPoolExecutor(2) as threads:
        faces = list(read_faces(source, items, threads))
    assert all(isinstance(face, Face) for face in faces)
    rows = zip(items, faces, strict=True)
    return [(item.image_id, face.identity, face.pixels.tobytes()) for item, face in rows]


def faces_in(folder, rule="first_folder"):
    """Return the same of the pictures in a folder."""
    return faces_of(open_source(SourceConfig(kind="folder", path=str(folder), identity=rule)))
