"""What the trials of a search reached, as Ray Tune noted it.

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
from sdd_ray.engine.search import GIVEN, NUMBER, number_of
from sdd_ray.search_draws import Values
from sdd_ray.search_space import with_values
from sdd_ray.settings import TuneConfig

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
        best_checkpoint: Of the best epoch; None if there is none, or Ray Train has it.
        last_checkpoint: Of the last epoch, likewise.
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
    best_checkpoint: Any = None
    last_checkpoint: Any = None

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


def results_of(config: TuneConfig, grid: Any) -> list[TrialResult]:
    """Return the trials of a Ray Tune search in order of their numbers."""
    trials = grid._experiment_analysis.trials  # the statuses are nowhere else
    found = [_result(config, grid[place], trial) for place, trial in enumerate(trials)]
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


def _result(config: TuneConfig, result: Any, trial: Any) -> TrialResult:
    given = dict(trial.config[GIVEN])
    given.pop(NUMBER)
    frame = result.metrics_dataframe
    if frame is not None and "epoch" in frame:
        # A search that was killed may have noted an epoch, and run it again.
        frame = frame.drop_duplicates("epoch", keep="last").sort_values("epoch")
    else:
        frame = None

    def column(name: str, kind: type) -> NDArray[Any]:
        if frame is None:
            return np.zeros(0, kind)
        if name not in frame:
            return np.full(len(frame), np.nan)
        return np.asarray(frame[name], kind)

    epochs = column("epoch", np.int64)
    return TrialResult(
        number=number_of(result.path),
        values={key: given[key] for key in config.space if key in given},
        status=_status(config, given, trial.status, int(epochs.max(initial=0))),
        error="" if trial.status != _ERROR else _last_line(result.error),
        failures=int(trial.num_failures),
        epochs=epochs,
        ended=column("timestamp", np.float64),
        seconds=column("time_this_iter_s", np.float64),
        figures={name: column(name, np.float64) for name in FIGURES},
        best_checkpoint=_best_checkpoint(config.train.best, result),
        last_checkpoint=result.checkpoint,
    )


def _best_checkpoint(metric: str, result: Any) -> Any:
    if not result.best_checkpoints:
        return None
    return result.get_best_checkpoint(metric, BETTER[metric])


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
