"""Weight files: read safely, fitted strictly, written as safetensors.

A weight file comes from a stranger. Pickles are read with torch's restricted unpickler, which runs
no code, and every tensor must find its place: a network that kept some of its random weights would
run without any error.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sdd_ray.errors import InputError, WeightsError
from sdd_ray.store.location import Location

ProgramFormat = Literal["torch.export", "TorchScript"]

_PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt")
_NESTS = (
    "state_dict",
    "net_state_dict",
    "model_state_dict",
    "state_dict_backbone",
    "backbone",
    "model",
)
_PROGRAM_MARKS: dict[str, ProgramFormat] = {
    "archive_format": "torch.export",
    "constants.pkl": "TorchScript",
}
_COUNTER = "num_batches_tracked"  # not there in old checkpoints, and of no effect when frozen
_DEEPEST = 4  # dicts within dicts; a damaged one may even hold itself
_UNPACKED_LIMIT = 2  # torch.save does not compress
_SHOWN = 3
_HASHED_AT_ONCE = 1 << 20


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name, on the CPU.

    Checkpoints that hold them under a well-known name, such as `state_dict` or `model`, are opened.

    Args:
        path: Local .safetensors, .pt, .pth or .ckpt file.

    Raises:
        InputError: The file is not there or cannot be read.
        WeightsError: The suffix is not known, the file is damaged, would run code, or holds
            something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such weight file")
    if path.suffix == ".safetensors":
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error}") from error
        return parse_safetensors(content, str(path))
    if path.suffix in _PICKLE_SUFFIXES:
        return _tensors(_unpickle(path), path)
    known = ", ".join((".safetensors", *_PICKLE_SUFFIXES))
    raise WeightsError(f"{path}: expected a weight file named {known}")


def parse_safetensors(content: bytes, source: str) -> dict[str, Tensor]:
    """Return the tensors in the content of a safetensors file by name, on the CPU.

    Args:
        content: The whole file.
        source: Where it came from, for the error.

    Raises:
        WeightsError: The content is damaged.
    """
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{source}: damaged safetensors file: {error}") from error


def fit_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Give a network its weights; every tensor must fit and none may be left over.

    The counters of batch normalisation alone may be missing, as in checkpoints of early torch.

    Args:
        network: Receives the values, in its own number format and on its own device.
        weights: Tensors by name.
        source: Where they came from, for the error.

    Raises:
        WeightsError: Names or shapes differ, or a value is not finite; the network is unchanged.
    """
    expected = network.state_dict()
    missing = [n for n in expected if n not in weights and not n.endswith(_COUNTER)]
    extra = [name for name in weights if name not in expected]
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {kind} ({_first(names)})"
        for kind, names in (
            ("missing", missing),
            ("not known to the architecture", extra),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise WeightsError(
            f"{source}: the weights do not fit {type(network).__name__} of {len(expected)} tensors:"
            f" {'; '.join(problems)}"
        )
    broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise WeightsError(f"{source}: values that are not finite in {_first(broken)}")
    network.load_state_dict({**expected, **weights})


def program_format(path: str | Path) -> ProgramFormat | None:
    """Return which kind of program a file holds by what it lists; None if it holds none.

    Raises:
        InputError: The file is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return _program_in(_entries(path))


def safetensors_bytes(weights: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file; equal weights give equal bytes."""
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    return safetensors.torch.save(plain)


def save_weights(path: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, whole or not at all.

    Raises:
        OutputError: The place cannot be written.
    """
    Location(str(path)).write_bytes(safetensors_bytes(weights))


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a local file in hexadecimal digits.

    Raises:
        InputError: The file is not there or cannot be read.
    """
    hashed = hashlib.sha256()
    try:
        with Path(path).open("rb") as stream:
            while block := stream.read(_HASHED_AT_ONCE):
                hashed.update(block)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return hashed.hexdigest()


def _unpickle(path: Path) -> object:
    _check_archive(path)
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused; it holds more than tensors and plain values (save the state_dict"
            f" alone, best as .safetensors), or is damaged: {_first_line(error)}"
        ) from error
    except Exception as error:  # Damaged bytes raise many kinds, down to AssertionError.
        raise WeightsError(f"{path}: damaged weight file: {_first_line(error)}") from error
    return content


def _check_archive(path: Path) -> None:
    """Refuse archives that are programs, or unpack to far more than they are."""
    entries = _entries(path)
    program = _program_in(entries)
    if program:
        raise WeightsError(
            f"{path}: expected weights, got a program of {program}; load it with"
            " recogniser.kind=program, or save its state_dict"
        )
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
    if unpacked > _UNPACKED_LIMIT * size:
        raise WeightsError(
            f"{path}: refused; its {size:,} bytes would unpack to {unpacked:,}, and torch.save does"
            " not compress"
        )


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """Return what an archive lists; nothing for a file that is none, such as an older pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return []  # torch says what is wrong, if anything


def _program_in(entries: Iterable[zipfile.ZipInfo]) -> ProgramFormat | None:
    ends = {entry.filename.rpartition("/")[2] for entry in entries}
    return next((program for mark, program in _PROGRAM_MARKS.items() if mark in ends), None)


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, which may lie under a well-known name."""
    for _ in range(_DEEPEST):
        if not isinstance(content, dict):
            break
        nest = next((name for name in _NESTS if isinstance(content.get(name), dict)), None)
        if nest is None:
            break
        content = content[nest]
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{path}: expected tensors by name, got {_kind(content)}")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"{path}: expected tensors by name, directly or under {', '.join(_NESTS)};"
            f" got {len(others)} other values ({_first(others)})"
        )
    return {str(name): value for name, value in content.items()}


def _kind(content: object) -> str:
    return "an empty dict" if content == {} else type(content).__name__


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
