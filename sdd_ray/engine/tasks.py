"""Run many calls, on a pool of actors or as tasks, with a bounded number in flight."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from sdd_ray.errors import SddError

_CALLS_PER_ACTOR = 2
"""One runs and one waits, so that an actor is never idle and nothing piles up."""


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
    because another job holds the CPUs, must not keep its share of the work waiting.

    Args:
        actors: Actor handles, with a method `ready` that returns at once.
        call: Starts the call for an item on an actor and returns its reference.
        items: What to work on.

    Raises:
        SddError: The first error with a message for the user that a call returned.
    """
    starting = {actor.ready.remote(): actor for actor in actors}
    free: list[Any] = []
    busy: dict[Any, Any] = {}
    waiting = deque(items)
    while waiting or busy:
        while waiting and free:
            actor = free.pop()
            busy[call(actor, waiting.popleft())] = actor
        done = ray.wait([*busy, *starting], num_returns=1)[0][0]
        if done in starting:
            ray.get(done)
            free += [starting.pop(done)] * _CALLS_PER_ACTOR
            continue
        free.append(busy.pop(done))
        result = ray.get(done)
        if isinstance(result, SddError):
            raise result
        yield result


def run_tasks(
    calls: Iterable[tuple[Any, Any]], most: int | None = None
) -> Iterator[tuple[Any, Any]]:
    """Yield (result, label) of tasks in the order in which they were started.

    Args:
        calls: References to started tasks, each with a label; taken one by one, so a generator
            that starts a task when it is asked for one never has more than `most` running.
        most: Tasks in flight; twice the CPUs of the cluster if None.
    """
    if most is None:
        most = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[tuple[Any, Any]] = deque()
    for call in calls:
        waiting.append(call)
        if len(waiting) >= most:
            reference, label = waiting.popleft()
            yield ray.get(reference), label
    while waiting:
        reference, label = waiting.popleft()
        yield ray.get(reference), label
