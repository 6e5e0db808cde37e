"""Networks saved whole, as programs of torch.export (.pt2) or TorchScript.

A program is code, so it is only loaded where `recogniser.trust` says so. torch.export.load runs
pickles without restriction (its sample inputs, constants and weights; read in torch 2.13,
torch/_export/serde and torch/export/pt2_archive), and a TorchScript program runs no Python but can
write files (tests/unit/test_programs.py does both).

Shapes: N images, h and w rows and columns of the input, E numbers in an embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.errors import ConfigError, WeightsError
from sdd_ray.store.weights import ProgramFormat, program_format

_LIKENESS = 0.01
"""Share of the largest value by which an embedding may change with the others in its batch."""


@dataclass(frozen=True)
class Program:
    """A network that can only be run.

    Attributes:
        run: (N, 3, h, w) float32 images on the device to (N, E) embeddings. Raises WeightsError.
        format: What saved it.
        embedding_size: E.
    """

    run: Callable[[Tensor], Tensor]
    format: ProgramFormat
    embedding_size: int


def load_program(path: Path, trust: bool, preprocessing: Preprocessing, device: str) -> Program:
    """Return a program, loaded and tried with two images.

    Args:
        path: Local file, whatever its suffix.
        trust: Whether its code may run.
        preprocessing: What it expects of its input.
        device: `cpu` or `cuda`.

    Raises:
        ConfigError: `trust` is false.
        InputError: The file is not there.
        WeightsError: The file holds no program or is damaged, or its input or output is another,
            or the embedding of an image depends on the others of its batch.
    """
    kind = program_format(path)
    if kind is None:
        raise WeightsError(
            f"{path}: expected a program saved by torch.export.save or torch.jit.save, got a file"
            " without one; for weights alone see recogniser.kind=torch"
        )
    if not trust:
        raise ConfigError(
            f"{path}: a program of {kind} is code that may do anything on this machine, so it was"
            " not loaded; if you trust whoever made it, set recogniser.trust=true"
        )
    try:
        network = (_exported if kind == "torch.export" else _scripted)(path, device)
    except Exception as error:  # Damaged bytes raise many kinds.
        raise WeightsError(f"{path}: damaged program of {kind}: {_brief(error)}") from error
    run = _checked(network, path)
    return Program(run, kind, _try(run, path, preprocessing, device))


def _exported(path: Path, device: str) -> Callable[[Tensor], Tensor]:
    from torch.export.passes import move_to_device_pass

    with path.open("rb") as stream:  # torch takes a name only if it ends in .pt2
        program = torch.export.load(stream)
    return move_to_device_pass(program, device).module()


def _scripted(path: Path, device: str) -> Callable[[Tensor], Tensor]:
    load: Callable[..., torch.jit.ScriptModule] = torch.jit.load
    return load(str(path), map_location=device).eval()


def _checked(network: Callable[[Tensor], object], path: Path) -> Callable[[Tensor], Tensor]:
    """Return the network with errors that name the file, and its output checked."""

    def run(images: Tensor) -> Tensor:
        try:
            output = network(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # It is the code of a stranger.
            raise WeightsError(
                f"{path}: the program does not run on an input of {tuple(images.shape)}:"
                f" {_brief(error)}; it must have been saved for any batch size (torch.export with"
                " dynamic_shapes) and the size in recogniser.preprocessing"
            ) from error
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images):
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise WeightsError(
                f"{path}: expected ({len(images)}, E) embeddings of the program, got {got}"
            )
        return output

    return run


@torch.inference_mode()
def _try(
    run: Callable[[Tensor], Tensor], path: Path, preprocessing: Preprocessing, device: str
) -> int:
    """Return E, found by embedding an image alone and beside another one."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        256, (2, preprocessing.height, preprocessing.width, 3), generator=generator
    )
    images = preprocessing.apply_tensor(pixels.to(torch.uint8).to(device)).contiguous()
    both, alone = run(images).float(), run(images[:1]).float()
    largest = float(both.abs().max())
    if not float((both[0] - alone[0]).abs().max()) <= _LIKENESS * largest:
        raise WeightsError(
            f"{path}: the embedding of an image depends on the others in its batch; the program was"
            " saved in training mode, so call eval() on the network before saving it"
        )
    return both.shape[1]


def _brief(error: Exception) -> str:
    """Return the last line of an error, where TorchScript and torch.export say what happened."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
