"""The numerics of the audit: against brute force, laws, and sets in which errors were put."""

import io

import numpy as np
import pytest
from embedding_sets import people
from PIL import Image
from scipy.sparse.csgraph import connected_components

from sdd_ray.core import audit, levels, near_duplicates
from sdd_ray.core.audit import (
    ELSEWHERE,
    POOR,
    UNCLEAR,
    UNKNOWN,
    Identities,
    SurveyPlan,
    like_identities,
    likeness_factors,
    match_shares,
    mean_off_diagonal,
    nearest_identity,
    own_similarities,
    people_within,
    survey_block,
)
from sdd_ray.core.error_rates import threshold_at_fmr
from sdd_ray.core.levels import (
    Levels,
    nonmated_similarities,
    provisional_levels,
    trusted_levels,
)
from sdd_ray.core.near_duplicates import (
    TopPairs,
    candidate_pairs,
    duplicate_groups,
    hash_rows,
    linked,
    pair_similarities,
    pairs_above,
    plan_hashes,
)
from sdd_ray.core.similarity import normalise
from sdd_ray.core.verdicts import (
    Evidence,
    Rules,
    is_certain,
    norm_ranks,
    ordering,
    scores,
    verdicts,
)
from sdd_ray.report.audit_figures import own_histogram, suspect_map
from sdd_ray.report.drawing import to_jpeg, to_png
from sdd_ray.report.faces import Case, Cases, Face, FaceGroup
from sdd_ray.report.page import Section, render_page

LEVELS = Levels(match=0.5, chance=0.3)
PLAN = SurveyPlan(LEVELS, min_images=2, duplicate=0.98, max_images=100, seed=0)
ALL = ([6, 1, 9, 2, 4, 12], 16, [0.4, 1.0])


@pytest.fixture
def small_tiles(monkeypatch):
    """Make every tile smaller than the sets of the tests."""
    monkeypatch.setattr(audit, "_TILE_ROWS", 5)
    monkeypatch.setattr(audit, "_CENTROIDS_PER_TILE", 3)
    monkeypatch.setattr(near_duplicates, "_TILE_ROWS", 4)
    monkeypatch.setattr(near_duplicates, "_TILE_COLUMNS", 8)


def unit_rows(*rows):
    return normalise(np.array(rows, np.float32))[0]


def identities_of(unit, codes):
    """Return all identities by brute force."""
    size = int(codes.max()) + 1
    means = np.stack([unit[codes == c].mean(axis=0, dtype=np.float64) for c in range(size)])
    lengths = np.linalg.norm(means, axis=1)
    within = [mean_off_diagonal(unit[codes == c] @ unit[codes == c].T) for c in range(size)]
    centroids = (means / lengths[:, None]).astype(np.float32)
    return Identities(centroids, lengths.astype(np.float32), np.bincount(codes), np.array(within))


# Levels


def brute_nonmated(unit, codes):
    i, j = np.triu_indices(len(unit), 1)
    return (unit @ unit.T)[i, j][codes[i] != codes[j]]


def test_nonmated_similarities_are_those_of_all_pairs(monkeypatch):
    monkeypatch.setattr(levels, "_TILE_ROWS", 5)
    unit, codes = people(*ALL, seed=1)
    found = nonmated_similarities(unit, codes)
    np.testing.assert_allclose(np.sort(found), np.sort(brute_nonmated(unit, codes)), atol=1e-6)
    assert len(nonmated_similarities(unit, np.zeros(len(unit), np.int64))) == 0


def test_trusted_levels_are_thresholds_by_count():
    nonmated = brute_nonmated(*people(*ALL, seed=2))
    found = trusted_levels(nonmated, Levels(0.9, 0.1), 0.02)
    assert found == Levels(threshold_at_fmr(nonmated, 0.02).threshold, 0.1)
    assert np.isnan(trusted_levels(nonmated[:40], LEVELS, 0.02).match)
    assert np.isnan(trusted_levels(nonmated[:0], LEVELS, 0.02).match)


def test_provisional_levels_are_those_of_a_normal_law():
    nonmated = np.random.default_rng(0).normal(0.02, 0.1, 400_000).astype(np.float32)
    found = provisional_levels(nonmated, 1e-3, 0.1)
    assert found.match == pytest.approx(threshold_at_fmr(nonmated, 1e-3).threshold, abs=0.01)
    assert found.chance == threshold_at_fmr(nonmated, 0.1).threshold


def test_a_few_errors_hardly_move_provisional_levels():
    rng = np.random.default_rng(1)
    nonmated = rng.normal(0.02, 0.1, 100_000).astype(np.float32)
    clean = provisional_levels(nonmated, 1e-3, 0.1)
    nonmated[:500] = rng.normal(0.7, 0.1, 500)  # of one person, and not known to be
    spoilt = provisional_levels(nonmated, 1e-3, 0.1)
    assert threshold_at_fmr(nonmated, 1e-3).threshold > 0.6
    assert spoilt.match == pytest.approx(clean.match, abs=0.01)


def test_levels_of_no_comparison_are_no_numbers():
    assert np.isnan(provisional_levels(np.zeros(0, np.float32), 0.1, 0.2).match)


def test_a_match_is_never_below_chance():
    skewed = np.repeat(np.float32([0, 0.8]), [85, 15])
    found = provisional_levels(skewed, 0.01, 0.1)
    assert found.match >= found.chance == pytest.approx(0.8)


# Similarity to the own identity


def test_own_similarity_is_the_upper_quartile_of_the_others(small_tiles):
    unit, _ = people([13], 8, [1.0], seed=2)
    upper = own_similarities(unit, np.arange(13))
    for row in range(13):
        others = np.delete(unit @ unit[row], row)
        assert upper[row] == pytest.approx(np.quantile(others, 0.75), abs=1e-6)


def test_of_a_large_identity_some_images_stand_for_all(small_tiles):
    unit, _ = people([13], 8, [1.0], seed=3)
    chosen = np.array([1, 4, 5, 9, 12])
    upper = own_similarities(unit, chosen)
    for row in range(13):
        others = unit[chosen[chosen != row]] @ unit[row]
        assert upper[row] == pytest.approx(np.quantile(others, 0.75), abs=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_own_similarity_of_tiny_identities(size):
    unit, codes = people([size], 8, [1.0], seed=4)
    upper = own_similarities(unit, np.arange(size))
    shares = match_shares(unit, codes, np.arange(size), -2)
    if size == 1:
        assert np.isnan(upper).all()
        assert np.isnan(shares).all()
    else:
        np.testing.assert_allclose(upper, unit[0] @ unit[1], rtol=1e-6)
        np.testing.assert_array_equal(shares, [1, 1])


def test_match_shares_are_over_all_other_images(small_tiles):
    unit, codes = people([9, 1, 5], 8, [1.0], seed=5)
    codes = codes + 4
    rows = np.array([14, 3, 9, 0])
    shares = match_shares(unit, codes, rows, 0.4)
    for row, share in zip(rows, shares, strict=True):
        others = np.delete(unit[codes == codes[row]] @ unit[row], row - (codes < codes[row]).sum())
        wanted = np.mean(others > 0.4) if len(others) else np.nan
        np.testing.assert_allclose(share, wanted, rtol=1e-6)


def test_several_images_of_one_wrong_person_do_not_hide_each_other():
    unit, _ = people([16, 4], 64, [0.5], seed=5)
    upper = own_similarities(unit, np.arange(20))
    assert (upper[:16] > 0.6).all()
    assert (upper[16:] < 0.5).all()


# People within an identity


def test_two_people_in_one_identity_are_told_apart():
    unit, codes = people([9, 5], 64, [0.6], seed=6)
    order = np.random.default_rng(0).permutation(14)
    groups = people_within(unit[order], LEVELS, 2, 0.99)
    np.testing.assert_array_equal(groups, codes[order] + 1)


def test_three_people_in_one_identity_are_numbered_by_their_images():
    unit, codes = people([3, 8, 5], 64, [0.6], seed=7)
    np.testing.assert_array_equal(people_within(unit, LEVELS, 2, 0.99), np.array([3, 1, 2])[codes])


@pytest.mark.parametrize("sizes", [[12], [11, 1], [1, 1, 1, 1], [3], [1]])
def test_one_person_or_single_strangers_are_no_groups(sizes):
    unit, _ = people(sizes, 64, [0.5], seed=8)
    assert not people_within(unit, LEVELS, 2, 0.99).any()


def test_copies_of_one_stranger_are_no_group():
    unit, _ = people([8, 1], 64, [0.5], seed=9)
    copies = np.concatenate([unit, unit[-1:], unit[-1:]])
    assert not people_within(copies, LEVELS, 2, 0.99).any()
    assert people_within(copies, LEVELS, 2, 1.1).any()


def test_images_that_agree_a_little_are_no_second_person():
    """They are at chance to the others, and above it to each other, but do not match."""
    other = unit_rows([0, 0, 1, 0], [0, 0, 0.42, 0.9])
    unit = np.concatenate([np.repeat(unit_rows([1, 0, 0, 0]), 4, axis=0), other])
    assert LEVELS.chance < other[0] @ other[1] < LEVELS.match
    assert not people_within(unit, LEVELS, 2, 1.1).any()
    assert people_within(unit, Levels(0.4, 0.3), 2, 1.1).any()


def test_an_image_between_two_people_does_not_join_them():
    unit, _ = people([6, 6], 64, [0.5], seed=20)
    between = normalise((unit[0] + unit[6])[None])[0]
    assert min(between[0] @ unit[0], between[0] @ unit[6]) > LEVELS.match
    groups = people_within(np.concatenate([unit, between]), LEVELS, 2, 0.99)
    assert len(set(groups[:6])) == len(set(groups[6:12])) == 1
    assert groups[0] != groups[6]


# The survey


def test_survey_is_that_of_each_identity(small_tiles):
    unit, codes = people([6, 1, 9, 2], 16, [0.4, 1.0], seed=10)
    codes = codes + 7
    found = survey_block(unit, codes, PLAN)
    wanted = identities_of(unit, codes - 7)
    np.testing.assert_allclose(found.within, wanted.within, atol=1e-6)
    np.testing.assert_allclose(found.means, wanted.centroids * wanted.lengths[:, None], atol=1e-6)
    for code in range(7, 11):
        rows = codes == code
        upper = own_similarities(unit[rows], np.arange(rows.sum()))
        np.testing.assert_array_equal(found.own[rows], upper)
        np.testing.assert_array_equal(found.usual[code - 7], np.median(upper))


def test_survey_does_not_depend_on_the_block_an_identity_is_in():
    unit, codes = people([30, 1, 40, 2], 16, [0.4, 1.0], seed=11)
    plan = SurveyPlan(LEVELS, 2, 0.9, max_images=16, seed=3)
    whole = survey_block(unit, codes, plan)
    parts = [survey_block(unit[codes == c], codes[codes == c], plan) for c in range(4)]
    for name in ("own", "usual", "means", "within", "person", "duplicate_similarity"):
        np.testing.assert_array_equal(
            getattr(whole, name), np.concatenate([getattr(part, name) for part in parts])
        )
    assert whole.num_duplicate_pairs == sum(part.num_duplicate_pairs for part in parts)


def test_images_that_stand_for_an_identity_are_drawn_by_the_seed():
    unit, codes = people([60], 16, [1.0], seed=12)
    first, again, other = (
        survey_block(unit, codes, SurveyPlan(LEVELS, 2, 0.99, 16, seed)).own for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    elsewhere = survey_block(unit, codes + 1, SurveyPlan(LEVELS, 2, 0.99, 16, 0)).own
    assert (first != elsewhere).any()


def test_survey_of_a_block_of_which_no_row_is_usable():
    found = survey_block(np.zeros((0, 8), np.float32), np.zeros(0, np.int64), PLAN)
    assert found.means.shape == (0, 8)
    assert len(found.own) == len(found.within) == found.num_duplicate_pairs == 0


def test_a_mixed_identity_is_described():
    unit, codes = people([9, 5, 6], 64, [0.6], seed=13)
    found = survey_block(unit, np.minimum(codes, 1), PLAN)
    (split,) = found.splits
    assert (split.identity, split.num_groups) == (1, 2)
    large, small = unit[codes == 2], unit[codes == 1]
    wanted = (mean_off_diagonal(large @ large.T), mean_off_diagonal(small @ small.T))
    assert split.within == pytest.approx(wanted, abs=1e-6)
    assert split.between == pytest.approx((large @ small.T).mean(), abs=1e-6)


# Between identities


def test_nearest_identity_is_that_of_the_largest_cosine(small_tiles):
    unit, codes = people([3] * 11, 8, [0.5, 2.0], seed=14)
    identities = identities_of(unit, codes)
    nearest, mean = nearest_identity(unit, codes, identities, np.arange(11))
    cosine = unit @ identities.centroids.T
    cosine[np.arange(33), codes] = -2
    np.testing.assert_array_equal(nearest, cosine.argmax(axis=1))
    for row in range(33):
        wanted = (unit[codes == nearest[row]] @ unit[row]).mean()
        assert mean[row] == pytest.approx(wanted, abs=1e-6)


def test_another_name_of_the_same_person_is_not_the_nearest():
    unit, codes = people([4, 4, 4], 8, [0.3], seed=15)
    identities = identities_of(unit, codes)
    person = np.array([0, 0, 2])
    nearest, _ = nearest_identity(unit, codes, identities, person)
    assert set(nearest[codes < 2]) == {2}
    alone, mean = nearest_identity(unit, codes, identities, np.zeros(3, np.int64))
    assert (alone == -1).all()
    assert np.isnan(mean).all()


def likeness_by_hand(unit, codes, a, b, match):
    def within(c):
        return max(mean_off_diagonal(unit[codes == c] @ unit[codes == c].T), match)

    between = (unit[codes == a] @ unit[codes == b].T).mean()
    return between / np.sqrt(within(a) * within(b))


def test_likeness_is_the_mean_similarity_over_those_within(small_tiles):
    unit, codes = people([6] * 9, 4, [0.5, 1.0], seed=16)
    identities = identities_of(unit, codes)
    factors = likeness_factors(identities, 0.2, 2)
    tiles = [slice(0, 4), slice(4, 9)]
    pairs = [(tiles[0], tiles[0]), (tiles[0], tiles[1]), (tiles[1], tiles[1])]
    found = [like_identities(identities, factors, pair, 0.3, 0.2) for pair in pairs]
    first, second, values = (np.concatenate([part[n] for part in found]) for n in range(3))
    wanted = {
        (a, b): value
        for a in range(9)
        for b in range(a + 1, 9)
        if (value := likeness_by_hand(unit, codes, a, b, 0.2)) >= 0.3
    }
    assert len(wanted) > 3
    assert dict(zip(zip(first, second, strict=True), values, strict=True)) == {
        key: pytest.approx(value, abs=1e-5) for key, value in wanted.items()
    }


def test_halves_of_one_person_have_a_likeness_of_one():
    unit, codes = people([40, 40], 64, [1.0], seed=17)
    halves = np.where(np.arange(80) < 20, 2, codes)
    identities = identities_of(unit, halves)
    factors = likeness_factors(identities, 0.1, 2)
    whole = (slice(0, 3), slice(0, 3))
    first, second, values = like_identities(identities, factors, whole, 0.5, 0.1)
    assert (first.tolist(), second.tolist()) == ([0], [2])
    assert values[0] == pytest.approx(1.0, abs=0.05)


def test_small_identities_must_match_on_average_too():
    unit, codes = people([4, 4, 30], 64, [1.6], seed=18)
    halves = np.where(np.arange(38) < 2, 3, codes)
    identities = identities_of(unit, halves)
    whole = (slice(0, 4), slice(0, 4))
    for match, found in ((0.05, [(0, 3)]), (0.9, [])):
        factors = np.ones(4, np.float32) * 5
        first, second, _ = like_identities(identities, factors, whole, 0.7, match)
        pairs = list(zip(first.tolist(), second.tolist(), strict=True))
        assert ((0, 3) in pairs) == bool(found)
    assert likeness_factors(identities, 0.1, 3)[3] == 0


# Verdicts


def evidence(**changes):
    """Return one suspect that fits nowhere and is near nobody, with changes."""
    values = {
        "codes": 3,
        "own": 0.1,
        "usual": 0.7,
        "num_mated": 8,
        "nearest": 0.2,
        "nearest_size": 9,
        "norm_rank": 0.6,
        "in_second": False,
        **changes,
    }
    types = {"codes": int, "num_mated": int, "nearest_size": int, "in_second": bool}
    return Evidence(
        **{k: np.atleast_1d(np.array(v, types.get(k, np.float32))) for k, v in values.items()}
    )


RULES = Rules(LEVELS, elsewhere=0.55, margin=0.1, poor_norm_rank=0.15)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "unknown"),
        ({"nearest": 0.6}, "elsewhere"),
        ({"nearest": 0.55}, "unknown"),
        ({"own": 0.49, "nearest": 0.56}, "unclear"),
        ({"own": 0.4}, "unclear"),
        ({"usual": 0.15}, "unclear"),
        ({"norm_rank": 0.1}, "poor"),
        ({"norm_rank": np.nan}, "unknown"),
        ({"norm_rank": 0.1, "nearest": 0.6}, "elsewhere"),
        ({"num_mated": 1, "usual": 0.1}, "either"),
        ({"num_mated": 1, "usual": 0.1, "norm_rank": 0.1}, "either"),
        ({"num_mated": 1, "usual": 0.4, "own": 0.4}, "unclear"),
        ({"num_mated": 1, "usual": 0.1, "nearest": 0.6}, "elsewhere"),
        ({"in_second": True}, "second_person"),
        ({"in_second": True, "nearest": 0.6}, "elsewhere"),
        ({"nearest": np.nan, "nearest_size": 0}, "unknown"),
    ],
)
def test_verdicts(changes, verdict):
    (code,) = verdicts(evidence(**changes), RULES)
    assert audit.VERDICTS[code] == verdict


def test_of_two_images_one_that_belongs_elsewhere_explains_the_other():
    two = evidence(
        codes=[3, 3, 4, 4],
        own=[0.1] * 4,
        usual=[0.1] * 4,
        num_mated=[1] * 4,
        nearest=[0.2, 0.7, 0.2, 0.2],
        nearest_size=[9] * 4,
        norm_rank=[0.5] * 4,
        in_second=[False] * 4,
    )
    names = [audit.VERDICTS[code] for code in verdicts(two, RULES)]
    assert names == ["unclear", "elsewhere", "either", "either"]
    assert not is_certain(two, verdicts(two, RULES)).any()


def test_certainty_needs_more_than_one_image_on_each_side():
    for changes, certain in (
        ({"nearest": 0.6}, True),
        ({"nearest": 0.6, "nearest_size": 1}, False),
        ({"nearest": 0.6, "num_mated": 1}, False),
        ({"nearest_size": 1}, True),
        ({"norm_rank": 0.1}, False),
    ):
        one = evidence(**changes)
        assert is_certain(one, verdicts(one, RULES)).tolist() == [certain]


def test_scores_say_what_is_missing_and_order_the_list():
    both = Evidence(
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for parts in [[evidence(), evidence(nearest=0.6), evidence(own=0.0, nearest=0.8)]]
            for name in evidence().__dict__
        }
    )
    verdict = verdicts(both, RULES)
    score = scores(both, verdict, LEVELS)
    np.testing.assert_allclose(score, [0.4, 0.5, 0.8], atol=1e-6)
    assert ordering(verdict, score).tolist() == [2, 1, 0]
    taken = both.take(np.array([2]))
    assert taken.own.tolist() == [0.0]
    assert (ELSEWHERE, UNKNOWN, POOR, UNCLEAR) == (0, 2, 4, 5)


def test_norm_ranks_of_unknown_lengths_are_no_numbers():
    ranks = norm_ranks(np.array([5, np.nan, 1, 2], np.float32))
    np.testing.assert_array_equal(ranks, np.array([2 / 3, np.nan, 0, 1 / 3], np.float32))
    assert np.isnan(norm_ranks(np.full(3, np.nan, np.float32))).all()
    assert len(norm_ranks(np.zeros(0, np.float32))) == 0


# Near-duplicates


def copies(seed, count=40, d=16):
    """Return rows of which a third are near or exact copies of others."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, d))
    for place in range(0, count, 3):
        noise = rng.choice([0.0, 0.05, 0.2])
        rows[place] = rows[rng.integers(count)] + noise * rng.standard_normal(d)
    return normalise(rows.astype(np.float32))[0]


def test_pairs_are_those_of_all_products(small_tiles):
    unit = copies(0)
    similarity = unit @ unit.T
    i, j, values = pairs_above(unit, unit, 0.9, is_same=True)
    wanted = np.argwhere(np.triu(similarity >= 0.9, 1))
    assert len(wanted) > 3
    np.testing.assert_array_equal(np.stack([i, j], 1), wanted)
    np.testing.assert_allclose(values, similarity[i, j], atol=1e-6)
    i, j, _ = pairs_above(unit[:17], unit[17:], 0.9, is_same=False)
    np.testing.assert_array_equal(np.stack([i, j], 1), np.argwhere(similarity[:17, 17:] >= 0.9))


def test_groups_are_the_connected_ones(small_tiles):
    unit = copies(1)
    groups, best, pairs = duplicate_groups(unit, 0.9)
    near = np.triu(unit @ unit.T >= 0.9, 1)
    assert pairs == near.sum() > 3
    _, component = connected_components(near, directed=False)
    alone = np.bincount(component)[component] == 1
    np.testing.assert_array_equal(groups == -1, alone)
    for row in np.flatnonzero(~alone):
        assert groups[row] == np.flatnonzero(component == component[row])[0]
        partners = near[row] | near[:, row]
        assert best[row] == pytest.approx((unit @ unit[row])[partners].max(), abs=1e-6)
    assert np.isnan(best[alone]).all()


def test_all_images_alike_are_one_group(small_tiles):
    unit = np.repeat(unit_rows([1, 2, 3]), 21, axis=0)
    groups, best, pairs = duplicate_groups(unit, 0.99)
    assert set(groups) == {0}
    assert pairs == 210
    np.testing.assert_allclose(best, 1, atol=1e-6)


@pytest.mark.parametrize("size", [0, 1])
def test_no_pairs_in_tiny_sets(size):
    unit = np.ones((size, 1), np.float32)
    groups, best, pairs = duplicate_groups(unit, 0.5)
    assert (groups.tolist(), len(best), pairs) == ([-1] * size, size, 0)


def test_links_join_groups_in_any_order():
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 50, (2, 40))
    whole = linked(np.arange(50), first, second)
    steps = np.arange(50)
    for a, b in zip(first, second, strict=True):
        steps = linked(steps, np.array([a]), np.array([b]))
    np.testing.assert_array_equal(whole, steps)
    np.testing.assert_array_equal(linked(whole, first, second), whole)
    assert (whole <= np.arange(50)).all()
    assert len(linked(np.zeros(0, np.int64), first[:0], second[:0])) == 0


@pytest.mark.parametrize("parts", [1, 3, 20])
def test_top_pairs_do_not_depend_on_how_they_came(parts):
    rng = np.random.default_rng(3)
    first, second = np.divmod(rng.permutation(400)[:200], 20)
    values = rng.integers(0, 9, 200).astype(np.float32)  # many ties
    top = TopPairs(30)
    for part in np.array_split(rng.permutation(200), parts):
        top.add((first[part], second[part], values[part]))
    assert top.count == 200
    order = np.lexsort((second, first, -values))[:30]
    for found, wanted in zip(top.pairs(), (first, second, values), strict=True):
        np.testing.assert_array_equal(found, wanted[order])


def at_similarity(similarity, count, d, seed):
    """Return pairs of unit rows of one similarity: (2, count, d)."""
    rng = np.random.default_rng(seed)
    first = normalise(rng.standard_normal((count, d)).astype(np.float32))[0]
    other = rng.standard_normal((count, d)).astype(np.float32)
    other -= (other * first).sum(1, keepdims=True) * first
    second = similarity * first + np.sqrt(1 - similarity**2) * normalise(other)[0]
    return np.stack([first, normalise(second)[0]])


@pytest.mark.parametrize(("limit", "recall"), [(0.97, 0.95), (0.9, 0.8), (0.995, 0.99)])
def test_hashes_find_the_promised_share(limit, recall):
    plan = plan_hashes(limit, recall, 100_000)
    assert recall <= plan.recall < 1
    unit = at_similarity(limit, 2000, 64, seed=4).reshape(-1, 64)
    keys, check = hash_rows(unit, plan, seed=5)
    assert keys.shape == (plan.tables, 4000)
    same_key = (keys[:, :2000] == keys[:, 2000:]).any(axis=0)
    near = np.bitwise_count(check[:2000] ^ check[2000:]) <= plan.max_differing
    assert (same_key & near).mean() == pytest.approx(plan.recall, abs=0.02)
    # Of pairs of strangers hardly any is left to compare.
    shifted = np.roll(check[:2000], 1)
    assert (np.bitwise_count(shifted ^ check[:2000]) <= plan.max_differing).mean() < 0.01


def test_signs_of_a_table_are_those_of_its_hyperplanes(small_tiles):
    plan = plan_hashes(0.97, 0.95, 300)
    unit = copies(6)
    keys, check = hash_rows(unit, plan, seed=7)
    again = hash_rows(unit, plan, seed=7)
    np.testing.assert_array_equal(keys, again[0])
    assert (hash_rows(unit, plan, seed=8)[1] != check).any()
    assert keys.max() < 2**plan.bits
    flipped, flipped_check = hash_rows(-unit, plan, seed=7)
    np.testing.assert_array_equal(keys ^ flipped, 2**plan.bits - 1)
    np.testing.assert_array_equal(~check, flipped_check)


def test_candidates_are_all_pairs_that_share_a_key():
    rng = np.random.default_rng(8)
    keys = rng.integers(0, 12, 60).astype(np.uint64)
    check = rng.integers(0, 4, 60).astype(np.uint64)
    codes = rng.integers(0, 5, 60)
    first, second = candidate_pairs(keys, check, codes, 1)
    wanted = {
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if keys[i] == keys[j] and codes[i] != codes[j] and (check[i] ^ check[j]).bit_count() <= 1
    }
    found = list(zip(first.tolist(), second.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == wanted


def test_a_bucket_of_equal_keys_is_bounded(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_MAX_IN_BUCKET", 3)
    zeros = np.zeros(50, np.uint64)
    first, second = candidate_pairs(zeros, zeros, np.arange(50), 0)
    assert len(first) == 49 + 48 + 47
    assert (second - first <= 3).all()
    none = candidate_pairs(zeros[:0], zeros[:0], np.arange(0), 0)
    assert [len(side) for side in none] == [0, 0]


def test_similarities_of_pairs():
    unit = copies(9)
    found = pair_similarities(unit[:5], unit[5:10])
    np.testing.assert_allclose(found, (unit[:5] * unit[5:10]).sum(axis=1), atol=1e-6)


def test_levels_and_survey_of_tiles_of_another_size_agree(monkeypatch):
    unit, codes = people(*ALL, seed=19)
    wanted = survey_block(unit, codes, PLAN)
    monkeypatch.setattr(audit, "_TILE_ROWS", 3)
    found = survey_block(unit, codes, PLAN)
    np.testing.assert_allclose(found.own, wanted.own, atol=1e-6)
    np.testing.assert_array_equal(found.duplicate_of, wanted.duplicate_of)


# What the page shows


NASTY = '<script>alert("1")</script> & so on'


def test_cases_are_escaped_and_pictures_have_words():
    picture = to_jpeg(np.full((112, 112, 3), 90, np.uint8))
    assert picture.startswith(b"\xff\xd8")
    groups = (
        FaceGroup(NASTY, (Face(picture, NASTY, NASTY), Face(None, "lost")), is_subject=True),
        FaceGroup("", (Face(to_png(np.zeros((4, 4, 3), np.uint8)), "black"),)),
    )
    cases = (Case(NASTY, NASTY, groups),)
    page = render_page("t", [Section("s", figures=[Cases(cases), Cases(cases, True)])], {})
    assert "<script" not in page
    assert page.count("data:image/jpeg;base64,") == page.count("data:image/png;base64,") == 2
    assert page.count('aria-label="lost, could not be read"') == 2
    assert page.count('<div class="subject"><small>&lt;script&gt;') == 2
    assert page.count('<ol class="cases">') == page.count('<ol class="cases compact">') == 1


def test_pictures_for_pages_are_small():
    picture = to_jpeg(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8), 60)
    assert Image.open(io.BytesIO(picture)).size == (40, 60)


def test_histogram_counts_what_lies_below_each_level():
    own = np.array([0.1, 0.2, 0.5, 0.9, np.nan])
    figure = own_histogram(own, {"chance": 0.15, "match": 0.4})
    assert "4 images to their own identity, median 0.35" in figure.alt
    assert "1 below chance (0.15); 2 below match (0.40)" in figure.alt
    with pytest.raises(ValueError, match="expected at least one similarity, got 2 NaN"):
        own_histogram(np.full(2, np.nan), {"match": 0.4})


def test_map_of_suspects_counts_each_verdict():
    own, nearest = np.array([0.1, 0.2, 0.0]), np.array([0.6, 0.3, np.nan])
    names = ["elsewhere", "unclear", "unknown"]
    figure = suspect_map(own, nearest, names, (0.15, 0.4, 0.5))
    assert "2 suspects: 1 elsewhere, 1 unclear." in figure.alt
    with pytest.raises(ValueError, match="got 1 without"):
        suspect_map(own[2:], nearest[2:], names[2:], (0.15, 0.4, 0.5))
