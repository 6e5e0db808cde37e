"""Training whose worker or node is killed: it goes on by itself, and ends as the unbroken one."""

import os
import re
import signal
import subprocess
import sys

import pytest
from labelled_faces import train_config, write_labels
from ray.cluster_utils import Cluster

from sdd_ray.config import to_dict, write_yaml
from sdd_ray.settings import OptimiserConfig, TrainResources
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import load_model

pytestmark = pytest.mark.cluster

EPOCHS = 5
NODE = {"object_store_memory": 200 * 2**20}
EPOCH_LINE = re.compile(r"train: epoch (\d+) of")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return write_labels(tmp_path_factory.mktemp("labels") / "labels")


@pytest.fixture
def cluster():
    """A head node with one CPU, which notices within a second that a node is gone."""
    soon = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 500,
        "health_check_failure_threshold": 2,
    }
    found = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "include_dashboard": False,
            "_system_config": soon,
            **NODE,
        },
    )
    try:
        yield found
    finally:
        found.shutdown()


@pytest.fixture
def do_train(cluster, labels, tmp_path):
    """Return a function that trains in a process of its own, and disturbs it after an epoch."""

    def run(name, resources, disturb=None):
        optimiser = OptimiserConfig(epochs=EPOCHS, batch_size=16, learning_rate=1e-3)
        config = train_config(labels, tmp_path / name, optimiser=optimiser, resources=resources)
        file = tmp_path / f"{name}.yaml"
        file.write_text(write_yaml(to_dict(config)))
        command = [sys.executable, "-m", "sdd_ray.train", "--config", str(file)]
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
        }
        process = subprocess.Popen(
            [*command, f"ray.address={cluster.address}", "ray.num_cpus=null"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                if disturb and EPOCH_LINE.match(line):
                    disturb()
                    disturb = None
            assert process.wait(60) == 0, "".join(said)
        finally:
            process.kill()
        return load_model(Location(config.output)).record, "".join(said)

    return run


def kill_a_worker():
    """Kill one of the training workers of this user's clusters, as the kernel would."""
    titles = subprocess.run(
        ["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout
    workers = [line.split()[0] for line in titles.splitlines() if "RayTrainWorker" in line]
    assert workers
    os.kill(int(workers[0]), signal.SIGKILL)


def figures(record):
    """Return the figures of all epochs, without the rates."""
    return [{k: v for k, v in epoch.items() if k != "images_per_s"} for epoch in record["history"]]


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(cluster, do_train):
    cluster.add_node(num_cpus=2, **NODE)
    cluster.wait_for_nodes()
    resources = TrainResources(workers=2, cpus_per_worker=0.5)
    unbroken, _ = do_train("unbroken", resources)
    broken, _ = do_train("broken", resources, kill_a_worker)
    assert figures(broken) == figures(unbroken)
    assert broken["best_epoch"] == unbroken["best_epoch"]


@pytest.mark.slow
def test_a_killed_node_changes_nothing(cluster, do_train):
    """The worker needs two CPUs, so it is on the node that dies."""
    resources = TrainResources(cpus_per_worker=2)
    node = cluster.add_node(num_cpus=2, **NODE)
    cluster.wait_for_nodes()
    unbroken, _ = do_train("unbroken", resources)

    def replace_node():
        node.kill_raylet()
        cluster.add_node(num_cpus=2, **NODE)

    broken, _ = do_train("broken", resources, replace_node)
    assert figures(broken) == figures(unbroken)


@pytest.mark.slow
def test_elastic_training_goes_on_with_fewer_workers(cluster, do_train):
    nodes = [cluster.add_node(num_cpus=2, **NODE) for _ in range(2)]
    cluster.wait_for_nodes()
    resources = TrainResources(workers=2, min_workers=1, cpus_per_worker=2)
    record, said = do_train("elastic", resources, nodes[0].kill_raylet)
    assert [epoch["epoch"] for epoch in record["history"]] == list(range(1, EPOCHS + 1))
    # An epoch whose checkpoint died with the node is trained again.
    assert sorted(set(EPOCH_LINE.findall(said))) == [str(n) for n in range(1, EPOCHS + 1)]
