"""The figures of a search, each a pure function of plain data.

Shapes: N trials, K epochs of a trial, D axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sdd_ray.report import drawing
from sdd_ray.report.drawing import WIDTH_PX, Figure, new_axes, new_canvas, theme, to_svg

Floats = NDArray[np.floating[Any]]

_SHOWN_SHARE = 0.9
"""Share of the epochs within the picture: the first ones are often far off."""
_PX_PER_AXIS = 112
_ABSENT = -0.14
"""Height of trials on an axis that they have no value on, below the axis from 0 to 1."""


@dataclass(frozen=True, eq=False)
class TrialCurve:
    """What one trial reached, epoch by epoch.

    Attributes:
        seconds: (K,) seconds of the search at which each epoch ended.
        values: (K,) validation figure after each; NaN where there is none.
    """

    seconds: Floats
    values: Floats


@dataclass(frozen=True, eq=False)
class ParallelAxis:
    """One axis of parallel coordinates.

    Attributes:
        name: Written above it.
        values: (N,) numbers, or places in `choices`; NaN where a trial has none.
        choices: Names of the places of an axis without numbers; empty for numbers.
        is_log: Whether equal ratios are equally far apart; numbers are then positive.
    """

    name: str
    values: Floats
    choices: tuple[str, ...] = ()
    is_log: bool = False


def seconds_of_work(ended: Floats, seconds: Floats) -> NDArray[np.float64]:
    """Return the time of each end on a clock that stands still while nothing is at work.

    Args:
        ended: (K,) times in seconds.
        seconds: (K,) that each piece of work took until then.

    Returns:
        (K,) seconds, from the beginning of the first piece.

    Example:
        >>> seconds_of_work(np.array([10.0, 12.0, 99.0]), np.array([4.0, 3.0, 1.0]))
        array([4., 6., 7.])
    """
    starts, clock = ended - seconds, np.zeros(len(ended))
    done, until = 0.0, -np.inf  # work so far, and the end of it
    pieces: list[tuple[float, float, float]] = []
    for place in np.argsort(starts, kind="stable"):
        start, end = max(float(starts[place]), until), float(ended[place])
        if end > start:
            pieces.append((start, end, done))
            done, until = done + end - start, end
    for place, end in enumerate(ended):
        clock[place] = max((d + min(end, e) - s for s, e, d in pieces if end > s), default=0.0)
    return clock


@theme()
def objective_over_time(
    trials: Sequence[TrialCurve], metric: str, better: Literal["min", "max"]
) -> Figure:
    """Return the figure of all epochs over the time they ended at, and the best so far.

    Args:
        trials: N trials.
        metric: Name of the figure.
        better: Whether small or large is good.

    Raises:
        ValueError: No epoch has a figure.
    """
    curves = [_known(trial) for trial in trials]
    seconds = np.concatenate([c.seconds for c in curves] or [np.zeros(0)])
    values = np.concatenate([c.values for c in curves] or [np.zeros(0)])
    if not len(values):
        raise ValueError(f"expected a trial with a figure, got {len(trials)} without")
    unit, name = _time_unit(float(seconds.max()))
    canvas, axes = new_axes(310, f"Validation {metric} over time")
    for curve in curves:
        axes.plot(
            curve.seconds / unit,
            curve.values,
            color=drawing.GREY,
            marker="o",
            markersize=2.5,
            linewidth=0.9,
            alpha=0.7,
        )
    order = np.argsort(seconds, kind="stable")
    best = (np.minimum if better == "min" else np.maximum).accumulate(values[order])
    ends = np.append(seconds[order], seconds.max()) / unit
    axes.plot(
        ends, np.append(best, best[-1]), color=drawing.BLUE, linewidth=2.2, drawstyle="steps-post"
    )
    hidden = _cut_what_is_far(axes, values, better)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{name} of work")
    axes.set_ylabel(metric)
    alt = (
        f"Validation {metric} of {len(values):,} epochs of {len(trials):,} trials over"
        f" {seconds.max() / unit:.3g} {name}: the best is {best[0]:.4g} after the first epoch and"
        f" {best[-1]:.4g} at the end."
    )
    caption = "Blue: the best so far. Grey: each trial, a point an epoch."
    if hidden:
        caption += f" {hidden:,} poorer epochs lie outside."
    return Figure(to_svg(canvas), alt, caption)


@theme()
def parallel_coordinates(
    axes_data: Sequence[ParallelAxis],
    outcome: Floats,
    metric: str,
    better: Literal["min", "max"],
) -> Figure:
    """Return one line per trial through its values, and what they led to on the last axis.

    Args:
        axes_data: D axes.
        outcome: (N,) figure of each trial; trials without one (NaN) are left out.
        metric: Name of the figure.
        better: Whether small or large is good.

    Raises:
        ValueError: No trial has a figure.
    """
    known = np.isfinite(outcome)
    if not known.any():
        raise ValueError(f"expected a trial with a figure, got {len(outcome)} without")
    every = [*axes_data, ParallelAxis(metric, outcome)]
    canvas = new_canvas(330, max(WIDTH_PX, _PX_PER_AXIS * len(every)))
    axes = canvas.add_subplot()
    heights = np.column_stack([_heights(axis, known) for axis in every])[known]
    good = outcome[known] if better == "max" else -outcome[known]
    order = np.argsort(good, kind="stable")
    for rank, trial in enumerate(order):
        share = rank / max(len(order) - 1, 1)
        is_best = rank == len(order) - 1
        axes.plot(
            range(len(every)),
            heights[trial],
            color=drawing.ORANGE if is_best else drawing.BLUE,
            alpha=1.0 if is_best else 0.2 + 0.6 * share**2,
            linewidth=2.4 if is_best else 1.2,
            zorder=2 + share,
        )
    for place, axis in enumerate(every):
        _draw_axis(axes, place, axis, known, bool((heights[:, place] == _ABSENT).any()))
    axes.axis("off")
    axes.set_xlim(-0.25, len(every) - 0.55)
    axes.set_ylim(_ABSENT - 0.08, 1.22)
    left_out = len(outcome) - int(known.sum())
    alt = (
        f"Parallel coordinates of {int(known.sum()):,} trials over"
        f" {', '.join(axis.name for axis in every)}."
        f"{f' {left_out:,} trials without a figure are left out.' if left_out else ''}"
        f" The best: {', '.join(_in_words(axis, known, int(order[-1])) for axis in every)}."
    )
    caption = (
        "One line a trial, the stronger the better; orange: the best. –: the key does not apply."
    )
    return Figure(to_svg(canvas), alt, caption)


@theme()
def importance_bars(names: Sequence[str], shares: Floats, trials: Sequence[int]) -> Figure:
    """Return how much each key has to do with the outcome, the most important first.

    Args:
        names: D keys.
        shares: (D,) in [0, 1]; NaN where it cannot be said.
        trials: D numbers of trials that the key was varied in.

    Raises:
        ValueError: There is no key, or the three do not have the same length.
    """
    if not names or not len(names) == len(shares) == len(trials):
        raise ValueError(
            f"expected as many names as shares and trials, got {len(names)}, {len(shares)} and"
            f" {len(trials)}"
        )
    order = np.argsort(-np.nan_to_num(shares, nan=-1.0), kind="stable")
    canvas, axes = new_axes(90 + 30 * len(names), "Importance of each key")
    places = np.arange(len(names))
    axes.barh(places, np.nan_to_num(shares[order]), color=drawing.BLUE, height=0.62)
    for place, index in enumerate(order):
        share = float(shares[index])
        text = "too few trials" if np.isnan(share) else f"{share:.2f}"
        at = 0.0 if np.isnan(share) else share
        axes.annotate(
            text, (at, place), (4, 0), textcoords="offset points", verticalalignment="center"
        )
    axes.set_yticks(places.tolist(), [names[index] for index in order])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlim(0, 1.15)
    axes.set_xticks([0, 0.5, 1])
    axes.set_xlabel("explained share of the ranks")
    told = ["–" if np.isnan(share) else f"{share:.2f}" for share in shares]
    words = ", ".join(f"{names[i]} {told[i]} ({trials[i]} trials)" for i in order)
    return Figure(to_svg(canvas), f"Share of the outcome's ranks explained: {words}.")


def _known(trial: TrialCurve) -> TrialCurve:
    known = np.isfinite(trial.values)
    return TrialCurve(trial.seconds[known], trial.values[known])


def _time_unit(longest: float) -> tuple[float, str]:
    """Return the seconds of a unit in which the longest time is a handy number, and its name."""
    for seconds, name in ((3600.0, "hours"), (60.0, "minutes")):
        if longest >= 3 * seconds:
            return seconds, name
    return 1.0, "seconds"


def _cut_what_is_far(axes: Axes, values: Floats, better: str) -> int:
    """End the picture where the poor tenth of the epochs begins; return how many lie outside."""
    best, worst = (values.min(), values.max()) if better == "min" else (values.max(), values.min())
    edge = float(np.quantile(values, _SHOWN_SHARE if better == "min" else 1 - _SHOWN_SHARE))
    if abs(worst - best) <= 2 * abs(edge - best):
        return 0
    margin = 0.06 * abs(edge - best)
    low, high = sorted((float(best), edge))
    axes.set_ylim(low - margin, high + margin)
    return int(np.count_nonzero((values < low - margin) | (values > high + margin)))


def _heights(axis: ParallelAxis, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (N,) heights in [0, 1]; absent values lie below."""
    values = np.asarray(axis.values, np.float64)
    low, high = _ends(axis, known)
    scale = np.log if axis.is_log else np.asarray
    span = scale(high) - scale(low)
    with np.errstate(invalid="ignore"):
        heights = (scale(values) - scale(low)) / span if span else np.full(len(values), 0.5)
    return np.where(np.isnan(values), _ABSENT, heights)


def _ends(axis: ParallelAxis, known: NDArray[np.bool_]) -> tuple[float, float]:
    if axis.choices:
        return 0.0, float(len(axis.choices) - 1)
    shown = axis.values[known & np.isfinite(axis.values)]
    return (float(shown.min()), float(shown.max())) if len(shown) else (1.0, 1.0)


def _draw_axis(
    axes: Axes, place: int, axis: ParallelAxis, known: NDArray[np.bool_], has_absent: bool
) -> None:
    axes.plot([place, place], [0, 1], color=drawing.MUTED, linewidth=1.0, zorder=1)
    group, _, last = axis.name.rpartition(".")
    axes.text(place, 1.17, group, horizontalalignment="center", color=drawing.MUTED, fontsize=9)
    axes.text(place, 1.08, last, horizontalalignment="center", fontweight="bold", fontsize=10)
    low, high = _ends(axis, known)
    if axis.choices:
        count = len(axis.choices)
        marks = [
            (i / (count - 1) if count > 1 else 0.5, name) for i, name in enumerate(axis.choices)
        ]
    else:
        marks = [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")] if high > low else [(0.5, f"{low:.3g}")]
    if has_absent:
        marks.append((_ABSENT, "–"))
    for height, text in marks:
        axes.text(place + 0.06, height, text, verticalalignment="center", fontsize=9, zorder=4)


def _in_words(axis: ParallelAxis, known: NDArray[np.bool_], trial: int) -> str:
    value = axis.values[known][trial]
    if np.isnan(value):
        return f"{axis.name} –"
    return f"{axis.name} {axis.choices[int(value)] if axis.choices else format(value, '.4g')}"
