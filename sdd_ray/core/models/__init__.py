"""Networks: recognition backbones and the quality head."""

from sdd_ray.core.models.detection import CLASSIFICATION_HEADS, detect, without_prefix
from sdd_ray.core.models.iresnet import IResNet
from sdd_ray.core.models.mobilefacenet import MobileFaceNet
from sdd_ray.core.models.quality import QualityNetwork
from sdd_ray.core.models.registry import (
    Architecture,
    QualityArchitecture,
    architecture_names,
    build_backbone,
    build_quality,
)

__all__ = [
    "CLASSIFICATION_HEADS",
    "Architecture",
    "IResNet",
    "MobileFaceNet",
    "QualityArchitecture",
    "QualityNetwork",
    "architecture_names",
    "build_backbone",
    "build_quality",
    "detect",
    "without_prefix",
]
