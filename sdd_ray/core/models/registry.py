"""Networks by name: plain descriptions that fit in JSON, and the networks built from them.

The names and where their weights are published: mobilefacenet.py and iresnet.py, each of which
offers its designs by name. A new architecture is one more design.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sdd_ray.core.models.iresnet import IRESNETS, IResNet
from sdd_ray.core.models.mobilefacenet import MOBILEFACENETS, MobileFaceNet
from sdd_ray.core.models.quality import Head, QualityNetwork
from sdd_ray.core.models.trunk import LayeredNetwork


@dataclass(frozen=True)
class Architecture:
    """Description of a backbone, enough to build it again.

    Attributes:
        name: One of `architecture_names()`.
        embedding_size: Length of an embedding (recognisers only).
        width: Factor on the numbers of channels (MobileFaceNets; 1 for all others).
        input_size: (H, W) of the images in pixels.
    """

    name: str = "mobilefacenet"
    embedding_size: int = 128
    width: float = 1.0
    input_size: tuple[int, int] = (112, 112)

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain JSON values."""
        return {**asdict(self), "input_size": list(self.input_size)}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "Architecture":
        """Return the architecture that `to_dict` described; missing keys take the defaults.

        Raises:
            ValueError: A key is not known, or the input size is not two numbers.
        """
        values = _known(cls, description)
        if "input_size" in values:
            height, width = values["input_size"]
            values["input_size"] = (int(height), int(width))
        return cls(**values)


@dataclass(frozen=True)
class QualityArchitecture:
    """Description of a quality network, enough to build it again.

    Attributes:
        backbone: The trunk.
        head: `flatten` or `average`, see `QualityNetwork`.
        dropout: Share of head inputs dropped in training.
        initial_quality: Prediction before training, in label units.
    """

    backbone: Architecture = field(default_factory=Architecture)
    head: Head = "flatten"
    dropout: float = 0.5
    initial_quality: float = 50.0

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain JSON values."""
        return {**asdict(self), "backbone": self.backbone.to_dict()}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "QualityArchitecture":
        """Return the architecture that `to_dict` described; missing keys take the defaults.

        Raises:
            ValueError: A key is not known.
        """
        values = _known(cls, description)
        if "backbone" in values:
            values["backbone"] = Architecture.from_dict(values["backbone"])
        return cls(**values)


_NETWORKS: dict[str, type[MobileFaceNet] | type[IResNet]] = {
    **dict.fromkeys(MOBILEFACENETS, MobileFaceNet),
    **dict.fromkeys(IRESNETS, IResNet),
}


def architecture_names() -> list[str]:
    """Return the sorted names of the architectures that can be built."""
    return sorted(_NETWORKS)


def build_backbone(architecture: Architecture) -> LayeredNetwork:
    """Return a recogniser, (N, 3, H, W) images to (N, E) embeddings, with random weights.

    Raises:
        ValueError: The architecture's name is not known, or it has no such width.

    Example:
        >>> network = build_backbone(Architecture(width=0.25, embedding_size=32))
        >>> network.feature_shape
        (128, 7, 7)
    """
    return _network(architecture, architecture.embedding_size)


def build_quality(architecture: QualityArchitecture) -> QualityNetwork:
    """Return a quality network, (N, 3, H, W) images to (N,) raw qualities, with random weights.

    It holds the trunk only: an embedding head without gradients would stop distributed training.

    Raises:
        ValueError: The backbone's name or the head is not known, or the dropout is not a share.
    """
    trunk = _network(architecture.backbone, None)
    return QualityNetwork(
        trunk, architecture.head, architecture.dropout, architecture.initial_quality
    )


def _network(architecture: Architecture, embedding_size: int | None) -> LayeredNetwork:
    name = architecture.name
    if name not in _NETWORKS:
        raise ValueError(f"expected an architecture among {architecture_names()}, got {name!r}")
    return _NETWORKS[name](embedding_size, architecture.width, architecture.input_size, name)


def _known(kind: type, description: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    unknown = sorted(set(description) - names)
    if unknown:
        raise ValueError(f"expected keys among {sorted(names)}, got also {unknown}")
    return dict(description)
