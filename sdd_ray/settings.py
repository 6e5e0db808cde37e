"""The frozen configuration trees of all commands: the only list of options.

Each field carries its documentation below it, with unit and meaning; ``--help`` prints these texts.
A wrong value is refused where it is declared. Defaults are the configuration of the built-in
example, except for paths that only a user knows.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RayConfig:
    """Which Ray the command uses."""

    address: Text | None = None
    """Cluster to join, such as `auto` or `ray://host:10001`. Null: the cluster that RAY_ADDRESS
    names (as inside `ray job submit`), else a local one for the length of this command."""
    dashboard: bool = True
    """Start the dashboard with a local Ray (http://127.0.0.1:8265)."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs of a local Ray. Null: all of this machine."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PoolResources:
    """Workers of a stage that maps over shards, and what each of them needs."""

    workers: PositiveInt | None = None
    """Actors in the pool. Null: as many as the cluster has room for."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs each actor reserves."""
    gpus_per_worker: NonNegativeFloat = 0.0
    """GPUs each actor reserves; there is no silent fall-back to the CPU."""
    batch_size: PositiveInt = 32
    """Images given to the network at once."""


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
class SyntheticConfig:
    """Faces drawn by the program, with known degradations (`source.kind=synthetic`)."""

    seed: NonNegativeInt = 7
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
class SourceConfig:
    """Where the images come from. An image_id always leads back to its image."""

    kind: Literal["folder", "synthetic"] = "synthetic"
    """`folder`: image files below `path`, the image_id being the relative path.
    `synthetic`: faces drawn by the program."""
    path: Text | None = None
    """Root folder of the images, local or s3:// (`kind=folder`)."""
    identity: Literal["first_folder", "parent_folder", "none"] = "first_folder"
    """How a file names its person: the first folder below `path`, the folder the file lies in,
    or not at all (enough for `score`)."""
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
    """Files with other extensions are no images; they are counted and left alone."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        if self.kind == "folder" and self.path is None:
            raise ValueError("source.kind=folder needs source.path, the root folder of the images")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PreprocessingConfig:
    """What a network expects of its input; wrong values cost accuracy without any error."""

    height: PositiveInt = 112
    """Rows of the input, in pixels; the centre rows of the aligned face."""
    width: PositiveInt = 112
    """Columns of the input, in pixels; fewer than 112 takes the centre columns."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Order of the colour channels."""
    scale: PositiveFloat = 1.0
    """Pixel values 0..255 are divided by this before mean and standard deviation are applied."""
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    """Subtracted from each channel, in the order of `channel_order`."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (127.5, 127.5, 127.5)
    """Each channel is divided by this."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RecogniserConfig:
    """The face recogniser whose similarities define quality."""

    kind: Literal["demo", "onnx", "torch"] = "demo"
    """`demo`: the small network in the package, trained on drawn faces only. `onnx`: any ONNX file
    (needs the extra `onnx`). `torch`: weights that fit a built-in architecture."""
    path: Text | None = None
    """Weights: .onnx, or .safetensors, .pt, .pth, .ckpt. Local, and there on every node."""
    architecture: Literal["mobilefacenet"] = "mobilefacenet"
    """Built-in architecture (`kind=torch`)."""
    embedding_size: PositiveInt = 128
    """Length of the embedding (`kind=torch`)."""
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    flip: bool = False
    """Average the embeddings of the image and of its mirror image; doubles the cost."""

    def __post_init__(self) -> None:
        if self.kind != "demo" and self.path is None:
            raise ValueError(f"recogniser.kind={self.kind} needs recogniser.path, the weight file")


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
    max_reject_share: Share = 0.05
    """The run stops when more than this share of the images had to be set aside."""
    resources: PoolResources = field(default_factory=PoolResources)
    ray: RayConfig = field(default_factory=RayConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExactConfig:
    """The exact label: Wasserstein distance of the full distributions (`method=exact`)."""

    reference_size: PositiveInt | None = None
    """Null: all images, no error. A number: the small correction is estimated on that many
    images drawn at random, and every label states its error bound."""
    seed: NonNegativeInt = 0
    """Draws the reference images."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SampledConfig:
    """The paper's estimator from few comparisons (`method=sampled`)."""

    per_image: PositiveInt = 24
    """Mated and nonmated comparisons of an image in one round: m. Source: TFace quality/."""
    rounds: PositiveInt = 12
    """Rounds that are averaged: K. Source: TFace quality/."""
    seed: NonNegativeInt = 0
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
    seed: NonNegativeInt = 0
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
    """Its weights start the backbone; `demo` or `torch`."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    best: Literal["loss", "mae", "spearman"] = "loss"
    """Validation figure that chooses the best epoch."""
    seed: NonNegativeInt = 0
    """Draws the head's first weights, the order of images, mirroring and dropout."""
    resources: TrainResources = field(default_factory=TrainResources)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        if self.recogniser.kind == "onnx":
            raise ValueError(
                "recogniser.kind=onnx cannot be trained further; give the same network as PyTorch"
                " weights (recogniser.kind=torch)"
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
    """Dotted keys of `train` and the values they may take."""
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
    seed: NonNegativeInt = 0
    """Draws the configurations."""
    resources: TuneResources = field(default_factory=TuneResources)
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
    max_reject_share: Share = 1.0
    """The run stops when more than this share of the images could not be assessed."""
    resources: PoolResources = field(default_factory=PoolResources)
    ray: RayConfig = field(default_factory=RayConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MethodConfig:
    """Quality values to evaluate."""

    name: Text
    """Name in tables and figures."""
    path: Text
    """Dataset with image_id and the values: qualities, labels, embeddings, or any Parquet."""
    column: Text = "quality"
    """Column of the values, larger is better; null and NaN count as failed to assess."""
    kind: Literal["model", "label", "severity", "norm", "oracle"] = "model"
    """What the values are; decides how their curve is drawn."""
    sign: Literal[1, -1] = 1
    """-1 for values of which smaller is better."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ComparisonsConfig:
    """Which comparisons of the embeddings are made."""

    splits: Text | None = None
    """splits.parquet of a model folder; only identities of `part` are compared. Null: all."""
    part: Literal["holdout", "validation", "train"] = "holdout"
    """See `splits`."""
    max_nonmated: PositiveInt | None = 5_000_000
    """All mated comparisons are made; of the nonmated ones at most this many, drawn at
    random. Null: all."""
    seed: NonNegativeInt = 0
    """Draws the nonmated comparisons."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ReportConfig:
    """What report.html shows besides curves and tables."""

    labels: Text | None = None
    """Dataset written by label: its histogram, and what two of its images look like inside."""
    faces: SourceConfig | None = None
    """The images, to show faces from worst to best. Null: none are shown."""
    severity: Text | None = None
    """Parquet with image_id, kind and severity of known degradations (synthetic data)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Evaluate qualities by error versus discard curves; tables, figures and report at `output`."""

    embeddings: Text
    """Dataset written by embed: the recogniser whose errors a quality should predict."""
    output: Text
    """Folder of the results."""
    methods: tuple[MethodConfig, ...]
    """The qualities to compare; a random one is always added."""
    comparisons: ComparisonsConfig = field(default_factory=ComparisonsConfig)
    fmr: tuple[Rate, ...] = (1e-2, 1e-3)
    """False match rates at which thresholds are set."""
    discard_fractions: tuple[OpenShare, ...] = (0.0, 0.1, 0.2, 0.3)
    """Columns of the printed table."""
    discard_limit: Rate = 0.3
    """Upper end of the normalised partial area."""
    random_repeats: PositiveInt = 20
    """Random qualities that are averaged."""
    report: ReportConfig = field(default_factory=ReportConfig)
    ray: RayConfig = field(default_factory=RayConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DrawConfig:
    """Draw a set of faces with known degradations into a folder of PNG files, one per identity."""

    output: Text
    """Folder to make; severity.csv in it holds what is known of each face."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DemoConfig:
    """Draw faces, embed, label, train, score and evaluate them: the whole road on one command."""

    output: Text = "demo"
    """Folder of everything the demo writes; `evaluation/report.html` is in it."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    holdout_share: Rate = 0.25
    """Share of the identities that training never sees and that the model is evaluated on."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            learning_rate=1e-3, epochs=8, milestones=(6,), batch_size=32
        )
    )
    ray: RayConfig = field(default_factory=RayConfig)
