"""A cluster of three nodes on this machine (Linux), and ways to break it: for `faults.py`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
_NET, _PORT = "10.77.0", 6390
_STARTED = "Ray runtime started"
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
    """A command that runs on a cluster (`Hosts` for a cable), and how what disturbs it is ended."""

    cluster: Any
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


def ip(*words: str) -> None:
    """Run Linux' `ip`, which needs root."""
    subprocess.run(["ip", *words], check=True)  # noqa: S607


class Hosts:
    """A head here, and three nodes of one CPU in network namespaces, joined by a bridge.

    Args:
        after: Ends it all.
    """

    def __init__(self, after: contextlib.ExitStack) -> None:
        self._after, self._nodes = after, dict[str, subprocess.Popen]()
        self._log = Path(tempfile.mkdtemp(prefix="hosts")) / "said"
        ip("link", "add", "sddbr", "type", "bridge")
        after.callback(ip, "link", "del", "sddbr")
        ip("addr", "add", f"{_NET}.1/24", "dev", "sddbr")
        ip("link", "set", "sddbr", "up")
        self.address = f"{_NET}.1:{_PORT}"
        self._start(
            *("--head", f"--port={_PORT}", f"--node-ip-address={_NET}.1", "--num-cpus=0"),
            *(f"--system-config={json.dumps(_SOON)}", "--include-dashboard=false"),
        )
        for number in range(_NODES):
            name, address = f"sdd{number}", f"{_NET}.{number + 10}"
            ip("netns", "add", name)
            after.callback(ip, "netns", "del", name)
            ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}v", "master", "sddbr", "up")
            for words in (
                ("addr", "add", f"{address}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
            ):
                ip("-n", name, *words)
            words = (f"--address={self.address}", f"--node-ip-address={address}", "--num-cpus=1")
            self._nodes[name] = self._start(*words, within=("ip", "netns", "exec", name))

    def _start(self, *words: str, within: tuple[str, ...] = ()) -> subprocess.Popen:
        """Run `ray start` and wait until it says that the node is up."""
        ray = str(Path(sys.executable).parent / "ray")
        store = f"--object-store-memory={_STORE}"
        before = self._log.read_text().count(_STARTED) if self._log.exists() else 0
        with self._log.open("a") as said:
            process = subprocess.Popen(
                [*within, ray, "start", "--block", "--disable-usage-stats", store, *words],
                env={**os.environ, "RAY_AUTH_MODE": "disabled"},
                stdout=said,
                stderr=said,
            )
        self._after.callback(end_with_all_below, process)
        for _ in range(600):
            if self._log.read_text().count(_STARTED) > before:
                return process
            time.sleep(0.2)
        raise RuntimeError(f"a node did not start: see {self._log}")

    def at_work(self) -> str:
        """Return the name of a host on which a process does work of ours."""
        for name, process in self._nodes.items():
            if any(is_ours(pid) for pid in below(process.pid)):
                return name
        raise RuntimeError("no worker is at work")


@contextlib.contextmanager
def hosts() -> Iterator[Hosts]:
    """Give out `Hosts` and end them."""
    with contextlib.ExitStack() as after:
        yield Hosts(after)


def end_with_all_below(process: subprocess.Popen) -> None:
    """Kill a process and what it started."""
    send([process.pid, *below(process.pid)], signal.SIGKILL)
    process.wait()


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


def is_ours(pid: int) -> bool:
    """Return whether a process does work of ours, by the name that Ray gives it."""
    with contextlib.suppress(OSError):
        title = (Path("/proc") / str(pid) / "cmdline").read_bytes()
        return title.startswith(b"ray::") and any(name in title for name in _OURS)
    return False


def actors_of(node) -> list[int]:  # noqa: ANN001
    """Return the processes of a node that do work of ours."""
    return [pid for pid in below(raylet_of(node)) if is_ours(pid)]


def fullest(found: Cluster):  # noqa: ANN201
    """Return the node whose object store holds most bytes: shared memory of its raylet."""

    def held(node) -> int:  # noqa: ANN001
        status = Path(f"/proc/{raylet_of(node)}/status").read_text()
        return int(status.partition("RssShmem:")[2].split()[0])

    return max(found.worker_nodes, key=held)


def kill_worker(broken: Broken) -> None:
    """Kill one process that does the stage's work."""
    os.kill(actors_of(node_at_work(broken))[0], signal.SIGKILL)


def kill_node(broken: Broken) -> None:
    """Kill the node that holds most objects, with its workers."""
    broken.cluster.remove_node(fullest(broken.cluster), allow_graceful=False)


def node_at_work(broken: Broken):  # noqa: ANN201 - Ray's
    """Return a node that does work of ours: to disturb another one would show nothing."""
    for node in sorted(broken.cluster.worker_nodes, key=lambda n: n.node_id):
        if actors_of(node):
            return node
    raise RuntimeError("no worker is at work")


def family(node) -> list[int]:  # noqa: ANN001
    """Return the processes of a node."""
    raylet = raylet_of(node)
    return [raylet, *below(raylet)]


def send(pids: list[int], sent: signal.Signals) -> None:
    """Send a signal to those processes that are left."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)


def stand_still(broken: Broken) -> None:
    """Let all processes of a node stand still for a minute."""
    still = family(node_at_work(broken))
    send(still, signal.SIGSTOP)
    timer = threading.Timer(_CUT_OFF_S, send, (still, signal.SIGCONT))
    timer.start()
    broken.after.callback(timer.cancel)
    broken.after.callback(send, still, signal.SIGCONT)


def slow_down(broken: Broken) -> None:
    """Let all processes of a node stand still for four fifths of the time, until the end."""
    over = threading.Event()
    node = node_at_work(broken)

    def pause() -> None:
        while not over.wait(_AWAKE_S):
            still = family(node)
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


def cut_cable(broken: Broken) -> None:
    """Take the cable of a host out, and put it in again after a minute."""
    name = broken.cluster.at_work()
    ip("link", "set", f"{name}v", "down")
    timer = threading.Timer(_CUT_OFF_S, ip, ("link", "set", f"{name}v", "up"))
    timer.start()
    broken.after.callback(timer.cancel)


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
    "a node stands still for a minute": stand_still,
    "the cable of a node is out for a minute": cut_cable,
    "a node is five times slower": slow_down,
    "object stores are filled until they spill": fill_stores,
    "the driver is killed, the command given again": kill_driver,
    "the head is killed, the command given again": kill_head,
}
