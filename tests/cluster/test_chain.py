"""All stages on a cluster of three nodes, of which one dies on the way and another one comes."""

import json
import os
import subprocess
import sys

import pytest
from chain import steps
from ray.cluster_utils import Cluster

from sdd_ray.store.dataset import open_dataset

pytestmark = pytest.mark.cluster

NODE = {"num_cpus": 1, "object_store_memory": 150 * 2**20}

# One process for all commands: most of the time of a small command is what it imports.
CHAIN = """
import importlib, json, sys
from sdd_ray import settings
from sdd_ray.config import main
from sdd_ray.engine.session import session

with session(settings.RayConfig(address=sys.argv[1])):
    for name, words in json.loads(sys.argv[2]):
        schema = getattr(settings, name.capitalize() + "Config")
        status = main(schema, importlib.import_module("sdd_ray." + name).run, words)
        print("ended", name, status, flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def cluster():
    """A head without work and three nodes of one CPU; it notices soon that a node is gone."""
    soon = {"health_check_initial_delay_ms": 0, "health_check_failure_threshold": 3}
    soon |= {"health_check_period_ms": 1000, "health_check_timeout_ms": 1000}
    head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": soon}
    found = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(3):
            found.add_node(**NODE)
        found.wait_for_nodes()
        yield found
    finally:
        found.shutdown()


def test_all_stages_while_nodes_come_and_go(cluster, tmp_path):
    commands = steps(tmp_path)
    words = [sys.executable, "-c", CHAIN, cluster.address, json.dumps(list(commands.items()))]
    said = (tmp_path / "said").open("w+")
    process = subprocess.Popen(
        words,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
    )
    ended = []
    try:
        for line in process.stdout:
            if line.startswith("ended "):
                ended.append(line.split()[1:])
                if ended[-1][0] in ("embed", "train"):
                    cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
                    cluster.add_node(**NODE)
                process.stdin.write("\n")
                process.stdin.flush()
        assert process.wait(60) == 0, (tmp_path / "said").read_text()
    finally:
        process.kill()
        said.close()
    assert ended == [[name, "0"] for name in commands], (tmp_path / "said").read_text()
    for name in commands:
        open_dataset(str(tmp_path / name), [name])
    scored = open_dataset(str(tmp_path / "score"), ["score"])
    assert scored.manifest["counts"]["rows_out"] == 96
