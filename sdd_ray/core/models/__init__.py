"""Networks: recognition backbones and the quality head."""

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
    "Architecture",
    "MobileFaceNet",
    "QualityArchitecture",
    "QualityNetwork",
    "architecture_names",
    "build_backbone",
    "build_quality",
]
