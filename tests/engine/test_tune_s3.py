"""A search whose trials, report and model are on S3, killed and begun again."""

import os
import re
import signal
import subprocess
import sys

import pytest
from labelled_faces import FACES, write_labels
from ray_on_s3 import ray_on_s3

from sdd_ray.store.dataset import read_json, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import load_model
from sdd_ray.store.run import MANIFEST

pytestmark = pytest.mark.cluster


@pytest.fixture
def address():
    """A Ray whose workers, as this process, take a server on this machine for S3."""
    with ray_on_s3() as found:
        yield found


@pytest.fixture
def start(address, tmp_path):
    """Start the command in a process of its own; give out the process."""
    words = [
        "output=s3://bucket/search",
        f"train.labels={write_labels(tmp_path / 'labels')}",
        f"train.output={tmp_path}/model",
        f"train.source.synthetic.num_identities={FACES.num_identities}",
        f"train.source.synthetic.images_per_identity={FACES.images_per_identity}",
        "train.split.validation_share=0.25",
        "train.optimiser.epochs=2",
        "train.optimiser.batch_size=16",
        "scheduler=none",
        "trials=2",
        f"ray.address={address}",
    ]

    def run():
        return subprocess.Popen(
            [sys.executable, "-m", "sdd_ray.tune", *words],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.mark.slow
def test_search_on_s3_goes_on_after_a_kill(start):
    process = start()
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("tune: trial 1, epoch 2"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(60) == -signal.SIGKILL, "".join(said)

    process = start()
    _, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert not re.search("tune: trial 0, epoch|tune: trial 1, epoch 1", err)
    output = Location("s3://bucket/search")
    assert output.names() == [
        "best.yaml",
        MANIFEST,
        "model",
        "rejects.parquet",
        "search.html",
        "trials.parquet",
    ]
    rows = read_parquet(output / "trials.parquet").to_pylist()
    assert [(row["trial"], row["status"], row["epochs_run"]) for row in rows] == [
        (0, "finished", 2),
        (1, "finished", 2),
    ]
    best = min(rows, key=lambda row: row["loss"])
    assert read_json(output / MANIFEST)["results"]["best"]["trial"] == best["trial"]
    assert load_model(output / "model").record["validation"]["loss"] == best["loss"]
