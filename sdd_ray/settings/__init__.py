"""The frozen configuration trees of all commands: the only list of options.

Each field carries its documentation below it, with unit and meaning; ``--help`` prints these texts.
A wrong value is refused where it is declared. Defaults are the configuration of the built-in
example, except for paths that only a user knows.
"""

from sdd_ray.settings.auditing import (
    AuditConfig,
    AuditReportConfig,
    AuditResources,
    AuditThresholds,
    DuplicateConfig,
    MixedConfig,
    SamePersonConfig,
    SuspectConfig,
)
from sdd_ray.settings.common import (
    PoolResources,
    PreprocessingConfig,
    RayConfig,
    RecogniserConfig,
)
from sdd_ray.settings.evaluation import (
    AdviceConfig,
    BootstrapConfig,
    ComparisonsConfig,
    DemoConfig,
    DrawConfig,
    EvaluateConfig,
    GroupsConfig,
    MethodConfig,
    OtherRecogniserConfig,
    ReportConfig,
    TemplatesConfig,
)
from sdd_ray.settings.exporting import ExportConfig
from sdd_ray.settings.labelling import (
    AllPairsConfig,
    ExactConfig,
    LabelConfig,
    LabelResources,
    LeaveOneOutConfig,
    SampledConfig,
    TrimConfig,
)
from sdd_ray.settings.planning import MeasuredConfig, PlanConfig
from sdd_ray.settings.source import (
    ListConfig,
    ParquetConfig,
    RecordIOConfig,
    SourceConfig,
    SyntheticConfig,
    TarConfig,
    TFRecordConfig,
)
from sdd_ray.settings.stages import (
    BestConfig,
    CalibrateConfig,
    DropoutConfig,
    EmbedConfig,
    MeasureConfig,
    ScoreConfig,
)
from sdd_ray.settings.training import (
    AugmentConfig,
    ComputeConfig,
    LossConfig,
    NetworkConfig,
    OptimiserConfig,
    SplitConfig,
    TrainConfig,
    TrainResources,
    ValidationConfig,
)
from sdd_ray.settings.tuning import SearchDimension, TuneConfig, TuneResources
from sdd_ray.settings.verification import PairsConfig, VerifyConfig

__all__ = [
    "AdviceConfig",
    "AllPairsConfig",
    "AuditConfig",
    "AuditReportConfig",
    "AuditResources",
    "AuditThresholds",
    "AugmentConfig",
    "BestConfig",
    "BootstrapConfig",
    "CalibrateConfig",
    "ComparisonsConfig",
    "ComputeConfig",
    "DemoConfig",
    "DrawConfig",
    "DropoutConfig",
    "DuplicateConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExactConfig",
    "ExportConfig",
    "GroupsConfig",
    "LabelConfig",
    "LabelResources",
    "LeaveOneOutConfig",
    "ListConfig",
    "LossConfig",
    "MeasureConfig",
    "MeasuredConfig",
    "MethodConfig",
    "MixedConfig",
    "NetworkConfig",
    "OptimiserConfig",
    "OtherRecogniserConfig",
    "PairsConfig",
    "ParquetConfig",
    "PlanConfig",
    "PoolResources",
    "PreprocessingConfig",
    "RayConfig",
    "RecogniserConfig",
    "RecordIOConfig",
    "ReportConfig",
    "SamePersonConfig",
    "SampledConfig",
    "ScoreConfig",
    "SearchDimension",
    "SourceConfig",
    "SplitConfig",
    "SuspectConfig",
    "SyntheticConfig",
    "TFRecordConfig",
    "TarConfig",
    "TemplatesConfig",
    "TrainConfig",
    "TrainResources",
    "TrimConfig",
    "TuneConfig",
    "TuneResources",
    "ValidationConfig",
    "VerifyConfig",
]
