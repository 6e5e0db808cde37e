import numpy as np
import pytest
from embedding_sets import SETS, clean, degraded, one_big, tiny
from label_oracles import brute_force, drawn
from sklearn.metrics import roc_auc_score

from sdd_ray.core import error_rates as unbinned
from sdd_ray.core.distributions import (
    IDENTITY_BINS,
    NUM_BINS,
    SetHistograms,
    ShardTally,
    error_rates,
    quantile_names,
)
from sdd_ray.core.mated import Shard, mated_tiles
from sdd_ray.core.reference import Block
from sdd_ray.core.shard_statistics import QUANTILES

EDGES = np.linspace(-1, 1, NUM_BINS + 1)
COARSE_EDGES = np.linspace(-1, 1, IDENTITY_BINS + 1)
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2


def tally_of(unit, codes, sample=None, part=None) -> ShardTally:
    """Return what is counted of a shard, its mated similarities with it."""
    shard = Shard.of(unit, codes)
    tally = ShardTally(shard, part or (0, len(unit)), sample)
    for tile in mated_tiles(shard, np.zeros(len(unit)), part=part):
        tally.count_mated(tile)
    return tally


def assert_counted(counts, similarities, edges):
    """Check counts against similarities of which some lie next to an edge, within rounding."""
    similarities = np.sort(np.asarray(similarities))
    below = np.concatenate([[0], np.cumsum(counts)])
    assert below[-1] == len(similarities)
    least, most = edges - 1e-6, edges + 1e-6
    least[-1] = most[-1] = 2  # the last bin holds what is above 1 by its rounding
    assert (np.searchsorted(similarities, least) <= below).all()
    assert (below <= np.searchsorted(similarities, most)).all()


@pytest.mark.parametrize("name", SETS)
def test_counts_match_brute_force(name):
    unit, codes = SETS[name]()
    sample = drawn(unit, codes, 100, 0)
    tally = tally_of(unit, codes, sample)
    sides = brute_force(unit, codes)
    exact = unit.astype(np.float64) @ sample.unit.astype(np.float64).T
    is_other = codes[:, None] != sample.identities
    assert_counted(tally.set.mated, np.concatenate([mated for mated, _ in sides]), EDGES)
    assert_counted(tally.set.nonmated, exact[is_other], EDGES)
    shard = Shard.of(unit, codes)
    assert tally.mated_by_identity.shape == (len(shard.identities), IDENTITY_BINS)
    for group, code in enumerate(shard.identities):
        rows = np.flatnonzero(codes == code)
        own = np.concatenate([sides[i][0] for i in rows])
        assert_counted(tally.mated_by_identity[group], own, COARSE_EDGES)
        others = exact[rows][is_other[rows]]
        assert_counted(tally.nonmated_by_identity[group], others, COARSE_EDGES)


@pytest.mark.parametrize("name", SETS)
def test_bins_of_identities_add_up_to_those_of_the_set(name):
    unit, codes = SETS[name]()
    tally = tally_of(unit, codes, drawn(unit, codes, 100, 1))
    for fine, coarse in (
        (tally.set.mated, tally.mated_by_identity),
        (tally.set.nonmated, tally.nonmated_by_identity),
    ):
        np.testing.assert_array_equal(fine.reshape(IDENTITY_BINS, -1).sum(1), coarse.sum(0))


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("make", [degraded, tiny, one_big])
def test_nonmated_quantiles(make, size):
    unit, codes = make()
    sample = drawn(unit, codes, size, 2)
    found = tally_of(unit, codes, sample).nonmated_quantiles
    exact = unit.astype(np.float64) @ sample.unit.astype(np.float64).T
    for i, row in enumerate(exact):
        others = row[codes[i] != sample.identities]
        if len(others):
            np.testing.assert_allclose(found[i], np.quantile(others, QUANTILES), atol=1e-6)
        else:
            assert np.isnan(found[i]).all()


def test_without_a_sample_only_mated_are_counted():
    unit, codes = clean()
    tally = tally_of(unit, codes)
    assert tally.set.mated.sum() == 360 * 11
    assert tally.set.nonmated.sum() == tally.nonmated_by_identity.sum() == 0
    assert np.isnan(tally.nonmated_quantiles).all()


def test_ends_of_the_range_are_counted():
    unit = np.float32([[1, 0], [1, 0], [-1, 0]])
    tally = tally_of(unit, np.array([0, 0, 1]), Block(unit, np.array([0, 0, 1])))
    assert np.flatnonzero(tally.set.mated).tolist() == [NUM_BINS - 1]
    assert np.flatnonzero(tally.set.nonmated).tolist() == [0]
    assert tally.set.nonmated[0] == 4


def test_shards_merge_to_the_whole_in_any_order():
    unit, codes = tiny()
    sample = drawn(unit, codes, 60, 0)
    whole = tally_of(unit, codes, sample)
    cuts = [slice(0, 9), slice(9, 63), slice(63, 180)]
    parts = [tally_of(unit[cut], codes[cut], sample) for cut in cuts]
    total = SetHistograms.empty()
    for part in reversed(parts):
        total = part.set.merge(total)
    # Products of other shapes round some similarity into the next bin.
    for side in ("mated", "nonmated"):
        found, wanted = (np.cumsum(getattr(h, side)) for h in (total, whole.set))
        assert found[-1] == wanted[-1]
        assert np.abs(found - wanted).max() <= 2
    found = np.concatenate([part.mated_by_identity for part in parts])
    assert np.abs(found - whole.mated_by_identity).sum() <= 4


def test_parts_of_one_identity_add_up():
    unit, codes = one_big()
    sample = drawn(unit, codes, 80, 0)
    own, code = unit[3:603], codes[3:603]
    whole = tally_of(own, code, sample)
    parts = [tally_of(own, code, sample, part) for part in [(0, 200), (200, 201), (201, 600)]]
    for name in ("mated_by_identity", "nonmated_by_identity"):
        found = sum(getattr(part, name) for part in parts)
        wanted = getattr(whole, name)
        assert found.shape == (1, IDENTITY_BINS)
        assert found.sum() == wanted.sum()
        assert np.abs(np.cumsum(found - wanted)).max() <= 5
    assert sum(part.set.mated.sum() for part in parts) == 600 * 599
    quantiles = np.concatenate([part.nonmated_quantiles for part in parts])
    np.testing.assert_allclose(quantiles, whole.nonmated_quantiles, atol=1e-6)


def histograms_of(seed: int, num_mated=4000, num_nonmated=9000):
    """Return counts, and the similarities counted, each in the middle of its bin."""
    rng = np.random.default_rng(seed)
    mated = np.clip(rng.normal(0.5, 0.25, num_mated), -1, 1)
    nonmated = np.clip(rng.normal(0.1, 0.2, num_nonmated), -1, 1)
    counts = [np.histogram(side, EDGES)[0] for side in (mated, nonmated)]
    return SetHistograms(*counts), *(np.repeat(CENTRES, side) for side in counts)


@pytest.mark.parametrize("seed", range(3))
def test_area_equals_scikit_learn(seed):
    histograms, mated, nonmated = histograms_of(seed, 500, 700)
    truth = np.repeat([1, 0], [len(mated), len(nonmated)])
    expected = roc_auc_score(truth, np.concatenate([mated, nonmated]))
    assert error_rates(histograms).auc == pytest.approx(expected, abs=1e-12)


def test_rates_are_those_of_the_similarities():
    histograms, mated, nonmated = histograms_of(7)
    rates = error_rates(histograms)
    np.testing.assert_allclose(rates.threshold, EDGES, atol=1e-15)
    for place in range(0, NUM_BINS + 1, 64):
        threshold = rates.threshold[place]
        assert rates.fmr[place] == pytest.approx(unbinned.fmr(nonmated, threshold), abs=1e-12)
        assert rates.fnmr[place] == pytest.approx(unbinned.fnmr(mated, threshold), abs=1e-12)
    assert rates.fmr[[0, -1]].tolist() == [1, 0]
    assert rates.fnmr[[0, -1]].tolist() == [0, 1]


# 1 - 999 / 1000 is more than 0.001 in floating point, and 1 / 1000 is not.
@pytest.mark.parametrize("num_nonmated", [1000, 9000, 10_000])
@pytest.mark.parametrize("asked", [0.3, 0.1, 0.01, 0.002, 0.001])
def test_threshold_at_a_rate_is_that_of_the_similarities(asked, num_nonmated):
    histograms, mated, nonmated = histograms_of(8, num_nonmated=num_nonmated)
    point = unbinned.threshold_at_fmr(nonmated, asked)
    threshold, fnmr = error_rates(histograms).at_fmr(asked)
    # The threshold lies at the upper edge of the bin of the similarity.
    assert threshold == pytest.approx(point.threshold + 1 / NUM_BINS, abs=1e-12)
    assert unbinned.fmr(nonmated, threshold) == point.achieved_fmr
    assert fnmr == unbinned.fnmr(mated, threshold)


def test_set_without_comparisons_has_no_rates():
    rates = error_rates(SetHistograms.empty())
    assert np.isnan(rates.fmr).all()
    assert np.isnan(rates.fnmr).all()
    assert np.isnan(rates.auc)
    assert np.isnan(rates.at_fmr(0.01)).all()


@pytest.mark.parametrize("lacking", ["mated", "nonmated"])
def test_set_without_comparisons_of_a_kind(lacking):
    histograms, _, _ = histograms_of(9)
    getattr(histograms, lacking)[:] = 0
    rates = error_rates(histograms)
    assert np.isnan(rates.auc)
    assert np.isnan(rates.fnmr).all() == (lacking == "mated")
    assert np.isnan(rates.fmr).all() == (lacking == "nonmated")
    threshold, fnmr = rates.at_fmr(0.01)
    assert np.isnan(threshold) == (lacking == "nonmated")
    assert np.isnan(fnmr)


def test_names_of_quantiles():
    assert quantile_names("nonmated") == [
        f"nonmated_q{share}" for share in ("05", "25", "50", "75", "95")
    ]
