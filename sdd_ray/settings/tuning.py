"""Options of tune."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import STRICT, RayConfig, Seed, Text
from sdd_ray.settings.training import TrainConfig

Value = float | int | str | bool


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SearchDimension:
    """Values that one key may take in a search."""

    kind: Literal["uniform", "log_uniform", "integer", "choice"]
    """How values are drawn."""
    low: float | None = None
    """Smallest value (all kinds but choice)."""
    high: float | None = None
    """Largest value (all kinds but choice)."""
    values: tuple[Value | None, ...] | None = None
    """The values of a choice."""
    points: Annotated[int, Field(ge=2)] | None = None
    """Values of a range that searcher=grid tries, from low to high (all kinds but choice)."""
    when: dict[str, Value | tuple[Value, ...]] | None = None
    """Vary this key only where other keys of training have these values, each a value or a list of
    them, such as `{loss.kind: huber}`; elsewhere it stays as `train` has it."""

    def __post_init__(self) -> None:
        if self.kind == "choice":
            if not self.values:
                raise ValueError("a choice needs values")
            if self.points is not None:
                raise ValueError("points are of ranges; a choice is tried value by value")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"{self.kind} needs low < high, got {self.low} and {self.high}")
        elif self.kind == "log_uniform" and self.low <= 0:
            raise ValueError(f"log_uniform needs low > 0, got {self.low}")
        elif self.kind == "integer" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"integer needs whole numbers, got {self.low} and {self.high}")


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
    workers_per_trial: PositiveInt = 1
    """Training workers of each trial. One is cheapest: more are a run of Ray Train in each trial,
    which takes many seconds to start."""
    cpus_per_trial: PositiveFloat = 1.0
    """Logical CPUs of each trial, over all its workers; one CPU of the cluster must be left to read
    images."""
    gpus_per_trial: NonNegativeFloat = 0.0
    """GPUs of each trial; a fraction lets trials share one. Several workers need one each."""
    max_failures: NonNegativeInt = 1
    """Times a failed trial is started again from its last checkpoint."""

    def __post_init__(self) -> None:
        if self.workers_per_trial > 1 and self.gpus_per_trial not in (0, self.workers_per_trial):
            raise ValueError(
                f"gpus_per_trial={self.gpus_per_trial:g} with workers_per_trial="
                f"{self.workers_per_trial}: give no GPU, or one to each worker"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TuneConfig:
    """Search the training configuration with Ray Tune; the best one is `output`/best.yaml."""

    output: Text
    """Folder of the search: trials, search.html, best.yaml, the best model, manifest."""
    train: TrainConfig
    """The configuration that is varied; `train.best` is the figure that trials are compared by. Its
    `output` is where the best one would train; its `resources` count there, not in the search."""
    space: dict[str, SearchDimension] = field(default_factory=_default_space)
    """Dotted keys of `train`, each with the values it may take."""
    trials: PositiveInt = 12
    """Configurations tried; for a grid the most that it may have."""
    searcher: Literal["random", "grid", "optuna"] = "random"
    """How configurations are proposed. `random`: drawn from the seed and the trial's number.
    `grid`: all choices and `points`, combined. `optuna`: TPE, needs the extra `optuna`."""
    scheduler: Literal["asha", "pbt", "median", "none"] = "asha"
    """`asha`: of the trials that got so far, only the best go on. `median`: stops trials that are
    worse than the median of the others. `pbt`: poor trials go on from the weights of good ones,
    with changed values. `none`: all trials run to the end."""
    grace_epochs: PositiveInt = 2
    """Epochs that every trial gets before asha or median may stop it."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """asha keeps one in this many at each halving."""
    perturbation_epochs: PositiveInt = 2
    """Epochs between two exchanges of pbt."""
    budget_s: PositiveFloat | None = None
    """Seconds after which the search ends: no new trial begins and those under way stop; what they
    have reached counts. Null: no limit."""
    publish: bool = True
    """Write the best trial's model to `output`/model, as train would."""
    seed: Seed = 0
    """Draws the configurations."""
    resources: TuneResources = field(default_factory=TuneResources)
    ray: RayConfig = field(default_factory=RayConfig)
