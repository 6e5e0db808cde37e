"""A cluster of three nodes on this machine (Linux), and ways to break it: for `faults.py`."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray.cluster_utils import Cluster

_SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
_STORE = 200 * 2**20
_NODES = 3
_CUT_OFF_S = 60.0
_PAUSE_S, _AWAKE_S = 0.4, 0.1
_OURS = (b"Worker", b"ImplicitFunc", b"compare", b"assess", b"draw people")
"""Within the names that Ray gives to processes at work: actors of pools, training workers, trials,
tasks of evaluate."""

_FILL = """
import sys, time
import numpy as np, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)

@ray.remote(num_cpus=0, num_returns=2)
def made():
    return np.ones(20 * 2**20, np.uint8), "made"

nodes = [n["NodeID"] for n in ray.nodes() if n["Resources"].get("CPU")]
tasks = [made.options(scheduling_strategy=On(n, False)).remote() for n in nodes for _ in range(15)]
ray.get([said for _, said in tasks])
print("full", flush=True)
time.sleep(3600)
"""
"""Three hundred MiB on each node, of whose store two hundred are memory: the rest is spilled."""


@dataclass
class Broken:
    """A command that runs on a cluster, what disturbs it, and how that is ended."""

    cluster: Cluster
    process: subprocess.Popen
    after: contextlib.ExitStack


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Three nodes of one CPU, and a head that notices within seconds that one is gone."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": _SOON}
    found = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": _STORE})
    try:
        for _ in range(_NODES):
            found.add_node(num_cpus=1, object_store_memory=_STORE)
        found.wait_for_nodes()
        yield found
    finally:
        found.shutdown()


def raylet_of(node) -> int:  # noqa: ANN001 - Ray's
    """Return the process of a node under which its workers are."""
    [info] = node.all_processes["raylet"]
    return int(info.process.pid)


def below(parent: int) -> list[int]:
    """Return all processes below one, from Linux' /proc."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "stat").read_text().rpartition(")")[2].split()
            parents[int(place.name)] = int(words[1])
    found, known = [], {parent}
    for _ in parents:
        more = [pid for pid, above in parents.items() if above in known and pid not in known]
        if not more:
            break
        found += more
        known |= set(more)
    return found


def actors_of(node) -> list[int]:  # noqa: ANN001
    """Return the processes of a node that do work of ours."""
    found = []
    for pid in below(raylet_of(node)):
        with contextlib.suppress(OSError):
            title = (Path("/proc") / str(pid) / "cmdline").read_bytes()
            if title.startswith(b"ray::") and any(name in title for name in _OURS):
                found.append(pid)
    return found


def fullest(found: Cluster):  # noqa: ANN201
    """Return the node whose object store holds most bytes: shared memory of its raylet."""

    def held(node) -> int:  # noqa: ANN001
        status = Path(f"/proc/{raylet_of(node)}/status").read_text()
        return int(status.partition("RssShmem:")[2].split()[0])

    return max(found.worker_nodes, key=held)


def kill_worker(broken: Broken) -> None:
    """Kill one process that does the stage's work."""
    for node in sorted(broken.cluster.worker_nodes, key=lambda n: n.node_id):
        if actors := actors_of(node):
            os.kill(actors[0], signal.SIGKILL)
            return
    raise RuntimeError("no worker is at work")


def kill_node(broken: Broken) -> None:
    """Kill the node that holds most objects, with its workers."""
    broken.cluster.remove_node(fullest(broken.cluster), allow_graceful=False)


def family(broken: Broken) -> list[int]:
    """Return the processes of the first node."""
    raylet = raylet_of(sorted(broken.cluster.worker_nodes, key=lambda n: n.node_id)[0])
    return [raylet, *below(raylet)]


def send(pids: list[int], sent: signal.Signals) -> None:
    """Send a signal to those processes that are left."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)


def cut_off(broken: Broken) -> None:
    """Let all processes of a node stand still for a minute."""
    still = family(broken)
    send(still, signal.SIGSTOP)
    timer = threading.Timer(_CUT_OFF_S, send, (still, signal.SIGCONT))
    timer.start()
    broken.after.callback(timer.cancel)
    broken.after.callback(send, still, signal.SIGCONT)


def slow_down(broken: Broken) -> None:
    """Let all processes of a node stand still for four fifths of the time, until the end."""
    over = threading.Event()

    def pause() -> None:
        while not over.wait(_AWAKE_S):
            still = family(broken)
            send(still, signal.SIGSTOP)
            over.wait(_PAUSE_S)
            send(still, signal.SIGCONT)

    thread = threading.Thread(target=pause)
    thread.start()
    broken.after.callback(thread.join)
    broken.after.callback(over.set)


def fill_stores(broken: Broken) -> None:
    """Put more objects on every node than its store has memory for; they stay until the end."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    filler = subprocess.Popen(
        [sys.executable, "-c", _FILL, broken.cluster.address],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    broken.after.callback(filler.kill)
    if "full\n" not in iter(filler.stdout or []):  # reads to that line, not further
        raise RuntimeError("the object stores could not be filled")


def kill_driver(broken: Broken) -> None:
    """Kill the command itself."""
    broken.process.send_signal(signal.SIGKILL)


def kill_head(broken: Broken) -> None:
    """Kill the head: its raylet, its record of the cluster, everything."""
    broken.cluster.remove_node(broken.cluster.head_node, allow_graceful=False)


FAULTS = {
    "none": None,
    "a worker process is killed": kill_worker,
    "the node with most objects is killed": kill_node,
    "a node is cut off for a minute": cut_off,
    "a node is five times slower": slow_down,
    "object stores are filled until they spill": fill_stores,
    "the driver is killed, the command given again": kill_driver,
    "the head is killed, the command given again": kill_head,
}
