"""Label speed, in one run: the paper's recipe, scipy, sdd_ray, and what the machine could do.

    python benchmarks/labels.py [--images 100000] [--size 512] [--workers 2] --work FOLDER

On synthetic embeddings (`synthetic_embeddings.py`) it prints, for each way, microseconds an image:

- the paper's recipe (m = 24, K = 12) pair by pair, and scipy over all pairs, on a subset: their
  cost is linear in the images labelled;
- sdd_ray.core on one thread: the sums, then the labels at tolerance 1e-3, with and without
  counting nonmated similarities, and its errors against all pairs on the subset;
- `python -m sdd_ray.label` with all workers and, for the scaling, with one, as whole commands;
- the floor: bytes read over the measured bandwidth of this process's memory, and
  2 d^2 n + 2 d sum n_c^2 FLOP over the measured matrix rate.

With more than 500,000 images the first two are measured on a part of the set, as the set would not
fit; `--command-only` leaves everything out but the command.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from synthetic_embeddings import embeddings, identity_sizes

from sdd_ray.core.distances import Precision, References, ShardLabeller
from sdd_ray.core.distributions import ShardTally
from sdd_ray.core.mated import Shard
from sdd_ray.core.moments import EmbeddingSums, partial_sums
from sdd_ray.core.reference import Block
from sdd_ray.core.screening import Screen
from sdd_ray.core.shard_statistics import ShardScan
from sdd_ray.engine.label_worker import screening_pays

SAMPLES = (4096, 16384, 65536)
PEER_SECONDS = 4.6 * 86400  # for 5.8 million images; extrapolated in TFace's own code, one core


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Return the similarity of a pair, as scripts compute it."""
    return float(np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


def plain(unit: np.ndarray, codes: np.ndarray, count: int, rng: np.random.Generator) -> float:
    """Return the seconds an image takes by the paper's recipe, pair by pair."""
    chosen = rng.choice(len(unit), count, replace=False)
    started = time.perf_counter()
    for _ in range(12):
        for image in chosen:
            own = np.flatnonzero(codes == codes[image])
            own = own[own != image]
            if len(own) == 0:
                continue
            mated = [cosine(unit[image], unit[j]) for j in rng.permutation(own)[:24]]
            nonmated: list[float] = []
            while len(nonmated) < 24:
                other = int(rng.integers(len(unit)))
                if codes[other] != codes[image]:
                    nonmated.append(cosine(unit[image], unit[other]))
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


def shards_of(codes: np.ndarray, size: int = 8192) -> list[slice]:
    """Return runs of whole identities of about `size` rows."""
    ends = np.append(np.flatnonzero(np.diff(codes)) + 1, len(codes))
    cuts = [0]
    while cuts[-1] < len(codes):
        cuts.append(int(ends[np.searchsorted(ends, min(cuts[-1] + size, len(codes)))]))
    return [slice(a, b) for a, b in pairwise(cuts)]


def core(
    unit: np.ndarray, codes: np.ndarray, tolerance: float, counted: int
) -> dict[str, np.ndarray | float]:
    """Return what sdd_ray.core takes for all images on one thread, and what it finds."""
    started = time.perf_counter()
    shards = shards_of(codes)
    sums = EmbeddingSums.empty(unit.shape[1])
    for rows in shards:
        sums = sums.merge(partial_sums(unit[rows]))
    summed = time.perf_counter() - started
    order = np.random.default_rng(0).permutation(len(unit))
    samples = [
        Block(unit[order[:size]], codes[order[:size]]).sorted()
        for size in SAMPLES
        if size < len(unit) / 2
    ]
    screen = Screen(samples[0]) if samples and screening_pays(unit.shape[1]) else None
    references = References([lambda b=b: b for b in samples], lambda: [Block(unit, codes)], screen)
    sample = Block(unit[order[:counted]], codes[order[:counted]]).sorted() if counted else None
    started = time.perf_counter()
    found = []
    for rows in shards:
        shard = Shard.of(unit[rows], codes[rows])
        tally = ShardTally(shard, (0, len(shard.unit)), sample)
        scan = ShardScan(shard, sums, watch=tally.count_mated if counted else None)
        found.append(ShardLabeller(scan, references, Precision(tolerance)).settle())
    labelled = time.perf_counter() - started
    return {
        "sums": summed / len(unit),
        "labels": labelled / len(unit),
        "distance": np.concatenate([part.distance for part in found]),
        "bound": np.concatenate([part.error_bound for part in found]),
        "settled": np.concatenate([part.settled for part in found]),
    }


def machine_rates() -> tuple[float, float]:
    """Return the float32 matrix rate in FLOP/s and the bytes/s of summing memory, one thread."""
    matrix = torch.rand(2048, 2048)
    torch.mm(matrix, matrix)
    rates = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        rates.append(2 * 2048**3 / (time.perf_counter() - started))
    memory = torch.rand(1 << 28)
    started = time.perf_counter()
    memory.sum()
    return float(np.median(rates)), memory.nbytes / (time.perf_counter() - started)


def command(work: Path, data: Path, workers: int, *more: str) -> dict[str, float]:
    """Return what the label command takes as a whole process, and what its manifest says."""
    output = work / f"labels-{time.time_ns()}"
    argv = [sys.executable, "-m", "sdd_ray.label", f"embeddings={data}", f"output={output}"]
    argv += [f"resources.workers={workers}", "ray.dashboard=false", *more]
    if workers == 1:
        argv.append("ray.num_cpus=1")
    started = time.perf_counter()
    subprocess.run(argv, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    manifest = json.loads((output / "manifest.json").read_text())
    return {
        "seconds": seconds,
        "inside": manifest["seconds"],
        "driver": manifest["peak_memory_mib"]["driver"],
        "worker": manifest["peak_memory_mib"]["worker"],
        "settled": manifest["results"]["settled_by"],
        "bound": manifest["results"]["largest_error_bound"],
        "digest": manifest["digest"][:12],
    }


def compare(options: argparse.Namespace, images: int) -> None:
    """Print the ways that run in this process, each with its ratio to the plain recipe."""
    codes = np.repeat(np.arange(len(sizes := identity_sizes(images, 0))), sizes)
    parts = [embeddings(codes[rows], options.size, [0, 2, rows.start]) for rows in shards_of(codes)]
    unit = np.concatenate(parts)
    rng = np.random.default_rng(1)
    rows = rng.choice(np.flatnonzero(sizes[codes] > 1), options.scipy, replace=False)
    rate, bandwidth = machine_rates()
    flop = 2 * options.size**2 * images + 2 * options.size * (sizes.astype(float) ** 2).sum()
    closed = flop / rate
    floor = closed / images + 4 * options.size / bandwidth
    peer = plain(unit, codes, options.plain, rng)
    scipy_seconds, oracle = all_pairs_scipy(unit, codes, rows)
    fast = core(unit, codes, 1e-3, 0)
    counted = core(unit, codes, 1e-3, 256)
    error = np.abs(fast["distance"][rows] - oracle)
    share = [float(np.mean(fast["settled"] == code)) for code in range(3)]
    print(f"{images:,} x {options.size}, {len(sizes):,} identities, one thread")
    print(f"matrix rate {rate / 1e9:.0f} GFLOP/s, memory {bandwidth / 1e9:.1f} GB/s")
    print(f"{'':<44}{'us/image':>10}{'x recipe':>10}{'x floor':>9}")
    for name, seconds in (
        ("paper's recipe, pair by pair", peer),
        ("scipy over all pairs", scipy_seconds),
        ("sdd_ray sums + labels, tolerance 1e-3", fast["sums"] + fast["labels"]),
        ("   the same, nonmated counted with 256", counted["sums"] + counted["labels"]),
        ("   of that the sums", fast["sums"]),
        ("floor: closed form, Gram, one read", floor),
    ):
        ratio = f"{peer / seconds:>10,.0f}{seconds / floor:>9.1f}"
        print(f"{name:<44}{1e6 * seconds:>10.1f}{ratio}")
    print(
        f"settled by certificate {share[0]:.1%}, sample {share[1]:.1%}, all images {share[2]:.1%};"
        f" against scipy on {len(rows)}: worst error {error.max():.1e}, RMS"
        f" {np.sqrt(np.mean(error**2)):.1e}, beyond its bound"
        f" {int((error > fast['bound'][rows] + 1e-6).sum())}"
    )
    if images >= 5_000_000:
        print(f"the peer's script, extrapolated: {PEER_SECONDS:,.0f} s")


def main() -> None:
    """Run everything that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--plain", type=int, default=200, help="images the plain recipe labels")
    parser.add_argument("--scipy", type=int, default=200, help="images scipy labels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--command-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.command_only:
        compare(options, min(options.images, 500_000))
    data = options.work / f"embeddings-{options.images}-{options.size}"
    maker = Path(__file__).with_name("synthetic_embeddings.py")
    made = [sys.executable, str(maker), f"--images={options.images}", f"--size={options.size}"]
    subprocess.run([*made, f"--output={data}"], check=True, stderr=subprocess.DEVNULL)
    print(f"python -m sdd_ray.label, {options.images:,} images, as a whole process:")
    for workers in dict.fromkeys((1, options.workers)):
        found = command(options.work, data, workers)
        ratio = PEER_SECONDS / 5_822_653 * options.images / found["seconds"]
        print(
            f"  {workers} worker(s): {found['seconds']:.1f} s, of which"
            f" {found['seconds'] - found['inside']:.1f} s start and end of Python and Ray;"
            f" {options.images / found['seconds']:,.0f} images/s; the peer's script would take"
            f" {ratio:,.0f} times as long; driver {found['driver']:,} MiB, worker"
            f" {found['worker']:,} MiB; settled {found['settled']}, largest bound"
            f" {found['bound']:.2e}, digest {found['digest']}"
        )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"largest process: {peak:.2f} GiB; {time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
