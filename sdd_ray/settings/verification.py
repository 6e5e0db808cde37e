"""Options of verify: does a recogniser, used as it is, reach the accuracy that it should."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import STRICT, Rate, Text

_PATTERNS = {"bin": "{number:06d}", "lfw": "{name}/{name}_{number:04d}.jpg"}
"""How image_ids follow from a list of comparisons, where nothing else is said."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PairsConfig:
    """A list of comparisons, of which each is known to show one person or two."""

    kind: Literal["bin", "lfw", "cfp", "table"]
    """`bin`: InsightFace's verification sets; their embeddings come from `source.kind=bin` on the
    same file. `lfw`: LFW's pairs.txt, also XQLFW's. `cfp`: CFP's folder Protocol. `table`: Parquet,
    .csv or .tsv with columns image_id_a, image_id_b, mated (0, 1, true or false), and fold if
    there are folds."""
    path: Text
    """File, or the folder that holds Pair_list_F.txt (`kind=cfp`), local or s3://."""
    image_id: Text | None = None
    """Key of an image in the embeddings, a pattern of {number} and, for lfw, {name}. Null:
    `{number:06d}` for bin, `{name}/{name}_{number:04d}.jpg` for lfw. Where a folder of .bin files
    was embedded: `lfw.bin/{number:06d}`."""
    protocol: Literal["FF", "FP"] = "FF"
    """Frontal against frontal, or frontal against profile (`kind=cfp`)."""

    def __post_init__(self) -> None:
        if self.kind not in _PATTERNS:
            if self.image_id is not None:
                raise ValueError(f"pairs.image_id does not go with pairs.kind={self.kind}")
            return
        names = {"name": "a"} if self.kind == "lfw" else {}
        try:
            keys = {self.image_id_pattern.format(number=number, **names) for number in (1, 2)}
        except (LookupError, ValueError, AttributeError) as error:
            raise ValueError(f"pairs.image_id={self.image_id} is no pattern: {error!r}") from None
        if len(keys) < 2 or (names and self.image_id_pattern.format(number=1, name="b") in keys):
            fields = "{name} and {number}" if names else "{number}"
            raise ValueError(f"pairs.image_id needs {fields}, got {self.image_id}")

    @property
    def image_id_pattern(self) -> str:
        """The pattern that `image_id` asks for; empty for kinds that name images themselves."""
        return self.image_id or _PATTERNS.get(self.kind, "")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VerifyConfig:
    """Verify a recogniser on known comparisons, before it labels millions of images.

    Needs no Ray. A preprocessing that does not fit the weights gives no error, only worse figures:
    compare FNMR, and hard lists such as CFP's FP; the accuracy on an easy list hardly falls.
    """

    embeddings: Text
    """Dataset written by embed."""
    pairs: PairsConfig
    fmr: Annotated[tuple[Rate, ...], Field(min_length=1)] = (1e-2, 1e-3, 1e-4)
    """False match rates at which false non-match rates are reported."""
    output: Text | None = None
    """Folder for the similarities and a manifest. Null: the figures are only printed."""

    def __post_init__(self) -> None:
        if len(set(self.fmr)) < len(self.fmr):
            raise ValueError(f"fmr names a rate twice, got {list(self.fmr)}")
