"""What an evaluation of IJB-C's size costs, beside plain numpy by the same definition.

    python benchmarks/evaluate.py [--comparisons 15600000] [--images 23124] [--methods 5]
        [--draws 4]

Similarities and qualities are drawn. Both ways compute, for three false match rates, the EVRC at 20
discard fractions and the EDC; they are compared with each other to the last bit. Plain numpy sorts
the comparisons by quality and partitions what remains at each point, as the scripts in use do.
Seconds are of one process; loading is not in them.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.assessment import Assessment, assess
from sdd_ray.core.comparisons import ComparedPairs
from sdd_ray.core.edc import EVRC_DISCARD_FRACTIONS
from sdd_ray.core.error_rates import counts_within
from sdd_ray.core.ranked_sides import ComparedSides, Protocol, rank_sides
from sdd_ray.core.resampling import drawn_figures, subject_draw, weigh

FMRS = (1e-2, 1e-3, 1e-4)
_MATED = 19_557


def made(images: int, comparisons: int) -> tuple[ComparedPairs, ComparedPairs, NDArray[Any]]:
    """Return mated and nonmated comparisons, and the subject of each image."""
    rng = np.random.default_rng(0)
    people = np.arange(images) // 6
    sides = []
    for number, centre in ((_MATED, 0.6), (comparisons - _MATED, 0.0)):
        first = rng.integers(0, images, number).astype(np.int32)
        second = rng.integers(0, images, number).astype(np.int32)
        if centre:
            second = (first // 6 * 6 + rng.integers(0, 6, number)).astype(np.int32)
            second = np.minimum(second, images - 1)
        similarities = (centre + 0.12 * rng.standard_normal(number)).astype(np.float32)
        sides.append(ComparedPairs(first, second, similarities))
    return sides[0], sides[1], people


def plain(mated: ComparedPairs, nonmated: ComparedPairs, quality: NDArray[Any]) -> list[Any]:
    """Return EVRCs and the errors of the EDC at zero discard, by sorting and partitioning."""
    found = []
    order = np.sort(quality)
    lowest = order[counts_within(EVRC_DISCARD_FRACTIONS, len(quality))]
    pairs = [np.minimum(quality[c.first], quality[c.second]) for c in (mated, nonmated)]
    orders = [np.argsort(p) for p in pairs]
    ranked = [p[o] for p, o in zip(pairs, orders, strict=True)]
    scores = [c.similarities[o] for c, o in zip((mated, nonmated), orders, strict=True)]
    for fmr in FMRS:
        curve = []
        for level in lowest:
            left = [s[np.searchsorted(r, level) :] for s, r in zip(scores, ranked, strict=True)]
            allowed = int(counts_within(np.array([fmr]), len(left[1]))[0])
            rank = len(left[1]) - 1 - allowed
            threshold = np.partition(left[1], rank)[rank]
            curve.append(np.mean(left[0] < threshold))
        found.append(np.array(curve))
    return found


def timed(name: str, work: Callable[[], Any]) -> Any:
    """Run some work and print how long it took."""
    started = time.perf_counter()
    result = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {time.perf_counter() - started:.2f} s, peak so far {peak:.2f} GiB", flush=True)
    return result


def main() -> None:
    """Time both ways and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=15_600_000)
    parser.add_argument("--images", type=int, default=23_124)
    parser.add_argument("--methods", type=int, default=5)
    parser.add_argument("--draws", type=int, default=4)
    options = parser.parse_args()
    mated, nonmated, people = made(options.images, options.comparisons)
    rng = np.random.default_rng(1)
    # Integers of 0 to 100, as scores are: heavy ties.
    methods = [rng.integers(0, 101, options.images) * 1.0 for _ in range(options.methods)]
    protocol = Protocol(FMRS)
    sides = timed("sort the largest", lambda: ComparedSides.of(mated, nonmated, FMRS))

    def all_methods() -> list[list[Assessment]]:
        return [assess(sides, quality, protocol) for quality in methods]

    found = timed(f"sdd_ray, {options.methods} methods", all_methods)
    usual = timed("plain numpy, 1 method", lambda: plain(mated, nonmated, methods[0]))
    for mine, theirs in zip(found[0], usual, strict=True):
        np.testing.assert_array_equal(mine.evrc, theirs)
    print("equal to the last bit")
    if options.draws:
        ranked = [rank_sides(sides, quality, protocol) for quality in methods]

        def draws() -> None:
            for number in range(options.draws):
                drawn = weigh(sides, people, subject_draw(int(people.max()) + 1, 0, number))
                for ranks in ranked:
                    drawn_figures(sides, ranks, drawn, protocol)

        timed(f"bootstrap, {options.draws} draws of {options.methods} methods", draws)


if __name__ == "__main__":
    main()
