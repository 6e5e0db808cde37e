"""What labelling a set of any size costs on a cluster, from rates measured on one machine.

    python benchmarks/label_simulation.py --images 42474557 --identities 2059906 --workers 16 64

Counts bytes, FLOP and messages of every pass, and plays the passes through: shards of whole
identities with heavy-tailed numbers of images go to workers as they become free, each taking its
measured time for computing and its share of the cluster's reading bandwidth; the driver merges sums
in order. `--us-*` are microseconds an image on one core, as benchmarks/labels.py prints them.
"""

import argparse
import heapq

import numpy as np
from synthetic_embeddings import LARGEST

SHARD_ROWS = 8192
SHARDS_PER_GROUP = 8
SAMPLE = 65536
GIB = 2**30


def identity_sizes(images: int, identities: int, seed: int = 0) -> np.ndarray:
    """Return heavy-tailed sizes of so many identities that add up to about so many images."""
    generator = np.random.default_rng(seed)
    sizes = generator.lognormal(0.0, 1.0, identities)
    sizes = np.clip(np.round(sizes * images / sizes.sum()), 1, LARGEST)
    return sizes.astype(np.int64)


def shard_sizes(sizes: np.ndarray) -> np.ndarray:
    """Return the rows of each shard: whole identities up to SHARD_ROWS."""
    ends = np.cumsum(sizes)
    cuts = [0]
    while cuts[-1] < ends[-1]:
        place = np.searchsorted(ends, min(cuts[-1] + SHARD_ROWS, ends[-1]))
        cuts.append(int(ends[place]))
    return np.diff(cuts)


def play(
    rows: np.ndarray, us: float, bytes_per_row: float, workers: int, bandwidth: float
) -> tuple[float, float]:
    """Return the seconds of a pass over shards, and the share of time that workers compute.

    A worker reads at its even share of the bandwidth and computes afterwards, as the engine does.
    """
    free = [0.0] * workers
    heapq.heapify(free)
    computing = 0.0
    for size in rows:
        start = heapq.heappop(free)
        compute = size * us * 1e-6
        heapq.heappush(free, start + compute + size * bytes_per_row * workers / bandwidth)
        computing += compute
    end = max(free)
    return end, computing / (end * workers)


def report(options: argparse.Namespace) -> None:
    """Print one table."""
    sizes = identity_sizes(options.images, options.identities)
    images, size = int(sizes.sum()), options.size
    rows = shard_sizes(sizes)
    row_bytes = size * (2 if options.storage == "float16" else 4)
    groups = -(-len(rows) // SHARDS_PER_GROUP)
    flop = 2 * size**2 * images + 2 * size * float((sizes.astype(float) ** 2).sum())
    print(f"{images:,} images of {len(sizes):,} identities, {size} numbers, {options.storage}")
    print(
        f"embeddings {images * row_bytes / GIB:,.1f} GiB; {len(rows):,} shards, {groups:,} groups"
    )
    print(
        f"sums: {groups:,} messages of {size * size * 8 / 2**20:.0f} MiB, merged on the driver in"
        f" {groups * size * size * 3e-10:.1f} s; sample {SAMPLE * size * 4 / 2**20:.0f} MiB a node"
    )
    keys = options.key_bytes + 20
    print(
        f"driver: keys of {keys} bytes a row, {images * keys / GIB:.1f} GiB for good and"
        f" {images * (2 * keys + 40) / GIB:.1f} GiB while it plans"
    )
    print(
        f"if rows are scattered: one more read and write of {images * row_bytes / GIB:,.1f} GiB,"
        f" {images * row_bytes / GIB * 3:,.0f} GiB moved in all"
    )
    all_pairs = 2.0 * size * images**2
    print(f"closed form and Gram: {flop / 1e12:,.0f} TFLOP; all pairs: {all_pairs:.1e} FLOP")
    for rate in (400e12, 600e12):
        pairs = all_pairs / (0.6 * rate) / 60
        print(
            f"GPU of {rate / 1e12:.0f} TFLOP/s: closed form {flop / rate / 0.6:.1f} s of computing,"
            f" all pairs at 60 % of it {pairs:,.0f} minutes"
        )
    passes = (
        ("sum", options.us_sum, row_bytes),
        ("label", options.us_label, row_bytes),
        ("scale", options.us_scale, 200.0),
    )
    print(f"{'workers':>8}{'pass':>8}{'minutes':>10}{'computing':>11}")
    for workers in options.workers:
        total = 0.0
        bandwidth = options.gib_per_s * GIB * max(1, workers // options.workers_per_node)
        for name, us, moved in passes:
            seconds, share = play(rows, us, moved, workers, bandwidth)
            total += seconds
            print(f"{workers:>8}{name:>8}{seconds / 60:>10.1f}{share:>11.0%}")
        plan = images * options.us_plan * 1e-6
        print(f"{workers:>8}{'all':>8}{(total + plan) / 60:>10.1f}   with {plan:.0f} s to plan")


def main() -> None:
    """Parse and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=42_474_557)
    parser.add_argument("--identities", type=int, default=2_059_906)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--storage", choices=("float32", "float16"), default="float16")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 16, 64])
    parser.add_argument("--workers-per-node", type=int, default=16)
    parser.add_argument("--gib-per-s", type=float, default=1.0, help="read by a node")
    parser.add_argument("--key-bytes", type=int, default=40, help="image_id and identity of a row")
    parser.add_argument("--us-plan", type=float, default=0.7)
    parser.add_argument("--us-sum", type=float, default=14.0)
    parser.add_argument("--us-label", type=float, default=65.0)
    parser.add_argument("--us-scale", type=float, default=8.0)
    report(parser.parse_args())


if __name__ == "__main__":
    main()
