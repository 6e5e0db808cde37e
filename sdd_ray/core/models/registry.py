"""Networks by name: plain descriptions that fit in JSON, and the networks built from them.

A new architecture is one more entry of `_FAMILIES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import nn

from sdd_ray.core.models.mobilefacenet import MobileFaceNet, MobileFaceNetTrunk
from sdd_ray.core.models.quality import Head, QualityNetwork
from sdd_ray.core.models.trunk import Trunk


@dataclass(frozen=True)
class Architecture:
    """Description of a backbone, enough to build it again.

    Attributes:
        name: One of `architecture_names()`.
        embedding_size: Length of an embedding (recognisers only).
        width: Factor on the numbers of channels.
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


@dataclass(frozen=True)
class _Family:
    recogniser: Callable[[Architecture], Trunk]
    trunk: Callable[[Architecture], Trunk]


_FAMILIES = {
    "mobilefacenet": _Family(
        recogniser=lambda a: MobileFaceNet(a.embedding_size, a.width, a.input_size),
        trunk=lambda a: MobileFaceNetTrunk(a.width, a.input_size),
    ),
}


def architecture_names() -> list[str]:
    """Return the sorted names of the architectures that can be built."""
    return sorted(_FAMILIES)


def build_backbone(architecture: Architecture) -> nn.Module:
    """Return a recogniser, (N, 3, H, W) images to (N, E) embeddings, with random weights.

    Raises:
        ValueError: The architecture's name is not known.

    Example:
        >>> network = build_backbone(Architecture(width=0.25, embedding_size=32))
        >>> network.feature_shape
        (128, 7, 7)
    """
    return _family(architecture.name).recogniser(architecture)


def build_quality(architecture: QualityArchitecture) -> QualityNetwork:
    """Return a quality network, (N, 3, H, W) images to (N,) raw qualities, with random weights.

    It holds the trunk only: an embedding head without gradients would stop distributed training.

    Raises:
        ValueError: The backbone's name or the head is not known, or the dropout is not a share.
    """
    trunk = _family(architecture.backbone.name).trunk(architecture.backbone)
    return QualityNetwork(
        trunk, architecture.head, architecture.dropout, architecture.initial_quality
    )


def _family(name: str) -> _Family:
    if name not in _FAMILIES:
        raise ValueError(f"expected an architecture among {architecture_names()}, got {name!r}")
    return _FAMILIES[name]


def _known(kind: type, description: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    unknown = sorted(set(description) - names)
    if unknown:
        raise ValueError(f"expected keys among {sorted(names)}, got also {unknown}")
    return dict(description)
