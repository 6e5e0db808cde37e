"""Options of embed, score and measure."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import (
    STRICT,
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
class ScoreConfig:
    """Score images with a quality model, Parquet and CSV at `output`."""

    model: Text
    """Folder written by train."""
    output: Text
    """Folder or s3:// URI of the qualities dataset."""
    source: SourceConfig = field(default_factory=SourceConfig)
    images_per_shard: PositiveInt = 1024
    """Images in one output file, the unit of work and of resuming."""
    batch_size: PositiveInt | None = 32
    """Images given to the network at once; another number may change the last bits of a result.
    Null: the smallest number that is as fast as any, measured on a worker at the start."""
    max_reject_share: Share = 1.0
    """The run stops when more than this share of the images could not be assessed."""
    resources: PoolResources = field(default_factory=PoolResources)
    ray: RayConfig = field(default_factory=RayConfig)


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
