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
_MOST_WAITING = 10_000
"""Paths that may wait to be scored; then their writer has to."""

_Waiting = queue.Queue[str | OSError | None]


def score_paths(config: ScoreConfig, given: BinaryIO, output: BinaryIO) -> None:
    """Write a line for every path, in their order, as soon as it is scored.

    Args:
        config: With `images` or `stdin`.
        given: Standard input: lines of paths; empty ones are no paths.
        output: Standard output.

    Raises:
        InputError: The model cannot be loaded, standard input cannot be read to its end, or not one
            of the images can be reached.
        ResourceError: The device is not there.
    """
    size = config.batch_size or _BATCH
    scorer = Scorer(config.model, config.device, size)
    if config.threshold is not None:
        scorer.model.acceptance(config.threshold)  # a wrong name ends here, not after the first
    batches = _as_they_come(given, size) if config.stdin else _cut(config.images, size)
    progress = Progress("score", None if config.stdin else len(config.images))
    total = lost = 0
    first_lost = ""
    for paths in batches:
        scores = scorer.score(paths, threshold=config.threshold)
        output.write(lines(config.format, _rows(paths, scores), header=total == 0))
        output.flush()
        total += len(paths)
        if lost == 0 and UNREADABLE in scores.reasons:
            first_lost = scores.details[scores.reasons.index(UNREADABLE)] or ""
        lost += scores.reasons.count(UNREADABLE)
        progress.update(len(paths), sum(reason is not None for reason in scores.reasons))
    progress.close()
    if total and lost == total:
        raise InputError(f"none of {total:,} images can be reached; the first: {first_lost}")


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
    waiting: _Waiting = queue.Queue(_MOST_WAITING)
    threading.Thread(target=_read, args=(stream, waiting), name="paths", daemon=True).start()
    path: str | OSError | None = ""
    while isinstance(path, str):
        batch: list[str] = []
        path = waiting.get()
        while isinstance(path, str):
            batch.append(path)
            if len(batch) == size or waiting.empty():
                break
            path = waiting.get()
        if batch:
            yield batch
    if path is not None:
        raise InputError(f"cannot read the paths on standard input: {path}") from path


def _read(stream: Iterable[bytes], waiting: _Waiting) -> None:
    """Put every path, and then None, or why there is no more."""
    try:
        for line in stream:
            path = line.rstrip(b"\r\n").decode(errors="replace")
            if path:
                waiting.put(path)
    except OSError as error:
        waiting.put(error)
    else:
        waiting.put(None)
