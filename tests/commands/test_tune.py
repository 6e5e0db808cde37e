"""The tune command: its outputs, and what a user is told."""

import pytest
from labelled_faces import FACES, write_labels

from sdd_ray import tune
from sdd_ray.config import load_config, main
from sdd_ray.settings import TrainConfig, TuneConfig
from sdd_ray.store.dataset import read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import MANIFEST

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def do_tune(tmp_path, capfd):
    """Return a function that runs the command; it returns status, stdout and stderr."""
    labels = write_labels(tmp_path / "labels")
    given = [
        f"output={tmp_path}/search",
        f"train.labels={labels}",
        f"train.output={tmp_path}/model",
        f"train.source.synthetic.num_identities={FACES.num_identities}",
        f"train.source.synthetic.images_per_identity={FACES.images_per_identity}",
        "train.split.validation_share=0.25",
        "train.optimiser.epochs=1",
        "train.optimiser.batch_size=16",
        "grace_epochs=1",
        "trials=2",
    ]

    def run(*words):
        status = main(TuneConfig, tune.run, [*given, *words])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def test_outputs(do_tune, tmp_path):
    status, out, err = do_tune()
    assert status == 0
    output = Location(str(tmp_path / "search"))
    assert sorted(output.names()) == [
        "best.yaml",
        "manifest.json",
        "rejects.parquet",
        "trials.parquet",
    ]
    best = f"{tmp_path}/search/best.yaml"
    lines = out.splitlines()
    assert lines[0].startswith("tune: 2 of 2 trials, ")
    assert lines[1:] == [
        f"best configuration: {best}",
        f"  python -m sdd_ray.train --config {best}",
    ]
    assert all(line.startswith("tune: ") for line in err.splitlines()), err

    trials = read_parquet(output / "trials.parquet").to_pylist()
    assert len(trials) == 2
    row = min(trials, key=lambda row: row["loss"])
    config = load_config(TrainConfig, best)
    assert config.optimiser.learning_rate == row["optimiser.learning_rate"]
    assert config.optimiser.weight_decay == row["optimiser.weight_decay"]
    assert config.network.dropout == row["network.dropout"]
    assert config.output == f"{tmp_path}/model"
    assert config.optimiser.epochs == 1

    manifest = (output / MANIFEST).read_bytes()
    assert do_tune() == (0, out, "")
    assert (output / MANIFEST).read_bytes() == manifest
    status, _, err = do_tune("trials=3")
    assert status == 1
    assert "is complete with another configuration, which differs in trials;" in err


@pytest.mark.parametrize(
    ("word", "status", "message"),
    [
        ("trials=0", 2, "trials: input should be greater than 0"),
        ("grace_epochs=2", 2, "grace_epochs: 2 is more than train.optimiser.epochs=1"),
        ("space={network.size: {kind: choice, values: [1]}}", 2, "train has no such key"),
        ("train.labels=/nowhere", 1, "found no manifest.json"),
        ("train.source.synthetic.seed=8", 1, "none of 16 labelled images tried can be read"),
        ("resources.gpus_per_trial=1", 1, "1 worker(s) need 1 CPU and 1 GPU"),
    ],
)
def test_mistakes_end_in_one_message(do_tune, tmp_path, word, status, message):
    found, out, err = do_tune(word)
    assert (found, out) == (status, "")
    assert message in err
    assert not (tmp_path / "search" / MANIFEST).exists()
    assert not (tmp_path / "search" / "_work").exists()  # no trial was begun
