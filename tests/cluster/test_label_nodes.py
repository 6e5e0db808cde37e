"""The label command on a cluster that grows: one node, then two, and the same labels."""

import os
import subprocess
import sys

import pytest
from embedding_sets import one_big
from made_datasets import Rows, write_embeddings
from ray.cluster_utils import Cluster

from sdd_ray.store.dataset import open_dataset

pytestmark = pytest.mark.cluster

SMALL = (
    "from sdd_ray import label; from sdd_ray.config import main;"
    "from sdd_ray.engine import label_plan; from sdd_ray.settings import LabelConfig;"
    "label_plan.ROWS_PER_SHARD = 60;"
    "import sys; sys.exit(main(LabelConfig, label.run, sys.argv[1:]))"
)


@pytest.fixture
def cluster():
    """A head node with one logical CPU."""
    found = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "object_store_memory": 200 * 2**20,
            "include_dashboard": False,
        },
    )
    try:
        yield found
    finally:
        found.shutdown()


def digest_of_labels(cluster, embeddings, output, workers):
    command = [sys.executable, "-c", SMALL, f"embeddings={embeddings}", f"output={output}"]
    command += [f"ray.address={cluster.address}", f"resources.workers={workers}"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return open_dataset(output, ["label"]).digest


@pytest.mark.slow
def test_a_second_node_changes_no_label(cluster, tmp_path):
    embeddings = write_embeddings(tmp_path / "embeddings", Rows(*one_big()), 5)
    one = digest_of_labels(cluster, embeddings, str(tmp_path / "one"), 1)
    cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20)
    cluster.wait_for_nodes()
    assert digest_of_labels(cluster, embeddings, str(tmp_path / "two"), 3) == one
