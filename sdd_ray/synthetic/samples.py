"""Sets of drawn faces with known severity: the demo's and the tests' data.

A picture depends on the seed, its identity, its index and the share of damaged pictures, and on
nothing else: a larger set holds the smaller one, and any worker can draw any picture by its id.
"""

import csv
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdd_ray.errors import ConfigError, InputError, OutputError
from sdd_ray.synthetic.degradations import DEGRADATIONS, degrade
from sdd_ray.synthetic.faces import draw_face
from sdd_ray.synthetic.people import DAMAGE, keyed_generator

# Who may appear where. The packaged recogniser has seen the training identities and no others, so
# that the demo and the tests, which stay below the limit, measure it on strangers.
DEMO_IDENTITY_LIMIT = 100_000
RECOGNISER_TRAINING_IDENTITY = 1_000_000
RECOGNISER_HELD_OUT_IDENTITY = 2_000_000

UNDAMAGED = "none"
SEVERITY_FILE = "severity.csv"
SEVERITY_COLUMNS = ("image_id", "identity", "kind", "severity")

_IMAGE_ID = re.compile(r"synthetic/(\d+)/(\d{6,})/(\d{4,})", re.ASCII)


@dataclass(frozen=True)
class SyntheticSet:
    """Which pictures belong to a set.

    Raises:
        ConfigError: A number is too small, or the share lies outside [0, 1].
    """

    seed: int
    """Chooses the world of people; 0 or more."""
    num_identities: int
    """People in the set; at least 1."""
    images_per_identity: int
    """Pictures of each; at least 1."""
    first_identity: int = 0
    """Number of the first person; 0 or more."""
    degraded_share: float = 0.6
    """Share of the pictures that are damaged, in [0, 1]; their severity is even over (0, 1]."""

    def __post_init__(self) -> None:
        """Report every wrong value at once."""
        wrong = [
            f"{name} must be at least {least}, got {getattr(self, name)}"
            for name, least in (
                ("seed", 0),
                ("num_identities", 1),
                ("images_per_identity", 1),
                ("first_identity", 0),
            )
            if getattr(self, name) < least
        ]
        if not 0 <= self.degraded_share <= 1:
            wrong.append(f"degraded_share must lie in [0, 1], got {self.degraded_share}")
        if wrong:
            raise ConfigError("; ".join(wrong))


@dataclass(frozen=True)
class Sample:
    """One drawn picture and what is known of it."""

    image: NDArray[np.uint8]
    """(112, 112, 3) RGB."""
    image_id: str
    """Leads back to the picture: `draw(spec, image_id)`."""
    identity: str
    """The person, six digits or more."""
    kind: str
    """How it was damaged: one of `DEGRADATIONS`, or "none"."""
    severity: float
    """How much, in [0, 1]; 0 for "none"."""


def draw_sample(spec: SyntheticSet, identity: int, index: int) -> Sample:
    """Return one picture of a set; the size of the set has no influence on it.

    Args:
        spec: Gives the seed and the share of damaged pictures.
        identity: The person's number, counted from 0, not from `first_identity`.
        index: The picture of this person.

    Example:
        >>> spec = SyntheticSet(seed=0, num_identities=2, images_per_identity=2)
        >>> draw_sample(spec, 1, 0).image_id
        'synthetic/0/000001/0000'
    """
    image = draw_face(spec.seed, identity, index)
    kind, severity, generator = _damage(spec, identity, index)
    if kind != UNDAMAGED:
        image = degrade(image, kind, severity, generator)
    image_id = image_id_of(spec.seed, identity, index)
    return Sample(image, image_id, identity_name(identity), kind, severity)


def damage_of(spec: SyntheticSet, identity: int, index: int) -> tuple[str, float]:
    """Return kind and severity of a picture's damage, without drawing it."""
    return _damage(spec, identity, index)[:2]


def _damage(
    spec: SyntheticSet, identity: int, index: int
) -> tuple[str, float, np.random.Generator]:
    generator = keyed_generator(spec.seed, identity, index, DAMAGE)
    lot, choice, evenly = generator.random(3).tolist()
    if lot < spec.degraded_share:
        return DEGRADATIONS[int(choice * len(DEGRADATIONS))], 1 - evenly, generator
    return UNDAMAGED, 0.0, generator


def image_id_of(seed: int, identity: int, index: int) -> str:
    """Return the image_id of a picture, which `parse` takes apart."""
    return f"synthetic/{seed}/{identity_name(identity)}/{index:04d}"


def identity_name(identity: int) -> str:
    """Return the name of a person: the number in six digits or more."""
    return f"{identity:06d}"


def keys(spec: SyntheticSet) -> Iterator[tuple[int, int]]:
    """Yield (identity, index) of every picture of a set, in order.

    Example:
        >>> list(keys(SyntheticSet(0, num_identities=2, images_per_identity=1, first_identity=5)))
        [(5, 0), (6, 0)]
    """
    for identity in range(spec.first_identity, spec.first_identity + spec.num_identities):
        for index in range(spec.images_per_identity):
            yield identity, index


def parse(image_id: str) -> tuple[int, int, int]:
    """Return seed, identity and index of an image_id.

    Raises:
        InputError: It is not the id of a drawn picture.

    Example:
        >>> parse("synthetic/3/000012/0004")
        (3, 12, 4)
    """
    match = _IMAGE_ID.fullmatch(image_id)
    if match is None:
        raise InputError(f"expected an image_id like synthetic/0/000012/0004, got {image_id!r}")
    seed, identity, index = (int(part) for part in match.groups())
    return seed, identity, index


def draw(spec: SyntheticSet, image_id: str) -> Sample:
    """Return the picture that an image_id names.

    Raises:
        InputError: The id does not belong to the set.
    """
    seed, identity, index = parse(image_id)
    offset = identity - spec.first_identity
    inside = 0 <= offset < spec.num_identities and index < spec.images_per_identity
    if seed != spec.seed or not inside:
        raise InputError(f"expected an image_id of {spec}, got {image_id!r}")
    return draw_sample(spec, identity, index)


def write_folder(spec: SyntheticSet, root: Path) -> None:
    """Write a set as `<root>/<identity>/<index>.png` and `<root>/severity.csv`.

    The image_id in the table is the path below the root. The folder appears under its name only
    when it is whole.

    Raises:
        OutputError: The folder exists, or cannot be written.
    """
    if root.exists():
        raise OutputError(f"{root} exists; choose another folder or remove it")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        try:
            _write_files(spec, draft)
            draft.chmod(0o755)
            draft.rename(root)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {root}: {error}") from error


def _write_files(spec: SyntheticSet, folder: Path) -> None:
    """Write pictures and table into an empty folder."""
    with (folder / SEVERITY_FILE).open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(SEVERITY_COLUMNS)
        for identity, index in keys(spec):
            sample = draw_sample(spec, identity, index)
            path = f"{sample.identity}/{index:04d}.png"
            (folder / sample.identity).mkdir(exist_ok=True)
            Image.fromarray(sample.image).save(folder / path)
            table.writerow((path, sample.identity, sample.kind, repr(sample.severity)))
