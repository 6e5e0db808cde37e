"""A quality model as one ONNX file: from pixels to raw and calibrated qualities.

Preprocessing and calibration are part of the graph, so that a user of the file cannot get them
wrong. Its metadata say the same in words.

Shapes: N images, K knots of a quantile map.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import sdd_ray
from sdd_ray.core.calibration import QuantileMap, SigmoidMap
from sdd_ray.errors import ResourceError
from sdd_ray.store.model_folder import QualityModel

Precision = Literal["float32", "float16", "int8"]

OPSET = 18
INPUT, RAW, QUALITY = "images", "raw", "quality"
SIDE = 112
_EXTRA = "pip install 'sdd-ray[export]'"
_BATCH = 32


class _PixelsToQualities(nn.Module):
    """The whole road of `sdd_ray.store.quality.QualityRunner` as one module."""

    def __init__(self, model: QualityModel, precision: Precision) -> None:
        super().__init__()
        self._preprocessing = model.preprocessing
        self._network = model.network.eval()
        self._is_half = precision == "float16"
        if self._is_half:
            self._network.backbone.half()  # the head computes in float32, as everywhere
        self._map = _map_module(model.calibration)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw qualities and those in [0, 100], (N,) float32, of (N, 112, 112, 3) bytes."""
        inputs = self._preprocessing.apply_tensor(images).contiguous()
        raw = self._network(inputs.half() if self._is_half else inputs).float()
        return raw, self._map(raw)


def _map_module(calibration: QuantileMap | SigmoidMap) -> nn.Module:
    return (
        _Quantiles(calibration) if isinstance(calibration, QuantileMap) else _Sigmoid(calibration)
    )


class _Quantiles(nn.Module):
    """A piecewise linear map as a sum of ramps: ONNX has no search in sorted values."""

    starts: Tensor
    widths: Tensor
    slopes: Tensor

    def __init__(self, calibration: QuantileMap) -> None:
        super().__init__()
        raw = torch.tensor(calibration.raw, dtype=torch.float64)
        quality = torch.tensor(calibration.quality, dtype=torch.float64)
        self.register_buffer("starts", raw[:-1])
        self.register_buffer("widths", raw.diff())
        self.register_buffer("slopes", quality.diff() / raw.diff())
        self.lowest = float(quality[0])

    def forward(self, raw: Tensor) -> Tensor:
        """Return the qualities of (N,) raw ones."""
        ramps = (raw.double()[:, None] - self.starts).clamp(min=0.0)
        ramps = torch.minimum(ramps, self.widths)
        return ((ramps * self.slopes).sum(1) + self.lowest).float()


class _Sigmoid(nn.Module):
    def __init__(self, calibration: SigmoidMap) -> None:
        super().__init__()
        self.centre, self.scale = calibration.centre, calibration.scale

    def forward(self, raw: Tensor) -> Tensor:
        """Return the qualities of (N,) raw ones."""
        return (100 * torch.sigmoid((raw.double() - self.centre) / self.scale)).float()


def onnx_bytes(
    model: QualityModel, precision: Precision, faces: NDArray[np.uint8] | None = None
) -> bytes:
    """Return a model as the content of an ONNX file.

    Its input is `images`, (N, 112, 112, 3) uint8 RGB, N free; its outputs are `raw` and `quality`,
    (N,) float32.

    Args:
        model: Its network is changed by `float16`: load another one for other purposes.
        precision: Number format of the convolutions.
        faces: (M, 112, 112, 3), to measure ranges for `int8`.

    Raises:
        ResourceError: The packages that write ONNX files are not installed.
        ValueError: `int8` was asked for without faces.
    """
    _check_packages(quantises=precision == "int8")
    module = _PixelsToQualities(model, precision).eval()
    example = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        with _quiet():
            program: Any = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=[RAW, QUALITY],
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
            program.save(str(file))
        if precision == "int8":
            if faces is None:
                raise ValueError("int8 needs faces to measure ranges on")
            file = _quantised(file, faces)
        return _with_metadata(file, model, precision)


def run_onnx(content: bytes, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
    """Yield (N, 2) raw and calibrated qualities of each batch, as an ONNX file has them.

    Args:
        content: Of the file.
        batches: (N, 112, 112, 3) faces each.

    Raises:
        ResourceError: onnxruntime is not installed.
    """
    _check_packages()
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in batches:
        yield np.stack(session.run([RAW, QUALITY], {INPUT: batch}), axis=1)


def _quantised(file: Path, faces: NDArray[np.uint8]) -> Path:
    """Return the file with convolutions and products of 8-bit integers."""
    from onnxruntime import quantization

    class Faces(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            self._batches = iter(np.split(faces, range(_BATCH, len(faces), _BATCH)))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    target = file.with_name("int8.onnx")
    with _quiet():
        quantization.quantize_static(
            str(file),
            str(target),
            Faces(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv"],  # the head is small, and its precision is the ranking's
        )
    return target


def _with_metadata(file: Path, model: QualityModel, precision: Precision) -> bytes:
    import onnx

    loaded = onnx.load(str(file))
    for part in (loaded.graph, *loaded.graph.node, *loaded.graph.input, *loaded.graph.output):
        del part.metadata_props[:]  # where torch traced each node: paths of this machine
    for info in loaded.graph.value_info:
        del info.metadata_props[:]
    onnx.helper.set_model_props(loaded, metadata(model, precision))
    loaded.producer_name, loaded.producer_version = "sdd_ray", sdd_ray.__version__
    onnx.checker.check_model(loaded)
    content: bytes = loaded.SerializeToString()
    return content


def metadata(model: QualityModel, precision: Precision) -> dict[str, str]:
    """Return what an ONNX file says of itself."""
    trees = {
        "preprocessing": model.preprocessing.to_dict(),
        "calibration": model.calibration.to_dict(),
        "calibrated": dict(model.calibrated),
        "thresholds": {name: t.to_dict() for name, t in model.thresholds.items()},
    }
    return {
        "input": f"{INPUT}: (N, {SIDE}, {SIDE}, 3) uint8, RGB, aligned face crops (ArcFace"
        " template); preprocessing and calibration are inside the graph",
        "output": f"{RAW}: (N,) float32 in units of the label; {QUALITY}: (N,) float32 in [0, 100],"
        " larger is better; as an integer: floor(quality + 0.5)",
        "precision": precision,
        "weights_sha256": model.digest,
        **{name: json.dumps(tree, sort_keys=True) for name, tree in trees.items()},
    }


def _check_packages(quantises: bool = False) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401

        if quantises:
            import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            f"to write ONNX files, install what they need: {_EXTRA} ({error})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters remark from users: the file is compared with the model anyway."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "root", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
