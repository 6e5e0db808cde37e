"""Run many calls, on a pool of actors or as tasks, with a bounded number in flight."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from sdd_ray.errors import SddError

_CALLS_PER_ACTOR = 2
"""One runs and one waits, so that an actor is never idle and nothing piles up."""

_LEAST_PATIENCE_S = 5.0
"""An item is given to a second actor after as long as the longest one took, but not before."""
_LOOK_AGAIN_S = 1.0
_MORE_PATIENCE = 4
"""Each time an item is given out once more: what takes an hour is done few times, not many."""


@contextmanager
def ended_after(actors: list[Any]) -> Iterator[list[Any]]:
    """Give out actors and end them, whatever happens meanwhile.

    Of workers that end by themselves, with the last reference, one in some hundreds never does, and
    keeps its memory: Ray 2.60 waits for a lock of its own when it cleans up.
    """
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


def run_on_pool(
    actors: list[Any], call: Callable[[Any, Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
    """Yield the results of one call an item, in the order in which they are finished.

    An actor gets work once it has started: one that the cluster has no room for at the moment, say
    because another job holds the CPUs, must not keep its share of the work waiting. And an item
    that takes longer than any other did is given to an idle actor as well, and the first result
    counts: the actor it was given to may be on a node that is lost, cut off or slow, and be started
    again only when the cluster has room for it.

    Args:
        actors: Actor handles, with a method `ready` that returns at once.
        call: Starts the call for an item on an actor and returns its reference. A call may be made
            twice at the same time, and must do the same then.
        items: What to work on.

    Raises:
        SddError: The first error with a message for the user that a call returned.
    """
    pool = _Pool(actors, call, items)
    while not pool.is_done:
        pool.hand_out()
        for result in pool.finished():
            if isinstance(result, SddError):
                raise result
            yield result


@dataclass
class _InFlight:
    """An item that actors work on."""

    item: Any
    started: float
    actors: list[int]


class _Pool:
    """Who works on what: see `run_on_pool`."""

    def __init__(
        self, actors: list[Any], call: Callable[[Any, Any], Any], items: Iterable[Any]
    ) -> None:
        self._actors, self._call = actors, call
        self._starting = {actor.ready.remote(): place for place, actor in enumerate(actors)}
        self._free: deque[int] = deque()  # idle ones on the right, those with a call on the left
        self._busy = [0] * len(actors)
        self._waiting = deque(enumerate(items))
        self._open: dict[int, _InFlight] = {}
        self._calls: dict[Any, tuple[int, int]] = {}
        self._longest = _LEAST_PATIENCE_S

    @property
    def is_done(self) -> bool:
        """Whether every item has its result."""
        return not self._waiting and not self._open

    def hand_out(self) -> None:
        """Give actors that are free something to do."""
        while self._waiting and self._free:
            # What actors that are still starting can take does not wait behind another item.
            if self._busy[self._free[-1]] and len(self._waiting) <= len(self._starting):
                break
            number, item = self._waiting.popleft()
            self._open[number] = _InFlight(item, time.monotonic(), [])
            self._give(number, self._free.pop())
        if not self._waiting:
            for number, found in self._open.items():
                self._give_again(number, found)

    def _give_again(self, number: int, found: _InFlight) -> None:
        """Give an item that takes long to one more actor, if another one is free."""
        others = [actor for actor in self._free if actor not in found.actors]
        patience = self._longest * _MORE_PATIENCE ** (len(found.actors) - 1)
        if others and time.monotonic() - found.started > patience:
            self._free.remove(others[-1])
            self._give(number, others[-1])

    def _give(self, number: int, actor: int) -> None:
        found = self._open[number]
        found.actors.append(actor)
        self._busy[actor] += 1
        self._calls[self._call(self._actors[actor], found.item)] = (number, actor)

    def finished(self) -> Iterator[Any]:
        """Wait for a call to end, or for some time; yield its result if it is the first one."""
        timeout = None if self._waiting else _LOOK_AGAIN_S
        ended, _ = ray.wait([*self._calls, *self._starting], num_returns=1, timeout=timeout)
        for done in ended:
            if done in self._starting:
                ray.get(done)
                started = self._starting.pop(done)
                self._free.append(started)
                self._free.extendleft([started] * (_CALLS_PER_ACTOR - 1))
                continue
            number, actor = self._calls.pop(done)
            self._busy[actor] -= 1
            if self._busy[actor]:
                self._free.appendleft(actor)
            else:
                self._free.append(actor)
            found = self._open.pop(number, None)
            if found is not None:  # else another actor was faster
                self._longest = max(self._longest, time.monotonic() - found.started)
                yield ray.get(done)


def on_fetched(function: Callable[..., Any], held: list[Any], *rest: Any) -> Any:
    """Return what a function makes of large objects, which the task that runs this fetches itself.

    As arguments they would be held in the store of the task's node from before it starts, and Ray
    2.60 never lets go of those of a task whose driver was killed. Arguments may fill 70 % of a
    store: where two are larger than that, no task that has such ones starts there again, of any
    job, and nothing says so.

    Args:
        function: Takes the objects first.
        held: References, in a list so that Ray does not take them for arguments.
        rest: Small arguments.
    """
    return function(*ray.get(held), *rest)


def run_tasks(
    calls: Iterable[tuple[Callable[[], Any], Any]],
    most: int | None = None,
    patience_s: float | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Yield (result, label) of tasks in the order in which they were started.

    A task that takes longer than any other did, while a CPU has nothing to do, is started again,
    and the first result counts. Ray 2.60 does not start it again by itself where the network of its
    node is cut or its processes stand still, even after it has counted the node out: it waits for
    the answer until the connection breaks, which takes minutes.

    Args:
        calls: What starts a task and returns its reference, each with a label; taken one by one, so
            that never more than `most` run. A task may run twice at the same time, and must do the
            same then; the slower one is ended. A pair of references stands for a task that leaves
            something in the store: of the one that was first the result is its first answer and the
            second reference.
        most: Tasks in flight; twice the CPUs of the cluster, which may grow, if None.
        patience_s: Seconds before which no task is started again, where some may take much longer
            than others.
    """
    waiting: deque[_Task] = deque()
    longest = patience_s or _LEAST_PATIENCE_S
    for start, label in calls:
        waiting.append(_Task(start, label))
        if len(waiting) >= (most or _twice_the_cpus()):
            task = waiting.popleft()
            yield task.result(longest), task.label
            longest = max(longest, task.seconds)
    while waiting:
        task = waiting.popleft()
        yield task.result(longest), task.label
        longest = max(longest, task.seconds)


def _twice_the_cpus() -> int:
    return max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))


class _Task:
    """A task that was started, and may be again: see `run_tasks`.

    Attributes:
        label: What it is called.
        seconds: From its start until its result was asked for and there.
    """

    def __init__(self, start: Callable[[], Any], label: Any) -> None:
        self.label, self.seconds = label, 0.0
        self._start, self._began = start, time.monotonic()
        self._refs: list[Any] = []
        self._left: list[Any] = []
        self._begin()

    def _begin(self) -> None:
        started = self._start()
        ref, left = started if isinstance(started, tuple) else (started, None)
        self._refs.append(ref)
        self._left.append(left)

    def result(self, longest: float) -> Any:
        """Return the first result.

        Args:
            longest: After so many seconds, and each time after `_MORE_PATIENCE` times as many, the
                task is started once more, if a CPU has nothing to do.
        """
        while True:
            ended, _ = ray.wait(self._refs, num_returns=1, timeout=_LOOK_AGAIN_S)
            self.seconds = time.monotonic() - self._began
            if ended:
                first = self._refs.index(ended[0])
                for other in self._refs[:first] + self._refs[first + 1 :]:
                    ray.cancel(other, force=True)  # it holds a CPU, and may read gigabytes
                left = self._left[first]
                return ray.get(ended[0]) if left is None else (ray.get(ended[0]), left)
            is_late = self.seconds > longest * _MORE_PATIENCE ** (len(self._refs) - 1)
            if is_late and ray.available_resources().get("CPU", 0) >= 1:
                self._begin()
