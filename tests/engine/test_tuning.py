"""The search with Ray Tune: its trials, its best configuration, and going on after an interrupt."""

import io
import math
import os
import re
import signal
from contextlib import redirect_stderr
from dataclasses import replace

import pytest
from labelled_faces import train_config, write_labels

from sdd_ray.config import load_config
from sdd_ray.engine.training_data import prepare
from sdd_ray.engine.tuning import publish, search
from sdd_ray.errors import ResourceError, SddError
from sdd_ray.search_space import with_values
from sdd_ray.settings import SearchDimension, TrainConfig, TuneConfig, TuneResources
from sdd_ray.store.dataset import open_dataset, read_json
from sdd_ray.store.location import Location
from sdd_ray.store.run import MANIFEST, OutputRun

pytestmark = pytest.mark.usefixtures("ray_session")

SPACE = {
    "optimiser.learning_rate": SearchDimension(kind="log_uniform", low=1e-5, high=1e-2),
    "optimiser.weight_decay": SearchDimension(kind="choice", values=(0.0, 1e-3)),
    "optimiser.huber_zeta": SearchDimension(kind="integer", low=1, high=2),
    "network.dropout": SearchDimension(kind="uniform", low=0.1, high=0.2),
}


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return write_labels(tmp_path_factory.mktemp("labels") / "labels")


def tune_config(labels, folder, **changes):
    defaults = {
        "output": str(folder / "search"),
        "train": train_config(labels, folder / "model"),
        "space": SPACE,
        "trials": 3,
        "grace_epochs": 1,
        "reduction_factor": 2,
    }
    return TuneConfig(**{**defaults, **changes})


def run_search(config, work):
    data = prepare(config.train, open_dataset(config.train.labels, ["label"]))
    return search(config, data, Location(str(work)))


def chosen(rows, *names):
    return [{name: row[name] for name in names} for row in rows]


@pytest.fixture(scope="module")
def unbroken(labels, tmp_path_factory, ray_session):
    """Rows of a search that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    return run_search(tune_config(labels, folder), folder / "work")


def test_trials_lie_in_the_space_and_have_figures(unbroken):
    assert len(unbroken) == 3
    for row in unbroken:
        assert 1e-5 <= row["optimiser.learning_rate"] <= 1e-2
        assert row["optimiser.weight_decay"] in (0.0, 1e-3)
        assert row["optimiser.huber_zeta"] in (1, 2)
        assert 0.1 <= row["network.dropout"] <= 0.2
        assert (row["status"], row["error"]) == ("finished", "")
        assert 1 <= row["epoch"] <= row["epochs_run"] <= 2
        assert all(math.isfinite(row[key]) for key in ("loss", "mae", "spearman", "seconds"))
    assert len({row["optimiser.learning_rate"] for row in unbroken}) == 3
    assert max(row["epochs_run"] for row in unbroken) == 2


class Interrupter(io.StringIO):
    """Standard error that presses Ctrl-C when the first trial has an epoch behind it."""

    pressed = False

    def write(self, text):
        if "tune: trial" in text and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def test_interrupted_search_goes_on(labels, tmp_path, unbroken):
    config = tune_config(labels, tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with redirect_stderr(Interrupter()) as said, pytest.raises(KeyboardInterrupt):
        run_search(config, tmp_path / "work")
    assert signal.getsignal(signal.SIGINT) is before
    assert len(re.findall("tune: trial", said.getvalue())) < 4
    resumed = run_search(config, tmp_path / "work")
    # The same configurations in the same order, and what one of them reached is the same.
    assert chosen(resumed, *SPACE) == chosen(unbroken, *SPACE)
    figures = ("loss", "mae", "spearman", "epoch", "epochs_run", "status", "error")
    assert chosen(resumed[:1], *figures) == chosen(unbroken[:1], *figures)
    # asha has forgotten the first trial, so that it may give the others more epochs.
    epochs = zip(resumed, unbroken, strict=True)
    assert all(again["epochs_run"] >= before["epochs_run"] for again, before in epochs)


def test_optuna(labels, tmp_path):
    resources = TuneResources(concurrent_trials=2)
    rows = run_search(
        tune_config(
            labels, tmp_path, searcher="optuna", scheduler="none", trials=2, resources=resources
        ),
        tmp_path / "work",
    )
    assert [(row["status"], row["epochs_run"]) for row in rows] == [("finished", 2)] * 2
    assert all(0.1 <= row["network.dropout"] <= 0.2 for row in rows)


def test_all_trials_fail(labels, tmp_path):
    space = {"optimiser.learning_rate": SearchDimension(kind="choice", values=(1e30,))}
    resources = TuneResources(max_failures=0)
    config = tune_config(labels, tmp_path, space=space, trials=1, resources=resources)
    message = "all 1 trials failed; the first: ValueError: the loss is nan at epoch 1, step 2"
    with pytest.raises(SddError, match=message):
        run_search(config, tmp_path / "work")


def test_no_room_for_a_trial(labels, tmp_path):
    config = tune_config(labels, tmp_path, resources=TuneResources(cpus_per_trial=4))
    with pytest.raises(ResourceError, match=r"1 worker\(s\) need 4 CPU, the cluster has 3 CPU"):
        run_search(config, tmp_path / "work")


def test_best_is_by_the_chosen_figure(labels, tmp_path):
    config = tune_config(labels, tmp_path)
    rows = [
        {"trial": name, "status": status, "error": "", **dict.fromkeys(SPACE, value), **figures}
        for name, status, value, figures in (
            ("a", "finished", 0.1, {"loss": 3.0, "spearman": 0.9, "epoch": 1}),
            ("b", "failed", 0.2, {"loss": None, "spearman": None, "epoch": None}),
            ("c", "finished", 0.3, {"loss": 2.0, "spearman": 0.4, "epoch": 2}),
        )
    ]
    space = {"network.dropout": SPACE["network.dropout"]}
    for best, dropout in (("loss", 0.3), ("spearman", 0.1)):
        output = tmp_path / best
        varied = replace(config, space=space, train=replace(config.train, best=best))
        run = OutputRun(Location(str(output)), "tune", varied)
        publish(varied, rows, run)
        found = load_config(TrainConfig, output / "best.yaml")
        assert found == with_values(varied.train, {"network.dropout": dropout})
        results = read_json(Location(str(output)) / MANIFEST)["results"]
        assert results["failed_trials"] == 1
        assert results["best"]["network.dropout"] == dropout
