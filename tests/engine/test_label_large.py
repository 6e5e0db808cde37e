"""One identity of very many images: labelled in pieces, right, and in bounded memory."""

import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from embedding_sets import people
from label_runs import assert_adds_up, identity_table, manifest
from made_datasets import Rows, read_rows, write_embeddings
from scipy.stats import wasserstein_distance

from sdd_ray.core.similarity import normalise
from sdd_ray.engine.label_plan import ROWS_PER_SHARD
from sdd_ray.store.dataset import open_dataset, read_parquet

NUM_LARGE = int(os.environ.get("SDD_RAY_LARGE_IDENTITY", "100000"))
"""Four times as long for twice as many."""

NUM_OTHERS = 2_000
TOLERANCE = 0.01
MOST_MIB = 1536
"""Memory of any process; all similarities of 100,000 images would need 37 GiB."""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory in /proc"),
]


class Watch:
    """Notes the largest memory of every process that inherits a variable, while it is entered."""

    def __init__(self, variable: str) -> None:
        self.peak_mib: dict[str, int] = {}
        self._variable, self._end = variable, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        names: dict[str, str] = {}  # a worker of Ray has another name in each task
        while not self._end.wait(0.5):
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    if self._variable.encode() in (folder / "environ").read_bytes():
                        self._note(folder, names)
                except OSError:  # of somebody else, or gone meanwhile
                    continue

    def _note(self, folder: Path, names: dict[str, str]) -> None:
        lines = (folder / "status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        if "VmHWM" in found:  # the largest so far; not there for a process that has just ended
            name = f"{found['Name'].strip()} {folder.name}"
            self.peak_mib.pop(names.get(folder.name, ""), None)
            names[folder.name] = name
            self.peak_mib[name] = int(found["VmHWM"].split()[0]) // 1024


@pytest.fixture(scope="module")
def images():
    """Embeddings, one in twenty of them poor, so that labels are settled in all three ways."""
    sizes = [NUM_LARGE, *[4] * (NUM_OTHERS // 4)]
    unit, codes = people(sizes, 32, [0.4] * 19 + [2.5], 21)
    return Rows(unit, codes)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory, record_testsuite_property):
    """The labels, and the largest memory of each process that made them."""
    folder = tmp_path_factory.mktemp("large")
    embeddings = write_embeddings(folder / "embeddings", images.shuffled(1), num_files=5)
    labels, name, value = str(folder / "labels"), "SDD_RAY_TEST_RUN", uuid.uuid4().hex
    command = [sys.executable, "-m", "sdd_ray.label", f"embeddings={embeddings}"]
    command += [f"output={labels}", f"exact.tolerance={TOLERANCE}", "resources.workers=2"]
    command += ["ray.num_cpus=2", "ray.dashboard=false"]
    started = time.monotonic()
    with Watch(f"{name}={value}") as watch:
        subprocess.run(command, env=os.environ | {name: value}, check=True)
    seconds = time.monotonic() - started
    record_testsuite_property("seconds", round(seconds))
    record_testsuite_property("s_per_million_pairs", round(seconds / NUM_LARGE**2 * 1e6, 4))
    record_testsuite_property("peak_mib", str(dict(sorted(watch.peak_mib.items()))))
    return labels, watch.peak_mib


def test_memory_is_bounded_and_stated(run):
    labels, peak_mib = run
    workers = [mib for name, mib in peak_mib.items() if name.startswith("ray::LabelWork")]
    assert len(workers) == 2
    assert max(peak_mib.values()) < MOST_MIB, peak_mib
    assert manifest(labels)["peak_memory_mib"]["worker"] == pytest.approx(max(workers), abs=20)


def test_the_identity_lies_in_several_parts(run):
    files = open_dataset(run[0], ["label"]).files
    parts = [read_parquet(file, ["identity"])["identity"] for file in files]
    pieces = [len(part) for part in parts if "p0000" in part.unique().to_pylist()]
    assert len(pieces) == -(-NUM_LARGE // ROWS_PER_SHARD)
    assert (max(pieces), sum(pieces)) == (ROWS_PER_SHARD, NUM_LARGE)


def test_labels_are_within_their_bounds(run, images):
    names = ["image_id", "distance", "error_bound", "num_mated", "num_nonmated"]
    found = {one["image_id"]: one for one in read_rows(run[0], "label", names)}
    codes = images.codes
    exact = normalise(images.embeddings)[0].astype(np.float64)
    some = np.random.default_rng(2).choice(NUM_LARGE, 50, replace=False)
    for row in [*some, NUM_LARGE, NUM_LARGE + 1]:
        one, same = found[images.image_ids[row]], codes == codes[row]
        assert (one["num_mated"], one["num_nonmated"]) == (same.sum() - 1, (~same).sum())
        similarity = exact @ exact[row]
        nonmated = similarity[~same]
        same[row] = False
        error = abs(one["distance"] - wasserstein_distance(similarity[same], nonmated))
        assert error <= one["error_bound"] + 1e-6
        assert one["error_bound"] <= TOLERANCE
    settled = manifest(run[0])["results"]["settled_by"]
    assert set(settled) == {"certificate", "reference", "all_images"}


def test_everything_is_counted(run, images):
    assert_adds_up(run[0], len(images.codes))
    counted = identity_table(run[0])
    assert counted.num_rows == 1 + NUM_OTHERS // 4
    pairs = np.array(counted["mated_histogram"][0].as_py()).sum()
    assert pairs == NUM_LARGE * (NUM_LARGE - 1) // 2
