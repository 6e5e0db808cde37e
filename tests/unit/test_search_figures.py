"""Figures of a search and the importance of its keys: drawn and said as given."""

from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy.stats import kruskal, spearmanr

from sdd_ray.core.importance import of_groups, of_numbers
from sdd_ray.report.search_figures import (
    ParallelAxis,
    TrialCurve,
    importance_bars,
    objective_over_time,
    parallel_coordinates,
    seconds_of_work,
)

NAN = np.nan


def texts(figure):
    """The words in an SVG, which must be well-formed XML to be read at all."""
    root = ET.fromstring(figure.content)  # noqa: S314 (our own markup)
    return ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]


def lines(figure, role):
    """Return the (points, 2) of every line that is drawn in a colour."""
    found = []
    for path in ET.fromstring(figure.content).iter("{http://www.w3.org/2000/svg}path"):  # noqa: S314
        if f"stroke: var(--{role}" in path.get("style", "") and "fill: none" in path.get("style"):
            words = path.get("d").replace("M", "").replace("L", "").split()
            found.append(np.array(words, float).reshape(-1, 2))
    return found


def curves():
    return [
        TrialCurve(np.array([10.0, 20.0, 40.0]), np.array([5.0, 4.0, 4.5])),
        TrialCurve(np.array([15.0, 30.0]), np.array([NAN, 2.0])),
        TrialCurve(np.zeros(0), np.zeros(0)),
    ]


def test_best_so_far_falls_when_a_better_epoch_ends():
    figure = objective_over_time(curves(), "loss", "min")
    assert "4 epochs of 3 trials over 40 seconds" in figure.alt
    assert "best is 5 after the first epoch and 2 at the end" in figure.alt
    [best] = [line for line in lines(figure, "blue") if len(line) > 4]
    # Steps at 10, 20, 30 and on to 40 seconds; SVG counts downwards.
    times, heights = best.T
    assert (times[-1] - times[0]) / (times[2] - times[0]) == pytest.approx(3, rel=1e-3)
    levels = sorted(set(np.round(heights, 3)))
    assert len(levels) == 3
    assert (levels[2] - levels[1]) / (levels[1] - levels[0]) == pytest.approx(2, rel=1e-3)


def test_best_of_a_figure_that_is_large_when_good():
    figure = objective_over_time(curves(), "spearman", "max")
    assert "best is 5 after the first epoch and 5 at the end" in figure.alt


def test_epochs_far_off_are_cut_and_counted():
    values = np.r_[1e6, 1e5, np.linspace(2, 1, 28)]
    figure = objective_over_time([TrialCurve(np.arange(30.0), values)], "loss", "min")
    assert figure.caption.endswith("2 poorer epochs lie outside.")
    assert "outside" not in objective_over_time(curves(), "loss", "min").caption


@pytest.mark.parametrize(
    ("last", "unit"), [(100.0, "seconds"), (1000.0, "minutes"), (2e4, "hours")]
)
def test_time_is_in_a_handy_unit(last, unit):
    figure = objective_over_time([TrialCurve(np.array([last]), np.ones(1))], "mae", "min")
    assert f"{unit} of work" in texts(figure)


def axes():
    return [
        ParallelAxis("optimiser.rate", np.array([1e-4, 1e-3, 1e-2]), is_log=True),
        ParallelAxis("loss.kind", np.array([0.0, 1.0, 1.0]), ("huber", "l1")),
        ParallelAxis("loss.zeta", np.array([1.5, NAN, NAN])),
    ]


def test_lines_go_through_the_values_of_their_trial():
    figure = parallel_coordinates(axes(), np.array([3.0, 1.0, 2.0]), "mae", "min")
    words = texts(figure)
    assert {"rate", "optimiser", "kind", "zeta", "mae", "huber", "l1", "–"} <= set(words)
    assert {"0.0001", "0.01", "1.5", "1", "3"} <= set(words)
    assert "The best: optimiser.rate 0.001, loss.kind l1, loss.zeta –, mae 1." in figure.alt
    [best] = lines(figure, "orange")
    others = lines(figure, "blue")
    assert len(best) == 4
    assert len(others) == 2
    rates = sorted([best[0, 1], others[0][0, 1], others[1][0, 1]])
    assert rates[1] - rates[0] == pytest.approx(rates[2] - rates[1], rel=1e-3)  # log scale
    assert best[2, 1] > max(rates)  # a trial without the key passes below the axis
    assert best[3, 1] == pytest.approx(max(rates), abs=0.01)  # the smallest mae, at the bottom


def test_trials_without_a_figure_are_left_out_and_counted():
    figure = parallel_coordinates(axes(), np.array([3.0, NAN, 2.0]), "mae", "max")
    assert "Parallel coordinates of 2 trials over" in figure.alt
    assert "1 trials without a figure are left out." in figure.alt
    assert "mae 3." in figure.alt
    one = parallel_coordinates(axes(), np.array([NAN, 1.0, NAN]), "mae", "max")
    assert "of 1 trials" in one.alt


def test_bars_are_sorted_and_as_long_as_their_shares():
    figure = importance_bars(["a", "b", "c"], np.array([0.2, NAN, 0.8]), [9, 2, 9])
    words = [word for word in texts(figure) if word in ("a", "b", "c")]
    assert words == ["c", "a", "b"]
    assert figure.alt == "Share of the outcome's ranks explained: c 0.80 (9 trials), a 0.20 (9" \
        " trials), b – (2 trials)."  # fmt: skip
    assert {"0.80", "0.20", "too few trials"} <= set(texts(figure))


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="a trial with a figure, got 1 without"):
        objective_over_time([TrialCurve(np.ones(1), np.array([NAN]))], "loss", "min")
    with pytest.raises(ValueError, match="a trial with a figure, got 0 without"):
        objective_over_time([], "loss", "min")
    with pytest.raises(ValueError, match="a trial with a figure, got 3 without"):
        parallel_coordinates(axes(), np.full(3, NAN), "loss", "min")
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        importance_bars(["a"], np.zeros(2), [1])


def test_figures_are_the_same_every_time():
    def draw():
        return parallel_coordinates(axes(), np.array([3.0, 1.0, 2.0]), "mae", "min").content

    assert draw() == draw()


def test_importance_of_numbers_is_spearman_squared_less_chance():
    rng = np.random.default_rng(0)
    values, noise = rng.random(40), rng.random(40)
    assert of_numbers(values, -np.exp(values)) == pytest.approx(1)
    rho = spearmanr(values, values + noise).statistic
    assert of_numbers(values, values + noise) == pytest.approx(1 - (1 - rho**2) * 39 / 38)
    assert np.mean([of_numbers(values, rng.random(40)) for _ in range(300)]) < 0.025


def test_importance_of_groups_is_eta_squared_less_chance():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 3, 40)
    outcome = groups + rng.random(40) * 2
    # Kruskal and Wallis' H is (N - 1) times the eta squared of ranks without ties.
    h = kruskal(*(outcome[groups == g] for g in range(3))).statistic
    assert of_groups(groups, outcome) == pytest.approx(1 - (1 - h / 39) * 39 / 37)
    assert of_groups(groups, groups * 1.0) == pytest.approx(1)
    assert np.mean([of_groups(groups, rng.random(40)) for _ in range(300)]) < 0.03


@pytest.mark.parametrize(
    ("values", "outcome"),
    [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 1, 2, 2], [5, 5, 5, 5])],
)
def test_importance_that_cannot_be_said(values, outcome):
    values, outcome = np.array(values), np.array(outcome, float)
    assert np.isnan(of_numbers(values.astype(float), outcome))
    assert np.isnan(of_groups(values, outcome))
    assert np.isnan(of_groups(np.arange(4), np.arange(4.0)))


def test_clock_stands_still_while_nothing_is_at_work():
    rng = np.random.default_rng(2)
    ended = np.round(rng.random(30) * 400)
    seconds = np.round(rng.random(30) * 9) + 1
    busy = np.zeros(1000, bool)  # brute force, second by second, from -100
    for end, length in zip(ended, seconds, strict=True):
        busy[int(end - length) + 100 : int(end) + 100] = True
    wanted = [busy[: int(end) + 100].sum() for end in ended]
    assert seconds_of_work(ended, seconds).tolist() == wanted
    assert seconds_of_work(np.zeros(0), np.zeros(0)).tolist() == []
