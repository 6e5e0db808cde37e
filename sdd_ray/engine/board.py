"""Lines from workers to the user's terminal, without Ray's prefixes."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray


class _Board:
    """Holds lines until the driver takes them."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


@contextmanager
def board() -> Iterator[Any]:
    """Yield an actor to which workers `put` lines; they appear on standard error as they come."""
    actor: Any = ray.remote(num_cpus=0)(_Board).remote()
    stop = threading.Event()

    def show() -> None:
        for line in ray.get(actor.take.remote()):
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def watch() -> None:
        while not stop.wait(0.5):
            show()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        stop.set()
        thread.join()
        show()
        ray.kill(actor)
