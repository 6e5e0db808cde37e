"""A pool of actors finishes its work with actors that never answer, start late, or are slow."""

import time

import numpy as np
import pytest
import ray

from sdd_ray.engine import tasks
from sdd_ray.engine.tasks import ended_after, on_fetched, run_on_pool
from sdd_ray.errors import InputError

pytestmark = pytest.mark.usefixtures("ray_session")


@ray.remote(num_cpus=0.1)
class Worker:
    """Doubles numbers; one of a kind sleeps first."""

    def __init__(self, seconds=0.0, most=10**6):
        self.seconds, self.most = seconds, most

    def ready(self):
        return True

    def double(self, number):
        self.most -= 1
        if self.most < 0 or self.seconds:
            time.sleep(self.seconds or 3600)
        return 2 * number

    def fail(self, number):
        return InputError(f"number {number}") if number == 3 else number


def doubled(actors, numbers):
    with ended_after(actors) as pool:
        return sorted(run_on_pool(pool, lambda a, n: a.double.remote(n), numbers))


@pytest.fixture
def _soon(monkeypatch):
    monkeypatch.setattr(tasks, "_LEAST_PATIENCE_S", 0.3)
    monkeypatch.setattr(tasks, "_LOOK_AGAIN_S", 0.1)


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("most", [0, 3])
def test_items_of_an_actor_that_answers_no_more_are_done_by_others(most):
    """As behind a broken cable, or on a node that is gone while the cluster has no room."""
    began = time.monotonic()
    found = doubled([Worker.remote(), Worker.remote(most=most)], range(20))
    assert found == [2 * n for n in range(20)]
    assert time.monotonic() - began < 60


@pytest.mark.usefixtures("_soon")
def test_results_that_come_twice_count_once():
    found = doubled([Worker.remote(), Worker.remote(seconds=1.0)], range(12))
    assert found == [2 * n for n in range(12)]


def test_actors_that_there_is_no_room_for_keep_nothing_waiting():
    never = Worker.options(resources={"a_thing_that_no_node_has": 1}).remote()
    assert doubled([never, Worker.remote()], range(8)) == [2 * n for n in range(8)]


def test_no_item_is_no_result():
    assert doubled([Worker.remote()], []) == []


def test_the_first_error_for_the_user_is_raised():
    with ended_after([Worker.remote()]) as pool, pytest.raises(InputError, match="number 3"):
        list(run_on_pool(pool, lambda a, n: a.fail.remote(n), range(6)))


def test_held_objects_are_fetched_by_the_task():
    held = [ray.put(np.arange(3)), ray.put(np.array([1.0]))]
    found = ray.remote(on_fetched).remote(
        lambda first, second, factor, number: float(first.sum() + second[0] + factor * number),
        held,
        10,
        5,
    )
    assert ray.get(found) == 3 + 1 + 10 * 5
