"""The train command: a model folder that opens, resuming after Ctrl-C, and one clear error each."""

import re
import signal
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from interrupted import interrupted
from labelled_faces import train_config, write_labels

from sdd_ray import train
from sdd_ray.config import load_tree, main, to_dict, write_yaml
from sdd_ray.engine.training_output import EVENTS_NAME
from sdd_ray.settings import OptimiserConfig, TrainConfig
from sdd_ray.store.dataset import read_json, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import DESCRIPTION_NAME, SPLITS_NAME, WEIGHTS_NAME, load_model
from sdd_ray.store.run import INCOMPLETE, MANIFEST, REJECTS

EPOCHS = 4
EPOCH_LINE = re.compile(r"train: epoch (\d+) of \d+, .* validation loss ([\d.]+), ")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return write_labels(tmp_path_factory.mktemp("labels") / "labels")


@pytest.fixture(scope="module")
def config(labels, tmp_path_factory):
    """A training of some epochs, never interrupted; `trained` runs it."""
    optimiser = OptimiserConfig(epochs=EPOCHS, batch_size=16, learning_rate=1e-3)
    return train_config(labels, tmp_path_factory.mktemp("model") / "model", optimiser=optimiser)


@pytest.fixture(scope="module")
def trained(config, ray_session):
    """Return the output folder and the validation loss of every epoch."""
    with redirect_stderr(StringIO()) as said:
        train.run(config)
    losses = {int(epoch): float(loss) for epoch, loss in EPOCH_LINE.findall(said.getvalue())}
    return Location(config.output), losses


def do_train(config, *words):
    """Run the command in this process; return its status."""
    words = [f"{key}={value}" for key, value in _flat(to_dict(config))] + list(words)
    return main(TrainConfig, train.run, words)


def _flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value).replace("(", "[")


def test_model_folder_is_complete(trained):
    output, _ = trained
    assert sorted(output.names()) == sorted(
        [MANIFEST, REJECTS, SPLITS_NAME, EVENTS_NAME, DESCRIPTION_NAME, WEIGHTS_NAME]
    )
    assert len((output / EVENTS_NAME).names()) == 1
    manifest = read_json(output / MANIFEST)
    assert manifest["counts"] == {"rows_in": 54, "rows_out": 54, "rejected": {}}
    assert manifest["results"]["train_images"] == 42
    model = load_model(output)
    assert dict(model.record) == manifest["results"]
    assert [epoch["epoch"] for epoch in model.record["history"]] == list(range(1, EPOCHS + 1))
    assert model.record["history"][0]["pauc"] is None
    steps = model.calibration.apply(np.linspace(-50, 150, 500))
    assert np.all(np.diff(steps) >= 0)
    assert steps[0] == 0
    assert steps[-1] == 100


def test_best_epoch_is_the_best_by_the_chosen_figure(trained):
    output, losses = trained
    assert sorted(losses) == list(range(1, EPOCHS + 1))
    record = load_model(output).record
    best = min(losses.values())
    assert record["validation"]["loss"] == pytest.approx(best, abs=0.005)
    assert losses[record["best_epoch"]] == best
    assert record["validation"]["epoch"] == record["best_epoch"]


def test_splits_share_no_identity_and_cover_all(trained):
    splits = read_parquet(trained[0] / SPLITS_NAME)
    identities = splits["identity"].to_pylist()
    assert identities == [f"{n:06d}" for n in range(12)]
    assert set(splits["part"].to_pylist()) == {"train", "validation", "holdout"}


def test_again_does_nothing(trained, config, capsys):
    output, _ = trained
    files = [name for name in output.names() if name != EVENTS_NAME]
    before = {name: (output / name).read_bytes() for name in files}
    train.run(config)
    shown = capsys.readouterr()
    assert shown.out.startswith("train: 54 of 54 images, ")
    assert shown.err == ""
    assert {name: (output / name).read_bytes() for name in files} == before


def test_another_configuration_is_refused(trained, config, capsys):
    other = load_tree(TrainConfig, {**to_dict(config), "seed": 1})
    assert do_train(other) == 1
    assert "is complete with another configuration, which differs in seed;" in _error(capsys)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_training_goes_on_as_it_would_have(trained, config, tmp_path, capsys, sent):
    torn = replace(config, output=str(tmp_path / "model"))
    file = tmp_path / "train.yaml"
    file.write_text(write_yaml(to_dict(torn)))
    status, said = interrupted("train", ["--config", str(file)], sent, "train: epoch")
    assert status == (130 if sent == signal.SIGINT else -signal.SIGKILL), said
    if sent == signal.SIGINT:
        assert said.splitlines()[-1] == (
            "python -m sdd_ray.train: interrupted; the same command goes on from what is finished"
        )
    output = Location(torn.output)
    assert {INCOMPLETE, "_work"} <= set(output.names()) <= {INCOMPLETE, "_work", EVENTS_NAME}

    train.run(torn)
    epochs = [int(epoch) for epoch, _ in EPOCH_LINE.findall(capsys.readouterr().err)]
    assert epochs[0] > 1
    assert epochs == list(range(epochs[0], EPOCHS + 1))
    resumed, unbroken = (load_model(place).record for place in (output, trained[0]))
    assert resumed["best_epoch"] == unbroken["best_epoch"]
    for name in ("loss", "mae", "spearman"):
        wanted = unbroken["validation"][name]
        assert resumed["validation"][name] == pytest.approx(wanted, abs=1e-6)
    assert resumed["validation"]["train_loss"] == pytest.approx(
        unbroken["validation"]["train_loss"], abs=1e-6
    )


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("labels=/nowhere", "found no manifest.json"),
        ("optimiser.batch_size=1000", "fewer than one batch"),
        ("source.synthetic.seed=8", "none of 16 labelled images tried can be read"),
        ("resources.workers=16", "16 worker(s) need 16 CPU"),
        ("resources.use_gpu=true", "need 1 CPU and 1 GPU"),
        ("resources={workers: 16, min_workers: 8}", "8 worker(s) need 8 CPU"),
        ("best=pauc", "best=pauc needs comparisons of validation images: "),
        ("validation.embeddings=/nowhere", "validation.embeddings: /nowhere: expected a dataset"),
    ],
)
def test_mistakes_end_in_one_message_before_long_work(config, tmp_path, capsys, word, message):
    assert do_train(config, f"output={tmp_path}/model", word) == 1
    assert message in _error(capsys)
    assert not (tmp_path / "model" / MANIFEST).exists()


@pytest.mark.usefixtures("ray_session")
def test_weights_of_another_network_end_before_the_cluster_is_touched(config, tmp_path, capsys):
    weights = tmp_path / "strange.pt"
    torch.save({"conv.weight": torch.zeros(3, 3)}, weights)
    words = ("recogniser.kind=torch", f"recogniser.path={weights}", f"output={tmp_path}/model")
    assert do_train(config, *words) == 1
    assert f"{weights}: expected weights of a built-in architecture" in _error(capsys)
    assert not (tmp_path / "model" / "_work").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("resources.workers=0", "resources.workers: input should be greater than 0"),
        ("resources={workers: 2, min_workers: 3}", "min_workers=3 is more than workers=2"),
        ("resources.workers=3", "batch_size=16 is no multiple of resources.workers=3"),
        ("optimiser.warm_up_epochs=4", "warm_up_epochs=4.0 is not shorter than epochs=4"),
        ("optimizer.epochs=8", "optimizer: no such key"),
    ],
)
def test_wrong_configurations(config, tmp_path, capsys, word, message):
    assert do_train(config, f"output={tmp_path}/model", word) == 2
    assert message in _error(capsys)


def test_onnx_cannot_be_trained(config, tmp_path, capsys):
    words = ("recogniser.kind=onnx", "recogniser.path=any.onnx", f"output={tmp_path}/model")
    assert do_train(config, *words) == 2
    assert "recogniser.kind=onnx cannot be trained further" in _error(capsys)
    assert not (tmp_path / "model").exists()


def _error(capsys):
    """Return the last line on standard error, the only one besides what training will see."""
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    assert sum(not line.startswith("train: ") for line in lines) <= 2, lines
    return "\n".join(lines[-2:])
