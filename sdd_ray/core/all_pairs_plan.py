"""How all pairs are to be computed, and images prepared for it.

Shapes: C columns of a block, d numbers an embedding, K bins over [-1, 1].
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sdd_ray.core.all_pairs_counts import (
    FORMATS,
    SIZE_STEP,
    Precision,
    in_format,
    on_grid,
    rounding_errors,
)

MAX_BINS = 1 << 16

MAX_SIMILARITIES = 1 << 25
"""Similarities that a tally without bins keeps, at most (128 MiB), but at least one row's."""

MAX_CELLS = 1 << 27
"""Bins of all rows of a tally, at most (512 MiB)."""


@dataclass(frozen=True)
class AllPairsPlan:
    """How all pairs are computed.

    Attributes:
        precision: Format in which nonmated similarities are multiplied; mated ones are exact.
        bins: K, a power of two, or None to keep and sort all similarities. A label is off by half
            a bin's width, 1 / K, at most.
        tail_only: True to count only nonmated similarities that can matter beyond the means.
        tolerance: With tail_only, by how much a distance may be off at most for what is not
            counted; it is part of the error bound.
        device: Where to compute, as torch names it.
        backend: "triton" for the fused kernel, "torch" for any device; "auto" is the kernel on a
            CUDA device if Triton is installed, and torch elsewhere.

    Raises:
        ValueError: The choices are unknown or do not go together.
    """

    precision: Precision = "float32"
    bins: int | None = 4096
    tail_only: bool = False
    tolerance: float = 1e-4
    device: str = "cpu"
    backend: Literal["auto", "torch", "triton"] = "auto"

    def __post_init__(self) -> None:
        if self.precision not in FORMATS:
            raise ValueError(f"expected a precision of {[*FORMATS]}, got {self.precision!r}")
        if self.backend not in ("auto", "torch", "triton"):
            raise ValueError(f"expected backend auto, torch or triton, got {self.backend!r}")
        if self.bins is not None and (
            not 2 <= self.bins <= MAX_BINS or self.bins & (self.bins - 1)
        ):
            raise ValueError(f"expected a power of two from 2 to {MAX_BINS} bins, got {self.bins}")
        if self.bins is None and (
            self.precision != "float32" or self.tail_only or self.backend == "triton"
        ):
            raise ValueError(
                "expected float32, all similarities and no Triton without bins, got "
                f"{self.precision}, tail_only={self.tail_only} and backend {self.backend}"
            )
        if not 0.0 <= self.tolerance <= 2.0:
            raise ValueError(f"expected a tolerance in [0, 2], got {self.tolerance}")

    @property
    def uses_triton(self) -> bool:
        """Whether the fused kernel counts."""
        if self.backend != "auto" or self.bins is None:
            return self.backend == "triton"
        on_gpu = torch.device(self.device).type == "cuda"
        return on_gpu and importlib.util.find_spec("triton") is not None

    def rows_at_once(self, num_columns: int) -> int:
        """Return how many rows to take into one tally, given the number of all columns."""
        if self.bins is None:
            return max(1, MAX_SIMILARITIES // max(1, num_columns))
        return MAX_CELLS // self.bins


@dataclass(frozen=True, eq=False)
class ColumnBlock:
    """Some of all images, ready to be multiplied; worth keeping where they are used again.

    Attributes:
        values: (C, d) embeddings in the plan's format, on its device; for the kernel, d is filled
            up with zeros.
        identities: (C,) integer code of each column's identity.
        rounding: The largest length that rounding to the format took from a column.
    """

    values: torch.Tensor
    identities: torch.Tensor
    rounding: float

    @classmethod
    def of(
        cls,
        unit: NDArray[np.float32] | torch.Tensor,
        identities: NDArray[np.int64] | torch.Tensor,
        plan: AllPairsPlan,
    ) -> "ColumnBlock":
        """Return a block of (C, d) rows of unit length and their (C,) identities.

        Raises:
            ValueError: The shapes do not fit together, or a row is not of unit length.
        """
        if unit.ndim != 2 or tuple(identities.shape) != tuple(unit.shape[:1]):
            raise ValueError(
                f"expected (C, d) embeddings and (C,) identities, got {tuple(unit.shape)} "
                f"and {tuple(identities.shape)}"
            )
        values, rounding = multiplied(on_grid(on_device(unit, plan)), plan)
        largest = float(rounding.max()) if len(rounding) else 0.0
        return cls(values, on_device(identities, plan), largest)


def multiplied(grid: torch.Tensor, plan: AllPairsPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N, d) embeddings in the plan's format, and (N,) what rounding took from each.

    Args:
        grid: (N, d) embeddings on the grid.
        plan: Its format and backend; for the kernel, d is filled up with zeros.
    """
    values = in_format(grid, plan.precision)
    rounding = rounding_errors(grid, values)
    if plan.uses_triton:
        values = torch.nn.functional.pad(values, (0, -values.shape[1] % SIZE_STEP))
    return values.contiguous(), rounding


def on_device(array: NDArray[np.generic] | torch.Tensor, plan: AllPairsPlan) -> torch.Tensor:
    """Return the array as a tensor on the plan's device; a numpy array is copied."""
    if isinstance(array, torch.Tensor):
        return array.to(plan.device)
    return torch.tensor(array, device=plan.device)
