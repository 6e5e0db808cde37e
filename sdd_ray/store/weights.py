"""Weight files: read safely, fitted strictly, written as safetensors.

A weight file comes from a stranger. Pickles are read with torch's restricted unpickler, which runs
no code, and every tensor must find its place: a network that kept some of its random weights would
run without any error.
"""

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sdd_ray.errors import InputError, WeightsError
from sdd_ray.store.location import Location

_PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt")
_NESTS = ("state_dict", "net_state_dict", "model")
_PARALLEL_PREFIX = "module."
_SHOWN = 3
_HASHED_AT_ONCE = 1 << 20


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name, on the CPU.

    Checkpoints that hold them under `state_dict`, `net_state_dict` or `model` are opened, and the
    prefix `module.` of data-parallel training is taken off.

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
        return _without_parallel_prefix(_tensors(_unpickle(path), path))
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

    Args:
        network: Receives the values, in its own number format and on its own device.
        weights: Tensors by name.
        source: Where they came from, for the error.

    Raises:
        WeightsError: Names or shapes differ, or a value is not finite; the network is unchanged.
    """
    expected = network.state_dict()
    missing = [name for name in expected if name not in weights]
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
    network.load_state_dict(dict(weights))


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
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused; it holds more than tensors and plain values, or is damaged:"
            f" {_first_line(error)}"
        ) from error
    except Exception as error:  # Damaged bytes raise many kinds, down to AssertionError.
        raise WeightsError(f"{path}: damaged weight file: {_first_line(error)}") from error
    return content


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, which may lie under a well-known name."""
    nest = next((n for n in _NESTS if isinstance(content, dict) and n in content), None)
    if nest is not None and isinstance(content, dict) and isinstance(content[nest], dict):
        return _tensors(content[nest], path)
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{path}: expected tensors by name, got {_kind(content)}")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"{path}: expected tensors by name, directly or under {', '.join(_NESTS)};"
            f" got {len(others)} other values ({_first(others)})"
        )
    return {str(name): value for name, value in content.items()}


def _without_parallel_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if not all(name.startswith(_PARALLEL_PREFIX) for name in weights):
        return weights
    return {name[len(_PARALLEL_PREFIX) :]: value for name, value in weights.items()}


def _kind(content: object) -> str:
    return "an empty dict" if content == {} else type(content).__name__


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
