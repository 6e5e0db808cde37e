"""The frozen configuration trees of all commands: the only list of options.

Each field carries its documentation below it, with unit and meaning; ``--help`` prints these texts.
A wrong value is refused where it is declared. Defaults are the configuration of the built-in
example, except for paths that only a user knows.
"""

from sdd_ray.settings.common import (
    PoolResources,
    PreprocessingConfig,
    RayConfig,
    RecogniserConfig,
    SourceConfig,
    SyntheticConfig,
)
from sdd_ray.settings.evaluation import (
    ComparisonsConfig,
    DemoConfig,
    DrawConfig,
    EvaluateConfig,
    MethodConfig,
    ReportConfig,
)
from sdd_ray.settings.stages import (
    EmbedConfig,
    ExactConfig,
    LabelConfig,
    LabelResources,
    SampledConfig,
    ScoreConfig,
)
from sdd_ray.settings.training import (
    NetworkConfig,
    OptimiserConfig,
    SearchDimension,
    SplitConfig,
    TrainConfig,
    TrainResources,
    TuneConfig,
    TuneResources,
)

__all__ = [
    "ComparisonsConfig",
    "DemoConfig",
    "DrawConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExactConfig",
    "LabelConfig",
    "LabelResources",
    "MethodConfig",
    "NetworkConfig",
    "OptimiserConfig",
    "PoolResources",
    "PreprocessingConfig",
    "RayConfig",
    "RecogniserConfig",
    "ReportConfig",
    "SampledConfig",
    "ScoreConfig",
    "SearchDimension",
    "SourceConfig",
    "SplitConfig",
    "SyntheticConfig",
    "TrainConfig",
    "TrainResources",
    "TuneConfig",
    "TuneResources",
]
