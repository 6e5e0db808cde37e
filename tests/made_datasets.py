"""Datasets made by hand, as the commands would have written them, for tests of the commands."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdd_ray import columns
from sdd_ray.settings import EmbedConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun, write_part


@dataclass
class Rows:
    """Rows of an embeddings dataset: N embeddings of d numbers, and their keys."""

    embeddings: NDArray[np.float32]
    codes: NDArray[np.int64]
    image_ids: list[str] = field(default_factory=list)
    content: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image_ids = self.image_ids or [f"{c:04d}/{n:05d}" for n, c in enumerate(self.codes)]
        self.content = self.content or list(range(len(self.codes)))

    def shuffled(self, seed: int) -> "Rows":
        order = np.random.default_rng(seed).permutation(len(self.codes))
        return Rows(
            self.embeddings[order],
            self.codes[order],
            [self.image_ids[i] for i in order],
            [self.content[i] for i in order],
        )

    def table(self, rows: slice = slice(None)) -> pa.Table:
        matrix = np.ascontiguousarray(self.embeddings[rows], np.float32)
        size = matrix.shape[1]
        data = [
            pa.array(self.image_ids[rows], pa.string()),
            pa.array([f"p{code:04d}" for code in self.codes[rows]], pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), size),
            pa.array(np.ones(len(matrix), np.float32)),
            pa.array(self.content[rows], pa.uint64()),
        ]
        return pa.Table.from_arrays(data, schema=columns.embeddings(size))


def write_embeddings(folder: Path, rows: Rows, num_files: int = 1) -> str:
    """Write a complete embeddings dataset, its rows cut into runs; return its path."""
    place = Location(str(folder))
    run = OutputRun(place, "embed", EmbedConfig(output=str(folder)))
    cuts = np.linspace(0, len(rows.codes), num_files + 1).astype(int)
    run.complete(
        [
            write_part(place, f"part-{n:06d}", rows.table(slice(start, stop)))
            for n, (start, stop) in enumerate(pairwise(cuts))
        ]
    )
    return str(folder)


def read_rows(folder: str, command: str, names: list[str]) -> list[dict[str, object]]:
    """Return rows of a complete dataset, sorted by image_id."""
    table = open_dataset(folder, [command]).read(names)
    rows: list[dict[str, object]] = table.sort_by("image_id").to_pylist()
    return rows
