"""Label speed: sdd_ray beside the paper's recipe pair by pair, scipy over all pairs, and the floor.

    python benchmarks/labels.py [--images 20000] [--size 128] [--plain 300]

One process, one thread, so that the ratios hold on any machine. `plain` and `scipy` are timed on a
subset and scaled up, as their cost is linear in the images labelled. Ray's part of the label
command is not in these figures: it is the difference to the seconds in a manifest.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import wasserstein_distance

from sdd_ray.core.correction import Reference, ReferenceBlock
from sdd_ray.core.distances import Shard, shard_distances
from sdd_ray.core.moments import partial_sums
from sdd_ray.core.similarity import normalise


def embeddings(num_images: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return unit rows sorted by identity and their codes: heavy-tailed identities, some poor."""
    generator = np.random.default_rng(seed)
    counts = np.clip(generator.lognormal(2.5, 1.0, num_images).astype(int), 1, 600)
    codes = np.repeat(np.arange(len(counts)), counts)[:num_images]
    centres = generator.normal(size=(codes[-1] + 1, size))
    spread = generator.gamma(2.0, 0.45, num_images)[:, None]
    rows = centres[codes] + spread * generator.normal(size=(num_images, size))
    return normalise(rows)[0], codes


def plain(unit: np.ndarray, codes: np.ndarray, count: int, rng: np.random.Generator) -> float:
    """Return the seconds an image takes by the paper's recipe (m=24, K=12), pair by pair."""
    chosen = rng.choice(len(unit), count, replace=False)
    started = time.perf_counter()
    for _ in range(12):
        for image in chosen:
            own = np.flatnonzero(codes == codes[image])
            own = own[own != image]
            if len(own) == 0:
                continue
            mated = [unit[image] @ unit[j] for j in rng.permutation(own)[:24]]
            nonmated: list[float] = []
            while len(nonmated) < 24:
                other = int(rng.integers(len(unit)))
                if codes[other] != codes[image]:
                    nonmated.append(unit[image] @ unit[other])
            wasserstein_distance(mated, nonmated)
    return (time.perf_counter() - started) / count


def all_pairs_scipy(unit: np.ndarray, codes: np.ndarray, rows: np.ndarray) -> tuple[float, list]:
    """Return the seconds an image takes by scipy over all its pairs, and the distances."""
    started = time.perf_counter()
    found = []
    for image in rows:
        similarities = unit @ unit[image]
        same = codes == codes[image]
        others = same.copy()
        others[image] = False
        found.append(wasserstein_distance(similarities[others], similarities[~same]))
    return (time.perf_counter() - started) / len(rows), found


def exact(
    unit: np.ndarray, codes: np.ndarray, reference_size: int | None
) -> tuple[float, np.ndarray]:
    """Return the seconds an image takes by sdd_ray.core, and the distances."""
    starts = np.append(np.flatnonzero(np.diff(codes, prepend=-1)), len(codes))
    started = time.perf_counter()
    sums = partial_sums(unit)
    drawn = np.arange(len(unit))
    if reference_size is not None:
        drawn = np.sort(np.random.default_rng(0).choice(len(unit), reference_size, replace=False))
    reference = Reference([ReferenceBlock(unit[drawn], codes[drawn])], reference_size is None)
    shard = Shard(unit, starts, codes[starts[:-1]])
    distances = shard_distances(shard, sums, reference).distance
    return (time.perf_counter() - started) / len(unit), distances


def floor(unit: np.ndarray, codes: np.ndarray) -> tuple[float, float]:
    """Return seconds an image: closed form's and all pairs' FLOP over the measured matrix rate."""
    matrix = torch.rand(2048, 2048)
    torch.mm(matrix, matrix)
    started = time.perf_counter()
    for _ in range(5):
        torch.mm(matrix, matrix)
    rate = 5 * 2 * 2048**3 / (time.perf_counter() - started)
    images, size = unit.shape
    counts = np.bincount(codes).astype(float)
    closed = 2 * size**2 * images + 2 * size * (counts**2).sum()
    return closed / rate / images, 2 * size * images / rate


def main() -> None:
    """Print one row for each way, with its ratio to the plain recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--plain", type=int, default=300, help="images the plain recipe labels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    unit, codes = embeddings(options.images, options.size)
    rng = np.random.default_rng(1)
    rows = rng.choice(np.flatnonzero(np.bincount(codes)[codes] > 1), 200, replace=False)
    peer = plain(unit, codes, options.plain, rng)
    scipy_seconds, oracle = all_pairs_scipy(unit, codes, rows)
    exact_seconds, distances = exact(unit, codes, None)
    sampled_seconds, estimates = exact(unit, codes, 2048)
    closed, pairs = floor(unit, codes)
    print(f"{options.images:,} images of {codes[-1] + 1:,} identities, {options.size} numbers each")
    print(f"{'':<34}{'us/image':>10}{'x plain':>10}{'worst error':>14}")
    for name, seconds, values in (
        ("paper's recipe, pair by pair", peer, None),
        ("scipy over all pairs", scipy_seconds, None),
        ("sdd_ray exact, all images", exact_seconds, distances),
        ("sdd_ray exact, reference 2,048", sampled_seconds, estimates),
        ("floor of all pairs", pairs, None),
        ("floor of closed form and Gram", closed, None),
    ):
        error = "" if values is None else f"{np.abs(values[rows] - oracle).max():.1e}"
        print(f"{name:<34}{1e6 * seconds:>10.1f}{peer / seconds:>10.1f}{error:>14}")


if __name__ == "__main__":
    main()
