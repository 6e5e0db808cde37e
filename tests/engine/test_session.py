"""Which Ray a command joins or starts, and whether it has room: without any cluster."""

import socket

import pytest
import ray

from sdd_ray.engine import room
from sdd_ray.engine import session as module
from sdd_ray.engine.room import patience, pool_size
from sdd_ray.engine.session import session
from sdd_ray.errors import ResourceError, SddError
from sdd_ray.settings import RayConfig


class RecordingRay:
    """Stands in for the module `ray`."""

    exceptions = ray.exceptions

    def __init__(self, *, running=False, error=None, nodes=None, **resources):
        self.calls, self.running, self.error, self.resources = [], running, error, resources
        self.node_resources = [resources] if nodes is None else nodes

    def is_initialized(self):
        return self.running

    def init(self, **arguments):
        self.calls.append(arguments)
        if self.error:
            raise self.error

    def shutdown(self):
        self.calls.append("shutdown")

    def cluster_resources(self):
        return self.resources

    def nodes(self):
        dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        return [dead, *({"Alive": True, "Resources": node} for node in self.node_resources)]


@pytest.fixture
def use(monkeypatch):
    """Return a function that puts a recording Ray in the place of Ray."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(module, "_announce", lambda started: None)

    def put(**behaviour):
        recorder = RecordingRay(**behaviour)
        monkeypatch.setattr(module, "ray", recorder)
        monkeypatch.setattr(room, "ray", recorder)
        return recorder

    return put


@pytest.fixture
def open_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_without_an_address_a_local_ray_is_started_and_stopped(use):
    ray = use()
    with session(RayConfig(num_cpus=3, dashboard=False)):
        assert len(ray.calls) == 1
    arguments, last = ray.calls
    assert last == "shutdown"
    assert arguments["address"] == "local", "a head node on this machine would be joined"
    assert (arguments["num_cpus"], arguments["include_dashboard"]) == (3, False)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_the_configured_cluster_is_joined_before_that_of_the_environment(
    use, monkeypatch, open_port, scheme
):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    ray = use()
    address = f"{scheme}127.0.0.1:{open_port}"
    with session(RayConfig(address=address, num_cpus=3)):
        pass
    assert ray.calls[0]["address"] == address
    assert "num_cpus" not in ray.calls[0], "Ray refuses it for a cluster that is there"


def test_the_cluster_of_the_environment_is_joined(use, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    ray = use()
    with session(RayConfig()):
        pass
    assert ray.calls[0]["address"] == "auto"


def test_a_session_within_a_session_is_the_outer_one(use):
    ray = use(running=True)
    with session(RayConfig()):
        pass
    assert ray.calls == []


def test_ray_is_stopped_after_an_error(use):
    ray = use()
    with pytest.raises(KeyError), session(RayConfig()):
        raise KeyError
    assert ray.calls[-1] == "shutdown"


@pytest.mark.parametrize("error", [ConnectionError("nobody"), ValueError("Invalid address")])
def test_a_cluster_that_cannot_be_joined(use, error):
    use(error=error)
    message = rf"no Ray cluster answers at nonsense \({error}\); is it up"
    with pytest.raises(ResourceError, match=message), session(RayConfig(address="nonsense")):
        pass


def test_a_port_where_nobody_listens_is_found_at_once(use, open_port):
    ray = use()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound, so that nobody else takes it; nobody listens.
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(ResourceError, match=rf"no Ray cluster answers at {address}"),
            session(RayConfig(address=address)),
        ):
            pass
    assert ray.calls == []


def test_pool_takes_what_fits(use):
    use(CPU=8.0, GPU=2.0)
    assert pool_size(None, 1.0, 0.0) == 8
    assert pool_size(None, 0.1, 0.0) == 80
    assert pool_size(None, 1.0, 0.0, spare_cpus=1.0) == 7
    assert pool_size(None, 1.0, 0.5) == 4
    assert pool_size(None, 3.0, 1.0) == 2
    assert pool_size(5, 1.0, 0.0) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9, 1.0, 0.0), r"9 worker\(s\) need 9 CPU, the cluster has 8 CPU to spare"),
        ((None, 9.0, 0.0), r"1 worker\(s\) need 9 CPU, the cluster has 8 CPU"),
        ((None, 1.0, 1.0), r"1 worker\(s\) need 1 CPU and 1 GPU, the cluster has 8 CPU and 0 GPU"),
        ((8, 1.0, 0.0, 1.0), r"8 worker\(s\) need 8 CPU, the cluster has 7 CPU"),
    ],
)
def test_pool_that_does_not_fit_is_refused(use, arguments, message):
    use(CPU=8.0)
    with pytest.raises(ResourceError, match=message):
        pool_size(*arguments)


def test_workers_must_fit_on_a_node_as_a_whole(use):
    use(CPU=9.0, nodes=[{"CPU": 3.0}] * 3)
    assert pool_size(None, cpus=2.0, gpus=0.0) == 3  # 4.5 times in all, but once on each node
    with pytest.raises(ResourceError, match="4 worker"):
        pool_size(4, cpus=2.0, gpus=0.0)


def test_gpus_count_where_the_cpus_are(use):
    use(CPU=12.0, GPU=4.0, nodes=[{"CPU": 4.0}, {"CPU": 8.0, "GPU": 4.0}])
    assert pool_size(None, cpus=4.0, gpus=1.0) == 2


def test_errors_of_ray_end_in_one_line(use):
    recorder = use(CPU=2.0)
    text = "Ray failed: the object store is full; the same command"
    with pytest.raises(SddError, match=text), session(RayConfig()):
        raise ray.exceptions.RayError("long story\nthe object store is full")
    assert recorder.calls[-1] == "shutdown"


class Demand:
    """Stands in for a placement group: after some looks at it, nodes have come."""

    def __init__(self, recorder, looks):
        self.recorder, self.looks, self.removed = recorder, looks, False

    def wait(self, timeout_seconds):
        assert timeout_seconds <= 1
        self.looks -= 1
        if self.looks == 0:
            self.recorder.resources["CPU"] = 8.0
            self.recorder.node_resources += [{"CPU": 4.0}, {"CPU": 4.0}]
        return self.looks <= 0


@pytest.fixture
def demand(use, monkeypatch):
    """A cluster without nodes that has two after three looks, and what was asked of it."""
    recorder = use(nodes=[])
    found = Demand(recorder, 3)

    def ask(bundles):
        found.bundles = bundles
        return found

    def take_back(group):
        group.removed = True

    monkeypatch.setattr(room, "placement_group", ask)
    monkeypatch.setattr(room, "remove_placement_group", take_back)
    return found


def test_nodes_are_waited_for(demand, capsys):
    with patience(60.0):
        assert pool_size(3, cpus=2.0, gpus=0.0, spare_cpus=2.0) == 3
    assert demand.bundles == [{"CPU": 2.0}] * 3 + [{"CPU": 1.0}] * 2
    assert demand.removed
    [line] = capsys.readouterr().err.splitlines()
    assert line == "waiting for nodes: room for 0 of 3 worker(s), 0 of 60 s"


def test_without_a_number_one_worker_is_waited_for_and_all_that_fit_are_taken(demand):
    with patience(60.0):
        assert pool_size(None, cpus=2.0, gpus=0.0) == 4
    assert demand.bundles == [{"CPU": 2.0}]


def test_cpus_to_spare_may_lie_on_several_nodes(demand):
    demand.recorder.resources = {"CPU": 0.0}
    with patience(60.0):
        assert pool_size(None, cpus=2.0, gpus=0.0, spare_cpus=2.25) == 2
    assert demand.bundles == [{"CPU": 2.0}, {"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 0.25}]


def test_patience_ends(demand):
    demand.looks = 10**9
    message = r"3 worker\(s\) need 6 CPU, the cluster has 0 CPU to spare after 0.01 s; lower"
    with patience(0.01), pytest.raises(ResourceError, match=message):
        pool_size(3, cpus=2.0, gpus=0.0)
    assert demand.removed


def test_what_fits_is_not_asked_for(use, demand):
    use(CPU=2.0)
    with patience(60.0):
        assert pool_size(2, cpus=1.0, gpus=0.0) == 2
    assert not hasattr(demand, "bundles")


def test_a_stage_within_a_session_waits_as_the_session_does(demand):
    with session(RayConfig(wait_for_nodes_s=60.0)):
        demand.recorder.running = True
        with session(RayConfig()):
            assert pool_size(1, cpus=1.0, gpus=0.0) == 1


def test_a_session_has_the_patience_of_its_configuration(demand):
    with session(RayConfig(wait_for_nodes_s=60.0)):
        assert pool_size(1, cpus=1.0, gpus=0.0) == 1
    demand.recorder.resources, demand.recorder.node_resources = {}, []
    with pytest.raises(ResourceError):
        pool_size(1, cpus=1.0, gpus=0.0)
