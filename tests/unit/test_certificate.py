"""The certificate is compared with the true C, with a linear program, and with its own integral."""

import numpy as np
import pytest
from embedding_sets import SETS
from label_oracles import brute_force, positive_part, tile_of
from scipy.optimize import linprog

from sdd_ray.core.certificate import LARGEST_SIMILARITY, largest_correction, scarf_bound
from sdd_ray.core.mated import Shard, mated_tiles


def scarf(a, mean, std) -> float:
    return float(scarf_bound(np.array([a]), np.array([mean]), np.array([std]))[0])


def bound_of(mated, mean, std):
    tile = tile_of([mated])
    bound, may_exceed = largest_correction(tile, np.array([mean]), np.array([std]))
    return float(bound[0]), may_exceed[0]


@pytest.fixture(params=SETS)
def certified(request):
    """The sides of every image, its tile and what the certificate says by exact moments."""
    unit, codes = SETS[request.param]()
    sides = brute_force(unit, codes)
    mean = np.array([nonmated.mean() for _, nonmated in sides])
    std = np.array([nonmated.std() for _, nonmated in sides])
    tiles = [
        (tile, *largest_correction(tile, mean[tile.rows], std[tile.rows]))
        for tile in mated_tiles(Shard.of(unit, codes), np.zeros(len(unit)))
    ]
    return sides, tiles


def test_certificate_is_never_violated(certified):
    sides, tiles = certified
    for tile, bound, _ in tiles:
        true = np.array([positive_part(*sides[i]) for i in tile.rows])
        assert (true <= bound + 2e-7).all()
        assert (bound <= 2.0).all()
        assert (bound[tile.num_mated == 0] == 0).all()


def test_nonmated_exceed_only_where_they_may(certified):
    """On a step H is constant and G falls, so G at its beginning decides."""
    sides, tiles = certified
    for tile, _, may_exceed in tiles:
        width = tile.similarity.shape[1]
        for local, i in enumerate(tile.rows):
            number = tile.num_mated[local]
            first = width - number
            assert not may_exceed[local, :first].any()
            if number == 0:
                continue
            assert may_exceed[local, -1]
            nonmated = np.sort(sides[i][1])
            at = tile.similarity[local, first:].astype(np.float64)
            above = 1 - np.searchsorted(nonmated, at, side="right") / len(nonmated)
            exceeds = above > 1 - np.arange(1, number + 1) / number + 1e-12
            assert (may_exceed[local, first:] | ~exceeds).all()


def test_it_settles_clean_images():
    unit, codes = SETS["clean"]()
    sides = brute_force(unit, codes)
    for tile in mated_tiles(Shard.of(unit, codes), np.zeros(len(unit))):
        mean = np.array([sides[i][1].mean() for i in tile.rows])
        std = np.array([sides[i][1].std() for i in tile.rows])
        bound, may_exceed = largest_correction(tile, mean, std)
        assert np.median(bound) < 0.02
        assert np.mean(may_exceed) < 0.3


def largest_mean_above(a, mean, std) -> float:
    """Return the largest mean of (s - a)^+ over distributions on a grid, by linear programming."""
    grid = np.linspace(-1, 1, 1601)
    moments = np.stack([np.ones_like(grid), grid, (grid - mean) ** 2])
    # A grid cannot hold every mean and variance to the last bit.
    found = linprog(
        -np.maximum(grid - a, 0),
        A_eq=moments[:2],
        b_eq=[1.0, mean],
        A_ub=moments[2:],
        b_ub=[std**2],
        method="highs",
    )
    assert found.success
    return -found.fun


# The lower of the two points must lie in [-1, 1], or the program has less freedom than the bound.
@pytest.mark.parametrize(
    ("a", "mean", "std", "is_free"),
    [
        (0.0, 0.0, 0.2, True),
        (0.3, 0.0, 0.1, True),
        (0.05, 0.1, 0.2, True),
        (-0.2, 0.1, 0.3, True),
        (0.4, 0.3, 0.01, True),
        (0.6, 0.3, 0.2, True),
        (0.9, 0.3, 0.2, False),
        (0.7, 0.0, 0.3, False),
        (0.5, 0.2, 0.5, False),
        (0.95, 0.9, 0.2, False),
        (0.99, -0.3, 0.05, False),
    ],
)
def test_scarf_bound_is_what_a_linear_program_finds(a, mean, std, is_free):
    reach = np.hypot(a - mean, std)
    assert (a + reach <= LARGEST_SIMILARITY) == is_free
    best = largest_mean_above(a, mean, std)
    bound = scarf(a, mean, std)
    assert best <= bound + 1e-9
    assert best >= bound - 2e-5


def test_scarf_bound_holds_where_the_worst_distribution_does_not_fit():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mean = rng.uniform(-0.9, 0.9)
        std = rng.uniform(0.01, 1) * np.sqrt(1 - mean**2)
        a = rng.uniform(-1, 1)
        assert largest_mean_above(a, mean, std) <= scarf(a, mean, std) + 1e-9


def test_scarf_bound_at_its_ends():
    assert scarf(0.2, 0.5, 0.0) == pytest.approx(0.3)
    assert scarf(0.5, 0.2, 0.0) == 0
    assert scarf(1.5, 0.2, 0.3) == 0
    assert scarf(-1.0, 0.2, 0.1) == pytest.approx(1.2, abs=0.005)
    a = np.linspace(-1, 1.2, 2001)
    bounds = scarf_bound(a, np.full(2001, 0.1), np.full(2001, 0.25))
    assert (np.diff(bounds) <= 0).all()
    assert np.abs(np.diff(bounds)).max() < 1.2e-3  # both branches meet


@pytest.mark.parametrize(("a", "std"), [(0.3, 0.1), (0.1, 0.2), (0.8, 0.3)])
def test_two_points_reach_the_bound(a, std):
    """Nonmated similarities in the worst place: the certificate could not be smaller."""
    mean, number = 0.1, 40_000
    reach = np.hypot(a - mean, std)
    upper = min(a + reach, 1.0)
    share = round(number * std**2 / (std**2 + (upper - mean) ** 2)) / number
    lower = (mean - share * upper) / (1 - share)
    num_upper = round(share * number)
    nonmated = np.repeat([lower, upper], [number - num_upper, num_upper])
    true = positive_part([a], nonmated)
    bound, _ = bound_of([a], nonmated.mean(), nonmated.std())
    assert true <= bound + 1e-9
    assert true == pytest.approx(bound, abs=1e-5)


def integral_of_cantelli(mated, mean, std, low, high) -> float:
    """Return the integral of (Cantelli's bound - H)^+, numerically."""
    grid = np.linspace(low, high, 400_001)
    middle = (grid[1:] + grid[:-1]) / 2
    bound = 1 / (1 + (np.maximum(middle - mean, 0) / std) ** 2)
    above = 1 - np.searchsorted(mated, middle, side="right") / len(mated)
    return float((np.maximum(bound - above, 0) * np.diff(grid)).sum())


@pytest.mark.parametrize("seed", range(12))
def test_bound_matches_numeric_integration(seed):
    rng = np.random.default_rng(seed)
    mated = np.sort(rng.uniform(-0.5, 0.98, rng.integers(1, 12))).astype(np.float32)
    mated[len(mated) // 2 :] = mated[len(mated) // 2]  # some are equal
    mean, std = rng.uniform(-0.2, 0.6), rng.uniform(0.02, 0.4)
    inner = integral_of_cantelli(mated, mean, std, mated[0], mated[-1])
    outer = integral_of_cantelli(mated, mean, std, mated[-1], LARGEST_SIMILARITY)
    expected = min(inner + min(outer, scarf(mated[-1], mean, std)), scarf(mated[0], mean, std))
    assert bound_of(mated, mean, std)[0] == pytest.approx(expected, abs=2e-6)


def test_both_inequalities_are_needed():
    """One mated similarity far above the mean: Scarf; many below and above it: Cantelli."""
    mated = np.float32([0.5])
    assert bound_of(mated, 0.0, 0.1)[0] == pytest.approx(scarf(0.5, 0.0, 0.1))
    assert integral_of_cantelli(mated, 0.0, 0.1, 0.5, 1) > 1.5 * scarf(0.5, 0.0, 0.1)
    mated = np.linspace(-0.1, 0.9, 50).astype(np.float32)
    assert bound_of(mated, 0.0, 0.1)[0] < 0.5 * scarf(-0.1, 0.0, 0.1)


def test_nonmated_all_equal():
    for level in (-0.3, 0.2, 0.45, 0.95):
        mated = [-0.1, 0.3, 0.3, 0.6]
        bound, may_exceed = bound_of(mated, level, 0.0)
        assert bound == pytest.approx(positive_part(mated, np.full(9, level)), abs=1e-6)
        assert may_exceed.tolist() == [level > -0.1, level > 0.3, level > 0.3, True]


def test_rows_without_mated_similarities():
    tile = tile_of([[], [0.5, 0.7], []])
    bound, may_exceed = largest_correction(tile, np.zeros(3), np.full(3, 0.4))
    assert bound[[0, 2]].tolist() == [0, 0]
    assert bound[1] > 0
    assert not may_exceed[[0, 2]].any()
    bound, may_exceed = largest_correction(tile_of([[], []]), np.zeros(2), np.full(2, 0.4))
    assert bound.tolist() == [0, 0]
    assert may_exceed.shape == (2, 0)


def test_a_larger_deviation_never_gives_a_smaller_bound():
    mated = np.random.default_rng(5).uniform(-0.2, 0.9, 9)
    bounds = [bound_of(mated, 0.1, std)[0] for std in np.linspace(0, 0.5, 60)]
    assert (np.diff(bounds) >= -1e-12).all()
