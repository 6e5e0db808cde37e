"""The batch size that is found is the smallest that is as fast as any."""

import pytest

from sdd_ray.engine.batch_size import fastest, is_flat


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [
        ({8: 100.0}, 8),
        ({8: 100.0, 16: 180.0, 32: 200.0, 64: 203.0, 128: 150.0}, 32),
        ({8: 200.0, 16: 199.0}, 8),
    ],
)
def test_smallest_that_is_as_fast_as_any(rates, wanted):
    assert fastest(rates) == wanted


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [([1.0, 2.0], False), ([100, 150, 200], False), ([100, 99, 101], True), ([100, 90, 95], True)],
)
def test_search_ends_where_doubling_is_of_no_use(rates, wanted):
    assert is_flat(rates) is wanted
