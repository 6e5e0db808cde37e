"""Advice and groups against counting by hand, with weights and without."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdd_ray.core.advice import UNREACHABLE, RankCounts, advise_discard, advise_fnmr
from sdd_ray.core.comparisons import compare_tile
from sdd_ray.core.groups import NO_GROUP, group_figures
from sdd_ray.core.ranked_sides import ComparedSides, Protocol, rank_sides

_COUNT = st.integers(0, 4)


@given(
    rows=st.lists(st.tuples(_COUNT, _COUNT, _COUNT), min_size=1, max_size=12).filter(
        lambda rows: any(images for images, *_ in rows)
    ),
    most=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]),
    failures=st.booleans(),
)
def test_advice_equals_trying_every_threshold(rows, most, failures):
    """Of known qualities: an image that failed is never accepted."""
    images, mated, missed = (np.array(part) for part in zip(*rows, strict=True))
    missed = np.minimum(missed, mated)
    qualities = np.arange(len(rows)) / 2
    if failures:
        qualities[0] = -np.inf
    counts = RankCounts(images, mated, missed, qualities)
    tried = [
        (
            rank / 2,
            images[:rank].sum() / images.sum(),
            missed[rank:].sum() / mated[rank:].sum() if mated[rank:].sum() else math.nan,
        )
        for rank in range(int(failures), len(rows))
        if images[rank]
    ]
    found = advise_discard(counts, most)
    if not tried:
        assert found is UNREACHABLE
        assert advise_fnmr(counts, most) is UNREACHABLE
        return
    # Where more than that failed, the lowest quality is all that can be asked for.
    allowed = [one for one in tried if one[1] <= most] or tried[:1]
    assert (found.threshold, found.discarded) == pytest.approx(allowed[-1][:2])
    reached = [one for one in tried if one[2] <= most]
    aim = advise_fnmr(counts, most)
    if reached:
        assert (aim.threshold, aim.discarded, aim.fnmr) == pytest.approx(reached[0])
    else:
        assert aim is UNREACHABLE


def test_nothing_is_advised_where_errors_are_unknown():
    ones = np.ones(3)
    counts = RankCounts(ones, ones, np.full(3, np.nan), np.arange(3.0))
    assert advise_fnmr(counts, 0.5) is UNREACHABLE
    assert advise_discard(counts, 0.4).threshold == 1
    assert math.isnan(advise_discard(counts, 0.4).fnmr)


def test_groups_equal_the_evaluation_of_their_images_alone():
    rng = np.random.default_rng(4)
    codes = np.arange(60) // 4
    unit = rng.standard_normal((15, 6))[codes] + rng.standard_normal((60, 6))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    mated, nonmated = compare_tile(unit, codes, (0, 60), 1.0, 0)
    qualities = rng.integers(0, 5, 60).astype(float)
    groups = np.where(codes < 3, NO_GROUP, codes % 2)
    protocol = Protocol((0.1,))
    sides = ComparedSides.of(mated, nonmated, protocol.fmrs)
    ranked = rank_sides(sides, qualities, protocol)
    fractions = np.array([0.0, 0.25, 0.5])
    found = group_figures(sides, ranked, groups, 0.4, fractions)
    assert len(found) == 2
    for group, figures in enumerate(found):
        own = np.flatnonzero(groups == group)
        assert figures.images == len(own)
        inside = [np.isin(s.first, own) & np.isin(s.second, own) for s in (mated, nonmated)]
        assert (figures.mated, figures.nonmated) == tuple(int(i.sum()) for i in inside)
        assert figures.fmr == np.mean(nonmated.similarities[inside[1]] > 0.4)
        for place, fraction in enumerate(fractions):
            lowest = np.sort(qualities)[int(fraction * 60)]
            assert figures.discarded[place] == pytest.approx(np.mean(qualities[own] < lowest))
            kept = (qualities[mated.first] >= lowest) & (qualities[mated.second] >= lowest)
            missed = mated.similarities[inside[0] & kept] < 0.4
            assert figures.fnmr[place] == pytest.approx(missed.mean())


def test_a_group_without_comparisons_has_no_rates():
    unit = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
    pairs = compare_tile(unit, np.array([0, 0, 1, 1]), (0, 4), 1.0, 0)
    sides = ComparedSides.of(*pairs, [0.4])
    ranked = rank_sides(sides, np.arange(4.0), Protocol((0.4,)))
    found = group_figures(sides, ranked, np.array([0, -1, 1, 1]), 0.5, np.array([0.0, 0.5]))
    assert (found[0].images, found[0].mated, found[0].nonmated) == (1, 0, 0)
    assert math.isnan(found[0].fmr)
    assert np.isnan(found[0].fnmr).all()
    assert found[0].discarded.tolist() == [0, 1]
