"""Break a cluster of three nodes while each stage runs, and compare what comes out.

    python benchmarks/faults.py WORK [--stages embed label ...] [--faults "a worker process" ...]

WORK is an empty folder, or one of an earlier call, whose finished runs are not made again. Nodes
are Ray's own processes on this machine (Linux): a head without work and three nodes of one CPU
each. Every stage is run unbroken first; then again with one fault each, which comes when a third of
its parts are finished (label: the first; train and tune: the first epoch; evaluate: the first
draws):

- a worker process is killed (SIGKILL);
- a node is killed, the one that holds most objects: its raylet and all of its workers;
- a node is cut off: all of its processes stand still, as behind a broken cable, for a minute;
- a node is slow: all of its processes stand still for four fifths of the time;
- the object stores are filled by somebody else until they spill to disk;
- the driver is killed, and the same command is given again;
- the head is killed, with all that it knows, and the command is given again on a new cluster.

Printed is one row of a Markdown table for each: whether the output's digest is that of the unbroken
run, rows that are missing, seconds, and how many more than unbroken.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from sdd_ray.store.dataset import open_dataset

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

@ray.remote(num_cpus=0)
def made():
    return np.ones(20 * 2**20, np.uint8)

nodes = [n["NodeID"] for n in ray.nodes() if n["Resources"].get("CPU")]
tasks = [made.options(scheduling_strategy=On(n, False)).remote() for n in nodes for _ in range(15)]
ray.wait(tasks, num_returns=len(tasks), fetch_local=False)
print("full", flush=True)
time.sleep(3600)
"""
"""Three hundred MiB on each node, of whose store two hundred are memory: the rest is spilled."""


@dataclass
class Stage:
    """A command and when it is broken.

    Attributes:
        name: Of the command.
        words: Its arguments, but the output.
        is_under_way: Whether it is time, given the output.
        result: Folder of the output whose digest counts.
        makes: Command that its manifest names.
    """

    name: str
    words: list[str]
    is_under_way: Callable[[Path], bool]
    result: str = "."
    makes: str = ""


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


def start(stage: Stage, output: Path, address: str) -> subprocess.Popen:
    """Start the command on the cluster."""
    words = [*stage.words, f"output={output}", f"ray.address={address}"]
    # Soon enough that a command without a head ends while somebody looks at the table.
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    environment |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
    log = log_of(output).open("ab")
    command = [sys.executable, "-m", f"sdd_ray.{stage.name}", *words]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def log_of(output: Path) -> Path:
    """Return what the command says, and what it said before it was broken."""
    return Path(f"{output}.log")


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


def run(stage: Stage, output: Path, fault: Callable[[Broken], None] | None) -> float:
    """Run a stage on a cluster of its own and break it; return its seconds."""
    with cluster() as found:
        began = time.monotonic()
        process = start(stage, output, found.address)
        with contextlib.ExitStack() as after:
            if fault is not None:
                while not stage.is_under_way(output):
                    if process.poll() is not None:
                        raise RuntimeError(f"{output} was finished before it could be broken")
                    time.sleep(0.02)
                fault(Broken(found, process, after))
            status = process.wait(timeout=1200)
            spent = time.monotonic() - began
        if fault is kill_driver:
            status = start(stage, output, found.address).wait(timeout=1200)
            spent = time.monotonic() - began
    if fault is kill_head:
        if not status:
            raise RuntimeError(f"{output}: no error without a head")
        with cluster() as found:
            began = time.monotonic()
            status = start(stage, output, found.address).wait(timeout=1200)
            spent += time.monotonic() - began
    if status:
        raise RuntimeError(f"{output}: status {status}; see {log_of(output)}")
    return spent


def parts_are_made(most: int, folder: str = "") -> Callable[[Path], bool]:
    """Return whether at least so many parts are finished in a folder of the output."""

    def is_under_way(output: Path) -> bool:
        return len(list((output / folder / "_work" / "parts").glob("*.json"))) >= most

    return is_under_way


def is_said(text: str) -> Callable[[Path], bool]:
    """Return whether the command has said something."""

    def is_under_way(output: Path) -> bool:
        return text in log_of(output).read_text()

    return is_under_way


def faces(people: int, images: int = 12) -> list[str]:
    """Return the arguments for drawn faces."""
    return [
        f"source.synthetic.num_identities={people}",
        f"source.synthetic.images_per_identity={images}",
    ]


def stages(work: Path, images: int) -> list[Stage]:
    """Return the stages, whose inputs `prepare` made."""
    shards = max(4, images // 12)
    cut = [f"images_per_shard={shards}", *faces(images // 12), "resources.workers=3"]
    third = parts_are_made(max(1, images // shards // 3))
    fit = [
        f"labels={work}/labels",
        *faces(30),
        "optimiser.batch_size=16",
        "split.holdout_share=0.2",
    ]
    fit += ["optimiser.epochs=3", "compute.deterministic=true"]
    search = [f"train.{word}" for word in fit] + ["trials=2", "grace_epochs=1", "scheduler=none"]
    norm = f"methods=[{{name: norm, path: {work}/many, column: norm, kind: norm}}]"
    return [
        Stage("embed", cut, third),
        Stage(
            "label",
            [f"embeddings={work}/many", "exact.tolerance=0", "resources.workers=3"],
            parts_are_made(1, "_work/raw"),
        ),
        Stage(
            "train",
            [*fit, "resources.workers=2", "resources.cpus_per_worker=0.5"],
            is_said("train: epoch 1 of"),
        ),
        Stage(
            "tune",
            [*search, f"train.output={work}/model", "resources.concurrent_trials=2"],
            has_epochs,
            result="model",
            makes="train",
        ),
        Stage("score", [f"model={work}/model", *cut], third),
        Stage(
            "evaluate",
            [f"embeddings={work}/many", norm, "fmr=[1e-3]"],
            is_said("bootstrap:"),
        ),
    ]


def has_epochs(output: Path) -> bool:
    """Return whether a trial has finished an epoch."""
    return any(output.glob("_work/trials/*/epoch_*/whole.json"))


def prepare(work: Path, embeddings: int) -> None:
    """Write embeddings large enough that labelling takes a while, a model, and labelled faces."""
    here = Path(__file__).parent
    if not (work / "many").exists():
        words = ["--images", str(embeddings), "--size", "128", "--output", f"{work}/many"]
        script = str(here / "synthetic_embeddings.py")
        subprocess.run([sys.executable, script, *words], check=True)
    if not (work / "model").exists():
        sys.path.insert(0, str(here))
        from score import drawn_model

        drawn_model(work / "model", "mobilefacenet")
    for name, words in (
        ("embed", [*faces(30), f"output={work}/faces"]),
        ("label", [f"embeddings={work}/faces", f"output={work}/labels"]),
    ):
        command = [sys.executable, "-m", f"sdd_ray.{name}", *words, "ray.dashboard=false"]
        subprocess.run(command, check=True)


def measured(stage: Stage, output: Path, fault: Callable[[Broken], None] | None) -> dict[str, Any]:
    """Return digest, rows and seconds of a run, which is made unless it was before."""
    record = Path(f"{output}.json")
    if not record.exists():
        seconds = run(stage, output, fault)
        made = open_dataset(str(output / stage.result), [stage.makes or stage.name])
        rows = made.manifest["counts"]["rows_out"]
        record.write_text(json.dumps({"digest": made.digest, "rows": rows, "seconds": seconds}))
    return dict(json.loads(record.read_text()))


def main() -> None:
    """Print one row for each stage and fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--stages", nargs="+")
    parser.add_argument("--faults", nargs="+", help="beginnings of faults")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--embeddings", type=int, default=30_000)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    prepare(given.work, given.embeddings)
    print("| stage | fault | digest | rows missing | s | more than unbroken, s |")
    print("|---|---|---|---|---|---|", flush=True)
    for stage in stages(given.work, given.images):
        if given.stages and stage.name not in given.stages:
            continue
        unbroken: dict[str, Any] = {}
        for number, (name, fault) in enumerate(FAULTS.items()):
            if fault and given.faults and not name.startswith(tuple(given.faults)):
                continue
            try:
                found = measured(stage, given.work / f"{stage.name}_{number}", fault)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"| {stage.name} | {name} | FAILED: {error} | | | |", flush=True)
                continue
            unbroken = unbroken or found
            same = "equal" if found["digest"] == unbroken["digest"] else "OTHER"
            more = "" if fault is None else f"{found['seconds'] - unbroken['seconds']:.0f}"
            missing = unbroken["rows"] - found["rows"]
            cells = (stage.name, name, same, missing, f"{found['seconds']:.0f}", more)
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
