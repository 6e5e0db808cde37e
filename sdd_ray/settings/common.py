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

_KINDS_OF_OPTIONS = {
    "architecture": ("torch",),
    "layout": ("onnx",),
    "output": ("onnx",),
    "precision": ("demo", "torch", "program"),
    "compile": ("demo", "torch"),
    "trust": ("program",),
}
"""Options of a recogniser that only some kinds have."""


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
    wait_for_nodes_s: NonNegativeFloat = 0.0
    """Where the cluster has no room for the workers asked for (or for one): ask its autoscaler for
    it, and wait so many seconds before giving up."""


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
    """Requests for images that a worker has under way at the same time. Null: 16 for s3:// and for
    lists, which may lead there, else one for each of its CPUs."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PreprocessingConfig:
    """What a network expects of its input; wrong values cost accuracy without any error."""

    preset: Literal["arcface", "arcface_128", "imagenet", "raw"] | None = None
    """Well-known `scale`, `mean` and `std`, in place of all three. `arcface`: (x - 127.5) / 127.5.
    `arcface_128`: (x - 127.5) / 128. `imagenet`: x / 255, then ImageNet's mean and standard
    deviation. `raw`: pixels 0..255 as they are, for a network that does its own arithmetic."""
    height: InputPixels = 112
    """Rows of the input, in pixels; the centre rows of the aligned face."""
    width: InputPixels = 112
    """Columns of the input, in pixels; fewer than 112 takes the centre columns."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Order of the colour channels."""
    scale: PositiveFloat | None = None
    """Pixel values 0..255 are divided by this before mean and standard deviation are applied.
    Null: 1."""
    mean: tuple[float, float, float] | None = None
    """Subtracted from each channel, in the order of `channel_order`. Null: 127.5 from each."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Each channel is divided by this. Null: 127.5 for each."""

    def __post_init__(self) -> None:
        given = [name for name in ("scale", "mean", "std") if getattr(self, name) is not None]
        if self.preset is not None and given:
            raise ValueError(
                f"preset={self.preset} stands for scale, mean and std, but {', '.join(given)} is"
                " given too; leave out one or the other"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RecogniserConfig:
    """The face recogniser whose similarities define quality."""

    kind: Literal["demo", "onnx", "torch", "program"] = "demo"
    """`demo`: the small network in the package, trained on drawn faces only. `onnx`: any ONNX file
    (needs the extra `onnx`). `torch`: weights that fit a built-in architecture. `program`: a
    network saved whole by torch.export or TorchScript, from preprocessed (N, 3, height, width)
    images to (N, E) embeddings; see `trust`."""
    path: Text | None = None
    """File: .onnx; or .safetensors, .pt, .pth, .ckpt; or .pt2, .pt, .ts. Local, and there on every
    node."""
    architecture: Text | None = None
    """Name of a built-in architecture (`torch`). Null: the one whose tensors these are; only some
    with equal tensors, such as `iresnet50` and `iresnet50_magface`, may need the name."""
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    flip: bool = False
    """Average the embeddings of the image and of its mirror image; doubles the cost."""
    layout: Literal["nchw", "nhwc"] | None = None
    """Whether the channels of the input come first or last (`onnx`). Null: what its shape says."""
    output: Text | None = None
    """Name of the output that is the embedding (`onnx`). Null: the only one, or the first of the
    shape (N, E)."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format that convolutions and products are computed in (all kinds but `onnx`). On a
    GPU, float32 lets convolutions use TensorFloat-32, as is torch's default. Of the halves, float16
    is nearer: of 48 drawn faces the worst cosine to float32 was 0.9998, and 0.990 with bfloat16."""
    compile: bool = False
    """Compile the network with torch.compile (`demo`, `torch`): takes minutes when a worker starts,
    and needs a C++ compiler on a CPU."""
    trust: bool = False
    """Load a `program`: such a file is code, which can read and write what this user can. Only set
    it for files that you made or whose maker you trust."""

    def __post_init__(self) -> None:
        if self.kind != "demo" and self.path is None:
            raise ValueError(f"recogniser.kind={self.kind} needs recogniser.path, the weight file")
        if self.kind == "demo" and self.path is not None:
            raise ValueError(
                "recogniser.path is given, but recogniser.kind=demo; did you mean onnx?"
            )
        if self.kind == "demo" and self.preprocessing != PreprocessingConfig():
            raise ValueError("recogniser.kind=demo knows its preprocessing; leave that out")
        for name, kinds in _KINDS_OF_OPTIONS.items():
            if self.kind not in kinds and getattr(self, name) not in (None, False, "float32"):
                raise ValueError(
                    f"recogniser.{name} goes with recogniser.kind={' or '.join(kinds)} only,"
                    f" got kind={self.kind}"
                )
