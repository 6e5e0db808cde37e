"""Options of embed, label and score."""

from dataclasses import field
from typing import Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import (
    STRICT,
    PoolResources,
    RayConfig,
    RecogniserConfig,
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
