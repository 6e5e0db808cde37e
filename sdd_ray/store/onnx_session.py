"""ONNX files run with onnxruntime, which is an extra of the package.

Shapes: N inputs, E numbers in an output row.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.errors import InputError, ResourceError, WeightsError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3


class OnnxSession:
    """A network in an ONNX file with one float32 input; its first output is taken.

    Files whose batch size is fixed, as exports often have it, are run as many times as needed.

    Args:
        path: The file.
        threads: CPU threads.
        device: `cpu` or `cuda`; there is no fall-back from the one to the other.

    Raises:
        InputError: The file is missing.
        WeightsError: The file is damaged, or has several inputs or one of another type.
        ResourceError: onnxruntime or the device is not there.
    """

    def __init__(self, path: Path, threads: int, device: str) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such ONNX file")
        self._path = path
        self._session = _start(path, threads, device)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{item.name} {item.type}" for item in inputs)
            raise WeightsError(f"{path}: expected one input of type tensor(float), got {found}")
        self._name: str = inputs[0].name
        self._output: str = self._session.get_outputs()[0].name
        self._shape: list[int | str | None] = inputs[0].shape

    def check_input(self, shape: tuple[int, int, int]) -> None:
        """Check that the network takes (N, *shape) arrays.

        Raises:
            WeightsError: It does not.
        """
        fits = len(self._shape) == 4 and all(
            not isinstance(theirs, int) or theirs == ours
            for theirs, ours in zip(self._shape[1:], shape, strict=True)
        )
        if not fits:
            raise WeightsError(
                f"{self._path}: expected an input of (N, {', '.join(map(str, shape))}),"
                f" channels first, got {self._shape}; see recogniser.preprocessing"
            )

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (N, E) outputs for (N, 3, h, w) inputs, N >= 1.

        Raises:
            WeightsError: The network does not give one row an input.
        """
        at_once = self._shape[0] if isinstance(self._shape[0], int) else len(inputs)
        rows = [
            self._run_padded(inputs[start : start + at_once], at_once)
            for start in range(0, len(inputs), at_once)
        ]
        return np.concatenate(rows)

    def _run_padded(self, inputs: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        num_inputs = len(inputs)
        if num_inputs < size:
            padding = np.zeros((size - num_inputs, *inputs.shape[1:]), np.float32)
            inputs = np.concatenate([inputs, padding])
        try:
            output = self._session.run([self._output], {self._name: inputs})[0]
        except Exception as error:  # as in `_start`
            raise WeightsError(f"{self._path}: onnxruntime cannot run it: {error}") from error
        if output.shape[:1] != (size,):
            raise WeightsError(
                f"{self._path}: expected {size} rows in the output {self._output},"
                f" got shape {output.shape}"
            )
        rows: NDArray[np.float32] = output.reshape(size, -1)[:num_inputs].astype(np.float32)
        return rows


def _start(path: Path, threads: int, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ResourceError(
            "ONNX files need onnxruntime on every node: pip install 'sdd-ray[onnx]'"
            " (for a GPU, onnxruntime-gpu)"
        ) from error
    provider = _PROVIDERS[device]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ResourceError(f"expected onnxruntime with {provider}, got one with {available}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's kinds of errors have no common base of their own.
        raise WeightsError(f"{path}: onnxruntime cannot load it: {error}") from error
    if provider not in session.get_providers():
        raise ResourceError(
            f"onnxruntime could not start {provider} and fell back to {session.get_providers()}"
        )
    return session
