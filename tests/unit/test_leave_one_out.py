"""Leave-one-out labels: against removing each image, fractions, scikit-learn, and at the edges."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from embedding_sets import SETS, clean, degraded, people
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from sdd_ray.core import leave_one_out as module
from sdd_ray.core.error_rates import fnmr, threshold_at_fmr
from sdd_ray.core.leave_one_out import (
    NUM_BINS,
    ImageTile,
    PairHistograms,
    add_row_histograms,
    leave_one_out_area,
    leave_one_out_fnmr,
    pair_histograms,
    row_histograms,
    similarity_bins,
)

NUM_SMALL = 80
counts = st.lists(st.integers(0, 2**40), min_size=5, max_size=5).map(
    lambda c: np.array(c, np.int64)
)
pairs = st.builds(PairHistograms, counts, counts)


def tile(unit, codes, positions=None) -> ImageTile:
    positions = np.arange(len(unit)) if positions is None else positions
    return ImageTile(unit, np.asarray(codes), positions)


@cache
def small(name):
    """Return some images of a set in random order: identities of one image, and of many."""
    unit, codes = SETS[name]()
    some = np.random.default_rng(9).permutation(len(unit))[:NUM_SMALL]
    return unit[some], codes[some]


def histograms(unit, codes, num_bins=NUM_BINS):
    """Return everybody's histograms and those of all rows."""
    images = tile(unit, codes)
    mated, nonmated = row_histograms(images, images, num_bins)
    return pair_histograms(mated.sum(axis=0), nonmated.sum(axis=0)), mated, nonmated


# A plain implementation, which shares nothing with the module but the definition of the bins:
# integers for embeddings, one matrix of bins, and for every image all remaining pairs again.


def plain_bins(unit, num_bins=NUM_BINS):
    points = np.rint(unit.astype(np.float64) * 2**26).astype(np.int64)
    shifted = (points @ points.T).astype(object) + 2**52
    return np.clip((shifted * num_bins // 2**53).astype(np.int64), 0, num_bins - 1)


def plain_area(mated, nonmated):
    if not (len(mated) and len(nonmated)):
        return None
    nonmated = np.sort(nonmated)
    lower, upper = (np.searchsorted(nonmated, mated, side) for side in ("left", "right"))
    twice = int(np.sum(2 * (len(nonmated) - upper) + (upper - lower)))
    return Fraction(twice, 2 * len(mated) * len(nonmated))


def plain_fnmr(mated, nonmated, fmr):
    allowed = sum(k / len(nonmated) <= fmr for k in range(1, len(nonmated)))
    if not (len(mated) and allowed):
        return None
    threshold = sorted(nonmated, reverse=True)[allowed]
    assert np.sum(nonmated > threshold) <= allowed
    return Fraction(int(np.sum(mated < threshold)), len(mated))


def removals(bins, codes, error):
    """Return each image's error(all) - error(all but the image), or NaN, from a matrix of bins."""

    def of(kept):
        first, second = np.triu_indices(len(kept), 1)
        bins_kept, same = bins[kept[first], kept[second]], codes[kept[first]] == codes[kept[second]]
        return error(bins_kept[same], bins_kept[~same])

    everybody = np.arange(len(codes))
    whole, rests = of(everybody), [of(np.delete(everybody, i)) for i in everybody]
    return np.array([np.nan if rest is None else float(whole - rest) for rest in rests])


@pytest.mark.parametrize("name", SETS)
def test_area_equals_removing_the_image_bit_by_bit(name):
    unit, codes = small(name)
    expected = removals(plain_bins(unit), codes, plain_area)
    # Nothing to learn where recognition is perfect, or where all pairs share a bin.
    assert len(np.unique(expected)) > 10 or name in ("clean", "collinear")
    np.testing.assert_array_equal(leave_one_out_area(*histograms(unit, codes)), expected)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmr", [0.01, 0.1, 0.6])
def test_fnmr_equals_removing_the_image_bit_by_bit(name, fmr):
    unit, codes = small(name)
    expected = removals(plain_bins(unit), codes, lambda p, n: plain_fnmr(p, n, fmr))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(leave_one_out_fnmr(*histograms(unit, codes), fmr), expected)


@pytest.mark.parametrize("num_bins", [1, 2, 64])
def test_few_bins_and_many_ties_equal_removing_the_image(num_bins):
    unit, codes = small("degraded")
    bins = plain_bins(unit, num_bins)
    data = histograms(unit, codes, num_bins)
    area = leave_one_out_area(*data)
    np.testing.assert_array_equal(area, removals(bins, codes, plain_area))
    rates = leave_one_out_fnmr(*data, 0.05)
    np.testing.assert_array_equal(rates, removals(bins, codes, lambda p, n: plain_fnmr(p, n, 0.05)))
    if num_bins == 1:  # nothing can be told apart
        assert not area.any()
        assert not rates.any()


def test_thresholds_are_those_of_error_rates():
    unit, codes = small("mislabelled")

    def rate(mated, nonmated):
        return fnmr(mated.astype(float), threshold_at_fmr(nonmated.astype(float), 0.03).threshold)

    expected = removals(plain_bins(unit), codes, rate)
    np.testing.assert_allclose(
        leave_one_out_fnmr(*histograms(unit, codes), 0.03), expected, rtol=0, atol=1e-15
    )


def test_area_agrees_with_the_auc_of_unbinned_similarities():
    unit, codes = (part[:120] for part in degraded())
    similarities = unit.astype(np.float64) @ unit.T.astype(np.float64)

    def one_minus_auc(mated, nonmated):
        truth = np.repeat([1, 0], [len(mated), len(nonmated)])
        return 1 - roc_auc_score(truth, np.concatenate([mated, nonmated]))

    expected = removals(similarities, codes, one_minus_auc)
    area = leave_one_out_area(*histograms(unit, codes))
    assert np.corrcoef(area, expected)[0, 1] > 0.999
    assert np.sqrt(np.mean((area - expected) ** 2)) < 0.02 * np.std(expected)


def test_a_poor_image_has_a_large_value():
    unit, codes = (part[:96].copy() for part in clean())
    unit[17] = unit[17] * -0.6 + unit[80] * 0.8  # unlike its own person, like another one
    unit[17] /= np.linalg.norm(unit[17])
    data = histograms(unit, codes)
    for changes in (leave_one_out_area(*data), leave_one_out_fnmr(*data, 0.001)):
        assert np.argmax(changes) == 17
        assert changes[17] > 0
        assert np.median(changes) <= 0


def huge(seed, num_bins=50, num_rows=30):
    """Return histograms of a set of 6 million images, and of rows that differ little from it."""
    rng = np.random.default_rng(seed)
    place = np.linspace(-1, 1, num_bins)
    shares = [np.exp(-((place - mean) ** 2) / 0.08) for mean in (0.5, 0.0)]
    parts = [share / share.sum() for share in shares]
    whole = [rng.multinomial(n, part) for n, part in zip((2 * 10**8, 10**13), parts, strict=True)]
    rows = [
        np.array([rng.multinomial(n, part) for n in rng.integers(*size, num_rows)])
        for size, part in zip(((1, 500), (5 * 10**6, 6 * 10**6)), parts, strict=True)
    ]
    own = [np.minimum(row, all_of_it) for row, all_of_it in zip(rows, whole, strict=True)]
    return PairHistograms(*whole), *own


def expanded(mated, nonmated):
    """Return the area of histograms in Python integers, bin by bin."""
    below = twice = 0
    for p, n in zip(mated.tolist(), nonmated.tolist(), strict=True):
        twice += n * (2 * below + p)
        below += p
    return Fraction(twice, 2 * below * sum(nonmated.tolist()))


def test_huge_counts_equal_exact_fractions():
    everybody, mated, nonmated = huge(1)
    whole = expanded(everybody.mated, everybody.nonmated)
    expected = [
        float(whole - expanded(everybody.mated - p, everybody.nonmated - n))
        for p, n in zip(mated, nonmated, strict=True)
    ]
    assert 1e-13 < np.min(np.abs(expected)) < np.max(np.abs(expected)) < 1e-6
    np.testing.assert_array_equal(leave_one_out_area(everybody, mated, nonmated), expected)


def test_huge_counts_equal_exact_fractions_at_one_fmr():
    everybody, mated, nonmated = huge(2)

    def rate(p, n):
        allowed, above, threshold = int(n.sum()) // 1000, 0, len(n) - 1
        while above + int(n[threshold]) <= allowed:
            above += int(n[threshold])
            threshold -= 1
        return Fraction(int(p[:threshold].sum()), int(p.sum()))

    whole = rate(everybody.mated, everybody.nonmated)
    expected = [
        float(whole - rate(everybody.mated - p, everybody.nonmated - n))
        for p, n in zip(mated, nonmated, strict=True)
    ]
    assert np.count_nonzero(expected) == len(expected)
    np.testing.assert_array_equal(leave_one_out_fnmr(everybody, mated, nonmated, 1e-3), expected)


def test_chunks_change_no_bit(monkeypatch):
    data = histograms(*small("degraded"))
    whole = leave_one_out_area(*data), leave_one_out_fnmr(*data, 0.1)
    monkeypatch.setattr(module, "CHUNK_COUNTS", 7 * NUM_BINS)
    np.testing.assert_array_equal(leave_one_out_area(*data), whole[0])
    np.testing.assert_array_equal(leave_one_out_fnmr(*data, 0.1), whole[1])


def test_any_rows_can_be_asked_for():
    everybody, mated, nonmated = histograms(*small("tiny"))
    some = [5, 3, 60]
    whole = leave_one_out_area(everybody, mated, nonmated)
    part = leave_one_out_area(everybody, mated[some], nonmated[some])
    np.testing.assert_array_equal(part, whole[some])
    assert leave_one_out_area(everybody, mated[:0], nonmated[:0]).shape == (0,)
    assert leave_one_out_fnmr(everybody, mated[:0], nonmated[:0], 0.1).shape == (0,)


@given(seed=st.integers(0, 2**32 - 1))
def test_permuting_images_permutes_the_values(seed):
    rng = np.random.default_rng(seed)
    unit, codes = people(rng.integers(1, 5, 6).tolist(), 8, [0.3, 2.0], seed)
    order = rng.permutation(len(unit))
    data, shuffled = histograms(unit, codes), histograms(unit[order], codes[order])
    np.testing.assert_array_equal(leave_one_out_area(*shuffled), leave_one_out_area(*data)[order])
    np.testing.assert_array_equal(
        leave_one_out_fnmr(*shuffled, 0.2), leave_one_out_fnmr(*data, 0.2)[order]
    )


# Edges


def test_a_single_identity_has_no_values():
    unit, _ = clean()
    data = histograms(unit[:10], np.zeros(10, np.int64))
    assert np.isnan(leave_one_out_area(*data)).all()
    with pytest.raises(ValueError, match=r"a rate of at least 1 in 0 pairs, got 0\.5"):
        leave_one_out_fnmr(*data, 0.5)


def test_an_image_alone_in_its_identity_has_a_value():
    unit, codes = people([4, 4, 1], 16, [0.8], 0)
    data = histograms(unit, codes)
    assert data[1][8].sum() == 0
    assert np.isfinite(leave_one_out_area(*data)).all()
    assert np.isfinite(leave_one_out_fnmr(*data, 0.1)).all()


def test_no_value_where_nothing_of_a_kind_is_left():
    unit, _ = clean()
    # Without image 3 one identity is left.
    data = histograms(unit[:4], [0, 0, 0, 1])
    assert np.isnan(leave_one_out_area(*data)).tolist() == [False] * 3 + [True]
    assert np.isnan(leave_one_out_fnmr(*data, 0.5)).tolist() == [False] * 3 + [True]
    # Without image 0 or 1 no identity has two images.
    data = histograms(unit[:4], [0, 0, 1, 2])
    assert np.isnan(leave_one_out_area(*data)).tolist() == [True, True, False, False]
    assert np.isnan(leave_one_out_fnmr(*data, 0.5)).tolist() == [True, True, False, False]
    # Not one pair of a person with itself.
    data = histograms(unit[:4], [0, 1, 2, 3])
    assert np.isnan(leave_one_out_area(*data)).all()
    assert np.isnan(leave_one_out_fnmr(*data, 0.5)).all()


def test_no_value_where_the_rest_cannot_support_the_rate():
    unit, _ = clean()
    # 11 nonmated pairs, of which every image takes some along.
    data = histograms(unit[:6], [0, 0, 0, 1, 1, 2])
    assert (11 - data[2].sum(axis=1)).tolist() == [8, 8, 8, 7, 7, 6]
    unsupported = np.isnan(leave_one_out_fnmr(*data, 1 / 8)).tolist()
    assert unsupported == [False] * 3 + [True] * 3
    with pytest.raises(ValueError, match=r"a rate of at least 1 in 11 pairs, got 0\.09"):
        leave_one_out_fnmr(*data, 0.09)
    assert np.isnan(leave_one_out_fnmr(*data, 1 / 11)).all()


def test_equal_similarities_everywhere_change_nothing():
    unit = np.tile(np.float32([0.6, 0.8]), (9, 1))
    data = histograms(unit, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert leave_one_out_area(*data).tolist() == [0.0] * 9
    assert leave_one_out_fnmr(*data, 0.1).tolist() == [0.0] * 9


# Bins and histograms


def test_bins_are_closed_below_and_hold_both_ends():
    edges = np.arange(NUM_BINS + 1) / (NUM_BINS / 2) - 1
    assert similarity_bins(edges[:-1]).tolist() == list(range(NUM_BINS))
    below = similarity_bins(edges[1:-1] - 2.0**-52)
    assert below.tolist() == list(range(NUM_BINS - 1))
    ends = similarity_bins(np.float32([[-1.0000001, -1], [1, 1.0000001]]))
    assert ends.tolist() == [[0, 0], [NUM_BINS - 1, NUM_BINS - 1]]
    assert similarity_bins(np.array([-1.0, 0.3, 1.0]), 1).tolist() == [0, 0, 0]
    assert similarity_bins(np.zeros((0, 3))).shape == (0, 3)


def test_float32_similarities_are_not_rounded_onto_an_edge():
    assert similarity_bins(np.float32([-1e-9, 0.0]), 2).tolist() == [0, 1]


@pytest.mark.parametrize("name", SETS)
def test_rows_see_every_other_image_once_and_pairs_are_even(name):
    unit, codes = SETS[name]()
    everybody, mated, nonmated = histograms(unit, codes)
    sizes = np.bincount(codes)[codes]
    assert mated.sum(axis=1).tolist() == (sizes - 1).tolist()
    assert nonmated.sum(axis=1).tolist() == (len(unit) - sizes).tolist()
    assert everybody.mated.sum() + everybody.nonmated.sum() == len(unit) * (len(unit) - 1) // 2


@pytest.mark.parametrize("num_bins", [64, NUM_BINS, 2**16])
def test_histograms_match_the_plain_bins(num_bins):
    # Rounded products would put some of these pairs into other ones of 2^16 bins.
    unit, codes = people([3] * 20, 512, [1.0, 3.0], 0)
    bins, (_, mated, nonmated) = plain_bins(unit, num_bins), histograms(unit, codes, num_bins)
    for i in range(len(unit)):
        others = np.arange(len(unit)) != i
        for found, kind in ((mated, codes == codes[i]), (nonmated, codes != codes[i])):
            expected = np.bincount(bins[i, kind & others], minlength=num_bins)
            np.testing.assert_array_equal(found[i], expected)


@pytest.mark.parametrize("row_tile", [1, 7])
def test_tiles_change_no_count(monkeypatch, row_tile):
    unit, codes = SETS["mislabelled"]()
    _, mated, nonmated = histograms(unit, codes)
    monkeypatch.setattr(module, "ROW_TILE", row_tile)
    monkeypatch.setattr(module, "COLUMN_TILE", 50)
    _, again_mated, again_nonmated = histograms(unit, codes)
    np.testing.assert_array_equal(again_mated, mated)
    np.testing.assert_array_equal(again_nonmated, nonmated)


def test_blocks_of_columns_in_any_order_add_up():
    unit, codes = (part.copy() for part in small("duplicates"))
    unit.flags.writeable = False  # as arrays from Ray's object store are
    _, mated, nonmated = histograms(unit, codes)
    order = np.random.default_rng(0).permutation(len(unit))
    rows = slice(11, 42)
    sums = np.zeros((2, 31, NUM_BINS), np.int64)
    for block in np.array_split(order, 5):
        images = tile(unit[rows], codes[rows], np.arange(11, 42))
        add_row_histograms(images, tile(unit[block], codes[block], block), sums[0], sums[1])
    np.testing.assert_array_equal(sums[0], mated[rows])
    np.testing.assert_array_equal(sums[1], nonmated[rows])


@given(pairs, pairs, pairs)
def test_merge_is_associative_commutative_and_has_a_neutral_element(one, two, three):
    def same(left, right):
        return left.mated.tolist() == right.mated.tolist() and (
            left.nonmated.tolist() == right.nonmated.tolist()
        )

    assert same(one.merge(two).merge(three), one.merge(two.merge(three)))
    assert same(one.merge(two), two.merge(one))
    assert same(one.merge(PairHistograms.empty(5)), one)
    assert one.merge(two).mated.dtype == np.int64


@given(seed=st.integers(0, 2**32 - 1), num_parts=st.integers(1, 6))
def test_pairs_counted_in_parts_are_those_of_the_whole(seed, num_parts):
    unit, codes = people([3, 1, 2, 4], 4, [0.5, 2.0], seed)
    everybody, mated, nonmated = histograms(unit, codes, 16)
    order = np.random.default_rng(seed).permutation(len(unit))
    parts = [
        (mated[some].sum(axis=0), nonmated[some].sum(axis=0))
        for some in np.array_split(order, num_parts)
    ]
    again = pair_histograms(*(sum(part) for part in zip(*parts, strict=True)))
    assert again.mated.tolist() == everybody.mated.tolist()
    assert again.nonmated.tolist() == everybody.nonmated.tolist()


# Errors

ONE_PAIR = PairHistograms(np.array([1, 0]), np.array([0, 1]))
UNIT = np.float32([[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: similarity_bins(np.zeros(2), 0), "at least 1 bin, got 0"),
        (lambda: similarity_bins(np.array([0, np.nan])), "expected similarities, got 1 NaN"),
        (lambda: tile(UNIT, [0]), r"two \(N,\) arrays, got \(\(2, 2\), \(1,\), \(2,\)\)"),
        (lambda: tile(UNIT[0], [0, 1]), r"expected \(N, d\) embeddings"),
        (lambda: tile(UNIT * 1.1, [0, 1]), "expected 2 rows of unit length, got 0"),
        (lambda: tile(UNIT * np.nan, [0, 1]), "expected 2 rows of unit length, got 0"),
        (lambda: tile(UNIT, [0, 1], np.array([4, 4])), "2 different positions, got 1"),
        (
            lambda: row_histograms(tile(UNIT, [0, 1]), tile(UNIT, [1, 1])),
            "one identity an image, got two at 0",
        ),
        (
            lambda: row_histograms(
                tile(UNIT, [0, 1]), tile(np.eye(3, dtype=np.float32), [0, 1, 2])
            ),
            r"expected \(R, d\) and \(C, d\), got \(2, 2\) and \(3, 3\)",
        ),
        (
            lambda: row_histograms(tile(UNIT, [0, 1]), tile(UNIT, [0, 1]), 0),
            r"two \(R, K\) int64 arrays with K >= 1, got \[\(\(2, 0\), 'int64'\)",
        ),
        (
            lambda: add_row_histograms(
                tile(UNIT, [0, 1]), tile(UNIT, [0, 1]), *np.zeros((2, 3, 4), np.int64)
            ),
            r"expected counts of 2 rows, got \(3, 4\)",
        ),
        (
            lambda: add_row_histograms(
                tile(UNIT, [0, 1]), tile(UNIT, [0, 1]), *np.zeros((2, 4, 2), np.int64).mT
            ),
            "expected C-contiguous counts",
        ),
        (lambda: PairHistograms(np.zeros(2), np.zeros(2)), r"two \(K,\) int64 .*'float64'"),
        (lambda: PairHistograms(np.array([1]), np.array([1, 2])), r"two \(K,\) .*\(1,\)"),
        (lambda: PairHistograms.empty(0), "K >= 1"),
        (lambda: PairHistograms(np.array([1]), np.array([-2])), "at least 0, got -2"),
        (lambda: ONE_PAIR.merge(PairHistograms.empty(3)), "numbers of bins, got 2 and 3"),
        (
            lambda: pair_histograms(np.array([1, 2]), np.array([3, 0])),
            "even counts, summed over all rows, got 2 odd ones",
        ),
    ],
)
def test_misfits_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    "change", [leave_one_out_area, lambda *data: leave_one_out_fnmr(*data, 0.999)]
)
def test_histograms_must_be_part_of_everybody(change):
    everybody = PairHistograms(np.array([1000, 1000]), np.array([1000, 1000]))
    none = np.zeros((3, 2), np.int64)
    with pytest.raises(ValueError, match=r"expected \(B, 2\) counts, got \(1, 3\)"):
        change(everybody, np.zeros((1, 3), np.int64), np.zeros((1, 3), np.int64))
    with pytest.raises(ValueError, match=r"two \(B, K\) int64 arrays"):
        change(everybody, none, none.astype(np.int32))
    for wrong in (-1, 1001):
        bad = none.copy()
        bad[2, 1] = wrong
        for data in ((bad, none), (none, bad)):
            with pytest.raises(ValueError, match="from 0 to everybody's, got others in row 2"):
                change(everybody, *data)


@pytest.mark.parametrize("fmr", [0.0, 1.0, -0.1, np.nan])
def test_rates_outside_the_open_interval_are_refused(fmr):
    with pytest.raises(ValueError, match=r"a false match rate in \(0, 1\), got"):
        leave_one_out_fnmr(ONE_PAIR, np.array([[0, 0]]), np.array([[0, 0]]), fmr)


def test_counts_that_would_overflow_are_refused():
    most = 2**61
    everybody = PairHistograms(np.array([2, 0]), np.array([0, most]))
    nothing = np.array([[0, 0]])
    with pytest.raises(
        ValueError, match=r"less than 2\^62 combinations .* got 4611686018427387904"
    ):
        leave_one_out_area(everybody, np.array([[2, 0]]), nothing)
    assert leave_one_out_area(everybody, np.array([[1, 0]]), nothing).tolist() == [0.0]
