"""Similarities put into bins as they are computed: the inner loop of `all_pairs`, by torch.

Embeddings are first rounded to multiples of 2^-26, which moves no similarity by more than
sqrt(d) 2^-26 (3.4e-7 for d = 512, and 1e-8 in practice). Products of such numbers are multiples of
2^-52 and, of rows of unit length, every partial sum of them is below 2: float64 holds them all
exactly. So a similarity has the same bits in whatever tile, order, thread or library it is
computed, and the counts of a row do not depend on how the work was cut.

A narrower format rounds the numbers once more; the products of two such numbers are exact in
float32, the format in which matrix units add them up.

Shapes: R rows, C columns, d numbers an embedding, K bins over [-1, 1].
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Precision = Literal["float32", "tf32", "float16", "bf16"]

GRID = 2.0**-26
"""All numbers of an embedding are multiples of this."""

UNIT_TOLERANCE = 2.0**-19
"""How far a squared length may be from 1."""

CLIPPING = 2.0**-18
"""More than a similarity moves by rounding its place in the bins and by clipping it to them."""

SIZE_STEP = 64
"""The kernel needs d to be a multiple of this; zeros do not change a product."""

TILE_COLUMNS = 4096
"""Columns multiplied at once."""

TILE_CELLS = 1 << 22
"""Cells of the histogram, or similarities, that are held in 64 bits at once (32 MiB)."""


class NumberFormat(NamedTuple):
    """What a format costs.

    Attributes:
        roundoff: Largest relative error of a number rounded to the format.
        accumulation: Bound on the error of a sum of products, for each of its d terms, in units of
            the sum of the products' sizes, when float32 is added to on a GPU. It is one unit in
            the last place (2^-23) for a product and an addition rounded in any order, and twice
            that for matrix units, which cut off the addends of a block of at least four products
            at the last place of the largest: 1 + 2/4 units at most.
            Source: Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores",
            PeerJ Computer Science 7:e330, 2021.
    """

    roundoff: float
    accumulation: float


FORMATS: dict[Precision, NumberFormat] = {
    "float32": NumberFormat(0.0, 2.0**-23),
    "tf32": NumberFormat(2.0**-11, 2.0**-22),
    "float16": NumberFormat(2.0**-11, 2.0**-22),
    "bf16": NumberFormat(2.0**-8, 2.0**-22),
}
"""Significant bits: 24, 11, 11, 8. float16 is as exact as tf32 at the speed of bf16: its narrow
range does no harm to numbers in [-1, 1]."""


@dataclass(frozen=True, eq=False)
class CountedRows:
    """Rows whose similarities are counted, and the counts so far.

    Attributes:
        values: (R, d) embeddings as they are multiplied.
        group: (R,) int32, equal for rows and columns of one identity, which are not counted.
        floor_bin: (R,) int32, the lowest bin that is counted, K for none; or None for all bins.
        histogram: (R, K) int32, bin k holds the similarities in [2k/K - 1, 2(k+1)/K - 1).
    """

    values: torch.Tensor
    group: torch.Tensor
    floor_bin: torch.Tensor | None
    histogram: torch.Tensor


def on_grid(unit: torch.Tensor) -> torch.Tensor:
    """Return (N, d) float32 embeddings rounded to multiples of GRID.

    Args:
        unit: (N, d) float32 rows of unit length.

    Raises:
        ValueError: A row is not of unit length, or not finite.
    """
    rounded = torch.round(unit * (1.0 / GRID)) * GRID
    squares: torch.Tensor = torch.linalg.vector_norm(rounded, dim=1, dtype=torch.float64).square()
    wrong = ~((squares - 1.0).abs() <= UNIT_TOLERANCE)
    if bool(wrong.any()):
        raise ValueError(
            f"expected rows of unit length, got {int(wrong.sum())} others among {len(unit)}, "
            f"the first of length {float(squares[wrong][0].sqrt()):.6g}"
        )
    return rounded


def in_format(numbers: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return float32 numbers rounded to a format, in the type in which they are multiplied.

    Example:
        >>> in_format(torch.tensor([1 + 2**-7 + 2**-9]), "bf16").tolist()
        [1.0078125]
        >>> in_format(torch.tensor([1 + 2**-10 + 2**-12]), "tf32").tolist()
        [1.0009765625]
    """
    if precision == "bf16":
        return numbers.to(torch.bfloat16)
    if precision == "float16":
        return numbers.to(torch.float16)
    if precision == "float32":
        return numbers
    bits = numbers.contiguous().view(torch.int32)
    rounded = bits + 0xFFF + ((bits >> 13) & 1)  # to nearest, ties to even
    return ((rounded >> 13) << 13).view(torch.float32)


def rounding_errors(numbers: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return (N,) float64 lengths of what rounding took from each row: (N, d) before and after."""
    taken: torch.Tensor = torch.linalg.vector_norm(
        values.float() - numbers, dim=1, dtype=torch.float64
    )
    return taken


def similarity_error(
    precision: Precision, size: int, *, rounding: torch.Tensor | None, accumulates: bool
) -> torch.Tensor:
    """Return by how much a computed similarity may differ from that of the embeddings on the grid.

    With rounded rows x' and y', |<x',y'> - <x,y>| <= |x'-x| |y'| + |x| |y'-y|. The lengths of the
    differences are measured; where they are not known yet, they are at most the roundoff (and, of
    float16, half its smallest step times sqrt(d)). Two rows rounded to bf16 thus move a similarity
    by less than 2 (2^-8) = 7.8e-3, and by about 3e-3 as measured; to float16 or tf32 by an eighth.

    Args:
        precision: The format of both rows.
        size: d.
        rounding: |x'-x| + |y'-y|, or None for the largest that the format allows.
        accumulates: True if the products are added up in float32, False if in float64.
    """
    number_format = FORMATS[precision]
    if rounding is None:
        largest = number_format.roundoff + (2.0**-25 * size**0.5 if precision == "float16" else 0.0)
        rounding = torch.tensor(2.0 * largest, dtype=torch.float64)
    accumulation = number_format.accumulation * size if accumulates else 0.0
    return (rounding + accumulation) * (1.0 + 2.0**-6) + CLIPPING


def count_by_torch(rows: CountedRows, columns: torch.Tensor, group: torch.Tensor) -> None:
    """Add the similarities of the rows to some columns to the rows' histogram.

    Args:
        rows: The rows; their histogram is changed.
        columns: (C, d) embeddings in the rows' format.
        group: (C,) int32 groups of the columns.
    """
    bins = rows.histogram.shape[1]
    tile_rows = max(1, min(TILE_CELLS // bins, TILE_CELLS // TILE_COLUMNS))
    for start in range(0, len(columns), TILE_COLUMNS):
        right = columns[start : start + TILE_COLUMNS].double().T
        right_group = group[start : start + TILE_COLUMNS]
        for first in range(0, len(rows.values), tile_rows):
            part = slice(first, first + tile_rows)
            histogram = rows.histogram[part]
            similarity = rows.values[part].double() @ right
            place = ((similarity + 1.0) * (bins / 2)).floor_().clamp_(0, bins - 1).long()
            counted = rows.group[part, None] != right_group
            if rows.floor_bin is not None:
                counted &= place >= rows.floor_bin[part, None]
            place += bins * torch.arange(len(histogram), device=place.device)[:, None]
            counts = torch.bincount(place[counted], minlength=histogram.numel())
            histogram += counts.view_as(histogram)
