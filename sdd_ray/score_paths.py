"""Score single paths in this process, without Ray: a line for each on standard output."""

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from sdd_ray import columns
from sdd_ray.engine.progress import Progress
from sdd_ray.errors import InputError
from sdd_ray.formats.images import UNREADABLE
from sdd_ray.scorer import Scorer, Scores
from sdd_ray.settings import ScoreConfig
from sdd_ray.store.score_tables import lines

_BATCH = 32
_WAITING = 10_000
"""Paths that may wait to be scored; then their writer has to."""


def score_paths(config: ScoreConfig, given: BinaryIO, output: BinaryIO) -> None:
    """Write a line for every path, in their order, as soon as it is scored.

    Args:
        config: With `images` or `stdin`.
        given: Standard input: lines of paths; empty ones are no paths.
        output: Standard output.

    Raises:
        InputError: The model cannot be loaded, or not one of the images can be reached.
        ResourceError: The device is not there.
    """
    size = config.batch_size or _BATCH
    scorer = Scorer(config.model, config.device, size)
    if config.threshold is not None:
        scorer.model.acceptance(config.threshold)  # a wrong name ends here, not after the first
    batches = _as_they_come(given, size) if config.stdin else _cut(config.images, size)
    progress = Progress("score", None if config.stdin else len(config.images))
    lost: list[str] = []
    total = 0
    for paths in batches:
        scores = scorer.score(paths, threshold=config.threshold)
        output.write(lines(config.format, _rows(paths, scores), header=total == 0))
        output.flush()
        total += len(paths)
        pairs = zip(scores.reasons, scores.details, strict=True)
        lost += [detail or "" for reason, detail in pairs if reason == UNREADABLE]
        progress.update(len(paths), sum(reason is not None for reason in scores.reasons))
    progress.close()
    if total and len(lost) == total:
        raise InputError(f"none of {total:,} images can be reached; the first: {lost[0]}")


def _rows(paths: Sequence[str], scores: Scores) -> list[dict[str, object]]:
    """Return plain rows: a table of Arrow's would import pandas, for half a second."""
    rows: list[dict[str, object]] = []
    for place, path in enumerate(paths):
        raw = scores.raw[place]
        row = {
            columns.IMAGE_ID: path,
            columns.QUALITY: int(scores.quality[place]),
            columns.RAW_QUALITY: None if np.isnan(raw) else raw,
            columns.REASON: scores.reasons[place],
        }
        if scores.accepted is not None:
            row[columns.ACCEPTED] = str(bool(scores.accepted[place])).lower()
        rows.append(row)
    return rows


def _cut(paths: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


def _as_they_come(stream: Iterable[bytes], size: int) -> Iterator[list[str]]:
    """Yield what is there, at most `size` paths; wait only where nothing is.

    So the first path of a slow writer is answered at once, and a fast one gets whole batches.
    """
    waiting: queue.Queue[str | None] = queue.Queue(_WAITING)

    def read() -> None:
        for line in stream:
            path = line.rstrip(b"\r\n").decode(errors="replace")
            if path:
                waiting.put(path)
        waiting.put(None)

    threading.Thread(target=read, name="paths", daemon=True).start()
    is_over = False
    while not is_over:
        batch: list[str] = []
        is_over = _take(waiting.get(), batch)
        while not is_over and len(batch) < size and not waiting.empty():
            is_over = _take(waiting.get(), batch)
        if batch:
            yield batch


def _take(path: str | None, batch: list[str]) -> bool:
    """Add a path to a batch; return whether it was the end of all paths instead."""
    if path is not None:
        batch.append(path)
    return path is None
