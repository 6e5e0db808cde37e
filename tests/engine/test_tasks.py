"""Pools and tasks finish their work where some never answer, start late, or are slow."""

import time
from functools import partial

import numpy as np
import pytest
import ray

from sdd_ray.engine import tasks
from sdd_ray.engine.tasks import ended_after, on_fetched, run_on_pool, run_tasks
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

    def double_after(self, file, number):
        while not file.exists():
            time.sleep(0.05)
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


@ray.remote(num_cpus=1)
def _double(number, begun):
    """Double a number; the first to double three never ends."""
    if number == 3 and not begun.exists():
        begun.touch()
        time.sleep(3600)
    return 2 * number


@pytest.mark.usefixtures("_soon")
def test_a_task_that_answers_no_more_is_started_again(tmp_path):
    """As on a node that is cut off: Ray waits for its answer until the connection breaks."""
    started = []

    def start(number):
        started.append((number, _double.remote(number, tmp_path / "begun")))
        return started[-1][1]

    found = list(run_tasks(((partial(start, n), str(n)) for n in range(8)), most=3))
    assert found == [(2 * n, str(n)) for n in range(8)]
    threes = [ref for number, ref in started if number == 3]
    assert len(threes) >= 2
    # The one that was too slow is not left running: it holds a CPU.
    with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError)):
        ray.get(threes[0], timeout=30)


def test_an_item_waits_behind_no_other_while_actors_are_idle_or_start(tmp_path):
    actors = [Worker.remote() for _ in range(4)]
    given = []

    def call(actor, item):
        given.append(actors.index(actor))
        if len(given) == 4:
            (tmp_path / "all given").touch()
        return actor.double_after.remote(tmp_path / "all given", item)

    with ended_after(actors):
        assert sorted(run_on_pool(actors, call, range(4))) == [0, 2, 4, 6]
        assert sorted(given) == [0, 1, 2, 3]


@pytest.mark.usefixtures("_soon")
def test_a_slow_item_is_given_to_few_actors():
    """Not to every idle one: each may need gigabytes, and nothing is wrong with the first."""
    actors = [Worker.remote(seconds=2.5) for _ in range(8)]
    given = []

    def call(actor, item):
        given.append(item)
        return actor.double.remote(item)

    with ended_after(actors):
        assert list(run_on_pool(actors, call, [1])) == [2]
    assert len(given) <= 3  # after 0.3 and 1.2 s


@pytest.mark.usefixtures("_soon")
def test_what_the_first_of_two_left_in_the_store_is_the_result(tmp_path):
    task = _left.options(num_returns=2)
    calls = ((partial(lambda n: tuple(task.remote(n, tmp_path / "begun")), n), n) for n in range(5))
    for (answer, left), number in run_tasks(calls, most=2):
        assert (answer, ray.get(left)) == (2 * number, [number])


@ray.remote(num_cpus=1)
def _left(number, begun):
    """The first to be asked for three takes long; the later ones take longer still."""
    if number == 3:
        is_first = not begun.exists()
        begun.touch()
        time.sleep(2.0 if is_first else 3600)
    return 2 * number, [number]


def test_no_more_tasks_than_asked_for_are_in_flight():
    taken = []

    def calls():
        for number in range(6):
            taken.append(number)
            yield partial(ray.put, number), number

    results = run_tasks(calls(), most=2)
    assert next(results) == (0, 0)
    assert taken == [0, 1]
    assert [result for result, _ in results] == [1, 2, 3, 4, 5]
