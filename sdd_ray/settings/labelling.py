"""Options of label: methods, what is left out, scaling, workers."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import STRICT, OpenShare, Rate, RayConfig, Seed, Share, Text

Similarity = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelResources:
    """Workers of the label stage."""

    workers: PositiveInt | None = None
    """Actors in the pool. Null: as many as the cluster has room for."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs each actor reserves; its arithmetic runs on one thread."""
    gpus_per_worker: NonNegativeFloat = 0.0
    """GPUs each actor reserves (`method=all_pairs`); there is no silent fall-back to the CPU."""
    shards_per_task: PositiveInt = 1
    """Shards (of whole identities) in one task; larger means fewer, longer tasks."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExactConfig:
    """The Wasserstein distance of the full distributions, as far as the tolerance asks
    (`method=exact`, `leave_one_out`)."""  # noqa: D205, D209

    tolerance: NonNegativeFloat = 1e-3
    """Error of a distance that is small enough, in units of similarity. Every label states its own
    bound. 0: all images are compared with all others, and every bound is 0."""
    deviations: PositiveFloat = 4.0
    """Standard errors in the bound of a label that a random sample settles; 4 is exceeded by one in
    16,000 where errors are normal."""
    seed: Seed = 0
    """Draws the samples."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SampledConfig:
    """The paper's estimator from few comparisons (`method=sampled`)."""

    per_image: PositiveInt = 24
    """Mated and nonmated comparisons of an image in one round: m. Source: TFace quality/."""
    rounds: PositiveInt = 12
    """Rounds that are averaged: K. Source: TFace quality/."""
    normalisation: Literal["per_round", "global"] = "global"
    """`per_round`: each round is scaled to [0, 100] by its own smallest and largest distance, and
    the label is the mean (the paper's equations 8 to 10). `global`: the mean distance is scaled
    once, by `scaling`."""
    seed: Seed = 0
    """Draws the comparisons, together with image_id and round; never the order of the work."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LeaveOneOutConfig:
    """The change of the set's error when an image leaves it (`method=leave_one_out`)."""

    fmr: Rate | None = None
    """Null: the seed's equation (4), over all false match rates. A number: equation (3) at it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AllPairsConfig:
    """Every similarity of every image, by the plain definition (`method=all_pairs`)."""

    precision: Literal["float32", "tf32", "float16", "bf16"] = "float32"
    """Of the products of nonmated comparisons; the error of what is less than float32 is in the
    bound of every label. On matrix units float16 is as fast as bf16 and eight times as exact."""
    bins: Literal[512, 1024, 2048, 4096, 8192] | None = None
    """Null: similarities are sorted, and labels exact. A number: nonmated ones are counted in so
    many bins of [-1, 1], whose width is in the bound; on a GPU nothing else fits."""
    tail_only: bool = False
    """Count only the nonmated similarities that can matter beyond the means (needs `bins`): much
    faster on a GPU, and no longer the plain definition."""

    def __post_init__(self) -> None:
        if self.bins is None and (self.precision != "float32" or self.tail_only):
            raise ValueError(
                f"all_pairs.precision={self.precision} and tail_only={self.tail_only} need"
                " all_pairs.bins, such as 4096"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrimConfig:
    """Labelled images at the ends of the distances, or of -Q, that get no pseudo-label."""

    low: OpenShare = 0.0
    """Share of the smallest distances."""
    high: OpenShare = 0.0
    """Share of the largest distances, as of copies and of images of too few others."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelConfig:
    """Label embeddings with pseudo-labels of quality (seed eq. 7), Parquet at `output`."""

    embeddings: Text
    """Dataset written by embed."""
    output: Text
    """Folder or s3:// URI of the labels dataset."""
    method: Literal["exact", "sampled", "leave_one_out", "all_pairs"] = "exact"
    """`exact`: over all comparisons, to a tolerance. `sampled`: the paper's estimator.
    `leave_one_out`: the seed's equations (3), (4), beside the exact distance. `all_pairs`: the
    plain definition."""
    exact: ExactConfig = field(default_factory=ExactConfig)
    sampled: SampledConfig = field(default_factory=SampledConfig)
    leave_one_out: LeaveOneOutConfig = field(default_factory=LeaveOneOutConfig)
    all_pairs: AllPairsConfig = field(default_factory=AllPairsConfig)
    scaling: Literal["min_max", "quantile", "none"] = "min_max"
    """From distance to pseudo_label: `min_max` to [0, 100] over the set (the paper), `quantile`:
    the rank in percent, `none`: the distance itself."""
    duplicates: Literal["reject", "keep"] = "reject"
    """Images of one identity with equal pixels: set aside all but the first, or keep them."""
    min_images: PositiveInt = 1
    """Identities of fewer images get no label; they still count as other people."""
    max_mated_similarity: Similarity | None = None
    """Mated similarities above it, as of near copies, are left out of the distribution
    (`exact` only). Null: none."""
    trim: TrimConfig = field(default_factory=TrimConfig)
    count_with: NonNegativeInt = 256
    """Random images to which the similarities of every image are counted, for its nonmated
    quantiles and the nonmated histograms. 0: none are counted."""
    max_reject_share: Share = 0.05
    """The run stops when more than this share of the rows had to be set aside."""
    resources: LabelResources = field(default_factory=LabelResources)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        if self.trim.low + self.trim.high >= 1:
            raise ValueError(
                f"trim.low={self.trim.low:g} and trim.high={self.trim.high:g} leave no label"
            )
        per_round = self.sampled.normalisation == "per_round"
        if self.method == "sampled" and per_round and self.scaling != "min_max":
            raise ValueError(
                "sampled.normalisation=per_round scales each round by its smallest and largest"
                f" distance; it needs scaling=min_max, got {self.scaling}"
            )
        limited = self.max_mated_similarity is not None
        if limited and self.method != "exact":
            raise ValueError(
                f"max_mated_similarity is not known to method={self.method}; use method=exact"
            )
        if self.resources.gpus_per_worker > 0:
            if self.method != "all_pairs":
                raise ValueError(
                    f"method={self.method} runs on CPUs: resources.gpus_per_worker must be 0"
                )
            if self.all_pairs.bins is None:
                raise ValueError("all_pairs on a GPU needs all_pairs.bins, such as 4096")
