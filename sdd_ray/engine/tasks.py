"""Run many calls on a pool of actors with a bounded number in flight."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from sdd_ray.errors import SddError

_CALLS_PER_ACTOR = 2
"""One runs and one waits, so that an actor is never idle and nothing piles up."""


def run_on_pool(
    actors: list[Any], call: Callable[[Any, Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
    """Yield the results of one call an item, in the order in which they are finished.

    Args:
        actors: Actor handles.
        call: Starts the call for an item on an actor and returns its reference.
        items: What to work on; taken only when there is room for it.

    Raises:
        SddError: The first error with a message for the user that a call returned.
    """
    free = [actor for actor in actors for _ in range(_CALLS_PER_ACTOR)]
    busy: dict[Any, Any] = {}
    remaining = iter(items)
    while True:
        for item in remaining:
            actor = free.pop()
            busy[call(actor, item)] = actor
            if not free:
                break
        if not busy:
            return
        done, _ = ray.wait(list(busy), num_returns=1)
        free.append(busy.pop(done[0]))
        result = ray.get(done[0])
        if isinstance(result, SddError):
            raise result
        yield result
