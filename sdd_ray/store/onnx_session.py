"""ONNX files run with onnxruntime, which is an extra of the package.

Shapes: N images, h and w rows and columns of the input, E numbers in an embedding.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sdd_ray.errors import ResourceError, WeightsError

Layout = Literal["nchw", "nhwc"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3
_INPUT_TYPES: dict[str, type[np.float32] | type[np.float16] | type[np.uint8]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
_NO_MEMORY = ("Failed to allocate memory", "out of memory", "ALLOC_FAILED")
"""In the messages of onnxruntime's arena, of CUDA and of its libraries."""
_CHANNEL_AXIS: dict[Layout, int] = {"nchw": 1, "nhwc": 3}


@dataclass(frozen=True)
class OnnxOptions:
    """How to run an ONNX file.

    Attributes:
        threads: CPU threads.
        device: `cpu` or `cuda`; there is no fall-back from the one to the other.
        layout: Whether the channels come first or last; None: what the shape of the input says.
        output: Name of the output; None: the only one, or the first of rank 2.
    """

    threads: int = 1
    device: str = "cpu"
    layout: Layout | None = None
    output: str | None = None


class OnnxSession:
    """A network in an ONNX file with one image input and an output of embeddings.

    Files whose batch size is fixed, as exports often have it, are run as many times as needed.

    Args:
        path: The file.
        options: How to run it.

    Attributes:
        layout: The layout.
        output: Name of the output that is taken.
        input_type: `float32`, `float16` or `uint8`.

    Raises:
        WeightsError: The file is damaged, its input or output is another, or cannot be told.
        ResourceError: onnxruntime or the device is not there.
    """

    def __init__(self, path: Path, options: OnnxOptions) -> None:
        self._path = path
        self._session = _start(path, options.threads, options.device)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _INPUT_TYPES:
            found = ", ".join(f"{item.name} {item.type}" for item in inputs)
            raise WeightsError(
                f"{path}: expected one input of a type among {', '.join(_INPUT_TYPES)}, got {found}"
            )
        self._name: str = inputs[0].name
        self._shape: list[int | str | None] = inputs[0].shape
        self._type = _INPUT_TYPES[inputs[0].type]
        self.input_type: str = np.dtype(self._type).name
        self.layout = self._layout(options.layout)
        self.output = self._output(options.output)

    def check_input(self, height: int, width: int) -> None:
        """Check that the network takes images of (height, width).

        Raises:
            WeightsError: It does not.
        """
        rows, columns = self._shape[2:] if self.layout == "nchw" else self._shape[1:3]
        fits = (not isinstance(rows, int) or rows == height) and (
            not isinstance(columns, int) or columns == width
        )
        if not fits:
            raise WeightsError(
                f"{self._path}: the network takes images of {rows} x {columns} pixels, but"
                f" recogniser.preprocessing makes them {height} x {width} (height, width)"
            )

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (N, E) embeddings of (N, 3, h, w) inputs, N >= 1, for any layout and type.

        Raises:
            WeightsError: The network does not run, or does not give one row an input.
            ResourceError: The memory does not suffice.
        """
        arranged = inputs if self.layout == "nchw" else inputs.transpose(0, 2, 3, 1)
        values = np.ascontiguousarray(arranged, self._type)
        at_once = self._shape[0] if isinstance(self._shape[0], int) else len(inputs)
        rows = [
            self._run_padded(values[start : start + at_once], at_once)
            for start in range(0, len(values), at_once)
        ]
        return np.concatenate(rows)

    def _layout(self, given: Layout | None) -> Layout:
        """Return the layout that was given or that the shape of the input tells."""
        possible = [
            layout
            for layout, axis in _CHANNEL_AXIS.items()
            if len(self._shape) == 4
            and (self._shape[axis] == 3 or (given and not isinstance(self._shape[axis], int)))
        ]
        if given in possible:
            return given
        if given is None and len(possible) == 1:
            return possible[0]
        advice = (
            "recogniser.layout=nchw or nhwc says which of them are the channels"
            if given is None
            else f"which does not go with recogniser.layout={given}"
        )
        raise WeightsError(
            f"{self._path}: expected an input of (N, 3, height, width) or (N, height, width, 3),"
            f" got {self._name} {self._shape}; {advice}"
        )

    def _output(self, given: str | None) -> str:
        """Return the output that was given, else the only one or the first of rank 2."""
        outputs = self._session.get_outputs()
        names = [item.name for item in outputs]
        if given is None and len(outputs) > 1:
            names = [item.name for item in outputs if len(item.shape) == 2]
        if given in names or (given is None and names):
            return given or names[0]
        found = ", ".join(f"{item.name} {item.shape}" for item in outputs)
        raise WeightsError(
            f"{self._path}: expected an output"
            f" {'of the shape (N, E)' if given is None else given}, got {found}; recogniser.output"
            " names the one to take"
        )

    def _run_padded(self, inputs: NDArray[Any], size: int) -> NDArray[np.float32]:
        num_inputs = len(inputs)
        if num_inputs < size:
            padding = np.zeros((size - num_inputs, *inputs.shape[1:]), inputs.dtype)
            inputs = np.concatenate([inputs, padding])
        try:
            output = self._session.run([self.output], {self._name: inputs})[0]
        except Exception as error:  # as in `_start`
            if any(mark in str(error) for mark in _NO_MEMORY):
                raise ResourceError(
                    f"{self._path}: the memory does not suffice for {size} images at once; lower"
                    f" batch_size ({error})"
                ) from error
            raise WeightsError(f"{self._path}: onnxruntime cannot run it: {error}") from error
        # Some exports keep the (1, 1) of a pooled feature map behind the embedding.
        if output.shape[:1] != (size,) or output.size != size * max(output.shape[1:2], default=0):
            raise WeightsError(
                f"{self._path}: expected ({size}, E) embeddings in the output {self.output}, got"
                f" the shape {output.shape}"
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
