"""Options of export."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import STRICT, Text
from sdd_ray.settings.source import SourceConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportConfig:
    """Write a quality model as one ONNX file, with a model card; needs the extra `export`."""

    model: Text
    """Folder written by train, tune or calibrate."""
    output: Text
    """Folder of model.onnx and MODEL_CARD.md."""
    precision: Literal["float32", "float16", "int8"] = "float32"
    """Number format of the convolutions. `float16`: half the size, for GPUs. `int8`: a quarter of
    the size, for CPUs; the ranges are measured on the first half of `source`."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Images on which the file is compared with the model, such as those it will meet."""
    num_images: Annotated[int, Field(ge=16)] = 512
    """Images of `source` that are used, from its beginning."""
    evaluation: Text | None = None
    """Folder written by evaluate for this model: its figures go into the model card."""
    method: Text = "model"
    """Name of this model among the methods of the evaluation."""
