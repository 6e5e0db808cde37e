"""Options of train."""

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

Figure = Literal["loss", "mae", "spearman", "kendall", "pauc"]
"""Validation figures; pauc is of the error versus discard curve, the others compare with labels."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NetworkConfig:
    """The quality network: the recogniser's backbone with a head for one number."""

    head: Literal["flatten", "average"] = "flatten"
    """`flatten`: all positions of the last feature map (the paper). `average`: their mean."""
    dropout: OpenShare = 0.5
    """Share of head inputs dropped in training. Source: TFace quality/."""
    frozen_share: Share = 0.0
    """Share of the backbone's layers, counted from the image, that stay as the recogniser had
    them, with their batch statistics; 1 trains the head alone."""
    freeze_batch_norm: bool = False
    """Keep the batch statistics of the recogniser in all layers, so that an image's prediction in
    training does not depend on the rest of its batch."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimiserConfig:
    """How the network is fitted. The defaults are the paper's released code (TFace quality/)."""

    kind: Literal["adam", "adamw"] = "adam"
    """`adam`: weight decay as an L2 penalty (TFace quality/). `adamw`: decoupled from the step."""
    learning_rate: PositiveFloat = 1e-4
    """Largest step size. Source: TFace quality/."""
    weight_decay: NonNegativeFloat = 5e-4
    """See `kind`. Source: TFace quality/."""
    epochs: PositiveInt = 20
    """Passes over the training images."""
    schedule: Literal["step", "cosine"] = "step"
    """`step`: see `milestones` (TFace quality/). `cosine`: falls to 0 by the last step."""
    milestones: tuple[PositiveInt, ...] = (5, 10)
    """The learning rate is multiplied by `decay` after these epochs. Source: TFace quality/."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    """See `milestones`."""
    warm_up_epochs: NonNegativeFloat = 0.0
    """The learning rate grows from 0 to its schedule over this many epochs."""
    batch_size: PositiveInt = 64
    """Images in one optimiser step, over all workers."""
    accumulate: PositiveInt = 1
    """Parts that a worker's share of a batch is cut into and worked on one after another, so that
    less memory does; batch statistics are then of the parts."""
    clip_norm: PositiveFloat | None = None
    """Gradients longer than this are scaled to it."""
    ema: OpenShare = 0.0
    """Decay a step of a moving average of the weights, which is then validated and published; 0:
    none."""

    def __post_init__(self) -> None:
        if self.warm_up_epochs >= self.epochs:
            raise ValueError(
                f"warm_up_epochs={self.warm_up_epochs} is not shorter than epochs={self.epochs}"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LossConfig:
    """What is minimised."""

    kind: Literal["huber", "l1", "l2"] = "huber"
    """Of the difference between prediction and label. Source: paper eq. 12 (huber)."""
    huber_zeta: PositiveFloat = 1.0
    """Where the Huber loss turns from square to linear, in label units. Source: paper eq. 12."""
    ranking_weight: NonNegativeFloat = 0.0
    """Weight of an added term for pairs in the wrong order, of the images that a worker has at
    once (see `optimiser.accumulate`)."""
    balance: Share = 0.0
    """How far rare labels count more: weights are the density of labels to the power -balance."""
    weighting: Literal["none", "error_bound", "num_mated"] = "none"
    """What makes a label count less: the bound on its error, or few mated images behind it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentConfig:
    """What is done to training images at random; their labels stay."""

    flip: bool = True
    """Mirror half of the images."""
    degrade_share: Share = 0.0
    """Share of the images that are blurred, shrunk, made noisy or dark. Their label is then too
    good for them: an option for experiments."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ComputeConfig:
    """How the numbers are computed."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Format of the backbone's products (autocast); weights, head and loss stay float32. On a GPU,
    PyTorch may compute float32 convolutions in TF32."""
    channels_last: bool = True
    """Memory order in which depthwise convolutions are faster."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, faster steps on a GPU."""
    deterministic: bool = False
    """Refuse operations whose result differs from run to run, on a GPU at some cost."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ValidationConfig:
    """Comparisons between the validation images, for the figure pauc."""

    embeddings: Text | None = None
    """Dataset written by embed; null: the one that was labelled, where it is still there."""
    fmr: Rate = 1e-3
    """False match rate whose threshold is held."""
    max_images: PositiveInt = 20_000
    """Images compared, of whole identities."""


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
    min_workers: PositiveInt | None = None
    """Go on with as few workers as this while the cluster has no room for all (elastic); null:
    wait for all. The batch of a step stays the same, rounded down to equal shares."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs of each worker; one CPU of the cluster must be left to read images."""
    use_gpu: bool = False
    """Each worker trains on a GPU of its own."""
    max_failures: NonNegativeInt = 3
    """Lost workers survived by going on from the last checkpoint."""

    def __post_init__(self) -> None:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")


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
    """Its weights start the backbone; `demo` or `torch`. `flip`, `precision` and `compile` are no
    options of it here: see `compute` and `augment`."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    best: Figure = "loss"
    """Validation figure that chooses the best epoch."""
    patience: PositiveInt | None = None
    """Stop early when the best figure is this many epochs old; null: never."""
    calibration: Literal["quantile", "sigmoid"] = "quantile"
    """Map of raw predictions to 0-100, fitted on the validation images. `quantile`: the share of
    them that is worse. `sigmoid`: a logistic curve, their median at 50 and as steep as puts
    symmetric quartiles at 25 and 75."""
    max_reject_share: Share = 0.05
    """Training stops when more than this share of the labelled images cannot be read."""
    join_in_memory: PositiveInt = 5_000_000
    """Labelled images up to which images and labels are joined on the driver; more are joined by
    tasks, over files in the output folder."""
    seed: Seed = 0
    """Draws the head's first weights, the order of images, augmentation and dropout."""
    resources: TrainResources = field(default_factory=TrainResources)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        size, workers = self.optimiser.batch_size, self.resources.workers
        if size % workers:
            raise ValueError(
                f"optimiser.batch_size={size} is no multiple of resources.workers={workers}, which"
                " share it"
            )
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
