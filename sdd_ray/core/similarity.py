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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Embeddings = NDArray[np.float16] | NDArray[np.float32] | NDArray[np.float64]
Real = TypeVar("Real", np.float32, np.float64)

EMBEDDING_REASONS = ("", "zero_embedding", "non_finite_embedding")
"""Reason by code, as `check_embeddings` returns it; code 0 is a usable embedding."""

_ALIGNMENT_BYTES = 64
_ROWS_AT_ONCE = 256  # whose float64 copies stay in the processor's cache


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
    return _faults(_scaled(embeddings)[1])


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
    unit, norms = _scaled(embeddings)
    num_bad = np.count_nonzero(_faults(norms))
    if num_bad:
        raise ValueError(
            f"expected embeddings of finite length above 0, got {num_bad} others among "
            f"{len(embeddings)}; set them aside by check_embeddings first"
        )
    return unit, norms


def usable_rows(embeddings: Embeddings) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return (M, d) the usable embeddings scaled to unit length, and (N,) what is wrong with each.

    One pass over the data for `check_embeddings` and `normalise` together.

    Raises:
        ValueError: The array is not two-dimensional.

    Example:
        >>> unit, faults = usable_rows(np.float32([[3, 4], [0, 0]]))
        >>> unit.shape, faults.tolist()
        ((1, 2), [0, 1])
    """
    unit, norms = _scaled(embeddings)
    faults = _faults(norms)
    return (unit[faults == 0] if faults.any() else unit), faults


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
    with one_thread():
        result: NDArray[Real] = torch.mm(tensor_of(rows), tensor_of(columns).T).numpy()
    return result


def aligned(array: NDArray[Real]) -> NDArray[Real]:
    """Return the array where `products` takes it without a copy; itself, if it lies there.

    Example:
        >>> aligned(np.float32([[1, 2]])).tolist()
        [[1.0, 2.0]]
    """
    if array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT_BYTES == 0:
        return array
    room = np.empty(array.nbytes + _ALIGNMENT_BYTES, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT_BYTES
    place = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    place[:] = array
    return place


def gram_matrices(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (G, R, R) the inner products within each of G groups of R rows, by one thread.

    Args:
        rows: (G, R, d) rows.
    """
    with one_thread():
        tensor = tensor_of(rows)
        result: NDArray[np.float32] = torch.bmm(tensor, tensor.transpose(1, 2)).numpy()
    return result


def column_products(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (d, d) the inner products of the columns of (R, d) rows, by one thread."""
    with one_thread():
        tensor = tensor_of(rows)
        result: NDArray[np.float32] = torch.mm(tensor.T, tensor).numpy()
    return result


def lower_factor(matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the (d, d) Cholesky factor of a matrix by one thread, None if it is not positive."""
    with one_thread():
        factor, info = torch.linalg.cholesky_ex(tensor_of(matrix))
    result: NDArray[np.float64] = factor.numpy()
    return None if int(info) else result


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread meanwhile, which `products` says why."""
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def tensor_of(array: NDArray[Real]) -> torch.Tensor:
    """Return the array as a tensor that starts at a multiple of 64 bytes, copied only if needed."""
    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only, of which torch warns; nothing writes here.
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT_BYTES else tensor


def _scaled(embeddings: Embeddings) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (N, d) rows over their lengths and (N,) lengths, both rounded once from float64.

    Rows that cannot be used come out as anything.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"expected (N, d) embeddings, got shape {embeddings.shape}")
    unit = np.empty(embeddings.shape, np.float32)
    norms = np.empty(len(embeddings), np.float32)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for first in range(0, len(embeddings), _ROWS_AT_ONCE):
            chunk = slice(first, first + _ROWS_AT_ONCE)
            exact = embeddings[chunk].astype(np.float64)
            lengths = np.sqrt(np.einsum("nd,nd->n", exact, exact))
            norms[chunk] = lengths
            unit[chunk] = np.divide(exact, lengths[:, None], out=exact)
    return unit, norms


def _faults(norms: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return (N,) codes into EMBEDDING_REASONS."""
    return np.where(norms == 0, 1, np.where(np.isfinite(norms), 0, 2)).astype(np.int8)
