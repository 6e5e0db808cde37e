import numpy as np
import pytest
from embedding_sets import SETS, Labelled, clean, degraded, mislabelled, tiny
from scipy.stats import wasserstein_distance

from sdd_ray.core import distances as module
from sdd_ray.core.correction import Reference, ReferenceBlock
from sdd_ray.core.distances import (
    DISTANCE_REASONS,
    Shard,
    ShardDistances,
    mated_tiles,
    shard_distances,
)
from sdd_ray.core.moments import EmbeddingSums, partial_sums, sum_of


def shard_of(unit, codes) -> Shard:
    starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
    return Shard(unit, np.concatenate([starts, [len(unit)]]), codes[starts])


def everybody(unit, codes, cuts=()) -> Reference:
    pieces = zip(np.split(unit, cuts), np.split(codes, cuts), strict=True)
    return Reference([ReferenceBlock(*piece) for piece in pieces], is_exhaustive=True)


def label(unit, codes) -> ShardDistances:
    return shard_distances(shard_of(unit, codes), partial_sums(unit), everybody(unit, codes))


def brute_force(unit, codes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each image's mated and nonmated similarities, in float64."""
    similarity = unit.astype(np.float64) @ unit.astype(np.float64).T
    images = np.arange(len(unit))
    return [
        (row[(codes == codes[i]) & (images != i)], row[codes != codes[i]])
        for i, row in enumerate(similarity)
    ]


@pytest.fixture(scope="module", params=SETS)
def hard_set(request) -> Labelled:
    return SETS[request.param]()


def test_distances_match_scipy_over_all_pairs(hard_set):
    labels = label(*hard_set)
    expected = [
        wasserstein_distance(mated, nonmated) if len(mated) else np.nan
        for mated, nonmated in brute_force(*hard_set)
    ]
    np.testing.assert_allclose(labels.distance, expected, atol=1e-6)
    labelled = ~np.isnan(expected)
    np.testing.assert_array_equal(labels.reason == 0, labelled)
    assert (labels.error_bound[labelled] == 0).all()
    assert (labels.distance[labelled] >= 0).all()
    gaps = np.abs(labels.statistics.signed_gap[labelled])
    assert (labels.distance[labelled] >= gaps - 1e-12).all()


def test_statistics_match_brute_force(hard_set):
    statistics = label(*hard_set).statistics
    for i, (mated, nonmated) in enumerate(brute_force(*hard_set)):
        assert statistics.num_mated[i] == len(mated)
        assert statistics.num_nonmated[i] == len(nonmated)
        assert statistics.nonmated_mean[i] == pytest.approx(nonmated.mean(), abs=1e-9)
        assert statistics.nonmated_std[i] == pytest.approx(nonmated.std(), abs=3e-4)
        if len(mated):
            assert statistics.mated_mean[i] == pytest.approx(mated.mean(), abs=1e-9)
            assert statistics.mated_std[i] == pytest.approx(mated.std(), abs=1e-6)
            gap = mated.mean() - nonmated.mean()
            assert statistics.signed_gap[i] == pytest.approx(gap, abs=1e-9)
        else:
            assert np.isnan(statistics.mated_mean[i])
            assert np.isnan(statistics.signed_gap[i])


def test_the_sets_are_hard():
    """Else the comparison with scipy says little: the correction and the sign must matter."""
    corrected = {name: label(*make()) for name, make in SETS.items()}
    for name in ("degraded", "mislabelled", "duplicates", "anticorrelated", "tiny"):
        excess = corrected[name].distance - corrected[name].statistics.signed_gap
        assert (excess > 1e-3).any(), name
    assert (corrected["anticorrelated"].statistics.signed_gap < 0).any()
    assert np.nanmax(corrected["collinear"].distance) < 1e-4


def test_shards_give_the_labels_of_the_whole():
    unit, codes = degraded()
    whole = label(unit, codes)
    cuts = [12 * 5, 12 * 6, 12 * 20]
    pieces = list(zip(np.split(unit, cuts), np.split(codes, cuts), strict=True))
    sums = sum_of(partial_sums(piece) for piece, _ in pieces)
    parts = [
        shard_distances(shard_of(*piece), sums, everybody(unit, codes)).distance for piece in pieces
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole.distance, atol=1e-6)


def test_reference_blocks_change_no_bit(monkeypatch):
    monkeypatch.setattr("sdd_ray.core.correction.COLUMN_TILE", 64)
    unit, codes = mislabelled()
    shard, sums = shard_of(unit, codes), partial_sums(unit)
    whole = shard_distances(shard, sums, everybody(unit, codes)).distance
    for cuts in ([1, 2, 3], [64, 128], [100, 101, 230, 230]):
        split = shard_distances(shard, sums, everybody(unit, codes, cuts)).distance
        np.testing.assert_array_equal(split, whole)


def test_a_shard_moved_in_memory_changes_no_bit():
    unit, codes = degraded()
    whole = label(unit, codes).distance
    buffer = np.empty(unit.size + 3, np.float32)
    moved = buffer[3:].reshape(unit.shape)
    moved[:] = unit
    np.testing.assert_array_equal(label(moved, codes).distance, whole)


def test_permuted_and_sorted_again_is_the_same():
    unit, codes = degraded()
    order = np.random.default_rng(0).permutation(len(unit))
    back = np.lexsort((order, codes[order]))
    again = label(unit[order][back], codes[order][back])
    np.testing.assert_array_equal(again.distance, label(unit, codes).distance)


def test_other_order_within_an_identity_moves_labels_with_their_rows():
    unit, codes = tiny()
    order = np.lexsort((np.random.default_rng(1).random(len(unit)), codes))
    np.testing.assert_allclose(
        label(unit[order], codes).distance, label(unit, codes).distance[order], atol=1e-6
    )


def test_rotation_changes_nothing():
    unit, codes = degraded()
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(64, 64)))[0]
    turned = (unit.astype(np.float64) @ rotation).astype(np.float32)
    np.testing.assert_allclose(
        label(turned, codes).distance, label(unit, codes).distance, atol=1e-6
    )


def test_one_image_identities_act_as_nonmated_only():
    unit, codes = clean()
    extra = np.random.default_rng(3).normal(size=(30, 64))
    extra /= np.linalg.norm(extra, axis=1, keepdims=True)
    longer = np.concatenate([unit, extra.astype(np.float32)])
    labels = label(longer, np.concatenate([codes, 1000 + np.arange(30)]))
    before = label(unit, codes)
    assert [DISTANCE_REASONS[code] for code in labels.reason[-30:]] == ["no_mated_comparison"] * 30
    assert np.isnan(labels.distance[-30:]).all()
    assert np.isnan(labels.error_bound[-30:]).all()
    statistics = labels.statistics
    np.testing.assert_array_equal(statistics.mated_mean[:-30], before.statistics.mated_mean)
    np.testing.assert_array_equal(
        statistics.num_nonmated[:-30], before.statistics.num_nonmated + 30
    )
    assert not np.array_equal(statistics.nonmated_mean[:-30], before.statistics.nonmated_mean)


def test_one_identity_alone_has_no_label():
    unit, codes = clean()[0][:12], np.zeros(12, np.int64)
    labels = label(unit, codes)
    assert {DISTANCE_REASONS[code] for code in labels.reason} == {"no_nonmated_comparison"}
    assert np.isnan(labels.distance).all()
    assert np.isnan(labels.statistics.nonmated_std).all()
    assert np.isfinite(labels.statistics.mated_mean).all()


def test_one_image_alone_has_no_label():
    labels = label(np.float32([[1, 0]]), np.array([5]))
    assert labels.reason.tolist() == [1]
    assert np.isnan(labels.distance[0])


def test_tiles_hold_each_mated_comparison_once(monkeypatch):
    unit, codes = SETS["one_big"]()
    expected = brute_force(unit, codes)
    monkeypatch.setattr(module, "MAX_TILE_PRODUCTS", 10_000)
    seen = 0
    for rows, tile in mated_tiles(shard_of(unit, codes)):
        assert rows.start == seen
        assert len(tile.unit) == 1 or len(tile.unit) * 600 <= 10_000 or len(tile.unit) <= 256
        for local, i in enumerate(range(rows.start, rows.stop)):
            mated = tile.mated.similarity[tile.mated.row == local]
            assert tile.num_mated[local] == len(mated)
            np.testing.assert_allclose(mated, np.sort(expected[i][0]), atol=1e-6)
        seen = rows.stop
    assert seen == len(unit)


def test_small_tiles_give_the_same_labels(monkeypatch):
    unit, codes = SETS["one_big"]()
    whole = label(unit, codes).distance
    monkeypatch.setattr(module, "MAX_TILE_PRODUCTS", 5_000)
    np.testing.assert_allclose(label(unit, codes).distance, whole, atol=1e-6)


@pytest.mark.parametrize("name", ["degraded", "mislabelled", "duplicates", "anticorrelated"])
def test_sampled_reference_keeps_its_bound(name):
    unit, codes = SETS[name](scale=3)
    shard, sums = shard_of(unit, codes), partial_sums(unit)
    exact = shard_distances(shard, sums, everybody(unit, codes)).distance
    violations, errors = [], []
    for seed in range(5):
        drawn = np.sort(np.random.default_rng(seed).choice(len(unit), 128, replace=False))
        sample = Reference([ReferenceBlock(unit[drawn], codes[drawn])], is_exhaustive=False)
        labels = shard_distances(shard, sums, sample)
        error = np.abs(labels.distance - exact)
        assert (labels.error_bound >= 0).all()
        assert (labels.distance >= np.abs(labels.statistics.signed_gap) - 1e-9).all()
        violations.append(error > labels.error_bound + 1e-6)
        errors.append(error)
    assert np.mean(violations) < 0.003
    assert 0 < np.mean(errors) < 0.02


def test_more_reference_means_a_smaller_bound():
    unit, codes = degraded(scale=3)
    shard, sums = shard_of(unit, codes), partial_sums(unit)
    medians = []
    for size in (64, 256, 1024):
        drawn = np.sort(np.random.default_rng(0).choice(len(unit), size, replace=False))
        sample = Reference([ReferenceBlock(unit[drawn], codes[drawn])], is_exhaustive=False)
        medians.append(np.median(shard_distances(shard, sums, sample).error_bound))
    assert medians[0] > 2 * medians[1] > 4 * medians[2] > 0


def test_without_any_reference_the_certificate_bounds_the_error():
    unit, codes = mislabelled()
    exact = label(unit, codes).distance
    nobody = Reference([], is_exhaustive=False)
    labels = shard_distances(shard_of(unit, codes), partial_sums(unit), nobody)
    gaps = labels.statistics.signed_gap
    np.testing.assert_allclose(labels.distance, np.abs(gaps), atol=1e-12)
    assert (exact - labels.distance <= labels.error_bound + 1e-6).all()


def test_reference_of_the_own_identity_only():
    unit, codes = degraded()
    own = Reference([ReferenceBlock(unit[:12], codes[:12])], is_exhaustive=False)
    labels = shard_distances(shard_of(unit, codes), partial_sums(unit), own)
    exact = label(unit, codes).distance
    error = np.abs(labels.distance - exact)[:12]
    assert (error <= labels.error_bound[:12] + 1e-6).all()


def test_an_incomplete_reference_is_not_exhaustive():
    unit, codes = clean()
    with pytest.raises(ValueError, match="348 of them of other identities than a row's, got 347"):
        shard_distances(shard_of(unit, codes), partial_sums(unit), everybody(unit[1:], codes[1:]))


def test_sums_must_cover_the_shard():
    unit, codes = clean()
    shard = shard_of(unit, codes)
    with pytest.raises(ValueError, match="at least the shard's"):
        shard_distances(shard, partial_sums(unit[:5]), everybody(unit, codes))
    with pytest.raises(ValueError, match="of size 3"):
        module.shard_statistics(shard, EmbeddingSums(1000, np.zeros(3), np.zeros((3, 3))))


def test_statistics_alone_are_those_of_the_labels():
    unit, codes = tiny()
    alone = module.shard_statistics(shard_of(unit, codes), partial_sums(unit))
    np.testing.assert_array_equal(alone.nonmated_std, label(unit, codes).statistics.nonmated_std)


@pytest.mark.parametrize(
    ("starts", "identities", "match"),
    [
        ([0, 2, 2, 4], [1, 2, 3], "rise strictly from 0 to 4"),
        ([0, 2, 3], [1, 2], "rise strictly from 0 to 4"),
        ([1, 4], [1], "rise strictly from 0 to 4"),
        ([0, 2, 4], [1], "expected 2 identities"),
    ],
)
def test_shard_is_checked(starts, identities, match):
    unit = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match=match):
        Shard(unit, np.array(starts), np.array(identities))


def test_shard_needs_float32_rows():
    with pytest.raises(ValueError, match="float32 embeddings with N >= 1, got float64"):
        Shard(np.eye(2), np.array([0, 2]), np.array([1]))
