"""Faces drawn by the program, as a source."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdd_ray.errors import InputError, SddError
from sdd_ray.formats.items import Content, Item, Listing
from sdd_ray.store.location import Location
from sdd_ray.synthetic import samples
from sdd_ray.synthetic.samples import SyntheticSet


@dataclass(frozen=True)
class SyntheticSource:
    """Faces drawn by the program; the image_id says which."""

    faces: SyntheticSet
    needs_listing = False

    def items(self, listing: Listing) -> Iterator[Item]:  # noqa: ARG002
        """Yield every face, sorted by image_id."""
        for identity, index in samples.keys(self.faces):
            image_id = samples.image_id_of(self.faces.seed, identity, index)
            yield Item(image_id, samples.identity_name(identity))

    def origins(self) -> list[Location]:
        """Return nothing: faces are drawn anew."""
        return []

    def groups(self, items: Sequence[Item]) -> list[list[int]]:
        """Return one group a face."""
        return [[place] for place in range(len(items))]

    def fetch(self, items: Sequence[Item]) -> list[Content | SddError]:
        """Draw the faces, (112, 112, 3) each."""
        return [self._draw(item.image_id) for item in items]

    def _draw(self, image_id: str) -> Content | SddError:
        try:
            return Content(samples.draw(self.faces, image_id).image)
        except InputError as error:
            return error
