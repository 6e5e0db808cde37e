"""Break a cluster of three nodes while each stage runs, and compare what comes out.

    python benchmarks/faults.py WORK [--stages embed label ...] [--faults "a worker process" ...]

WORK is an empty folder, or one of an earlier call, whose finished runs are not made again. Nodes
are Ray's own processes on this machine (Linux): a head without work and three nodes of one CPU
each. Every stage is run unbroken first; then again with one fault each, which comes when a third of
its parts are finished (label: the first; train and tune: the first epoch; evaluate: the first
draws):

- a worker process is killed (SIGKILL);
- a node is killed, the one that holds most objects: its raylet and all of its workers;
- a node, one that is at work, stands still with all of its processes for a minute;
- its cable is out for a minute: nodes are hosts in network namespaces then (needs root);
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
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from breaking import FAULTS, Broken, cluster, cut_cable, hosts, kill_driver, kill_head

from sdd_ray.store.dataset import open_dataset


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


def run(stage: Stage, output: Path, fault: Callable[[Broken], None] | None) -> float:
    """Run a stage on a cluster of its own and break it; return its seconds."""
    with hosts() if fault is cut_cable else cluster() as found:
        began = time.monotonic()
        process = start(stage, output, found.address)
        with contextlib.ExitStack() as after:
            after.callback(process.kill)
            if fault is not None:
                while not stage.is_under_way(output):
                    if process.poll() is not None:
                        raise RuntimeError(f"{output} was finished before it could be broken")
                    time.sleep(0.02)
                fault(Broken(found, process, after))
            status = process.wait(timeout=1200)
            spent = time.monotonic() - began
        if fault is kill_driver:
            status = once_more(stage, output, found.address)
            spent = time.monotonic() - began
    if fault is kill_head:
        if not status:
            raise RuntimeError(f"{output}: no error without a head")
        with cluster() as found:
            began = time.monotonic()
            status = once_more(stage, output, found.address)
            spent += time.monotonic() - began
    if status:
        raise RuntimeError(f"{output}: status {status}; see {log_of(output)}")
    return spent


def once_more(stage: Stage, output: Path, address: str) -> int:
    """Give the command again; return its status."""
    process = start(stage, output, address)
    try:
        return process.wait(timeout=1200)
    finally:
        process.kill()  # one that hangs must not go on beside the next run


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


def faces(people: int) -> list[str]:
    """Return the arguments for drawn faces, twelve of each person."""
    key = "source.synthetic"
    return [f"{key}.num_identities={people}", f"{key}.images_per_identity=12"]


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
            is_at_work(b"draw people"),
        ),
    ]


def is_at_work(name: bytes) -> Callable[[Path], bool]:
    """Return whether a task or actor of a name runs on this machine."""

    def is_under_way(output: Path) -> bool:
        del output
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (place / "cmdline").read_bytes().startswith(b"ray::" + name):
                    return True
        return False

    return is_under_way


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
        # Of a call that was interrupted or failed: it would seem to be under way before it began.
        shutil.rmtree(output, ignore_errors=True)
        log_of(output).unlink(missing_ok=True)
        seconds = run(stage, output, fault)
        made = open_dataset(str(output / stage.result), [stage.makes or stage.name])
        rows = made.manifest["counts"]["rows_out"]
        record.write_text(json.dumps({"digest": made.digest, "rows": rows, "seconds": seconds}))
    return dict(json.loads(record.read_text()))


def show(stage: Stage, given: argparse.Namespace) -> None:
    """Print the rows of a stage; of none that nothing can be compared with."""
    unbroken = measured(stage, given.work / f"{stage.name}_none", None)
    for name, fault in FAULTS.items():
        if fault and given.faults and not name.startswith(tuple(given.faults)):
            continue
        try:
            place = given.work / f"{stage.name}_{re.sub('[^a-z]+', '_', name)}"
            found = measured(stage, place, fault)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"| {stage.name} | {name} | FAILED: {error} | | | |", flush=True)
            continue
        same = "equal" if found["digest"] == unbroken["digest"] else "OTHER"
        more = "" if fault is None else f"{found['seconds'] - unbroken['seconds']:.0f}"
        missing = unbroken["rows"] - found["rows"]
        cells = (stage.name, name, same, missing, f"{found['seconds']:.0f}", more)
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


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
        if not given.stages or stage.name in given.stages:
            show(stage, given)


if __name__ == "__main__":
    main()
