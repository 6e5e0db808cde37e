"""The tune command: its outputs, what a user is told, and going on after Ctrl-C and kill -9."""

import re
import signal

import pytest
from interrupted import interrupted
from labelled_faces import FACES, write_labels

from sdd_ray import score, tune
from sdd_ray.config import load_config, main
from sdd_ray.search_draws import draw
from sdd_ray.settings import ScoreConfig, TrainConfig, TuneConfig
from sdd_ray.store.dataset import open_dataset, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import INCOMPLETE, MANIFEST

SOURCE = [
    f"source.synthetic.num_identities={FACES.num_identities}",
    f"source.synthetic.images_per_identity={FACES.images_per_identity}",
]


@pytest.fixture
def words(tmp_path):
    """A small search."""
    return [
        f"output={tmp_path}/search",
        f"train.labels={write_labels(tmp_path / 'labels')}",
        f"train.output={tmp_path}/model",
        *(f"train.{word}" for word in SOURCE),
        "train.split.validation_share=0.25",
        "train.optimiser.epochs=1",
        "train.optimiser.batch_size=16",
        "grace_epochs=1",
        "trials=2",
    ]


@pytest.fixture
def do_tune(words, capfd, ray_session):
    """Return a function that runs the command; it returns status, stdout and stderr."""

    def run(*more):
        status = main(TuneConfig, tune.run, [*words, *more])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


@pytest.mark.slow
def test_outputs(do_tune, tmp_path, capfd):
    status, out, err = do_tune()
    assert status == 0
    output = Location(str(tmp_path / "search"))
    assert sorted(output.names()) == [
        "best.yaml",
        "manifest.json",
        "model",
        "rejects.parquet",
        "search.html",
        "trials.parquet",
    ]
    best = f"{tmp_path}/search/best.yaml"
    lines = out.splitlines()
    assert lines[0].startswith("tune: 2 of 2 trials, ")
    assert lines[1:] == [
        f"report: {tmp_path}/search/search.html",
        f"best model: {tmp_path}/search/model",
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
    page = (output / "search.html").read_bytes().decode()
    assert f"best validation loss, trial {row['trial']}" in page
    for figure in ("Validation loss over time", "Parallel coordinates", "Importance of each key"):
        assert figure in page

    manifest = (output / MANIFEST).read_bytes()
    assert do_tune() == (0, out, "")
    assert (output / MANIFEST).read_bytes() == manifest
    _, _, err = do_tune("trials=3")
    assert "is complete with another configuration, which differs in trials;" in err

    scores = f"{tmp_path}/scores"
    given = [f"model={tmp_path}/search/model", f"output={scores}", *SOURCE, "resources.workers=1"]
    assert main(ScoreConfig, score.run, given) == 0
    assert open_dataset(scores, ["score"]).read(["quality"]).num_rows == 72


@pytest.mark.parametrize(
    ("word", "status", "message"),
    [
        ("trials=0", 2, "trials: input should be greater than 0"),
        ("grace_epochs=2", 2, "grace_epochs: 2 is more than train.optimiser.epochs=1"),
        ("space={network.size: {kind: choice, values: [1]}}", 2, "train has no such key"),
        ("space={network.dropout: {kind: sometimes}}", 2, "space.network.dropout.kind: "),
        ("scheduler=pbt", 2, "scheduler=pbt compares trials of the same age"),
        ("searcher=grid", 2, "searcher=grid needs points for a range"),
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


LOCAL = ("ray.num_cpus=3", "ray.dashboard=false")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_search_goes_on(words, do_tune, tmp_path, sent):
    more = ["trials=3", "train.optimiser.epochs=2", "scheduler=none", "train.best=mae"]
    status, said = interrupted("tune", [*words, *more, *LOCAL], sent, "tune: trial 1, epoch 2")
    assert status == (130 if sent == signal.SIGINT else -signal.SIGKILL), said
    assert "Traceback" not in said
    output = tmp_path / "search"
    assert (output / INCOMPLETE).exists()
    assert not (output / MANIFEST).exists()

    status, _, err = do_tune(*more)
    assert status == 0, err
    assert "tune: trial 0, epoch" not in err  # was finished
    assert "tune: trial 1, epoch 1" not in err  # goes on from its checkpoint
    assert re.findall(r"tune: trial 2, epoch (\d)", err) == ["1", "2"]
    config = load_config(TuneConfig, None, [*words, *more])
    trials = read_parquet(Location(str(output)) / "trials.parquet").to_pylist()
    assert [(t["trial"], t["status"], t["epochs_run"]) for t in trials] == [
        (number, "finished", 2) for number in range(3)
    ]
    for trial in trials:
        assert {key: trial[key] for key in config.space} == draw(config, trial["trial"])


@pytest.mark.slow
def test_killed_pbt_goes_on(words, do_tune, tmp_path):
    more = [
        "scheduler=pbt",
        "trials=3",
        "perturbation_epochs=1",
        "train.optimiser.epochs=4",
        "resources.concurrent_trials=3",
        "resources.cpus_per_trial=0.5",
    ]
    # Some trials are then beyond the others, and all beyond the first exchange.
    status, said = interrupted(
        "tune", [*words, *more, *LOCAL], signal.SIGKILL, "tune: trial 0, epoch 3"
    )
    assert status == -signal.SIGKILL, said
    status, _, err = do_tune(*more)
    assert status == 0, err
    assert not re.search("tune: trial [0-9], epoch [12] ", err)
    trials = read_parquet(Location(f"{tmp_path}/search/trials.parquet")).to_pylist()
    assert [(t["status"], t["epochs_run"]) for t in trials] == [("finished", 4)] * 3
