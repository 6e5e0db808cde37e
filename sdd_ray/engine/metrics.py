"""What a command is doing as metrics of Ray, for Prometheus and the dashboard's charts.

The driver counts, as it does for the terminal; so a metric is one series, whatever the number of
workers. They are served by the metrics port of the driver's node, with `ray_` before their names.
"""

import sys
from typing import Any

_STAGE = ("stage",)


class StageMetrics:
    """Metrics of one stage of a command.

    Args:
        stage: Its name, as the terminal shows it.
    """

    def __init__(self, stage: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self._tags = {"stage": stage}
        self._done = Counter("sdd_items_done", "Images or other items finished.", _STAGE)
        self._rejected = Counter(
            "sdd_items_rejected", "Items set aside, by reason.", ("stage", "reason")
        )
        self._open = Gauge("sdd_items_open", "Items that are not finished yet.", _STAGE)
        self._busy = Gauge(
            "sdd_network_busy_share", "Share of a worker's time that its network works.", _STAGE
        )
        self._bytes = Counter("sdd_bytes_read", "Bytes of the images read, as they lie.", _STAGE)
        self._trials = Gauge("sdd_trials_begun", "Trials of a search that ended an epoch.", _STAGE)

    def done(self, items: int, left: int | None) -> None:
        """Count finished items.

        Args:
            items: How many.
            left: Items that are not finished; None where that is not known.
        """
        if items > 0:
            self._done.inc(items, self._tags)
        if left is not None:
            self._open.set(left, self._tags)

    def read(self, size: int) -> None:
        """Count the bytes of images that were read, as they lie in files: not decoded."""
        if size > 0:
            self._bytes.inc(size, self._tags)

    def trials(self, begun: int) -> None:
        """Tell how many trials of a search have ended an epoch."""
        self._trials.set(begun, self._tags)

    def rejected(self, reasons: dict[str, int]) -> None:
        """Count items that were set aside, by reason."""
        for reason, number in reasons.items():
            self._rejected.inc(number, {**self._tags, "reason": reason})

    def busy(self, share: float) -> None:
        """Tell how much of its time the network of a worker worked on its last shard, in [0, 1]."""
        self._busy.set(share, self._tags)


class Advance:
    """Tells metrics of work that goes towards a known total, and may fall back on the way.

    Args:
        metrics: Those of the stage, or None.
        total: Items in all.
        at: Items that an earlier run had finished.
    """

    def __init__(self, metrics: StageMetrics | None, total: int, at: int) -> None:
        self._metrics, self._total, self._at = metrics, total, at
        self.reach(at)

    def reach(self, at: int) -> None:
        """Tell how many items are finished; what is done again after a fall counts again."""
        if self._metrics is not None:
            self._metrics.done(at - self._at, self._total - at)
        self._at = at

    def end(self) -> None:
        """Tell that nothing is open any more, also where the total was not needed."""
        if self._metrics is not None:
            self._metrics.done(0, 0)


def stage_metrics(stage: str) -> StageMetrics | None:
    """Return the metrics of a stage; None where no Ray runs in this process."""
    ray: Any = sys.modules.get("ray")
    return StageMetrics(stage) if ray is not None and ray.is_initialized() else None
