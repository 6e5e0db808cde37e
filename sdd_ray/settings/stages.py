"""Options of embed, score and measure."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import (
    STRICT,
    OpenShare,
    PoolResources,
    Rate,
    RayConfig,
    RecogniserConfig,
    Seed,
    Share,
    Text,
)
from sdd_ray.settings.source import SourceConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EmbedConfig:
    """Embed face images: one unit-length embedding an image, Parquet at `output`."""

    output: Text
    """Folder or s3:// URI of the embeddings dataset."""
    source: SourceConfig = field(default_factory=SourceConfig)
    recogniser: RecogniserConfig = field(default_factory=RecogniserConfig)
    storage: Literal["float32", "float16"] = "float32"
    """Number format of stored embeddings; float16 halves the size."""
    images_per_shard: PositiveInt = 1024
    """Images in one output file, the unit of work and of resuming."""
    batch_size: PositiveInt | None = 32
    """Images given to the network at once; another number may change the last bits of a result.
    Null: the smallest number that is as fast as any, measured on a worker at the start."""
    max_reject_share: Share = 0.05
    """The run stops when more than this share of the images had to be set aside."""
    resources: PoolResources = field(default_factory=PoolResources)
    ray: RayConfig = field(default_factory=RayConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BestConfig:
    """Which images are the best of their person, track or other group."""

    count: PositiveInt = 1
    """Images of each group, by the raw quality; those without a quality are never among them."""
    groups: Text | None = None
    """Parquet, .csv or .tsv with one row an image. Null: the identities that the source names."""
    column: Text = "track"
    """Column of the group in `groups`; null for none."""
    key: Text = "image_id"
    """Column of the image in `groups`."""

    def __post_init__(self) -> None:
        if self.column in ("image_id", "quality", "raw", "rank"):
            raise ValueError(f"column={self.column} is a column of best.csv already")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScoreConfig:
    """Score images with a quality model, Parquet and a table at `output`.

    Or score single paths (`images`, `--stdin`), to standard output and without Ray.
    """

    model: Text
    """Folder written by train, tune or calibrate."""
    output: Text | None = None
    """Folder or s3:// URI of the qualities dataset."""
    source: SourceConfig = field(default_factory=SourceConfig)
    images: tuple[Text, ...] = ()
    """Paths to score in this process, in place of `source` and `output`."""
    stdin: bool = False
    """Score the paths on standard input, one a line, as they come; `--stdin` for short."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where `images` and `stdin` are scored; workers follow `resources.gpus_per_worker`."""
    format: Literal["csv", "ofiq", "text"] = "csv"
    """Of the table. `csv`: image_id, quality, raw, reason. `ofiq`: separated by semicolons, with
    Filename, UnifiedQualityScore (raw) and UnifiedQualityScore.scalar. `text`: lines of path and
    raw quality, nan for a failure."""
    threshold: Annotated[int, Field(ge=0, le=100)] | Text | None = None
    """Adds the column `accepted`: whether the quality is at least this, or the raw quality at least
    the threshold of this name that the model has (see calibrate)."""
    best: BestConfig | None = None
    """Also write the best images of each group, best.parquet and best.csv."""
    images_per_shard: PositiveInt = 1024
    """Images in one output file, the unit of work and of resuming."""
    batch_size: PositiveInt | None = 32
    """Images given to the network at once; another number may change the last bits of a result.
    Null: the smallest number that is as fast as any, measured on a worker at the start."""
    max_reject_share: Share = 1.0
    """The run stops when more than this share of the images could not be assessed."""
    resources: PoolResources = field(default_factory=PoolResources)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        ways = {"output": self.output is not None, "images": self.images, "stdin": self.stdin}
        given = [name for name, is_given in ways.items() if is_given]
        if len(given) != 1:
            raise ValueError(
                "give output (for the images of source), images or stdin; got"
                f" {' and '.join(given) or 'none'}"
            )
        if self.best is not None and self.output is None:
            raise ValueError("best needs output and source")
        if self.threshold is not None and self.format == "text":
            raise ValueError("format=text has no column for threshold; take csv or ofiq")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CalibrateConfig:
    """Fit a model's map to 0-100, and its thresholds, to your own images; a new model folder."""

    model: Text
    """Folder written by train, tune or calibrate."""
    qualities: Text | None = None
    """Dataset written by score with this model: the images that 0 to 100 refers to. Null: the map
    stays."""
    output: Text
    """Folder of the new model; the old one stays as it is."""
    map: Literal["quantile", "sigmoid"] = "quantile"
    """`quantile`: a quality of q is better than about q percent of the images. `sigmoid`: a
    logistic curve, which keeps apart what lies beyond all of them."""
    discard: tuple[OpenShare, ...] = (0.05, 0.1, 0.2)
    """Thresholds that discard these shares of the images, named like `discard_0.1`."""
    evaluation: Text | None = None
    """Folder written by evaluate for this model's raw qualities: its advice gives the thresholds
    named like `fnmr_0.01_at_fmr_0.001`, and `discard_...` if `qualities` is null."""
    method: Text = "model"
    """Name of this model among the methods of the evaluation."""

    def __post_init__(self) -> None:
        if self.qualities is None and self.evaluation is None:
            raise ValueError("give qualities, evaluation, or both")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DropoutConfig:
    """How parts of the features are dropped to see how stable an embedding is."""

    passes: Annotated[int, Field(ge=2)] = 20
    """Times that parts are dropped; distances are between each two."""
    share: Rate = 0.5
    """Dropped each time."""
    seed: Seed = 0
    """Draws what is dropped, the same for all images."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MeasureConfig:
    """Score images without any training: what a learnt quality has to beat. Parquet and CSV."""

    output: Text
    """Folder or s3:// URI of the scores."""
    source: SourceConfig = field(default_factory=SourceConfig)
    measures: Annotated[
        tuple[Literal["sharpness", "contrast", "flip", "dropout"], ...], Field(min_length=1)
    ] = ("sharpness", "contrast", "flip", "dropout")
    """`sharpness`: variance of the Laplacian. `contrast`: standard deviation of grey. `flip`:
    similarity of the image with its mirror image, by the recogniser. `dropout`: how far embeddings
    stay together while features are dropped, like SER-FIQ; the recogniser must be demo or torch."""
    recogniser: RecogniserConfig = field(default_factory=RecogniserConfig)
    """For flip and dropout."""
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    images_per_shard: PositiveInt = 1024
    """Images in one output file, the unit of work and of resuming."""
    batch_size: PositiveInt | None = 32
    """Images given to the network at once. Null: measured on a worker at the start."""
    max_reject_share: Share = 1.0
    """The run stops when more than this share of the images could not be read."""
    resources: PoolResources = field(default_factory=PoolResources)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        if len(set(self.measures)) < len(self.measures):
            raise ValueError(f"measures names one twice, got {list(self.measures)}")
        if "dropout" in self.measures and self.recogniser.kind not in ("demo", "torch"):
            raise ValueError(
                f"dropout needs the network's layers: recogniser.kind=torch, got"
                f" {self.recogniser.kind}; or leave dropout out of measures"
            )
        if self.recogniser.flip:
            raise ValueError("recogniser.flip makes an image and its mirror image the same")
