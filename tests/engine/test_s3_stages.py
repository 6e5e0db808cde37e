"""Whole commands from S3 to S3 through a proxy that disturbs: the same output, or an error."""

import os
import subprocess
import sys
import time

import boto3
import pytest
from drawn_faces import write_faces
from faulty_s3 import (
    DAMAGED,
    ENVIRONMENT,
    LOST,
    RESET,
    FaultyProxy,
    answered,
    cut_answer,
    cut_request,
    s3_server,
    slow,
)
from ray.cluster_utils import Cluster

from sdd_ray.store import s3_client
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.location import Location
from sdd_ray.store.run import INCOMPLETE, MANIFEST

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FACES = "s3://bucket/faces"
SHARDS = 4
WORDS = ("images_per_shard=9", "batch_size=4", "resources.workers=1", "source.kind=folder")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A local folder of 36 faces."""
    root = tmp_path_factory.mktemp("faces")
    write_faces(root, identities=6, images=6)
    return root


@pytest.fixture(scope="module")
def proxy(faces):
    """The proxy; this process, and all that it starts from now on, takes it for S3."""
    with s3_server() as upstream, pytest.MonkeyPatch.context() as patch:
        found = FaultyProxy(upstream)
        settings = {"AWS_ENDPOINT_URL": found.url, "AWS_MAX_ATTEMPTS": "4"}
        for name, value in {**ENVIRONMENT, **settings}.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=upstream)
        client.create_bucket(Bucket="bucket")
        for file in faces.rglob("*.png"):
            client.upload_file(str(file), "bucket", f"faces/{file.relative_to(faces)}")
        s3_client.client.cache_clear()
        yield found
        s3_client.client.cache_clear()
        found.close()


@pytest.fixture(scope="module")
def address(proxy):
    """A Ray whose workers take the proxy for S3."""
    found = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "object_store_memory": 200 * 2**20,
            "include_dashboard": False,
        },
    )
    try:
        yield found.address
    finally:
        found.shutdown()


@pytest.fixture(scope="module")
def start(address):
    """Start a command of its own; give out the process."""

    def run(stage, *words):
        command = [sys.executable, "-m", f"sdd_ray.{stage}", *words, f"ray.address={address}"]
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    return run


def finished(process):
    """Wait for a process; return its status and what it said."""
    try:
        _, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert "Traceback" not in err
    return process.returncode, err


@pytest.fixture(scope="module")
def undisturbed(start, faces, tmp_path_factory):
    """Digest of the embeddings from the local folder to another."""
    output = str(tmp_path_factory.mktemp("local") / "embeddings")
    status, err = finished(start("embed", *WORDS, f"source.path={faces}", f"output={output}"))
    assert status == 0, err
    return open_dataset(output, ["embed"]).digest


@pytest.fixture(scope="module")
def disturbed(start, proxy):
    """Embeddings from S3 to S3 through many faults, and how often each request was made."""
    output = Location("s3://bucket/disturbed")
    proxy.clear()
    rules = [
        proxy.add(slow(0.3), "GET", "faces/000/00[01]", times=1),
        proxy.add(answered(503), "GET", "faces/00[1-3]/", times=2),
        proxy.add(cut_answer(1000), "GET", "faces/000/00[2-5]", times=2),
        proxy.add(RESET, "GET", "faces/00[45]/", times=2),
        proxy.add(answered(503), "GET", "prefix=faces/", times=1),
        proxy.add(cut_answer(1000), "GET", "index.parquet", times=1),
        proxy.add(answered(503), "PUT", "part-000000.parquet", times=2),
        proxy.add(cut_request(1000), "PUT", "part-000001.parquet", times=2),
        proxy.add(LOST, "PUT", "part-000002.parquet", times=1),
        proxy.add(DAMAGED, "PUT", "part-000003.parquet", times=1),
        proxy.add(LOST, "PUT", "_work/parts/.*json", times=1),
        proxy.add(answered(500), "PUT", "manifest.json", times=1),
        proxy.add(LOST, "POST|DELETE", "", times=1),
    ]
    status, err = finished(start("embed", *WORDS, f"source.path={FACES}", f"output={output.uri}"))
    assert status == 0, err
    for rule in rules:
        assert proxy.count(rule.fault.name, rule.method, rule.target), rule
    reads = proxy.count("", "GET", "faces/.*png") + proxy.count("slow")
    return output, reads, proxy.count("", "PUT", "disturbed/part-.*parquet")


def test_disturbed_run_writes_what_an_undisturbed_one_writes(disturbed, undisturbed):
    output, reads, writes = disturbed
    assert open_dataset(output.uri, ["embed"]).digest == undisturbed
    assert (reads, writes) == (36, SHARDS)  # each once, besides what was disturbed
    parts = [f"part-{number:06d}.parquet" for number in range(SHARDS)]
    assert output.names() == [MANIFEST, *parts, "rejects.parquet"]


@pytest.mark.slow
def test_store_that_goes_away_ends_the_run_and_the_same_command_completes_it(
    start, proxy, undisturbed
):
    output = Location("s3://bucket/away")
    words = (*WORDS, f"source.path={FACES}", f"output={output.uri}")
    proxy.clear()
    proxy.add(slow(0.5), "GET", "faces/.*png")
    process = start("embed", *words)
    end = time.monotonic() + 100
    while not proxy.count(method="PUT", target="away/_work/parts/.*json"):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    proxy.clear()
    proxy.add(answered(503))
    status, err = finished(process)
    assert status == 1
    assert f"{proxy.url} does not answer; 4 attempts in" in err
    assert "check the network, AWS_ENDPOINT_URL and the region; the same command goes on" in err
    proxy.clear()
    assert (output / INCOMPLETE).exists()
    assert not (output / MANIFEST).exists()
    done = len((output / "_work" / "parts").names())
    assert 0 < done < SHARDS
    status, err = finished(start("embed", *words))
    assert status == 0, err
    assert proxy.count(method="PUT", target="away/part-.*parquet") == SHARDS - done
    assert open_dataset(output.uri, ["embed"]).digest == undisturbed


def test_forbidden_output_says_so_before_any_work(start, proxy):
    proxy.clear()
    proxy.add(answered(403), "PUT", "forbidden/")
    words = (*WORDS, f"source.path={FACES}", "output=s3://bucket/forbidden")
    status, err = finished(start("embed", *words))
    assert status == 1
    assert "cannot write s3://bucket/forbidden/_incomplete.json: forbidden (403 Access" in err
    assert proxy.count(method="GET", target="faces/.*png") == 0


@pytest.mark.slow
def test_labels_model_and_scores_from_s3_to_s3(start, proxy, disturbed):
    proxy.clear()
    embeddings, labels, model = (f"s3://bucket/{name}" for name in ("disturbed", "labels", "model"))
    images = ("source.kind=folder", f"source.path={FACES}")
    small = ("optimiser.epochs=1", "optimiser.batch_size=8", "split.validation_share=0.25")
    for words in (
        ("label", f"embeddings={embeddings}", f"output={labels}", "resources.workers=1"),
        ("train", f"labels={labels}", f"output={model}", *images, *small),
        ("score", f"model={model}", "output=s3://bucket/scores", *images, "resources.workers=1"),
    ):
        status, err = finished(start(*words))
        assert status == 0, err
    scores = open_dataset("s3://bucket/scores", ["score"])
    assert scores.read(["quality"]).num_rows == 36
