"""Training whose rows, checkpoints, event files and model are on S3, killed and begun again."""

import os
import signal
import subprocess
import sys

import pytest
from labelled_faces import train_config, write_labels
from ray_on_s3 import ray_on_s3

from sdd_ray.config import to_dict, write_yaml
from sdd_ray.engine.training_output import EVENTS_NAME
from sdd_ray.settings import OptimiserConfig
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import load_model

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

EPOCHS = 4


@pytest.fixture
def start(tmp_path):
    """Start the command in a process of its own; give out the process."""
    labels = write_labels(tmp_path / "labels")
    optimiser = OptimiserConfig(epochs=EPOCHS, batch_size=16, learning_rate=1e-3)
    config = train_config(labels, tmp_path / "local", optimiser=optimiser)
    file = tmp_path / "train.yaml"
    file.write_text(write_yaml(to_dict(config)))

    def run(address, output, *words):
        command = [sys.executable, "-m", "sdd_ray.train", "--config", str(file), *words]
        return subprocess.Popen(
            [*command, f"output={output}", f"ray.address={address}", "ray.num_cpus=null"],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def figures(folder):
    """Return the figures of all epochs, without the rates."""
    history = load_model(Location(folder)).record["history"]
    return [{k: v for k, v in epoch.items() if k != "images_per_s"} for epoch in history]


def test_training_on_s3_goes_on_after_a_kill_as_it_would_have(start, tmp_path):
    with ray_on_s3() as address:
        unbroken = start(address, tmp_path / "local")
        _, err = unbroken.communicate(timeout=200)
        assert unbroken.returncode == 0, err

        output = "s3://bucket/model"
        process = start(address, output, "join_in_memory=10")
        for line in process.stderr:
            if line.startswith("train: epoch 2 of"):
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait(60) == -signal.SIGKILL

        process = start(address, output, "join_in_memory=10")
        _, err = process.communicate(timeout=250)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        assert "train: epoch 1 of" not in err
        assert figures(output) == figures(str(tmp_path / "local"))
        events = (Location(output) / EVENTS_NAME).names()
        assert len(events) == 2
        assert all(name.startswith("events.out.tfevents.") for name in events)
