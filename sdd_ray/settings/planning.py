"""Options of plan."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import STRICT, Text


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MeasuredConfig:
    """A complete output whose time is known."""

    path: Text
    """Folder written by embed, label, train, score or measure."""
    workers: PositiveInt | None = None
    """Workers of that run. Null: as its manifest says; label and train say it only where
    `resources.workers` was given."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GivenRate:
    """A stage of which a rate is known, but no run."""

    stage: Literal["embed", "label", "train", "score", "measure"]
    """Command."""
    images_per_s: PositiveFloat
    """Of each worker."""
    start_s: NonNegativeFloat = 30.0
    """Until the first image, and after the last one."""
    bytes_per_image: NonNegativeFloat = 0.0
    """Written for each image."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlanConfig:
    """Say what a larger run will take, from runs that you measured; nothing is started."""

    images: PositiveInt
    """Images of the run to plan."""
    measured: tuple[MeasuredConfig, ...] = ()
    """Runs on workers like those planned. Of each stage two, one several times the other, tell what
    is start and what is work."""
    rates: tuple[GivenRate, ...] = ()
    """For stages of which nothing is measured."""
    workers: PositiveInt = 1
    """Workers planned, for every stage."""
    workers_per_node: PositiveInt = 1
    """Workers of one machine."""
    gpus_per_worker: NonNegativeFloat = 0.0
    """GPUs of each worker, for the GPU hours."""
    epochs: PositiveInt | None = None
    """Of the training. Null: as many as the measured one had."""
    image_bytes: PositiveInt = 8000
    """Mean size of an image file."""
    node_mb_per_s: PositiveFloat | None = None
    """10^6 bytes of images a second that one machine can read. Null: enough."""
    price_per_node_hour: PositiveFloat | None = None
    """What a machine costs, in any currency."""

    def __post_init__(self) -> None:
        given = [rate.stage for rate in self.rates]
        if not given and not self.measured:
            raise ValueError("expected measured runs or rates, got none of either")
        if "train" in given and self.epochs is None:
            raise ValueError("rates: of train needs epochs, which no measured run tells")
        if len(set(given)) < len(given):
            raise ValueError(f"rates: expected each stage once, got {', '.join(given)}")
