"""What a larger run of a stage will take, from runs that were measured.

Time is a start and a part that grows with the rows of each worker. Both are found where runs of
different size were measured; of one run alone the start is what it says of itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MeasuredRun:
    """One complete run of a stage.

    Attributes:
        rows: Images, or images x epochs for training.
        seconds: From its start to its end.
        workers: That shared the work.
        start_s: Seconds in which no image was worked on; None where the run does not say.
        driver_mib: Peak memory of the driver.
        worker_mib: Peak memory of a worker.
        bytes_per_row: Written, compressed.

    Raises:
        ValueError: A number is not positive.
    """

    rows: int
    seconds: float
    workers: int
    start_s: float | None
    driver_mib: float
    worker_mib: float
    bytes_per_row: float

    def __post_init__(self) -> None:
        if min(self.rows, self.seconds, self.workers) <= 0:
            raise ValueError(f"expected a run with rows, seconds and workers, got {self}")


def run_at(images_per_s: float, start_s: float, bytes_per_row: float) -> MeasuredRun:
    """Return the run that one worker of a known rate would have made, of unknown memory.

    Args:
        images_per_s: Of the worker.
        start_s: Seconds in which it works on no image.
        bytes_per_row: Written for each image.
    """
    rows = max(1, round(images_per_s * 3600))
    seconds = start_s + rows / images_per_s
    return MeasuredRun(rows, seconds, 1, start_s, np.nan, np.nan, bytes_per_row)


@dataclass(frozen=True)
class Line:
    """A quantity that grows along a line: start + slope x size."""

    start: float
    slope: float

    def at(self, size: float) -> float:
        """Return the quantity at a size."""
        return self.start + self.slope * size


@dataclass(frozen=True)
class StagePlan:
    """What a stage will take.

    Attributes:
        hours: From its start to its end.
        rate: Images a second of each worker.
        worker_hours: Hours times workers.
        driver_gib: Peak memory of the driver.
        worker_gib: Peak memory of a worker.
        read_gb, written_gb: In 10^9 bytes.
        bottleneck: `workers`, or `reading` where the images do not come faster.
        is_extrapolated: Whether one run alone was measured, so that its start may count as work.
    """

    hours: float
    rate: float
    worker_hours: float
    driver_gib: float
    worker_gib: float
    read_gb: float
    written_gb: float
    bottleneck: str
    is_extrapolated: bool


def fit_line(sizes: Sequence[float], values: Sequence[float], start: float) -> Line:
    """Return the least-squares line through measured points, its start and slope not negative.

    Args:
        sizes: Of the points.
        values: Measured there.
        start: Of the line where all sizes are equal.

    Example:
        >>> fit_line([100.0, 300.0], [20.0, 40.0], 0.0)
        Line(start=10.0, slope=0.1)
    """
    x, y = np.asarray(sizes, np.float64), np.asarray(values, np.float64)
    if np.ptp(x) == 0:
        start = min(start, float(y.mean()))
        return Line(start, (float(y.mean()) - start) / float(x[0]))
    slope = float(np.sum((x - x.mean()) * (y - y.mean())) / np.sum((x - x.mean()) ** 2))
    if slope < 0:
        return Line(float(y.mean()), 0.0)
    first = float(y.mean() - slope * x.mean())
    if first < 0:
        return Line(0.0, float(np.sum(x * y) / np.sum(x * x)))
    return Line(round(first, 9), round(slope, 15))


def plan_stage(
    runs: Sequence[MeasuredRun],
    rows: int,
    workers: int,
    read_bytes_per_row: float,
    bandwidth: float | None,
) -> StagePlan:
    """Return what a stage will take.

    Args:
        runs: Of the stage, at least one, on workers like those planned.
        rows: Images, or images x epochs for training.
        workers: Planned.
        read_bytes_per_row: Bytes read for a row.
        bandwidth: Bytes a second that all workers together can read; None: enough.
    """
    time = fit_line(
        [run.rows / run.workers for run in runs],
        [run.seconds for run in runs],
        min(run.start_s or 0.0 for run in runs),
    )
    memory = fit_line([run.rows for run in runs], [run.driver_mib for run in runs], np.inf)
    working = time.slope * rows / workers
    reading = 0.0 if bandwidth is None else rows * read_bytes_per_row / bandwidth
    hours = (time.start + max(working, reading)) / 3600
    return StagePlan(
        hours=hours,
        rate=1 / time.slope if time.slope else np.inf,
        worker_hours=hours * workers,
        driver_gib=memory.at(rows) / 1024,
        worker_gib=max(run.worker_mib for run in runs) / 1024,
        read_gb=rows * read_bytes_per_row / 1e9,
        written_gb=rows * max(run.bytes_per_row for run in runs) / 1e9,
        bottleneck="reading" if reading > working else "workers",
        is_extrapolated=len({run.rows for run in runs}) == 1,
    )
