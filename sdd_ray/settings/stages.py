"""Options of embed, label and score."""

from dataclasses import field
from typing import Literal

from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import (
    STRICT,
    PoolResources,
    RayConfig,
    RecogniserConfig,
    Seed,
    Share,
    SourceConfig,
    Text,
)


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
    batch_size: PositiveInt = 32
    """Images given to the network at once; another number may change the last bits of a result."""
    max_reject_share: Share = 0.05
    """The run stops when more than this share of the images had to be set aside."""
    resources: PoolResources = field(default_factory=PoolResources)
    ray: RayConfig = field(default_factory=RayConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelResources:
    """Workers of the label stage."""

    workers: PositiveInt | None = None
    """Actors in the pool. Null: as many as the cluster has CPUs."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs each actor reserves; its arithmetic runs on one thread."""
    shards_per_task: PositiveInt = 1
    """Shards (of whole identities) in one task; larger means fewer, longer tasks."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExactConfig:
    """The exact label: Wasserstein distance of the full distributions (`method=exact`)."""

    reference_size: PositiveInt | None = None
    """Null: all images, no error. A number: the small correction is estimated on that many
    images drawn at random, and every label states its error bound."""
    seed: Seed = 0
    """Draws the reference images."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SampledConfig:
    """The paper's estimator from few comparisons (`method=sampled`)."""

    per_image: PositiveInt = 24
    """Mated and nonmated comparisons of an image in one round: m. Source: TFace quality/."""
    rounds: PositiveInt = 12
    """Rounds that are averaged: K. Source: TFace quality/."""
    seed: Seed = 0
    """Draws the comparisons, together with image_id and round; never the order of the work."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelConfig:
    """Label embeddings with pseudo-labels of quality (seed eq. 7), Parquet at `output`."""

    embeddings: Text
    """Dataset written by embed."""
    output: Text
    """Folder or s3:// URI of the labels dataset."""
    method: Literal["exact", "sampled"] = "exact"
    """`exact`: over all comparisons. `sampled`: the paper's estimator."""
    exact: ExactConfig = field(default_factory=ExactConfig)
    sampled: SampledConfig = field(default_factory=SampledConfig)
    scaling: Literal["min_max", "quantile", "none"] = "min_max"
    """From distance to pseudo_label: `min_max` to [0, 100] over the set (the paper), `quantile`:
    the rank in percent, `none`: the distance itself."""
    duplicates: Literal["reject", "keep"] = "reject"
    """Images of one identity with equal pixels: set aside all but the first, or keep them."""
    max_reject_share: Share = 0.05
    """The run stops when more than this share of the rows had to be set aside."""
    resources: LabelResources = field(default_factory=LabelResources)
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
    batch_size: PositiveInt = 32
    """Images given to the network at once; another number may change the last bits of a result."""
    max_reject_share: Share = 1.0
    """The run stops when more than this share of the images could not be assessed."""
    resources: PoolResources = field(default_factory=PoolResources)
    ray: RayConfig = field(default_factory=RayConfig)
