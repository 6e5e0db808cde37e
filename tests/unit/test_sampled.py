import itertools

import numpy as np
import pytest
from embedding_sets import clean, tiny
from label_oracles import all_images
from scipy.stats import chisquare, spearmanr, wasserstein_distance

from sdd_ray.core import sampled
from sdd_ray.core.distances import Precision, shard_distances
from sdd_ray.core.mated import Shard
from sdd_ray.core.moments import partial_sums
from sdd_ray.core.sampled import (
    Places,
    SamplingPlan,
    draw,
    image_digests,
    partner_similarities,
    round_distances,
)


def places_of(codes) -> Places:
    starts = np.searchsorted(codes, codes, side="left")
    return Places(
        np.arange(len(codes)), starts, np.searchsorted(codes, codes, side="right"), len(codes)
    )


def digests_of(num_images: int):
    return image_digests([f"image-{i}" for i in range(num_images)])


def label(unit, codes, plan):
    partners = draw(digests_of(len(codes)), places_of(codes), plan)
    rounds = round_distances(*(partner_similarities(unit, unit, drawn) for drawn in partners))
    assert rounds.shape == (len(codes), plan.num_rounds)
    return rounds.mean(axis=1)


def test_digests_do_not_depend_on_the_batch():
    together = image_digests(["a", "b", "人.jpg"])
    assert [image_digests([text])[0] for text in ("a", "b", "人.jpg")] == together.tolist()
    assert len(set(together.tolist())) == 3


@pytest.mark.parametrize("make", [clean, tiny])
def test_partners_are_of_the_right_kind_and_drawn_once(make):
    _, codes = make()
    plan = SamplingPlan(seed=1, num_rounds=3, per_round=6)
    mated, nonmated = draw(digests_of(len(codes)), places_of(codes), plan)
    for i, code in enumerate(codes):
        num_mated = int((codes == code).sum()) - 1
        for row in mated[i]:
            taken = row[row >= 0]
            assert len(taken) == min(6, num_mated) == len(set(taken))
            assert (codes[taken] == code).all()
            assert i not in taken
        for row in nonmated[i]:
            assert len(set(row)) == 6
            assert (row >= 0).all()
            assert (codes[row] != code).all()


def test_fewer_than_m_nonmated_are_all_taken():
    codes = np.array([0, 0, 0, 1, 2])
    mated, nonmated = draw(digests_of(5), places_of(codes), SamplingPlan(per_round=24))
    assert {tuple(sorted(row[row >= 0])) for row in nonmated[1]} == {(3, 4)}
    assert {tuple(sorted(row[row >= 0])) for row in nonmated[3]} == {(0, 1, 2, 4)}
    assert (mated[3] == -1).all()
    alone = draw(digests_of(2), places_of(np.array([4, 4])), SamplingPlan())
    assert (alone[1] == -1).all()


def test_draws_do_not_depend_on_the_split_or_the_order():
    _, codes = clean()
    digests, plan = digests_of(len(codes)), SamplingPlan(seed=5)
    places = places_of(codes)
    whole = draw(digests, places, plan)
    order = np.random.default_rng(0).permutation(len(codes))
    for part in np.array_split(order, 5):
        fields = (places.position[part], places.start[part], places.stop[part])
        split = draw(digests[part], Places(*fields, len(codes)), plan)
        np.testing.assert_array_equal(split[0], whole[0][part])
        np.testing.assert_array_equal(split[1], whole[1][part])


def test_more_rounds_keep_the_first_ones():
    _, codes = clean()
    digests, places = digests_of(len(codes)), places_of(codes)
    few = draw(digests, places, SamplingPlan(num_rounds=2))
    many = draw(digests, places, SamplingPlan(num_rounds=5))
    np.testing.assert_array_equal(many[1][:, :2], few[1])


def test_seed_image_round_and_kind_each_change_the_draw():
    digests = digests_of(2)
    population = np.array([1000, 1000])
    plan = SamplingPlan(num_rounds=2, per_round=8)
    first = sampled._subsets(digests, population, 0, plan)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[:, 0], first[:, 1])
    assert not np.array_equal(first, sampled._subsets(digests, population, 1, plan))
    other = SamplingPlan(seed=1, num_rounds=2, per_round=8)
    assert not np.array_equal(first, sampled._subsets(digests, population, 0, other))


@pytest.mark.parametrize("seed", [0, 1, -7])
def test_every_partner_is_equally_likely(seed):
    plan = SamplingPlan(seed=seed, num_rounds=20, per_round=7)
    drawn = sampled._subsets(digests_of(1000), np.full(1000, 50), 0, plan)
    counts = np.bincount(drawn.ravel(), minlength=50)
    assert counts.sum() == 1000 * 20 * 7
    # Draws of a round exclude each other, so the counts vary by less than chi-square expects.
    assert chisquare(counts).pvalue > 1e-3


def test_every_subset_is_equally_likely():
    drawn = sampled._subsets(digests_of(3000), np.full(3000, 6), 1, SamplingPlan(per_round=3))
    keys = (1 << drawn).sum(axis=2).ravel()
    subsets = [sum(1 << k for k in pick) for pick in itertools.combinations(range(6), 3)]
    counts = np.array([(keys == subset).sum() for subset in subsets])
    assert counts.sum() == drawn.shape[0] * drawn.shape[1]
    assert chisquare(counts).pvalue > 1e-3


def test_rounds_and_images_are_uncorrelated():
    drawn = sampled._subsets(
        digests_of(20_000), np.full(20_000, 10**6), 0, SamplingPlan(num_rounds=2, per_round=2)
    ).reshape(-1, 4)
    correlation = np.corrcoef(drawn, rowvar=False)
    assert np.abs(correlation - np.eye(4)).max() < 4 / np.sqrt(20_000)
    neighbours = np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(20_000)


def test_similarities_match_float64_and_do_not_depend_on_the_split():
    unit, codes = tiny()
    partners, _ = draw(digests_of(len(codes)), places_of(codes), SamplingPlan(per_round=5))
    result = partner_similarities(unit, unit, partners)
    exact = unit.astype(np.float64) @ unit.astype(np.float64).T
    expected = exact[np.arange(len(unit))[:, None, None], partners]
    np.testing.assert_array_equal(np.isnan(result), partners < 0)
    np.testing.assert_allclose(result[partners >= 0], expected[partners >= 0], atol=1e-6)
    for part in (slice(0, 3), slice(3, 100)):
        split = partner_similarities(unit[part].copy(), unit, partners[part])
        np.testing.assert_array_equal(split, result[part])


def test_a_pool_of_the_drawn_gives_the_same():
    unit, codes = clean()
    _, nonmated = draw(digests_of(len(codes)), places_of(codes), SamplingPlan(per_round=4))
    needed, inside = np.unique(nonmated[:9], return_inverse=True)
    pooled = partner_similarities(unit[:9], unit[needed], inside.reshape(nonmated[:9].shape))
    np.testing.assert_array_equal(pooled, partner_similarities(unit[:9], unit, nonmated[:9]))


def test_distances_match_scipy_round_by_round():
    rng = np.random.default_rng(0)
    mated, nonmated = rng.uniform(-1, 1, (2, 9, 4, 8)).astype(np.float32)
    for i, (num_mated, num_nonmated) in enumerate([(8, 8), (3, 8), (8, 2), (1, 1), (0, 8), (8, 0)]):
        mated[i, :, num_mated:] = np.nan
        nonmated[i, :, num_nonmated:] = np.nan
    result = round_distances(mated, nonmated)
    assert result.shape == (9, 4)
    for i, k in itertools.product(range(9), range(4)):
        p, n = (side[i, k][~np.isnan(side[i, k])] for side in (mated, nonmated))
        expected = wasserstein_distance(p, n) if len(p) and len(n) else np.nan
        assert result[i, k] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(result[4:6]).all()


def test_rounds_differ_and_more_of_them_keep_the_first():
    unit, codes = clean()
    digests, places = digests_of(len(codes)), places_of(codes)
    few, many = (
        round_distances(
            *(
                partner_similarities(unit, unit, drawn)
                for drawn in draw(digests, places, SamplingPlan(num_rounds=rounds))
            )
        )
        for rounds in (3, 7)
    )
    np.testing.assert_array_equal(many[:, :3], few)
    assert (np.std(many, axis=1) > 0).all()


def test_draws_are_for_ever():
    """Golden: Floyd's subsets by SplitMix64 in Python's integers, own identity left out by hand."""
    places = places_of(np.repeat(np.arange(4), [2, 5, 3, 90]))
    mated, nonmated = draw(digests_of(100), places, SamplingPlan(2, num_rounds=2, per_round=3))
    chosen = [0, 4, 50]
    assert mated[chosen].tolist() == [
        [[1, -1, -1], [1, -1, -1]],
        [[2, 5, 6], [2, 5, 3]],
        [[64, 48, 75], [11, 60, 34]],
    ]
    assert nonmated[chosen].tolist() == [
        [[30, 7, 42], [67, 76, 18]],
        [[97, 96, 1], [62, 7, 14]],
        [[2, 6, 7], [6, 2, 3]],
    ]


def test_everybody_drawn_gives_the_exact_distance():
    unit, codes = tiny()
    exact = shard_distances(
        Shard.of(unit, codes), partial_sums(unit), all_images(unit, codes), Precision(0.0)
    ).distance
    everyone = SamplingPlan(num_rounds=1, per_round=len(unit))
    np.testing.assert_allclose(label(unit, codes, everyone), exact, atol=1e-6)
    estimate = label(unit, codes, SamplingPlan())
    labelled = ~np.isnan(exact)
    np.testing.assert_array_equal(np.isnan(estimate), ~labelled)
    assert spearmanr(estimate[labelled], exact[labelled]).statistic > 0.99


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="at least 1, got 0 and 24"):
        SamplingPlan(num_rounds=0)
    one = np.array([1])
    with pytest.raises(ValueError, match="position < stop <= 5"):
        Places(one, one, one, 5)
    with pytest.raises(ValueError, match=r"two \(B, K, m\) arrays"):
        round_distances(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
