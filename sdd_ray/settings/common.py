"""Options that several commands share: Ray, workers, images, recognisers."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
InputPixels = Annotated[int, Field(ge=8, le=112)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RayConfig:
    """Which Ray the command uses."""

    address: Text | None = None
    """Cluster to join, such as `auto` or `10.0.0.1:6379`. Null: the cluster that RAY_ADDRESS names
    (as inside `ray job submit`), else a local one for the length of this command."""
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
    decode_workers: NonNegativeInt | None = None
    """Actors of one CPU each that read and decode images apart from the network; 0: each worker
    does so itself. Null: 0, or all CPUs that are left where the network runs on GPUs."""
    read_threads: PositiveInt | None = None
    """Requests for images that a worker has under way at the same time. Null: 16 for s3://, else
    one for each of its CPUs."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PreprocessingConfig:
    """What a network expects of its input; wrong values cost accuracy without any error."""

    height: InputPixels = 112
    """Rows of the input, in pixels; the centre rows of the aligned face."""
    width: InputPixels = 112
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
        if self.kind == "demo" and self.path is not None:
            raise ValueError(
                "recogniser.path is given, but recogniser.kind=demo; did you mean onnx?"
            )
        if self.kind == "demo" and self.preprocessing != PreprocessingConfig():
            raise ValueError("recogniser.kind=demo knows its preprocessing; leave that out")
