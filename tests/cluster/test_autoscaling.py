"""A cluster that grows with the work and shrinks after it: Ray's autoscaler, pretended machines."""

import os
import subprocess
import sys
import time

import pytest
from embedding_sets import clean
from made_datasets import Rows, write_embeddings
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)
from ray_heads import BIN, head_node

from sdd_ray.store.dataset import open_dataset

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NODES = (
    "import sys, ray; ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False);"
    "print(sum(n['Alive'] and n['Resources'].get('CPU', 0) > 0 for n in ray.nodes()))"
)


@pytest.fixture(scope="module", params=["0", "1"], ids=["first autoscaler", "second autoscaler"])
def environment(request):
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    own = {"RAY_AUTH_MODE": "disabled", "RAY_FAKE_CLUSTER": "1"}
    own |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": request.param}
    own |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    own |= {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID}
    return {**kept, **own, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def scaling(gcs):
    """Return the configuration of an autoscaler that may start two workers of one CPU."""
    worker = {"resources": {"CPU": 1, "object_store_memory": 100 * 2**20}, "node_config": {}}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    # Which Ray adds to the configurations of its own providers, and needs.
    rest = {f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")}
    rest |= {f"{kind}_start_ray_commands": [] for kind in ("head", "worker")}
    rest |= {key: {} for key in ("file_mounts", "auth", "docker")} | {"upscaling_speed": 1.0}
    rest |= {"initialization_commands": [], "cluster_synced_files": []}
    return {
        **rest,
        "cluster_name": "pretended",
        "max_workers": 2,
        "idle_timeout_minutes": 0.05,
        "provider": {
            # By its own name Ray would ask for a file that is not in its wheel.
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "gcs_address": gcs,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": head,
            "worker": {**worker, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
    }


@pytest.fixture(scope="module")
def address(environment):
    """Where a head without work answers that may start two workers."""
    words = ("--num-cpus=0", f"--object-store-memory={100 * 2**20}", "--include-dashboard=false")
    with head_node(environment, *words, scaling=scaling) as found:
        yield found.gcs


@pytest.fixture
def label(address, environment, tmp_path):
    """Return a function that labels a small set on the cluster."""
    embeddings = write_embeddings(tmp_path / "embeddings", Rows(*clean()))

    def run(*words):
        output = tmp_path / "labels"
        command = [sys.executable, "-m", "sdd_ray.label", f"embeddings={embeddings}"]
        command += [f"output={output}", f"ray.address={address}", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done, output

    return run


def nodes(address, environment):
    found = subprocess.run(
        [sys.executable, "-c", NODES, address],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(found.stdout)


def test_nodes_come_with_the_work_and_go_after_it(address, environment, label):
    assert nodes(address, environment) == 0
    done, output = label("resources.workers=2", "ray.wait_for_nodes_s=120")
    assert done.returncode == 0, done.stderr
    assert "waiting for nodes: room for 0 of 2 worker(s), 0 of 120 s" in done.stderr
    assert open_dataset(str(output), ["label"]).manifest["counts"]["rows_out"] == 360
    end = time.monotonic() + 60
    while (left := nodes(address, environment)) and time.monotonic() < end:
        time.sleep(1)
    assert left == 0


def test_a_cluster_that_may_not_grow_so_far_is_said_to_lack_room(label):
    done, output = label("resources.workers=3", "ray.wait_for_nodes_s=4")
    assert done.returncode == 1
    assert "3 worker(s) need 3 CPU, the cluster has" in done.stderr
    assert not (output / "manifest.json").exists()
