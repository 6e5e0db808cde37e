"""Carry an `SddError` from a worker to the driver as data.

Ray retries, wraps or prints what a worker raises. An error with a message for the user is none of
Ray's business: the worker returns it, and the driver raises it again.
"""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sdd_ray.errors import SddError


@contextmanager
def failure_row() -> Iterator[dict[str, Any]]:
    """Yield a row to fill; an `SddError` raised meanwhile ends up in it instead."""
    row: dict[str, Any] = {"failure": [b""]}
    try:
        yield row
    except SddError as error:
        row["failure"] = [pickle.dumps(error)]


def raise_failure(row: Mapping[str, Any]) -> None:
    """Raise the error that a worker met, if it met one.

    Raises:
        SddError: What the worker raised.
    """
    if row["failure"]:
        error: SddError = pickle.loads(row["failure"])  # noqa: S301 - made by our own worker
        raise error
