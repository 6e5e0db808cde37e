"""Plans of larger runs: lines through measured ones, by hand and on runs that follow a line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdd_ray.core.planning import Line, MeasuredRun, fit_line, plan_stage


def measured(rows, seconds, workers=2, start_s=None, memory=500.0):
    return MeasuredRun(rows, seconds, workers, start_s, memory, 800.0, 100.0)


@given(
    start=st.floats(0, 1e3),
    slope=st.floats(1e-6, 1e3),
    sizes=st.lists(st.integers(1, 10**6), min_size=2, max_size=6, unique=True),
)
def test_points_on_a_line_give_the_line(start, slope, sizes):
    values = [start + slope * size for size in sizes]
    found = fit_line(sizes, values, 0.0)
    for size in (*sizes, 10 * max(sizes)):
        assert found.at(size) == pytest.approx(start + slope * size, rel=1e-4, abs=1e-6)


def test_lines_fall_nowhere():
    assert fit_line([1.0, 2.0], [5.0, 3.0], 0.0) == Line(4.0, 0.0)
    assert fit_line([1.0, 2.0], [1.0, 4.0], 0.0).start == 0.0
    assert fit_line([2.0, 2.0], [6.0, 8.0], 3.0) == Line(3.0, 2.0)
    assert fit_line([2.0], [6.0], 9.0) == Line(6.0, 0.0)


def test_a_plan_by_hand():
    runs = [measured(1000, 20.0, memory=400.0), measured(5000, 60.0, memory=800.0)]
    # Of each worker 500 rows in 20 s, 2,500 in 60 s: a start of 10 s, and 50 rows a second.
    found = plan_stage(runs, 1_000_000, 10, read_bytes_per_row=8000, bandwidth=None)
    assert found.rate == pytest.approx(50)
    assert found.hours == pytest.approx((10 + 1_000_000 / 500) / 3600)
    assert found.worker_hours == pytest.approx(10 * found.hours)
    assert found.driver_gib == pytest.approx((300 + 0.1 * 1_000_000) / 1024)
    assert (found.read_gb, found.written_gb) == (8.0, 0.1)
    assert (found.bottleneck, found.is_extrapolated) == ("workers", False)
    slow = plan_stage(runs, 1_000_000, 10, read_bytes_per_row=8000, bandwidth=1e6)
    assert slow.bottleneck == "reading"
    assert slow.hours == pytest.approx((10 + 8000) / 3600)


def test_one_run_says_its_start_or_counts_it_as_work():
    told = plan_stage([measured(1000, 20.0, 1, start_s=12.0)], 10_000, 1, 0.0, None)
    assert told.hours == pytest.approx((12 + 80) / 3600)
    silent = plan_stage([measured(1000, 20.0, 1)], 10_000, 1, 0.0, None)
    assert silent.hours == pytest.approx(200 / 3600)
    assert told.is_extrapolated
    assert silent.is_extrapolated


def test_more_workers_take_less_but_the_start():
    runs = [measured(100, 11.0, 1), measured(1100, 111.0, 1)]
    hours = [plan_stage(runs, 10**6, n, 0.0, None).hours * 3600 for n in (1, 10, 10**6)]
    np.testing.assert_allclose(hours, [1 + 100_000, 1 + 10_000, 1 + 0.1])


@pytest.mark.parametrize(("rows", "seconds", "workers"), [(0, 1.0, 1), (1, 0.0, 1), (1, 1.0, 0)])
def test_runs_that_measured_nothing(rows, seconds, workers):
    with pytest.raises(ValueError, match="expected a run with rows, seconds and workers"):
        measured(rows, seconds, workers)
