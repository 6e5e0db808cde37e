"""Break a cluster of three nodes while each stage runs, and compare what comes out.

    python benchmarks/faults.py WORK [--stages embed label score] [--images 600]

WORK is an empty folder. Nodes are Ray's own processes on this machine (Linux): a head without work
and three nodes of one CPU each. Every stage is run unbroken first; then again with one fault each,
which comes when a third of its parts are finished (label: the first):

- a worker process is killed (SIGKILL);
- a node is killed, the one that holds most objects: its raylet and all of its workers;
- a node is cut off: all of its processes stand still, as behind a broken cable, for a minute;
- the driver is killed, and the same command is given again.

Printed is one row of a Markdown table for each: whether the output's digest is that of the unbroken
run, rows that are missing, seconds, and how many more than unbroken.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ray.cluster_utils import Cluster

from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.location import Location

_SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
_STORE = 200 * 2**20
_NODES = 3
_CUT_OFF_S = 60.0


@dataclass
class Stage:
    """A command and when it is broken.

    Attributes:
        name: Of the command.
        words: Its arguments, but the output.
        is_under_way: Whether it is time, given the output.
    """

    name: str
    words: list[str]
    is_under_way: Callable[[Path], bool]


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
    words = [*stage.words, f"output={output}", f"ray.address={address}", "resources.workers=3"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    log = Path(f"{output}.log").open("ab")  # noqa: SIM115 - the process keeps it
    command = [sys.executable, "-m", f"sdd_ray.{stage.name}", *words]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


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
    """Return the processes of a node that are actors of ours, which Ray names ray::...Worker."""
    found = []
    for pid in below(raylet_of(node)):
        with contextlib.suppress(OSError):
            if b"Worker" in (Path("/proc") / str(pid) / "cmdline").read_bytes():
                found.append(pid)
    return found


def fullest(found: Cluster):  # noqa: ANN201
    """Return the node whose object store holds most bytes: shared memory of its raylet."""

    def held(node) -> int:  # noqa: ANN001
        status = Path(f"/proc/{raylet_of(node)}/status").read_text()
        return int(status.partition("RssShmem:")[2].split()[0])

    return max(found.worker_nodes, key=held)


def kill_worker(found: Cluster, process: subprocess.Popen) -> None:
    """Kill one actor."""
    del process
    for node in sorted(found.worker_nodes, key=lambda n: n.node_id):
        if actors := actors_of(node):
            os.kill(actors[0], signal.SIGKILL)
            return
    raise RuntimeError("no actor is at work")


def kill_node(found: Cluster, process: subprocess.Popen) -> None:
    """Kill the node that holds most objects, with its workers."""
    del process
    found.remove_node(fullest(found), allow_graceful=False)


def cut_off(found: Cluster, process: subprocess.Popen) -> None:
    """Let all processes of a node stand still for a minute."""
    del process
    raylet = raylet_of(sorted(found.worker_nodes, key=lambda n: n.node_id)[0])
    still = [raylet, *below(raylet)]
    for pid in still:
        os.kill(pid, signal.SIGSTOP)

    def wake() -> None:
        for pid in still:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    threading.Timer(_CUT_OFF_S, wake).start()


def kill_driver(found: Cluster, process: subprocess.Popen) -> None:
    """Kill the command itself."""
    del found
    process.send_signal(signal.SIGKILL)


FAULTS = {
    "none": None,
    "a worker process is killed": kill_worker,
    "the node with most objects is killed": kill_node,
    "a node is cut off for a minute": cut_off,
    "the driver is killed, the command given again": kill_driver,
}


def run(stage: Stage, output: Path, fault) -> float:  # noqa: ANN001
    """Run a stage on a cluster of its own and break it; return its seconds."""
    with cluster() as found:
        began = time.monotonic()
        process = start(stage, output, found.address)
        if fault is not None:
            while not stage.is_under_way(output):
                if process.poll() is not None:
                    raise RuntimeError(f"{output} was finished before it could be broken")
                time.sleep(0.02)
            fault(found, process)
        status = process.wait(timeout=1200)
        if fault is kill_driver:
            status = start(stage, output, found.address).wait(timeout=1200)
        spent = time.monotonic() - began
    if status:
        raise RuntimeError(f"{output}: status {status}; see {output}.log")
    return spent


def parts_are_made(most: int, folder: str = "") -> Callable[[Path], bool]:
    """Return whether at least so many parts are finished in a folder of the output."""

    def is_under_way(output: Path) -> bool:
        return len(list((output / folder / "_work" / "parts").glob("*.json"))) >= most

    return is_under_way


def stages(work: Path, images: int) -> list[Stage]:
    """Return the stages; of each the input is what the one before it made unbroken."""
    faces = f"source.synthetic.num_identities={images // 12}"
    shards = max(4, images // 12)
    cut = [f"images_per_shard={shards}", faces]
    third = parts_are_made(max(1, images // shards // 3))
    return [
        Stage("embed", cut, third),
        Stage(
            "label",
            [f"embeddings={work}/many", "exact.tolerance=0"],
            parts_are_made(1, "_work/raw"),
        ),
        Stage("score", [f"model={work}/model", *cut], third),
    ]


def prepare(work: Path, embeddings: int) -> None:
    """Write embeddings large enough that labelling them takes a while, and a model."""
    here = Path(__file__).parent
    if not (work / "many").exists():
        words = ["--images", str(embeddings), "--size", "128", "--output", f"{work}/many"]
        script = str(here / "synthetic_embeddings.py")
        subprocess.run([sys.executable, script, *words], check=True)
    if not (work / "model").exists():
        sys.path.insert(0, str(here))
        from score import drawn_model

        drawn_model(work / "model", "mobilefacenet")


def main() -> None:
    """Print one row for each stage and fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--stages", nargs="+", default=["embed", "label", "score"])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--embeddings", type=int, default=60_000)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    prepare(given.work, given.embeddings)
    print("| stage | fault | digest | rows missing | s | more than unbroken, s |")
    print("|---|---|---|---|---|---|", flush=True)
    for stage in stages(given.work, given.images):
        if stage.name not in given.stages:
            continue
        unbroken = None
        for number, (name, fault) in enumerate(FAULTS.items()):
            output = given.work / f"{stage.name}_{number}"
            seconds = run(stage, output, fault)
            made = open_dataset(Location(str(output)).uri, [stage.name])
            counts = made.manifest["counts"]
            if unbroken is None:
                unbroken = (made.digest, counts["rows_out"], seconds)
            digest, rows, before = unbroken
            same = "equal" if made.digest == digest else "OTHER"
            more = "" if fault is None else f"{seconds - before:.0f}"
            missing = rows - counts["rows_out"]
            cells = (stage.name, name, same, missing, f"{seconds:.0f}", more)
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
