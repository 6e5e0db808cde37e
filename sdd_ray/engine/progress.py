"""Progress on the terminal and as metrics: what is done, how fast, and how long it will take."""

import sys
import time
from typing import TextIO

from sdd_ray.engine.metrics import stage_metrics


class Progress:
    """A line that is rewritten on a terminal and repeated now and then in a log.

    Args:
        stage: Name of the stage.
        total: Items in all; None where that is not known before the end.
        done: Items finished by an earlier run; they do not count for the rate.
        unit: What the items are.
        stream: Where the line goes.
    """

    def __init__(
        self,
        stage: str,
        total: int | None,
        done: int = 0,
        unit: str = "images",
        stream: TextIO | None = None,
    ) -> None:
        self.stage, self.total, self.done, self.unit = stage, total, done, unit
        self._stream = sys.stderr if stream is None else stream
        self._before = done
        self._started = time.monotonic()
        self._shown = self._started
        self._rejected = 0
        self._interval = 0.5 if self._stream.isatty() else 10.0
        self.metrics = stage_metrics(stage)
        if self.metrics is not None:
            self.metrics.done(0, self._left())

    def found(self, items: int) -> None:
        """Count items of an earlier run that come to light only now."""
        self.done += items
        self._before += items

    def update(self, items: int, rejected: int = 0) -> None:
        """Count items that were just finished; show the line if it is time."""
        self.done += items
        self._rejected += rejected
        if self.metrics is not None:
            self.metrics.done(items, self._left())
        now = time.monotonic()
        if now - self._shown >= self._interval:
            self._shown = now
            self._write(end="\r" if self._stream.isatty() else "\n")

    def close(self) -> None:
        """Show the final line."""
        self._write(end="\n")

    def line(self) -> str:
        """Return the line as text."""
        spent = time.monotonic() - self._started
        rate = (self.done - self._before) / spent if spent > 0 else 0.0
        text = f"{self.stage}: {self.done:,} {self._of_all()}"
        if self._rejected:
            text += f", {self._rejected:,} rejected"
        if rate > 0:
            text += f", {rate:,.0f}/s"
        if self.total is None or self.done >= self.total:
            return text + f", {clock(spent)}"
        if rate > 0:
            text += f", {clock((self.total - self.done) / rate)} left"
        return text

    def _left(self) -> int | None:
        return None if self.total is None else max(0, self.total - self.done)

    def _of_all(self) -> str:
        if self.total is None:
            return self.unit
        share = 100.0 * self.done / self.total if self.total else 100.0
        return f"of {self.total:,} {self.unit} ({share:.0f} %)"

    def _write(self, end: str) -> None:
        self._stream.write(f"{self.line():<79}{end}" if end == "\r" else self.line() + end)
        self._stream.flush()


def clock(seconds: float) -> str:
    """Return a time span as people write it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
