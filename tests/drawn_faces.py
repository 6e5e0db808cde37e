"""Folders of drawn faces, for tests of commands that read images."""

from pathlib import Path

from PIL import Image

from sdd_ray.synthetic.samples import SyntheticSet, draw_sample

FACES = SyntheticSet(seed=7, num_identities=8, images_per_identity=6)


def face(identity: int, index: int) -> Image.Image:
    return Image.fromarray(draw_sample(FACES, identity, index).image)


def write_faces(root: Path, identities: int, images: int) -> list[str]:
    """Write faces as <identity>/<index>.png; return their image_ids in order."""
    names = [
        f"{person:03d}/{index:03d}.png" for person in range(identities) for index in range(images)
    ]
    for name in names:
        person, index = (int(part) for part in name.removesuffix(".png").split("/"))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        face(person, index).save(root / name)
    return names
