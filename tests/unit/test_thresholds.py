"""Quality thresholds against the plain definition, and which images they accept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdd_ray.core.thresholds import Acceptance, Threshold, discard_thresholds

values = st.lists(st.one_of(st.integers(0, 6).map(float), st.just(np.nan)), min_size=1, max_size=30)
shares = st.lists(st.floats(0, 0.999), min_size=1, max_size=4, unique=True).map(sorted)


@given(raw=values, asked=shares)
def test_thresholds_are_the_highest_that_discard_at_most_the_share(raw, asked):
    raw = np.array(raw)
    known = np.unique(raw[~np.isnan(raw)])
    if not len(known):
        with pytest.raises(ValueError, match="expected qualities, got"):
            discard_thresholds(raw, asked)
        return
    for share, (threshold, discarded) in zip(asked, discard_thresholds(raw, asked), strict=True):
        lost = {t: np.mean(np.isnan(raw) | (raw < t)) for t in known}
        # Failures leave whatever the threshold is.
        allowed = [t for t in known if lost[t] <= share + 1e-12] or [known[0]]
        assert threshold == max(allowed)
        assert discarded == pytest.approx(lost[threshold])


def test_failures_are_never_accepted():
    raw = np.array([1.0, 2.0, np.nan, 0.1], np.float32)
    quality = np.array([10, 20, -1, 0], np.int8)
    assert Acceptance(1.0, is_raw=True).of(raw, quality).tolist() == [True, True, False, False]
    assert Acceptance(0, is_raw=False).of(raw, quality).tolist() == [True, True, False, True]
    assert Acceptance(11, is_raw=False).of(raw, quality).tolist() == [False, True, False, False]


def test_a_threshold_accepts_the_image_that_it_was_found_on():
    raw = np.array([0.1, 0.2, 0.3], np.float32)  # none of them a float64 of the same digits
    (threshold, _), *_ = discard_thresholds(raw, [0.4])
    kept = Threshold.from_dict(Threshold(threshold, {"aim": "discard"}).to_dict())
    assert kept == Threshold(threshold, {"aim": "discard"})
    accepted = Acceptance(kept.raw, is_raw=True).of(raw, np.array([1, 2, 3], np.int8))
    assert accepted.tolist() == [False, True, True]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_thresholds_are_finite(value):
    with pytest.raises(ValueError, match="expected a finite threshold"):
        Threshold(value)
    with pytest.raises(ValueError, match="expected a threshold with its raw quality"):
        Threshold.from_dict({"aim": "discard"})
