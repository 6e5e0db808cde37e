"""Gather what search.html shows: the best trial, figures over time, which keys matter, all trials.

Shapes: N trials, K epochs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core import importance
from sdd_ray.engine.fitting import BETTER
from sdd_ray.engine.trial_results import FIGURES, TrialResult, best_of
from sdd_ray.report.drawing import Figure
from sdd_ray.report.page import Cell, Highlight, Section, Table, render_page
from sdd_ray.report.search_figures import (
    ParallelAxis,
    TrialCurve,
    importance_bars,
    objective_over_time,
    parallel_coordinates,
    seconds_of_work,
)
from sdd_ray.settings import TuneConfig

_MOST_ROWS = 200
_MOST_AXES = 8
"""Keys on the parallel coordinates: the most important ones."""

_IMPORTANCE = (
    "Importance is the share of the variance of the ranks of the figure that one key explains by"
    " itself (Spearman's correlation squared; for choices, eta squared of the ranks), less what"
    " chance explains with so few trials. It is computed from the trials where the key took part,"
    " and compares their best epochs, also of trials that were stopped early. It does not see what"
    " only several keys do together, nor a best value in the middle of a range, and with few trials"
    " it is a hint and no more."
)
_PBT = (
    "pbt changed values while trials ran. The values shown are those at the end of each trial; its"
    " figures came by all values that it had, so that the importance below says little."
)


def report_html(
    config: TuneConfig, results: Sequence[TrialResult], facts: Mapping[str, Cell]
) -> str:
    """Return search.html as text.

    Args:
        config: The search.
        results: All trials; one at least has the figure that is searched by.
        facts: Such as versions, for the table at the end.
    """
    sections = [_overview(config, results), _keys(config, results), _trials(config, results)]
    failed = [result for result in results if result.failures]
    if failed:
        sections.append(_failures(failed))
    own: dict[str, Cell] = {
        "searcher": config.searcher,
        "scheduler": config.scheduler,
        "seed": config.seed,
        "budget in seconds": config.budget_s,
        "trials at a time": config.resources.concurrent_trials,
        "workers of a trial": config.resources.workers_per_trial,
    }
    return render_page("Search for a training configuration", sections, {**own, **facts})


def _overview(config: TuneConfig, results: Sequence[TrialResult]) -> Section:
    metric = config.train.best
    best = best_of(results, metric)
    if best is None:
        raise ValueError(f"expected a trial with {metric}, got {len(results)} without")
    counts = Counter(result.status for result in results)
    place = best.best(metric) or 0
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    epochs = sum(len(result.epochs) for result in results)
    highlights = (
        Highlight(f"{best.reached(metric):.4g}", f"best validation {metric}, trial {best.number}"),
        Highlight(f"{len(results):,}", f"trials: {statuses}"),
        Highlight(f"{epochs:,}", "epochs trained in all"),
    )
    rows: list[list[Cell]] = [
        [key, _shown(best.values[key]) if key in best.values else None] for key in config.space
    ]
    figures: list[list[Cell]] = [
        [name, float(best.figures[name][place])] for name in FIGURES if len(best.epochs)
    ]
    text = (
        "The figure of a trial is that of its best epoch, on validation images that chose the epoch"
        " and now the trial, too: the best one is somewhat too good, the more so the more trials"
        " there are. Evaluate on the held-out identities tells what it is worth."
    )
    return Section(
        "The best trial",
        f"{text}\n\n{_PBT}" if config.scheduler == "pbt" else text,
        highlights,
        [_over_time(config, results)],
        (
            Table(("key", "value"), rows, "Values of the best trial"),
            Table(
                ("figure", "value"),
                figures,
                f"Validation figures of its epoch {best.epochs[place]}",
            ),
        ),
    )


def _over_time(config: TuneConfig, results: Sequence[TrialResult]) -> Figure:
    metric = config.train.best
    clock = seconds_of_work(
        np.concatenate([result.ended for result in results]),
        np.concatenate([result.seconds for result in results]),
    )
    ends = np.cumsum([len(result.epochs) for result in results])
    curves = [
        TrialCurve(seconds, result.figures[metric])
        for result, seconds in zip(results, np.split(clock, ends[:-1]), strict=True)
    ]
    return objective_over_time(curves, metric, _better(metric))


def _keys(config: TuneConfig, results: Sequence[TrialResult]) -> Section:
    metric = config.train.best
    outcome = np.array([result.reached(metric) for result in results])
    axes = [_axis(config, key, results) for key in config.space]
    shares = [_importance(axis, outcome) for axis in axes]
    order = np.argsort(-np.nan_to_num(np.array(shares), nan=-1.0), kind="stable")[:_MOST_AXES]
    shown = [axes[place] for place in sorted(order)]
    counts = [int((np.isfinite(axis.values) & np.isfinite(outcome)).sum()) for axis in axes]
    figures = [
        parallel_coordinates(shown, outcome, metric, _better(metric)),
        importance_bars([axis.name for axis in axes], np.array(shares), counts),
    ]
    return Section("Which keys matter", _IMPORTANCE, figures=figures)


def _axis(config: TuneConfig, key: str, results: Sequence[TrialResult]) -> ParallelAxis:
    dimension = config.space[key]
    values = [result.values.get(key) for result in results]
    if dimension.kind != "choice":
        numbers = [np.nan if value is None else float(value) for value in values]
        return ParallelAxis(key, np.array(numbers), (), dimension.kind == "log_uniform")
    choices = list(dimension.values or ())
    places = [
        float(choices.index(result.values[key])) if key in result.values else np.nan
        for result in results
    ]
    return ParallelAxis(key, np.array(places), tuple(_shown(choice) for choice in choices))


def _importance(axis: ParallelAxis, outcome: NDArray[np.float64]) -> float:
    known = np.isfinite(axis.values) & np.isfinite(outcome)
    values = axis.values[known]
    if axis.choices:
        return importance.of_groups(values.astype(np.int64), outcome[known])
    return importance.of_numbers(values, outcome[known])


def _trials(config: TuneConfig, results: Sequence[TrialResult]) -> Section:
    metric = config.train.best
    sign = 1.0 if BETTER[metric] == "min" else -1.0
    order = sorted(results, key=lambda r: (np.isnan(r.reached(metric)), sign * r.reached(metric)))
    rows: list[list[Cell]] = []
    for result in order[:_MOST_ROWS]:
        place = result.best(metric)
        rows.append(
            [
                str(result.number),
                result.status,
                result.reached(metric),
                None if place is None else int(result.epochs[place]),
                int(result.epochs.max(initial=0)),
                float(result.seconds.sum()),
                *(_cell(config, key, result) for key in config.space),
            ]
        )
    heads = ["trial", "status", metric, "best epoch", "epochs", "seconds", *config.space]
    note = "" if len(order) <= _MOST_ROWS else f"The best {_MOST_ROWS} of {len(order):,} trials."
    return Section("All trials", tables=[Table(heads, rows, "Best first", note)])


def _cell(config: TuneConfig, key: str, result: TrialResult) -> Cell:
    if key not in result.values:
        return None
    value: Any = result.values[key]
    if config.space[key].kind == "log_uniform":
        return f"{value:.3g}"  # as a number it would share its decimals with the largest
    return value if isinstance(value, float) else _shown(value)


def _failures(failed: Sequence[TrialResult]) -> Section:
    rows: list[list[Cell]] = [
        [str(r.number), r.status, r.failures, r.error or "went on afterwards"] for r in failed
    ]
    return Section(
        "Failures",
        "A trial that fails is started again from its last checkpoint, as often as"
        " resources.max_failures says.",
        tables=[Table(("trial", "status", "failures", "last error"), rows)],
    )


def _better(metric: str) -> Any:
    return BETTER[metric]


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
