"""Lines and figures from workers to the driver: to the user's terminal, without Ray's prefixes."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sdd_ray.errors import SddError


@dataclass(frozen=True)
class WithinEpoch:
    """How far training is within an epoch.

    Attributes:
        line: For people.
        images: Images of all epochs so far.
    """

    line: str
    images: int


Note = str | WithinEpoch | dict[str, float]


class _Board:
    """Holds notes until the driver takes them."""

    def __init__(self) -> None:
        self._notes: list[Note] = []

    def put(self, note: Note) -> None:
        self._notes.append(note)

    def take(self) -> list[Note]:
        notes, self._notes = self._notes, []
        return notes


@dataclass(frozen=True)
class Teller:
    """Puts notes on a board, from any worker; returns when they are there.

    Attributes:
        board: What `board` gave out.
        prefix: Begins each line.
        trial: Number of the trial that figures are of, where there are trials.
    """

    board: Any
    prefix: str
    trial: int | None = None

    def __call__(self, line: str) -> None:
        """Put a line."""
        ray.get(self.board.put.remote(self.prefix + line))

    def progress(self, line: str, images: int) -> None:
        """Put how far an epoch is, see `WithinEpoch`."""
        ray.get(self.board.put.remote(WithinEpoch(self.prefix + line, images)))

    def figures(self, figures: dict[str, float]) -> None:
        """Put the figures of an epoch."""
        number = {} if self.trial is None else {"trial": float(self.trial)}
        ray.get(self.board.put.remote(figures | number))


def _hear(
    note: Note, figures: Callable[[dict[str, float]], None], progress: Callable[[int], None]
) -> None:
    if isinstance(note, str):
        sys.stderr.write(note + "\n")
    elif isinstance(note, WithinEpoch):
        sys.stderr.write(note.line + "\n")
        progress(note.images)
    else:
        try:
            figures(note)
        except SddError as error:  # training does not end for it, nor do the lines
            sys.stderr.write(f"{error}\n")


def _unheard(_: int) -> None:
    pass


@contextmanager
def board(
    figures: Callable[[dict[str, float]], None], progress: Callable[[int], None] = _unheard
) -> Iterator[Any]:
    """Yield an actor that takes notes, see `Teller`; lines appear on standard error as they come.

    Args:
        figures: Called on the driver with the figures that workers put, in their order.
        progress: Called on the driver with the images of all epochs so far, within epochs.
    """
    # Beside the driver, without which nothing goes on anyway: other nodes may be lost.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()
    stop = threading.Event()

    def show() -> None:
        for note in ray.get(actor.take.remote()):
            _hear(note, figures, progress)
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
