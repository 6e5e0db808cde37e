"""A command as a Ray job: submitted to a head node, started beside it, that asks for a token."""

import contextlib
import os
import re
import secrets
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
from chain import steps
from drawn_faces import write_faces
from embedding_sets import clean
from made_datasets import Rows, write_embeddings
from ray_heads import BIN, head_node

from sdd_ray.store.dataset import open_dataset

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def environment():
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    own |= {"RAY_metrics_report_interval_ms": "500"}
    own |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    kept = {
        k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    }
    return {**kept, **own}


@pytest.fixture(scope="module")
def head(environment):
    """A head node with two logical CPUs and a job server; it ends with the tests."""
    store = f"--object-store-memory={300 * 2**20}"
    with head_node(environment, "--num-cpus=2", store, "--include-dashboard=true") as found:
        wait_for_jobs(f"{found.jobs}/api/jobs/", environment["RAY_AUTH_TOKEN"])
        yield found


def wait_for_jobs(url, token, seconds=90):
    end = time.monotonic() + seconds
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=5):  # noqa: S310
            return
        assert time.monotonic() < end
        time.sleep(0.3)


@pytest.fixture
def job(head, environment, tmp_path):
    """Return a function that runs `ray job <word> ...`."""

    def run(word, *words):
        command = [str(BIN / "ray"), "job", word, "--address", head.jobs, *words]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def submit(job, tmp_path):
    """Return a function that submits a command, by default waiting for its end."""
    (tmp_path / "work").mkdir()

    def run(*words, options=()):
        place = ("--working-dir", str(tmp_path / "work"))
        return job("submit", *options, *place, "--", "python", "-m", *words)

    return run


@pytest.mark.slow
def test_label_runs_as_a_job(submit, tmp_path):
    rows = Rows(*clean())
    embeddings = write_embeddings(tmp_path / "embeddings", rows)
    output = tmp_path / "labels"
    done = submit("sdd_ray.label", f"embeddings={embeddings}", f"output={output}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "joined a Ray cluster: 2 CPUs, 0 GPUs" in done.stdout + done.stderr
    assert "label: 360 of 360 images" in done.stdout
    table = open_dataset(str(output), ["label"]).read(["image_id", "pseudo_label"])
    assert sorted(table["image_id"].to_pylist()) == sorted(rows.image_ids)
    assert table["pseudo_label"].null_count == 0


def test_wrong_key_fails_the_job_and_is_named_in_its_logs(submit, tmp_path):
    done = submit("sdd_ray.label", "embedings=/nowhere", f"output={tmp_path}/labels")
    assert done.returncode != 0
    assert "embedings: no such key; did you mean embeddings?" in done.stdout + done.stderr
    assert not (tmp_path / "labels").exists()


def test_who_has_no_token_is_refused(head):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head.jobs}/api/jobs/", timeout=10)  # noqa: S310 - our own head


def scraped(url, found, over):
    """Keep the largest value of each series of ours while a job runs: they end with its driver."""
    while not over.is_set():
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            for line in answer.read().decode().splitlines():
                if line.startswith("ray_sdd_"):
                    series, value = line.rsplit(" ", 1)
                    tags = dict(re.findall(r'(stage|reason)="([^"]*)"', series))
                    key = (series.partition("{")[0], *tags.values())
                    found[key] = max(found.get(key, 0.0), float(value))
        time.sleep(0.2)


def test_what_a_job_does_is_told_as_metrics(head, submit, tmp_path):
    folder = tmp_path / "faces"
    write_faces(folder, identities=3, images=8)
    (folder / "000" / "broken.png").write_bytes(b"broken")
    found, over = {}, threading.Event()
    watch = threading.Thread(target=scraped, args=(head.metrics, found, over))
    watch.start()
    words = ["source.kind=folder", f"source.path={folder}", f"output={tmp_path}/e"]
    done = submit("sdd_ray.embed", *words, "images_per_shard=5", "resources.workers=1")
    over.set()
    watch.join()
    assert done.returncode == 0, done.stdout + done.stderr
    assert 0 < found["ray_sdd_items_done_total", "embed"] <= 25
    assert 0 < found["ray_sdd_items_open", "embed"] <= 25
    assert found["ray_sdd_items_rejected_total", "not_an_image", "embed"] == 1
    assert 0 < found["ray_sdd_network_busy_share", "embed"] <= 1
    stored = sum(file.stat().st_size for file in folder.rglob("0*.png"))
    assert 0 < found["ray_sdd_bytes_read_total", "embed"] <= stored


def test_a_job_that_was_stopped_goes_on_when_it_is_given_again(job, submit, tmp_path):
    output = tmp_path / "embeddings"
    words = ["source.synthetic.num_identities=40", "images_per_shard=8", "resources.workers=1"]
    words = ["sdd_ray.embed", *words, f"output={output}"]
    begun = submit(*words, options=("--no-wait", "--submission-id", "to_be_stopped"))
    assert begun.returncode == 0, begun.stderr
    end = time.monotonic() + 120
    while not list(output.glob("_work/parts/*.json")):
        assert time.monotonic() < end
        time.sleep(0.1)
    stopped = job("stop", "to_be_stopped")
    assert stopped.returncode == 0, stopped.stderr
    assert "was stopped" in job("status", "to_be_stopped").stdout
    finished = [file.stem for file in output.glob("_work/parts/*.json")]
    before = {name: (output / f"{name}.parquet").stat().st_mtime_ns for name in finished}
    assert before
    assert (output / "_incomplete.json").exists()
    assert not (output / "manifest.json").exists()
    done = submit(*words)
    assert done.returncode == 0, done.stderr
    open_dataset(str(output), ["embed"])
    after = {file.stem: file.stat().st_mtime_ns for file in output.glob("part-*.parquet")}
    assert before.items() < after.items()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_runs_as_a_job_and_tells_its_metrics(head, submit, tmp_path):
    found, over = {}, threading.Event()
    watch = threading.Thread(target=scraped, args=(head.metrics, found, over))
    watch.start()
    try:
        for name, words in steps(tmp_path).items():
            done = submit(f"sdd_ray.{name}", *words)
            assert done.returncode == 0, done.stdout + done.stderr
            open_dataset(str(tmp_path / name), [name])
    finally:
        over.set()
        watch.join()
    for stage in ("embed", "label", "train", "tune", "score", "compare"):
        assert found["ray_sdd_items_done_total", stage] > 0, found
    assert found["ray_sdd_trials_begun", "tune"] == 2
