"""What the trials of a search reached: their journals, and what became of them in Ray Tune.

Shapes: K epochs of a trial.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdd_ray.engine.fitting import BETTER
from sdd_ray.engine.search import GIVEN, NUMBER, values_of
from sdd_ray.engine.trial_folder import TrialFolder
from sdd_ray.search_draws import Values
from sdd_ray.search_space import with_values
from sdd_ray.settings import TuneConfig
from sdd_ray.store.location import Location

FIGURES = tuple(BETTER)
_TERMINATED, _ERROR = "TERMINATED", "ERROR"  # Ray Tune's names

Status = Literal["finished", "stopped", "failed", "unfinished"]


@dataclass(frozen=True, eq=False)
class TrialResult:
    """One trial.

    Attributes:
        number: From 0, in the order of proposal.
        values: Of the keys that took part, as they were at the end.
        status: `stopped`: before its last epoch, by the scheduler, patience or the budget;
            `failed`: in spite of its further attempts; `unfinished`: the search was interrupted.
        error: The last line of the last error of a failed trial.
        failures: How often it failed.
        epochs: (K,) numbers of the epochs, from 1.
        ended: (K,) seconds since 1970 at which each ended.
        seconds: (K,) that each took, with what came before it.
        figures: Each (K,); NaN where there is none.
    """

    number: int
    values: Values
    status: Status
    error: str
    failures: int
    epochs: NDArray[np.int64]
    ended: NDArray[np.float64]
    seconds: NDArray[np.float64]
    figures: dict[str, NDArray[np.float64]]

    def best(self, metric: str) -> int | None:
        """Return the place of the best epoch, or None if there is no epoch with this figure."""
        values = self.figures[metric]
        if not np.isfinite(values).any():
            return None
        return int(np.nanargmin(values) if BETTER[metric] == "min" else np.nanargmax(values))

    def reached(self, metric: str) -> float:
        """Return the figure of the best epoch, NaN if there is none."""
        place = self.best(metric)
        return float("nan") if place is None else float(self.figures[metric][place])


def results_of(config: TuneConfig, grid: Any, work: Location) -> list[TrialResult]:
    """Return the trials of a Ray Tune search in order of their numbers."""
    trials = grid._experiment_analysis.trials  # their statuses are nowhere else
    found = [_result(config, trial, grid[place].error, work) for place, trial in enumerate(trials)]
    return sorted(found, key=lambda result: result.number)


def best_of(results: Sequence[TrialResult], metric: str) -> TrialResult | None:
    """Return the trial with the best figure, the earliest of equals; None if none has one."""
    sign = 1.0 if BETTER[metric] == "min" else -1.0
    known = [result for result in results if result.best(metric) is not None]
    return min(known, key=lambda result: sign * result.reached(metric), default=None)


def table_of(config: TuneConfig, results: Sequence[TrialResult]) -> pa.Table:
    """Return one row for each trial; its figures are of its best epoch.

    Columns: trial, status, error, failures; the keys of the space, null where they took no part;
    epoch, epochs_run, seconds; the figures, null where there are none.
    """
    rows = [_row(config, result) for result in results]
    columns = {name: pa.array([row[name] for row in rows]) for name in rows[0]}
    return pa.table(columns)


def _row(config: TuneConfig, result: TrialResult) -> dict[str, Any]:
    place = result.best(config.train.best)
    row: dict[str, Any] = {
        "trial": result.number,
        "status": result.status,
        "error": result.error,
        "failures": result.failures,
    }
    for key in config.space:
        value = result.values.get(key)
        row[key] = value if _is_of_one_kind(config, key) else _as_text(value)
    row["epoch"] = None if place is None else int(result.epochs[place])
    row["epochs_run"] = int(result.epochs.max(initial=0))
    row["seconds"] = float(result.seconds.sum())
    for name in FIGURES:
        value = float("nan") if place is None else float(result.figures[name][place])
        row[name] = None if np.isnan(value) else value
    return row


def _is_of_one_kind(config: TuneConfig, key: str) -> bool:
    """Return whether the values of a key can stand in one column as they are."""
    kinds = {type(value) for value in config.space[key].values or () if value is not None}
    return len(kinds - {int}) <= 1 and not kinds >= {int, bool} and not kinds >= {int, str}


def _as_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _result(config: TuneConfig, trial: Any, error: object, work: Location) -> TrialResult:
    given, values = trial.config[GIVEN], values_of(trial.config)
    journal = TrialFolder.of(work, given[NUMBER]).journal()

    def column(name: str) -> NDArray[np.float64]:
        return np.array([entry[name] for entry in journal], np.float64)

    return TrialResult(
        number=given[NUMBER],
        values={key: values[key] for key in config.space if key in values},
        status=_status(config, values, trial.status, len(journal)),
        error=_last_line(error) if trial.status == _ERROR else "",
        failures=int(trial.num_failures),
        epochs=column("epoch").astype(np.int64),
        ended=column("ended"),
        seconds=column("seconds"),
        figures={name: column(name) for name in FIGURES},
    )


def _status(config: TuneConfig, values: Values, status: str, epochs_run: int) -> Status:
    if status == _ERROR:
        return "failed"
    if status != _TERMINATED:
        return "unfinished"
    wanted = with_values(config.train, values).optimiser.epochs
    return "finished" if epochs_run >= wanted else "stopped"


def _last_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else "no message"
