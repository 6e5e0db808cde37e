"""Options of train and tune."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import (
    STRICT,
    OpenShare,
    Rate,
    RayConfig,
    RecogniserConfig,
    Seed,
    Share,
    Text,
)
from sdd_ray.settings.source import SourceConfig

_OF_EMBEDDING = {"flip": False, "precision": "float32", "compile": False}
"""Options of a recogniser that say how embeddings are computed, and what each is when left out."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NetworkConfig:
    """The quality network: the recogniser's backbone with a head for one number."""

    head: Literal["flatten", "average"] = "flatten"
    """`flatten`: all positions of the last feature map (the paper). `average`: their mean."""
    dropout: OpenShare = 0.5
    """Share of head inputs dropped in training. Source: TFace quality/."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimiserConfig:
    """How the network is fitted."""

    learning_rate: PositiveFloat = 1e-4
    """Step size of Adam. Source: TFace quality/."""
    weight_decay: NonNegativeFloat = 5e-4
    """L2 penalty. Source: TFace quality/."""
    epochs: PositiveInt = 20
    """Passes over the training images."""
    milestones: tuple[PositiveInt, ...] = (5, 10)
    """The learning rate is multiplied by `decay` after these epochs. Source: TFace quality/."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    """See `milestones`."""
    batch_size: PositiveInt = 64
    """Images in one optimiser step, over all workers."""
    huber_zeta: PositiveFloat = 1.0
    """Where the loss turns from square to linear, in label units. Source: paper eq. 12."""
    flip: bool = True
    """Mirror half of the training images at random."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SplitConfig:
    """Identities kept out of training. No identity is ever in two parts."""

    holdout_share: OpenShare = 0.2
    """Share of identities that training never sees, for evaluate."""
    validation_share: Rate = 0.1
    """Share of the other identities on which the best epoch is chosen."""
    seed: Seed = 0
    """Draws the identities."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainResources:
    """Workers of data-parallel training."""

    workers: PositiveInt = 1
    """Training workers; each holds a copy of the network."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs of each worker; one CPU of the cluster must be left to read images."""
    use_gpu: bool = False
    """Each worker trains on a GPU of its own."""
    max_failures: NonNegativeInt = 3
    """Lost workers survived by going on from the last checkpoint."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """Train a quality model on labelled images, a model folder at `output`."""

    labels: Text
    """Dataset written by label."""
    output: Text
    """Folder of the model."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """The images that were labelled."""
    recogniser: RecogniserConfig = field(default_factory=RecogniserConfig)
    """Its weights start the backbone; `demo` or `torch`. Training goes on in float32, so `flip`,
    `precision` and `compile` are no options of it."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    best: Literal["loss", "mae", "spearman"] = "loss"
    """Validation figure that chooses the best epoch."""
    max_reject_share: Share = 0.05
    """Training stops when more than this share of the labelled images cannot be read."""
    seed: Seed = 0
    """Draws the head's first weights, the order of images, mirroring and dropout."""
    resources: TrainResources = field(default_factory=TrainResources)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        if self.recogniser.kind in ("onnx", "program"):
            raise ValueError(
                f"recogniser.kind={self.recogniser.kind} cannot be trained further; give the same"
                " network as PyTorch weights (recogniser.kind=torch)"
            )
        given = [
            k for k, default in _OF_EMBEDDING.items() if getattr(self.recogniser, k) != default
        ]
        if given:
            raise ValueError(
                f"{', '.join(f'recogniser.{name}' for name in given)}: of no effect on training,"
                " which takes from the recogniser its kind, path, architecture and preprocessing;"
                " leave that out"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SearchDimension:
    """Values that one key may take in a search."""

    kind: Literal["uniform", "log_uniform", "integer", "choice"]
    """How values are drawn."""
    low: float | None = None
    """Smallest value (all kinds but choice)."""
    high: float | None = None
    """Largest value (all kinds but choice)."""
    values: tuple[float | int | str | bool, ...] | None = None
    """The values of a choice."""

    def __post_init__(self) -> None:
        if self.kind == "choice":
            if not self.values:
                raise ValueError("a choice needs values")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"{self.kind} needs low < high, got {self.low} and {self.high}")
        elif self.kind == "log_uniform" and self.low <= 0:
            raise ValueError(f"log_uniform needs low > 0, got {self.low}")


def _default_space() -> dict[str, SearchDimension]:
    return {
        "optimiser.learning_rate": SearchDimension(kind="log_uniform", low=1e-5, high=3e-3),
        "optimiser.weight_decay": SearchDimension(kind="log_uniform", low=1e-6, high=1e-2),
        "network.dropout": SearchDimension(kind="uniform", low=0.0, high=0.7),
    }


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TuneResources:
    """What the trials use."""

    concurrent_trials: PositiveInt = 1
    """Trials that run at the same time."""
    cpus_per_trial: PositiveFloat = 1.0
    """Logical CPUs of each trial; one CPU of the cluster must be left to read images."""
    gpus_per_trial: NonNegativeFloat = 0.0
    """GPUs of each trial; a fraction lets trials share one."""
    max_failures: NonNegativeInt = 1
    """Times a failed trial is started again from its last checkpoint."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TuneConfig:
    """Search the training configuration with Ray Tune; the best one is `output`/best.yaml."""

    output: Text
    """Folder of the search: trials, best.yaml, manifest."""
    train: TrainConfig
    """The configuration that is varied. Its `output` is where the best one would train."""
    space: dict[str, SearchDimension] = field(default_factory=_default_space)
    """Dotted keys of `train`, each with the values it may take."""
    trials: PositiveInt = 12
    """Configurations tried."""
    searcher: Literal["random", "optuna"] = "random"
    """How configurations are proposed; `optuna` (TPE) needs the extra `optuna`."""
    scheduler: Literal["asha", "none"] = "asha"
    """`asha` stops poor trials early; `none` runs all of them to the end."""
    grace_epochs: PositiveInt = 2
    """Epochs that every trial gets before asha may stop it."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """asha keeps one in this many at each halving."""
    seed: Seed = 0
    """Draws the configurations."""
    resources: TuneResources = field(default_factory=TuneResources)
    ray: RayConfig = field(default_factory=RayConfig)
