import numpy as np
import pytest
from embedding_sets import SETS, clean, collinear, duplicates, one_big, tiny
from label_oracles import brute_force

from sdd_ray.core.mated import Shard
from sdd_ray.core.moments import EmbeddingSums, partial_sums
from sdd_ray.core.shard_statistics import (
    DISTANCE_REASONS,
    QUANTILES,
    ShardScan,
    ShardStatistics,
)


def statistics_of(unit, codes, **options) -> ShardStatistics:
    return ShardScan(Shard.of(unit, codes), partial_sums(unit), **options).look()


@pytest.mark.parametrize("name", SETS)
def test_they_match_brute_force(name):
    unit, codes = SETS[name]()
    found = statistics_of(unit, codes)
    for i, (mated, nonmated) in enumerate(brute_force(unit, codes)):
        assert found.num_mated[i] == len(mated)
        assert found.num_nonmated[i] == len(nonmated)
        assert found.nonmated_mean[i] == pytest.approx(nonmated.mean(), abs=1e-9)
        assert found.nonmated_std[i] == pytest.approx(nonmated.std(), abs=1e-6)
        if len(mated) == 0:
            assert np.isnan(found.mated_mean[i])
            assert np.isnan(found.mated_std[i])
            assert np.isnan(found.mated_quantiles[i]).all()
            assert np.isnan(found.signed_gap[i])
            continue
        assert found.mated_mean[i] == pytest.approx(mated.mean(), abs=1e-9)
        assert found.mated_std[i] == pytest.approx(mated.std(), abs=1e-6)
        np.testing.assert_allclose(
            found.mated_quantiles[i], np.quantile(mated, QUANTILES), atol=1e-6
        )
        gap = mated.mean() - nonmated.mean()
        assert found.signed_gap[i] == pytest.approx(gap, abs=1e-9)


def test_small_spreads_are_not_lost():
    """All similarities lie within 1e-4 of 1: the variance of 1e-10 is found from numbers near 1."""
    unit, codes = collinear()
    found = statistics_of(unit, codes)
    wanted = [nonmated.std() for _, nonmated in brute_force(unit, codes)]
    assert max(wanted) < 1e-4
    np.testing.assert_allclose(found.nonmated_std, wanted, rtol=1e-3)


def test_most_images_of_one_identity():
    """The nonmated variance is what is left of all images' when 600 of 690 are taken away."""
    unit, codes = one_big()
    assert np.bincount(codes).max() / len(codes) > 0.85
    found = statistics_of(unit, codes)
    wanted = [nonmated.std() for _, nonmated in brute_force(unit, codes)]
    np.testing.assert_allclose(found.nonmated_std, wanted, atol=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_slack_makes_the_deviation_large_enough(name):
    unit, codes = SETS[name]()
    scan = ShardScan(Shard.of(unit, codes), partial_sums(unit))
    found = scan.look()
    allowed = np.sqrt(np.square(found.nonmated_std) + scan.slack)
    wanted = np.array([nonmated.std() for _, nonmated in brute_force(unit, codes)])
    assert (wanted <= allowed + 1e-8).all()  # on the collinear set it is too small by 6e-9
    assert (allowed - wanted < 2e-3).all()


def test_copies_may_be_left_out():
    unit, codes = duplicates()
    found = statistics_of(unit, codes, max_similarity=0.999)
    whole = statistics_of(unit, codes)
    sides = brute_force(unit, codes, 0.999)
    assert (found.num_mated < whole.num_mated).any()
    for i, (mated, _) in enumerate(sides):
        assert found.num_mated[i] == len(mated)
        if len(mated):
            assert found.mated_mean[i] == pytest.approx(mated.mean(), abs=1e-7)
            assert found.mated_std[i] == pytest.approx(mated.std(), abs=1e-6)
            np.testing.assert_allclose(
                found.mated_quantiles[i], np.quantile(mated, QUANTILES), atol=1e-6
            )
    for column in ("num_nonmated", "nonmated_mean", "nonmated_std"):
        np.testing.assert_array_equal(getattr(found, column), getattr(whole, column))


def test_only_copies_are_no_comparison():
    unit = np.repeat(np.eye(2, dtype=np.float32), 2, axis=0)
    found = statistics_of(unit, np.array([0, 0, 1, 1]), max_similarity=0.99)
    assert found.num_mated.tolist() == [0] * 4
    assert [DISTANCE_REASONS[code] for code in found.reason] == ["no_mated_comparison"] * 4
    assert np.isnan(found.mated_mean).all()
    assert np.isnan(found.signed_gap).all()


def test_reasons():
    alone = statistics_of(np.float32([[1, 0]]), np.array([5]))
    assert [DISTANCE_REASONS[code] for code in alone.reason] == ["no_mated_comparison"]
    one = statistics_of(clean()[0][:12], np.zeros(12, np.int64))
    assert {DISTANCE_REASONS[code] for code in one.reason} == {"no_nonmated_comparison"}
    assert np.isnan(one.nonmated_std).all()
    assert np.isnan(one.nonmated_mean).all()
    assert np.isfinite(one.mated_mean).all()
    both = statistics_of(*tiny())
    assert set(both.reason.tolist()) == {0, 1}


def test_part_of_an_identity():
    unit, codes = one_big()
    shard, sums = Shard.of(unit[3:603], codes[3:603]), partial_sums(unit)
    whole = ShardScan(shard, sums).look()
    for part in ((0, 1), (100, 450), (599, 600)):
        found = ShardScan(shard, sums, part=part).look()
        for column, values in vars(found).items():
            wanted = getattr(whole, column)[slice(*part)]
            np.testing.assert_allclose(values, wanted, atol=1e-6, err_msg=column)


def test_shards_are_those_of_the_whole():
    unit, codes = tiny()
    sums, whole = partial_sums(unit), statistics_of(unit, codes)
    for rows in (slice(0, 9), slice(9, 63), slice(63, 180)):
        found = ShardScan(Shard.of(unit[rows], codes[rows]), sums).look()
        for column, values in vars(found).items():
            wanted = getattr(whole, column)[rows]
            np.testing.assert_allclose(values, wanted, atol=1e-6, err_msg=column)


def test_every_tile_is_watched():
    unit, codes = tiny()
    seen = []
    statistics_of(unit, codes, watch=lambda tile: seen.extend(tile.rows.tolist()))
    assert sorted(seen) == list(range(len(unit)))


def test_what_a_tile_is_compared_with():
    unit, codes = tiny()
    sides = brute_force(unit, codes)
    scan = ShardScan(Shard.of(unit, codes), partial_sums(unit))
    for tile in scan.tiles():
        rows, moments = scan.rows_of(tile), scan.moments_of(tile)
        np.testing.assert_array_equal(rows.unit, unit[tile.rows])
        np.testing.assert_array_equal(rows.identities, codes[tile.rows])
        nonmated = [sides[i][1] for i in tile.rows]
        assert moments.number.tolist() == [len(row) for row in nonmated]
        np.testing.assert_allclose(moments.mean, [row.mean() for row in nonmated], atol=1e-9)
        np.testing.assert_allclose(moments.variance, [row.var() for row in nonmated], atol=1e-7)
        part = moments.subset(np.array([0]))
        assert (part.number[0], part.mean[0]) == (moments.number[0], moments.mean[0])


def test_sums_must_cover_the_shard():
    unit, codes = clean()
    shard = Shard.of(unit, codes)
    with pytest.raises(ValueError, match="at least the shard's"):
        ShardScan(shard, partial_sums(unit[:5]))
    with pytest.raises(ValueError, match="of size 3"):
        ShardScan(shard, EmbeddingSums(1000, np.zeros(3), np.zeros((3, 3))))
