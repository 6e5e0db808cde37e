"""A driver that is killed leaves nothing behind that keeps tasks of later ones from starting."""

import os
import subprocess
import sys

import pytest
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STORE = 200 * 2**20
DRIVER = """
import sys, time
import numpy as np, ray
from sdd_ray.engine.tasks import on_fetched

def last(values, seconds):
    time.sleep(seconds)
    return int(values[-1])

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
held = [ray.put(np.ones(90 * 2**20, np.uint8))]
task = ray.remote(on_fetched).options(num_cpus=1)
found = task.remote(last, held, float(sys.argv[2]))
print("started", flush=True)
print(ray.get(found), flush=True)
"""


def test_a_task_of_a_killed_driver_keeps_no_room(tmp_path):
    """Two objects of 90 MB as arguments would not fit: see `sdd_ray.engine.tasks.on_fetched`."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        cluster.wait_for_nodes()
        command = [sys.executable, "-c", DRIVER, cluster.address]
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        killed = subprocess.Popen([*command, "1000"], env=environment, stdout=subprocess.PIPE)
        assert killed.stdout.readline() == b"started\n"
        with pytest.raises(subprocess.TimeoutExpired):
            killed.wait(8)  # by then the task runs
        killed.kill()
        done = subprocess.run(
            [*command, "0"], env=environment, capture_output=True, timeout=120, check=True
        )
        assert done.stdout == b"started\n1\n"
    finally:
        cluster.shutdown()
