"""A dataset of synthetic embeddings, made on Ray's workers: realistic identities, known faults.

    python benchmarks/synthetic_embeddings.py --images 1000000 --output /data/synthetic

Numbers of images per identity are heavy-tailed, 1 to 600 with a mean of 68, as in MS1MV2. An
embedding is its identity's centre and noise of its own strength: most are good, some poor, one in a
hundred shows nobody, one in two hundred has another identity's name. Every file follows from its
number and the seed alone. The folder is written as `sdd_ray.embed` writes it.
"""

import argparse
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from sdd_ray import columns
from sdd_ray.core.similarity import normalise
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.tasks import run_tasks
from sdd_ray.settings import EmbedConfig, RayConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun, write_part

LARGEST = 600
MEAN = 68


def identity_sizes(images: int, seed: int) -> np.ndarray:
    """Return the number of images of each identity, of `images` in all."""
    generator = np.random.default_rng([seed, 0])
    sizes = np.clip(generator.lognormal(3.735, 1.0, images // MEAN * 2 + 8).astype(int), 1, LARGEST)
    ends = np.cumsum(sizes)
    number = int(np.searchsorted(ends, images))
    sizes = sizes[: number + 1]
    sizes[-1] -= ends[number] - images
    return sizes


def embeddings(codes: np.ndarray, size: int, seed: list[int]) -> np.ndarray:
    """Return (N, size) unit rows of images of the identities with these codes."""
    generator = np.random.default_rng(seed)
    shown = codes.copy()
    is_wrong = generator.random(len(codes)) < 0.005
    shown[is_wrong] = generator.integers(0, codes.max() + 1, int(is_wrong.sum()))
    people, place = np.unique(shown, return_inverse=True)
    centres = np.stack(
        [np.random.default_rng([*seed[:1], 1, int(p)]).standard_normal(size) for p in people]
    ).astype(np.float32)
    noise = generator.gamma(4.0, 0.2, len(codes)).astype(np.float32)
    noise[generator.random(len(codes)) < 0.01] = 8.0
    rows = generator.standard_normal((len(codes), size), dtype=np.float32)
    rows *= noise[:, None]
    rows += centres[place]
    return normalise(rows)[0]


def _write(place: Location, number: int, first: int, codes: np.ndarray, shape: tuple) -> Any:
    size, storage, seed = shape
    unit = embeddings(codes, size, [seed, 2, number])
    kind = pa.float16() if storage == "float16" else pa.float32()
    flat = pa.array(unit.ravel().astype(np.float16 if storage == "float16" else np.float32), kind)
    keys = [f"{code:07d}/{first + n:09d}.jpg" for n, code in enumerate(codes)]
    table = pa.Table.from_arrays(
        [
            pa.array(keys),
            pa.array([f"{code:07d}" for code in codes]),
            pa.FixedSizeListArray.from_arrays(flat, size),
            pa.array(np.ones(len(codes), np.float32)),
            pa.array(np.arange(first, first + len(codes), dtype=np.uint64)),
        ],
        schema=columns.embeddings(size, storage),
    )
    return write_part(place, f"part-{number:06d}", table)


def make(output: str, images: int, size: int = 512, storage: str = "float32", seed: int = 0) -> Any:
    """Write the dataset if it is not there yet; Ray is up. Return its identity sizes."""
    sizes = identity_sizes(images, seed)
    config = EmbedConfig(output=output, storage=storage, images_per_shard=1024)
    run = OutputRun(Location(output), "embed", config, {"source": f"{images} {size} {seed}"})
    if run.is_complete:
        return sizes
    codes = np.repeat(np.arange(len(sizes)), sizes)
    task: Any = ray.remote(_write)
    done = run.finished()
    starts = range(0, images, 1024)
    progress = Progress("make", images, unit="embeddings")
    calls = (
        (
            task.remote(
                run.output, number, first, codes[first : first + 1024], (size, storage, seed)
            ),
            number,
        )
        for number, first in enumerate(starts)
        if f"part-{number:06d}" not in done
    )
    for record, _ in run_tasks(calls):
        done[record.name] = record
        progress.update(record.rows_out)
    progress.close()
    run.complete([done[f"part-{number:06d}"] for number in range(len(starts))])
    return sizes


def main() -> int:
    """Make one dataset."""
    from sdd_ray.engine.session import session

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--storage", choices=("float32", "float16"), default="float32")
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    started = time.perf_counter()
    with session(RayConfig(dashboard=False)):
        sizes = make(options.output, options.images, options.size, options.storage)
    print(
        f"{options.images:,} embeddings of {len(sizes):,} identities, mean {sizes.mean():.1f},"
        f" largest {sizes.max()}: {time.perf_counter() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
