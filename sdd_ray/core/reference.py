"""The embeddings that stand for everybody else, and the hits of rows among them.

A reference is a random sample of the run, drawn by a hash of the image and shared by all rows, or
all images of the run, which come block by block. Columns are cut into tiles of constant width
before they are multiplied, so that hits do not depend on the blocks in which everybody arrives.

Shapes: B rows, R sampled columns, C columns of a block, d numbers an embedding.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.hashing import mix
from sdd_ray.core.hits import Hits, padded_hits
from sdd_ray.core.mated import PAD
from sdd_ray.core.similarity import aligned, products

COLUMN_TILE = 4096
"""Columns multiplied at once. Blocks of a multiple of this are used without a copy."""

ROW_TILE = 256
"""Rows multiplied at once."""


_SALT = np.uint64(0xD1B54A32D192ED03)  # apart from the draws of `sampled`


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that are compared with a reference.

    Attributes:
        unit: (B, d) unit-length rows.
        identities: (B,) integer code of each row's identity.
    """

    unit: NDArray[np.float32]
    identities: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Block:
    """Some columns.

    Attributes:
        unit: (C, d) unit-length rows.
        identities: (C,) integer code of each one's identity, the same codes as the rows'.

    Raises:
        ValueError: The shapes do not fit together.
    """

    unit: NDArray[np.float32]
    identities: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.unit.ndim != 2 or self.identities.shape != self.unit.shape[:1]:
            raise ValueError(
                f"expected (C, d) embeddings and (C,) identities, got {self.unit.shape} "
                f"and {self.identities.shape}"
            )

    def sorted(self) -> "Block":
        """Return the same columns by identity, as `similarities` needs them."""
        order = np.argsort(self.identities, kind="stable")
        return Block(aligned(self.unit[order]), self.identities[order])


def sampling_order(digests: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Return (N,) numbers by which images are drawn: those of the smallest are a random sample.

    Args:
        digests: (N,) of the images, by `sampled.image_digests`.
        seed: Another seed gives an independent order.
    """
    salt = mix(np.array([seed], np.uint64) + _SALT)
    return mix(digests ^ salt)


def similarities(rows: Rows, sample: Block) -> NDArray[np.float32]:
    """Return (B, R) similarities of rows to a sample, PAD where both are of one identity.

    Args:
        rows: The rows.
        sample: Columns sorted by identity.
    """
    found = products(rows.unit, sample.unit)
    first, last = own_columns(rows, sample)
    for row in np.flatnonzero(last > first):
        found[row, first[row] : last[row]] = PAD
    return found


def own_columns(rows: Rows, sample: Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (B,) the first column of each row's own identity in a sample, and after its last."""
    first = np.searchsorted(sample.identities, rows.identities, side="left")
    last = np.searchsorted(sample.identities, rows.identities, side="right")
    return first.astype(np.int64), last.astype(np.int64)


def tiles(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield the columns of all blocks in tiles of COLUMN_TILE, the last one smaller."""
    held: list[Block] = []
    num_held = 0
    for block in blocks:
        start = 0
        while start < len(block.unit):
            stop = min(start + COLUMN_TILE - num_held, len(block.unit))
            held.append(Block(block.unit[start:stop], block.identities[start:stop]))
            num_held += stop - start
            start = stop
            if num_held == COLUMN_TILE:
                yield _joined(held)
                held, num_held = [], 0
    if held:
        yield _joined(held)


def hits_among_all(rows: Rows, floor: NDArray[np.float32], blocks: Iterable[Block]) -> Hits:
    """Return the hits of rows among all columns of a run.

    Args:
        rows: The rows.
        floor: (B,) only nonmated similarities above it are hits.
        blocks: Every image of the run, in canonical order.
    """
    num_compared = np.zeros(len(rows.unit), np.int64)
    found_rows, found = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for columns in tiles(blocks):
        for start in range(0, len(rows.unit), ROW_TILE):
            part = slice(start, start + ROW_TILE)
            similarity = products(rows.unit[part], columns.unit)
            place = np.flatnonzero(similarity > floor[part, None])
            row, column = np.divmod(place, len(columns.unit))
            row += start
            is_nonmated = rows.identities[row] != columns.identities[column]
            found_rows.append(row[is_nonmated])
            found.append(similarity.ravel()[place[is_nonmated]])
        num_compared += len(columns.unit) - _occurrences(rows.identities, columns.identities)
    row = np.concatenate(found_rows)
    order = np.argsort(row, kind="stable")
    return padded_hits(row[order], np.concatenate(found)[order], num_compared)


def _occurrences(values: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each of the values occurs among others."""
    ordered = np.sort(among)
    right = np.searchsorted(ordered, values, side="right")
    return (right - np.searchsorted(ordered, values, side="left")).astype(np.int64)


def _joined(blocks: list[Block]) -> Block:
    """Return the blocks as one, without a copy where there is only one."""
    if len(blocks) == 1:
        return blocks[0]
    return Block(
        np.concatenate([block.unit for block in blocks]),
        np.concatenate([block.identities for block in blocks]),
    )
