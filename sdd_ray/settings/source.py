"""Options of where images come from."""

from dataclasses import field
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import STRICT, Seed, Share, Text

_FOLDER_RULES = ("first_folder", "parent_folder")
_IDENTITIES = {
    "folder": (*_FOLDER_RULES, "none"),
    "list": ("label", *_FOLDER_RULES, "none"),
    "parquet": ("label", *_FOLDER_RULES, "none"),
    "tar": (*_FOLDER_RULES, "label", "none"),
    "recordio": ("label", *_FOLDER_RULES, "none"),
    "tfrecord": ("label", "none"),
    "bin": ("none",),
    "synthetic": ("label",),
}
"""Rules that each kind of source can follow, the default first."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SyntheticConfig:
    """Faces drawn by the program, with known degradations (`source.kind=synthetic`)."""

    seed: Seed = 7
    """Changes every face."""
    num_identities: PositiveInt = 120
    """People drawn."""
    images_per_identity: PositiveInt = 12
    """Images of each person."""
    first_identity: NonNegativeInt = 0
    """Number of the first person; sets with other numbers show other people."""
    degraded_share: Share = 0.6
    """Share of images that are degraded, with a severity spread over [0, 1]."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ListConfig:
    """A text file with one line an image (`source.kind=list`).

    Empty lines, and lines before the first image that begin with `#`, are no images; they are
    counted as ignored files.
    """

    columns: tuple[Literal["path", "identity", "image_id", "landmarks", "skip"], ...] = (
        "path",
        "identity",
    )
    """What the columns of a line hold, from the left; further ones are left alone. `landmarks`
    takes ten, in the order of `source.landmark_order`. MXNet's .lst: [skip, identity, path];
    InsightFace's: [skip, path, identity], and with a box and landmarks, of order `split`, [skip,
    path, identity, skip, skip, skip, skip, landmarks]."""
    delimiter: Literal["tab", "comma", "space", "semicolon"] | None = None
    """Between columns. Null: a tab if the first line holds one, else a comma, else white space."""
    header: bool = False
    """Whether the first line names the columns; it is skipped then."""
    root: Text | None = None
    """Folder, local or s3://, that relative paths start from. Null: the folder of the list."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ParquetConfig:
    """Columns of Parquet files with encoded images (`source.kind=parquet`)."""

    image: Text = "image"
    """Bytes of the image file, or a struct with a field `bytes` (Hugging Face datasets)."""
    image_id: Text | None = None
    """Key. Null: the number of the row in its file."""
    identity: Text = "identity"
    """Person, a text or a whole number (`identity=label`)."""
    landmarks: Text | None = None
    """List of ten numbers, x and y of five points in the order of `source.landmark_order`; images
    are then aligned by them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TarConfig:
    """Tar files, such as WebDataset shards (`source.kind=tar`)."""

    label: Text = "cls"
    """Extension of the member beside an image that names its person (`identity=label`): `a/1.cls`
    beside `a/1.jpg`."""
    field: Text | None = None
    """Where that member is JSON: the name of the value in it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RecordIOConfig:
    """MXNet / InsightFace .rec files (`source.kind=recordio`)."""

    names: Text | None = None
    """The .lst that the file was made from: image_ids are its paths. Null: they are keys."""
    keys: Literal["id", "number"] = "id"
    """Key of a record in a file without .idx: the id in its header, or its number in the file."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TFRecordConfig:
    """TFace's TFRecord files (`source.kind=tfrecord`)."""

    root: Text | None = None
    """Folder of the record files. Null: the folder of the index."""
    image: Text = "image"
    """Feature that holds the encoded image."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceConfig:
    """Where the images come from. An image_id always leads back to its image."""

    kind: Literal[
        "folder", "list", "parquet", "tar", "recordio", "tfrecord", "bin", "synthetic"
    ] = "synthetic"
    """`folder`: image files below `path`, the image_id being the relative path. `list`: a text file
    of paths or URIs. `parquet`, `tar`, `recordio` (.rec), `tfrecord` (TFace's .index), `bin`
    (InsightFace's verification sets): one such file, or a folder of them. `synthetic`: faces drawn
    by the program."""
    path: Text | None = None
    """Folder or file, local or s3:// (all kinds but `synthetic`)."""
    identity: Literal["first_folder", "parent_folder", "label", "none"] | None = None
    """How an image names its person: the first folder in its image_id, the folder it lies in, the
    label that the format keeps beside it, or not at all. `score` needs no person and does not look.
    Null: `first_folder` for folder and tar, `none` for bin, `label` for the others."""
    extensions: tuple[Text, ...] = (
        "jpg",
        "jpeg",
        "png",
        "webp",
        "bmp",
        "tif",
        "tiff",
        "gif",
        "ppm",
    )
    """Files and tar members with others are no images; they are counted and left alone."""
    landmarks: Text | None = None
    """Text file of lines of image_id and ten numbers, x and y of eyes, nose and corners of the
    mouth in pixels: images are warped to the ArcFace template by them. Null: images are aligned
    already, or their format holds the points."""
    landmark_order: Literal["interleaved", "split"] = "interleaved"
    """How ten numbers are five points, in `landmarks` and in columns of a list or of Parquet.
    `interleaved`: x1 y1 x2 y2 ... x5 y5, as in IJB's name_5pts_score lists. `split`: x1 x2 ... x5
    y1 y2 ... y5, as InsightFace's .lst have them and MTCNN writes them."""
    skip_damaged: bool = False
    """Go on without what cannot be listed: files that are none of their kind, and the rest of
    damaged ones. False: stop, as nobody knows how many images that is."""
    list_file: ListConfig = field(default_factory=ListConfig)
    parquet: ParquetConfig = field(default_factory=ParquetConfig)
    tar: TarConfig = field(default_factory=TarConfig)
    recordio: RecordIOConfig = field(default_factory=RecordIOConfig)
    tfrecord: TFRecordConfig = field(default_factory=TFRecordConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        if self.kind != "synthetic" and self.path is None:
            raise ValueError(f"source.kind={self.kind} needs source.path, the images")
        if self.kind == "synthetic" and self.path is not None:
            raise ValueError(
                "source.path is given, but source.kind=synthetic; did you mean folder?"
            )
        if self.kind == "synthetic" and self.landmarks is not None:
            raise ValueError("source.landmarks is given, but drawn faces are aligned already")
        if self.landmark_order != "interleaved" and not self._has_landmarks:
            raise ValueError(
                f"source.landmark_order={self.landmark_order}, but there are no landmarks: none of"
                " source.landmarks, source.list_file.columns and source.parquet.landmarks names any"
            )
        allowed = _IDENTITIES[self.kind]
        if self.identity is not None and self.identity not in (*allowed, "none"):
            raise ValueError(
                f"source.identity={self.identity} does not go with source.kind={self.kind};"
                f" expected one of {', '.join(allowed)}"
            )

    @property
    def _has_landmarks(self) -> bool:
        in_list = self.kind == "list" and "landmarks" in self.list_file.columns
        in_parquet = self.kind == "parquet" and self.parquet.landmarks is not None
        return self.landmarks is not None or in_list or in_parquet

    @property
    def identity_rule(self) -> str:
        """The rule that `identity` asks for."""
        return self.identity or _IDENTITIES[self.kind][0]

    @property
    def suffixes(self) -> tuple[str, ...]:
        """`extensions` in lower case."""
        return tuple(extension.lower() for extension in self.extensions)

    @property
    def is_remote(self) -> bool:
        """Whether reading an image may take tens of milliseconds: it lies, or may lie, on S3."""
        places = (self.path, self.list_file.root, self.tfrecord.root)
        return self.kind == "list" or any(place and place.startswith("s3://") for place in places)
