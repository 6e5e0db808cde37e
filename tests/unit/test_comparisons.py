"""Comparisons within a set against a plain loop over all pairs."""

import numpy as np
import pytest

from sdd_ray.core.comparisons import (
    ComparedPairs,
    compare_tile,
    count_nonmated,
    largest_of_tile,
    mated_pairs,
    sampled_nonmated,
    similarities_between,
)


@pytest.fixture
def faces():
    rng = np.random.default_rng(5)
    unit = rng.standard_normal((37, 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    codes = rng.integers(0, 9, 37)
    return unit.astype(np.float32), codes


def every(unit, codes, wanted):
    count = len(codes)
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    return [(a, b, float(unit[a] @ unit[b])) for a, b in pairs if (codes[a] == codes[b]) is wanted]


def rows_of(*parts: ComparedPairs):
    return [
        (int(a), int(b), float(s))
        for p in parts
        for a, b, s in zip(p.first, p.second, p.similarities, strict=True)
    ]


def tiles(unit, codes, size, share=1.0, seed=0):
    found = [
        compare_tile(unit, codes, (start, min(start + size, len(unit))), share, seed)
        for start in range(0, len(unit), size)
    ]
    return rows_of(*(m for m, _ in found)), rows_of(*(n for _, n in found))


@pytest.mark.parametrize("size", [1, 5, 36, 37, 100])
def test_all_pairs_in_order(faces, size):
    unit, codes = faces
    codes = codes.tolist()
    mated, nonmated = tiles(unit, np.array(codes), size)
    for found, wanted in ((mated, every(unit, codes, True)), (nonmated, every(unit, codes, False))):
        assert [row[:2] for row in found] == [row[:2] for row in wanted]
        assert [row[2] for row in found] == pytest.approx([row[2] for row in wanted], abs=1e-6)


@pytest.mark.parametrize("size", [1, 7, 20])
def test_drawn_pairs_do_not_depend_on_tiles(faces, size):
    whole, cut = (tiles(*faces, n, share=0.3, seed=11) for n in (37, size))
    assert [row[:2] for row in whole[0]] == [row[:2] for row in cut[0]]
    assert [row[:2] for row in whole[1]] == [row[:2] for row in cut[1]]


def test_mated_comparisons_are_all_made_at_any_share(faces):
    unit, codes = faces
    for share in (0.0, 0.5):
        mated, nonmated = tiles(unit, codes, 10, share)
        assert len(mated) == len(every(unit, codes.tolist(), True))
    assert tiles(unit, codes, 10, 0.0)[1] == []
    assert nonmated


def test_drawn_share_holds_everywhere():
    unit, codes = np.zeros((2000, 1), np.float32), np.arange(2000)
    _, drawn = compare_tile(unit, codes, (0, 2000), 0.1, seed=3)
    total = count_nonmated(codes)
    # Five standard deviations of a binomial count.
    assert abs(len(drawn.first) - 0.1 * total) < 5 * np.sqrt(0.09 * total)
    bins = np.bincount(drawn.first // 200, minlength=10)
    wanted = np.bincount(np.triu_indices(2000, 1)[0] // 200, minlength=10) * 0.1
    assert np.all(np.abs(bins - wanted) < 5 * np.sqrt(0.9 * wanted))
    by_parity = np.bincount((drawn.first + 2 * drawn.second) % 4, minlength=4) / len(drawn.first)
    assert np.abs(by_parity - 0.25).max() < 0.01


def test_seeds_draw_independent_pairs():
    unit, codes = np.zeros((800, 1), np.float32), np.arange(800)
    drawn = []
    for seed in (0, 1, 2):
        _, pairs = compare_tile(unit, codes, (0, 800), 0.1, seed)
        drawn.append(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)))
    total = count_nonmated(codes)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert abs(len(drawn[a] & drawn[b]) - 0.01 * total) < 5 * np.sqrt(0.01 * total)


def test_smaller_share_is_part_of_the_larger(faces):
    small, large = (set(tiles(*faces, 37, share, seed=2)[1]) for share in (0.2, 0.6))
    assert small < large


def test_types(faces):
    for pairs in compare_tile(*faces, (3, 9), 0.5, 0):
        assert (pairs.first.dtype, pairs.second.dtype) == (np.int32, np.int32)
        assert pairs.similarities.dtype == np.float32
        assert np.all(pairs.first < pairs.second)


def test_count_of_nonmated_pairs(faces):
    unit, codes = faces
    assert count_nonmated(codes) == len(every(unit, codes.tolist(), False))
    assert count_nonmated(np.zeros(10, int)) == 0
    # Beyond 32 bits.
    assert count_nonmated(np.repeat(np.arange(2), 3_000_000)) == 9 * 10**12


def test_mated_pairs_and_similarities_are_those_of_the_tiles():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 12, 60)
    unit = rng.standard_normal((60, 7)).astype(np.float32)
    mated, _ = compare_tile(unit, codes, (0, 60), 1.0, 0)
    first, second = mated_pairs(codes)
    np.testing.assert_array_equal(first, mated.first)
    np.testing.assert_array_equal(second, mated.second)
    found = similarities_between(unit, first, second)
    np.testing.assert_allclose(found, mated.similarities, rtol=1e-5, atol=1e-5)
    assert [len(ends) for ends in mated_pairs(np.arange(5))] == [0, 0]


def test_sampled_pairs_are_nonmated_and_drawn_evenly():
    codes = np.array([0, 0, 1, 1, 1, 2, 3])
    there = {(a, b) for b in range(7) for a in range(b) if codes[a] != codes[b]}
    counts = dict.fromkeys(there, 0)
    for seed in range(400):
        first, second = sampled_nonmated(codes, 6, seed)
        drawn = list(zip(first.tolist(), second.tolist(), strict=True))
        assert len(set(drawn)) == 6
        assert drawn == sorted(drawn)
        for pair in drawn:
            counts[pair] += 1
    # Each of 17 pairs is drawn 141 times, give or take 9.5.
    assert min(counts.values()) > 141 - 40
    assert max(counts.values()) < 141 + 40
    again = sampled_nonmated(codes, 6, 399)
    np.testing.assert_array_equal(first, again[0])
    almost = sampled_nonmated(codes, 16, 0)
    assert len(set(zip(*(ends.tolist() for ends in almost), strict=True))) == 16


def test_largest_of_tiles_are_those_above_the_cutoff():
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 12, 60)
    unit = rng.standard_normal((60, 7)).astype(np.float32)
    _, nonmated = compare_tile(unit, codes, (0, 60), 1.0, 0)
    expected = {
        (a, b)
        for a, b, s in zip(nonmated.first, nonmated.second, nonmated.similarities, strict=True)
        if s > 2
    }
    assert len(expected) > 50
    parts = [largest_of_tile(unit, codes, rows, 2.0) for rows in ((0, 23), (23, 24), (24, 60))]
    found = [pair for p in parts for pair in zip(p.first, p.second, strict=True)]
    assert len(found) == len(expected)
    assert set(found) == expected
