"""Unit-length embeddings and the inner products between them.

Products are computed by torch on one thread, from memory aligned to 64 bytes. The reason is that a
label must not change with the machine's load or layout: BLAS libraries add up in another order
when the number of threads changes (measured for OpenBLAS behind numpy, whose thread count cannot
be set once it is loaded) and some also when an array starts at another address (measured for MKL
behind torch). With both fixed, equal arrays of equal shape give equal bits on one kind of
processor. The shape still matters, so callers cut their work into tiles of constant shape.

Shapes: N embeddings of d numbers, products of R rows with C columns.
"""

import warnings
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Embeddings = NDArray[np.float16] | NDArray[np.float32] | NDArray[np.float64]
Real = TypeVar("Real", np.float32, np.float64)

EMBEDDING_REASONS = ("", "zero_embedding", "non_finite_embedding")
"""Reason by code, as `check_embeddings` returns it; code 0 is a usable embedding."""

_ALIGNMENT_BYTES = 64


def check_embeddings(embeddings: Embeddings) -> NDArray[np.int8]:
    """Return (N,) which embeddings cannot be used, as codes into `EMBEDDING_REASONS`.

    A row whose length does not fit into float32 (0, or infinite) counts as zero or non-finite.

    Args:
        embeddings: (N, d) floating point numbers of any length.

    Raises:
        ValueError: The array is not two-dimensional.

    Example:
        >>> check_embeddings(np.float32([[3, 4], [0, 0], [1, np.nan]])).tolist()
        [0, 1, 2]
    """
    norms = _norms(embeddings).astype(np.float32)
    return np.where(norms == 0, 1, np.where(np.isfinite(norms), 0, 2)).astype(np.int8)


def normalise(embeddings: Embeddings) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the embeddings scaled to unit length, and their lengths before that.

    Length and division are computed in float64 and rounded once.

    Args:
        embeddings: (N, d) floating point numbers; every row usable by `check_embeddings`.

    Returns:
        (N, d) rows of unit length and (N,) lengths, both float32.

    Raises:
        ValueError: The array is not two-dimensional, or a row is zero or not finite.

    Example:
        >>> unit, norms = normalise(np.float32([[3, 4]]))
        >>> unit.round(6).tolist(), norms.tolist()
        ([[0.6000000238418579, 0.800000011920929]], [5.0])
    """
    num_bad = np.count_nonzero(check_embeddings(embeddings))
    if num_bad:
        raise ValueError(
            f"expected embeddings of finite length above 0, got {num_bad} others among "
            f"{len(embeddings)}; set them aside by check_embeddings first"
        )
    norms = _norms(embeddings)
    unit = embeddings.astype(np.float64) / norms[:, None]
    return unit.astype(np.float32), norms.astype(np.float32)


def products(rows: NDArray[Real], columns: NDArray[Real]) -> NDArray[Real]:
    """Return (R, C) inner products, by one thread: for unit rows, cosine similarities.

    Nothing is clipped: rounding may leave a similarity some 1e-7 above 1. The process's torch
    thread count is set to 1 meanwhile and then restored.

    Args:
        rows: (R, d) float32 or float64.
        columns: (C, d) of the same type.

    Raises:
        ValueError: The arrays do not have two dimensions each and an equal d.

    Example:
        >>> products(np.float32([[1, 0], [0.6, 0.8]]), np.float32([[0, 1]])).tolist()
        [[0.0], [0.800000011920929]]
    """
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
        raise ValueError(f"expected (R, d) and (C, d), got {rows.shape} and {columns.shape}")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result: NDArray[Real] = torch.mm(_tensor(rows), _tensor(columns).T).numpy()
    finally:
        torch.set_num_threads(num_threads)
    return result


def _tensor(array: NDArray[Real]) -> torch.Tensor:
    """Return the array as a tensor that starts at a multiple of 64 bytes, copied only if needed."""
    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only, of which torch warns; nothing writes here.
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT_BYTES else tensor


def _norms(embeddings: Embeddings) -> NDArray[np.float64]:
    """Return (N,) lengths in float64, NaN or infinite where the row is not finite."""
    if embeddings.ndim != 2:
        raise ValueError(f"expected (N, d) embeddings, got shape {embeddings.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.square(embeddings, dtype=np.float64)
        norms: NDArray[np.float64] = np.sqrt(squares.sum(axis=1))
    return norms
