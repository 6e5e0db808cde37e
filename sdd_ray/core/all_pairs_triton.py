"""The inner loop of `all_pairs` as one Triton kernel: similarities are counted, never written.

A program computes a tile of similarities in registers and adds one to a bin for each that counts.
Where only the similarities above a row's floor are counted, a tile with none is left after one
comparison a similarity. The module can be imported without Triton; counting then fails.

With TRITON_INTERPRET=1 set before Triton is imported, the kernel runs on CPU tensors; that, and
compiling it for GPUs that are not there, is how tests/unit/test_all_pairs.py checks it.

Shapes: R rows, C columns, d numbers an embedding, K bins over [-1, 1].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from sdd_ray.core.all_pairs_counts import SIZE_STEP, CountedRows, Precision

HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON:
    # Builds of torch for the CPU come without Triton.
    import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]


@dataclass(frozen=True)
class KernelShape:
    """How the kernel cuts its work.

    Attributes:
        rows: Rows of a tile.
        columns: Columns of a tile.
        size: Numbers of an embedding that are multiplied in one step.
        num_warps: Warps of a program.
        num_stages: Steps of which the numbers are held in shared memory at once.
        group: Row tiles that go through the columns together, to find them in the L2 cache.
    """

    rows: int = 128
    columns: int = 256
    size: int = 64
    num_warps: int = 8
    num_stages: int = 3
    group: int = 8

    @classmethod
    def fitting(cls, precision: Precision, capability: tuple[int, int]) -> KernelShape:
        """Return a shape whose tiles fit a GPU's registers and shared memory.

        The shapes for compute capability 9 take up to 144 KiB of shared memory and spill no
        register (checked with Triton 3.6 and 3.9); the others take up to 64 KiB. Their speed has
        not been compared on a GPU: benchmarks/labels_gpu.py does.
        """
        if precision == "float32":
            return cls(columns=64, size=32)
        if capability[0] < 9:
            return cls(columns=128, size=32, num_stages=2)
        return cls(size=32) if precision == "tf32" else cls()


def count(
    rows: CountedRows,
    columns: torch.Tensor,
    group: torch.Tensor,
    precision: Precision,
    shape: KernelShape | None = None,
) -> None:
    """Add the similarities of the rows to some columns to the rows' histogram.

    Args:
        rows: The rows, on a GPU; their histogram is changed.
        columns: (C, d) embeddings in the rows' format.
        group: (C,) int32 groups of the columns.
        precision: The format.
        shape: How to cut the work; by default as `KernelShape.fitting` says.

    Raises:
        ValueError: Triton is not installed, d is no multiple of SIZE_STEP, or the histogram has
            2^31 cells or more.
    """
    if not HAS_TRITON:
        raise ValueError("expected Triton to be installed, got none; backend 'torch' needs none")
    if columns.shape[1] % SIZE_STEP or rows.histogram.numel() >= 2**31:
        raise ValueError(
            f"expected embeddings of a multiple of {SIZE_STEP} numbers and fewer than 2^31 cells, "
            f"got {columns.shape[1]} numbers and {rows.histogram.numel()} cells"
        )
    if len(columns) == 0:
        return
    if shape is None:
        on_gpu = columns.device.type == "cuda"
        capability = torch.cuda.get_device_capability(columns.device) if on_gpu else (0, 0)
        shape = KernelShape.fitting(precision, capability)
    num_tiles = -(-len(rows.values) // shape.rows) * -(-len(columns) // shape.columns)
    with torch.cuda.device(columns.device) if columns.device.type == "cuda" else nullcontext():
        _count_tile[(num_tiles,)](
            rows.values,
            columns,
            rows.group,
            group,
            rows.group if rows.floor_bin is None else rows.floor_bin,
            rows.histogram,
            len(rows.values),
            len(columns),
            **constants(rows, precision, shape),
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
        )


def constants(rows: CountedRows, precision: Precision, shape: KernelShape) -> dict[str, Any]:
    """Return the arguments of the kernel for each value of which it is compiled anew."""
    return {
        "embedding_size": rows.values.shape[1],
        "bins": rows.histogram.shape[1],
        "has_floor": rows.floor_bin is not None,
        "input_precision": "tf32" if precision == "tf32" else "ieee",
        "tile_rows": shape.rows,
        "tile_columns": shape.columns,
        "step": shape.size,
        "tiles_together": shape.group,
    }


def _jit(function: Callable[..., Any]) -> Any:
    """Return the function for Triton to compile, or as it is where there is no Triton."""
    return triton.jit(function) if HAS_TRITON else function


@_jit
def _halves(tile: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return the left and the right half of a tile's columns."""
    pair = tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2))
    left, right = tl.split(tl.permute(pair, (0, 2, 1)))
    return left, right


@_jit
def _add_counts(  # noqa: PLR0913, PLR0917 - a kernel takes pointers and sizes one by one
    similarity: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    lowest: tl.tensor,
    row_group: tl.tensor,
    column_group: tl.tensor,
    histogram: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    bins: tl.constexpr,
) -> None:
    """Add a tile's counts to the histogram."""
    place = similarity * (bins / 2) + (bins / 2)
    place = tl.minimum(tl.maximum(place, 0.0), bins - 1.0).to(tl.int32)
    own = tl.load(row_group + row, mask=row < num_rows, other=-1)
    other = tl.load(column_group + column, mask=column < num_columns, other=-1)
    counted = (own[:, None] != other[None, :]) & (place >= lowest[:, None])
    counted = counted & (row < num_rows)[:, None] & (column < num_columns)[None, :]
    tl.atomic_add(histogram + row[:, None] * bins + place, 1, mask=counted, sem="relaxed")


@_jit
def _count_quarters(  # noqa: PLR0913, PLR0917 - a kernel takes pointers and sizes one by one
    similarity: tl.tensor,
    row: tl.tensor,
    first_column: tl.tensor,
    lowest: tl.tensor,
    row_group: tl.tensor,
    column_group: tl.tensor,
    histogram: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    bins: tl.constexpr,
) -> None:
    """Add a tile's counts to the histogram, a quarter of its columns at a time.

    The addresses of a whole tile would not fit into shared memory.
    """
    quarter: tl.constexpr = similarity.shape[1] // 4
    column = first_column + tl.arange(0, quarter)
    left, right = _halves(similarity)
    first, second = _halves(left)
    third, fourth = _halves(right)
    # fmt: off
    _add_counts(first, row, column, lowest,
                row_group, column_group, histogram, num_rows, num_columns, bins)
    _add_counts(second, row, column + quarter, lowest,
                row_group, column_group, histogram, num_rows, num_columns, bins)
    _add_counts(third, row, column + 2 * quarter, lowest,
                row_group, column_group, histogram, num_rows, num_columns, bins)
    _add_counts(fourth, row, column + 3 * quarter, lowest,
                row_group, column_group, histogram, num_rows, num_columns, bins)
    # fmt: on


@_jit
def _count_tile(  # noqa: PLR0913, PLR0917 - a kernel takes pointers and sizes one by one
    rows: tl.tensor,
    columns: tl.tensor,
    row_group: tl.tensor,
    column_group: tl.tensor,
    floor_bin: tl.tensor,
    histogram: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    embedding_size: tl.constexpr,
    bins: tl.constexpr,
    has_floor: tl.constexpr,
    input_precision: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    step: tl.constexpr,
    tiles_together: tl.constexpr,
) -> None:
    """Multiply one tile of rows with one tile of columns and count what comes out."""
    # Programs that run at the same time share columns, and a few row tiles.
    row_tiles = tl.cdiv(num_rows, tile_rows)
    band = tiles_together * tl.cdiv(num_columns, tile_columns)
    first_tile = tl.program_id(0) // band * tiles_together
    height = tl.minimum(row_tiles - first_tile, tiles_together)
    place = tl.program_id(0) % band
    row = (first_tile + place % height) * tile_rows + tl.arange(0, tile_rows)
    first_column = (place // height) * tile_columns
    column = first_column + tl.arange(0, tile_columns)

    # Beyond the end the last row or column is multiplied again, and not counted.
    within = tl.arange(0, step)
    left = rows + tl.minimum(row, num_rows - 1).to(tl.int64) * embedding_size
    right = columns + tl.minimum(column, num_columns - 1).to(tl.int64) * embedding_size
    similarity = tl.zeros((tile_rows, tile_columns), tl.float32)
    for start in range(0, embedding_size, step):
        left_numbers = tl.load(left[:, None] + (start + within)[None, :])
        right_numbers = tl.load(right[None, :] + (start + within)[:, None])
        similarity = tl.dot(
            left_numbers, right_numbers, similarity, input_precision=input_precision
        )

    if has_floor:
        lowest = tl.load(floor_bin + row, mask=row < num_rows, other=bins)
        floor = lowest.to(tl.float32) * (2.0 / bins) - 1.0 - 2.0**-20  # less than rounding moves
        is_needed = tl.max(tl.max(similarity - floor[:, None], axis=1), axis=0) >= 0.0
    else:
        lowest = tl.zeros((tile_rows,), tl.int32)
        is_needed = True
    if is_needed:
        _count_quarters(
            similarity,
            row,
            first_column,
            lowest,
            row_group,
            column_group,
            histogram,
            num_rows,
            num_columns,
            bins,
        )
