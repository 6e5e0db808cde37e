"""The search with Ray Tune: its trials, its best configuration, and going on after an interrupt."""

import io
import math
import os
import signal
from contextlib import redirect_stderr
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from labelled_faces import train_config, write_labels

from sdd_ray.config import load_config
from sdd_ray.core.fitting import Batch
from sdd_ray.engine import trials, tuning
from sdd_ray.engine.search import Exchange
from sdd_ray.engine.training import plan_fit
from sdd_ray.engine.training_rows import prepare
from sdd_ray.engine.trial_folder import TrialFolder
from sdd_ray.engine.trial_results import TrialResult, best_of, table_of
from sdd_ray.engine.trials import TrialTask
from sdd_ray.engine.tuning import Material, check_room, publish, search
from sdd_ray.errors import ResourceError, SddError
from sdd_ray.search_draws import draw
from sdd_ray.search_space import with_values
from sdd_ray.settings import (
    OptimiserConfig,
    SearchDimension,
    TrainConfig,
    TuneConfig,
    TuneResources,
)
from sdd_ray.store.dataset import open_dataset, read_json
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import load_model
from sdd_ray.store.run import MANIFEST, OutputRun

pytestmark = pytest.mark.usefixtures("ray_session")

RATE = SearchDimension(kind="log_uniform", low=1e-5, high=1e-2)
SPACE = {
    "optimiser.learning_rate": RATE,
    "optimiser.weight_decay": SearchDimension(kind="choice", values=(0.0, 1e-3)),
    "loss.huber_zeta": SearchDimension(
        kind="uniform", low=0.5, high=2.0, when={"loss.kind": "huber"}
    ),
    "loss.kind": SearchDimension(kind="choice", values=("huber", "l1")),
    "network.dropout": SearchDimension(kind="uniform", low=0.1, high=0.2),
}
FIGURES = ("loss", "mae", "spearman", "kendall")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return write_labels(tmp_path_factory.mktemp("labels") / "labels")


def tune_config(labels, folder, epochs=2, **changes):
    optimiser = OptimiserConfig(epochs=epochs, batch_size=16, learning_rate=1e-3)
    defaults = {
        "output": str(folder / "search"),
        "train": train_config(labels, folder / "model", optimiser=optimiser, best="mae"),
        "space": SPACE,
        "trials": 3,
        "grace_epochs": 1,
        "reduction_factor": 2,
    }
    return TuneConfig(**{**defaults, **changes})


def material_of(config, work):
    labels = open_dataset(config.train.labels, ["label"])
    data = prepare(config.train, labels, Location(str(work)))
    return Material(plan_fit(config.train, labels, data, "tune"), data, labels)


def run_search(config, work):
    return search(config, material_of(config, work), Location(str(work)))


def told(result):
    """What one trial reached, without how long it took."""
    figures = {name: result.figures[name].tolist() for name in FIGURES}
    return result.number, result.values, result.status, result.epochs.tolist(), figures


class Metrics:
    """Stands in for the metrics of a stage."""

    images, begun = 0, 0

    def done(self, items, left):
        assert left is None
        self.images += items

    def trials(self, begun):
        self.begun = begun


@pytest.fixture(scope="module")
def metrics():
    return Metrics()


@pytest.fixture(scope="module")
def unbroken(labels, tmp_path_factory, metrics, ray_session):
    """Trials of a search that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "stage_metrics", {"tune": metrics}.get)
        return run_search(tune_config(labels, folder), folder / "work")


def test_epochs_of_trials_are_counted(labels, unbroken, metrics, tmp_path):
    config = tune_config(labels, tmp_path)
    images = material_of(config, tmp_path / "work").data.train.num_rows
    assert metrics.images == images * sum(len(result.epochs) for result in unbroken)
    assert metrics.begun == 3


def test_trials_of_before_count_as_begun(tmp_path):
    work = Location(str(tmp_path))
    assert TrialFolder.begun(work) == set()
    for number in (0, 3):
        TrialFolder.of(work, number).note({"epoch": 1})
    (work / "trials" / "0004" / "epoch_0001" / "half").write_bytes(b"")
    assert TrialFolder.begun(work) == {0, 3}


def test_trials_are_the_ones_drawn_and_have_figures(labels, tmp_path, unbroken):
    config = tune_config(labels, tmp_path)
    assert [result.number for result in unbroken] == [0, 1, 2]
    for result in unbroken:
        assert result.values == draw(config, result.number)
        assert (result.error, result.failures) == ("", 0)
        assert result.epochs.tolist() in ([1], [1, 2])
        assert result.status == ("finished" if len(result.epochs) == 2 else "stopped")
        assert all(math.isfinite(result.figures[name].sum()) for name in FIGURES)
    assert max(len(result.epochs) for result in unbroken) == 2


class Interrupter(io.StringIO):
    """Standard error that presses Ctrl-C when the second trial has an epoch behind it."""

    pressed = False

    def write(self, text):
        if "tune: trial 1, epoch" in text and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


@pytest.mark.slow
@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_interrupted_search_goes_on(labels, tmp_path, unbroken, searcher):
    config = tune_config(labels, tmp_path, searcher=searcher)
    before = signal.getsignal(signal.SIGINT)
    with redirect_stderr(Interrupter()) as said, pytest.raises(KeyboardInterrupt):
        run_search(config, tmp_path / "work")
    assert signal.getsignal(signal.SIGINT) is before
    assert "tune: trial 0, epoch 1 of 2" in said.getvalue()
    assert "tune: trial 2" not in said.getvalue()
    with redirect_stderr(io.StringIO()) as said:
        resumed = run_search(config, tmp_path / "work")
    assert "tune: trial 0" not in said.getvalue()
    assert [result.number for result in resumed] == [0, 1, 2]
    if searcher == "random":
        assert [r.values for r in resumed] == [r.values for r in unbroken]
        assert told(resumed[0]) == told(unbroken[0])
    # asha has forgotten the first trial, so that it may give the others more epochs.
    assert all(result.status in ("finished", "stopped") for result in resumed)


@pytest.mark.slow
def test_optuna_honours_conditions(labels, tmp_path):
    resources = TuneResources(concurrent_trials=2)
    config = tune_config(
        labels, tmp_path, 1, searcher="optuna", scheduler="none", trials=5, resources=resources
    )
    results = run_search(config, tmp_path / "work")
    assert [(result.number, result.status) for result in results] == [
        (number, "finished") for number in range(5)
    ]
    for result in results:
        assert ("loss.huber_zeta" in result.values) == (result.values["loss.kind"] == "huber")
        assert 0.1 <= result.values["network.dropout"] <= 0.2
    assert {result.values["loss.kind"] for result in results} == {"huber", "l1"}


@pytest.mark.slow
def test_grid_with_the_median_rule(labels, tmp_path):
    space = {
        "optimiser.learning_rate": SearchDimension(
            kind="log_uniform", low=1e-9, high=1e-3, points=2
        ),
        "optimiser.weight_decay": SPACE["optimiser.weight_decay"],
    }
    config = tune_config(
        labels, tmp_path, 3, space=space, searcher="grid", scheduler="median", trials=4
    )
    results = run_search(config, tmp_path / "work")
    rates = [result.values["optimiser.learning_rate"] for result in results]
    assert rates == pytest.approx([1e-9, 1e-9, 1e-3, 1e-3])
    assert best_of(results, "mae").number in (2, 3)


@pytest.mark.slow
def test_pbt_passes_weights_on_and_changes_values(labels, tmp_path):
    space = {"optimiser.learning_rate": SearchDimension(kind="choice", values=(1e-12, 1e-3, 2e-3))}
    config = tune_config(
        labels,
        tmp_path,
        space=space,
        scheduler="pbt",
        trials=2,
        perturbation_epochs=1,
        seed=6,
        resources=TuneResources(concurrent_trials=2, cpus_per_trial=0.5),
    )
    rates = [draw(config, number)["optimiser.learning_rate"] for number in range(2)]
    assert rates[0] == 1e-12
    assert rates[1] > 1e-12
    run = OutputRun(Location(str(tmp_path / "search")), "tune", config)
    material = material_of(config, run.work.uri)
    results = search(config, material, run.work)
    assert [(r.number, r.status, r.epochs.tolist()) for r in results] == [
        (number, "finished", [1, 2]) for number in range(2)
    ]
    poor, good = results
    other = TrialFolder.of(run.work, 1)
    history = TrialFolder.of(run.work, 0).read(2)["history"]
    assert history[0]["loss"] == other.read(1)["history"][0]["loss"]  # went on from there
    journal = TrialFolder.of(run.work, 0).journal()
    assert [entry["values"] for entry in journal] == [draw(config, 0), poor.values]
    assert good.values["optimiser.learning_rate"] == rates[1]
    assert poor.values["optimiser.learning_rate"] != rates[1]  # changed from there
    publish(config, results, material, run)
    text = (run.output / "best.yaml").read_bytes().decode()
    assert "# The trial came by a schedule of values that pbt changed on the way;" in text
    best = best_of(results, "mae")
    found = load_config(TrainConfig, tmp_path / "search" / "best.yaml")
    assert found.optimiser.learning_rate == best.values["optimiser.learning_rate"]


class Waiting:
    """A trial as a scheduler sees it."""

    def __init__(self, status):
        self.status = status

    def is_finished(self):
        return self.status in ("TERMINATED", "ERROR")


@pytest.mark.parametrize("other", ["TERMINATED", "ERROR", "RUNNING"])
def test_pbt_waits_for_no_trial_that_has_ended(labels, tmp_path, other):
    config = tune_config(labels, tmp_path, 9, scheduler="pbt", perturbation_epochs=2)
    exchange, population = Exchange(config), [Waiting("PAUSED"), Waiting("PAUSED"), Waiting(other)]
    for trial, age in zip(population, (2, 2, 1), strict=True):
        exchange._trial_state[trial] = SimpleNamespace(last_train_time=age)
    chosen = exchange.choose_trial_to_run(SimpleNamespace(get_trials=lambda: population))
    assert chosen is (None if other == "RUNNING" else population[0])


@pytest.mark.slow
def test_budget_ends_the_search_and_what_was_reached_counts(labels, tmp_path):
    config = tune_config(labels, tmp_path, 500, scheduler="none", budget_s=12.0)
    results = run_search(config, tmp_path / "work")
    assert 1 <= len(results) <= 3
    assert results[0].status == "stopped"
    assert 1 <= results[0].epochs.max() < 500
    # The budget is spent: the same search ends at once, with the same trials.
    again = run_search(config, tmp_path / "work")
    assert [told(result) for result in again] == [told(result) for result in results]


@pytest.mark.slow
def test_budget_in_which_nothing_ends(labels, tmp_path):
    config = tune_config(labels, tmp_path, budget_s=0.01)
    with pytest.raises(SddError, match=r"no trial finished an epoch .* within budget_s=0.01"):
        run_search(config, tmp_path / "work")


def test_all_trials_fail(labels, tmp_path):
    space = {"optimiser.learning_rate": SearchDimension(kind="choice", values=(1e30,))}
    resources = TuneResources(max_failures=0)
    config = tune_config(labels, tmp_path, space=space, trials=1, resources=resources)
    message = "all 1 trials failed; the first: ValueError: the loss is nan at epoch 1, step 2"
    with pytest.raises(SddError, match=message):
        run_search(config, tmp_path / "work")


@pytest.mark.slow
def test_failed_trials_are_tried_again_counted_and_told(labels, tmp_path):
    space = {"optimiser.learning_rate": SearchDimension(kind="choice", values=(1e30, 1e-3))}
    config = tune_config(labels, tmp_path, 1, space=space, searcher="grid", trials=2)
    with redirect_stderr(io.StringIO()) as said:
        failed, good = run_search(config, tmp_path / "work")
    assert (failed.status, failed.failures, len(failed.epochs)) == ("failed", 2, 0)
    assert "the loss is nan" in failed.error
    assert f"tune: trial 0 failed: {failed.error}\n" in said.getvalue()
    assert (good.status, good.failures, good.error) == ("finished", 0, "")


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"cpus_per_trial": 4}, r"1 worker\(s\) need 4 CPU, the cluster has 3 CPU"),
        ({"concurrent_trials": 4}, r"4 worker\(s\) need 4 CPU, the cluster has 3 CPU"),
        ({"gpus_per_trial": 0.5}, r"1 worker\(s\) need 1 CPU and 0.5 GPU"),
        (
            {"workers_per_trial": 2, "cpus_per_trial": 2},
            r"can only be stopped, by a scheduler or a budget, where Ray's dashboard runs",
        ),
    ],
)
def test_no_room_for_the_trials(labels, tmp_path, resources, message):
    config = tune_config(labels, tmp_path, resources=TuneResources(**resources))
    with pytest.raises(ResourceError, match=message):
        check_room(config)


@pytest.mark.slow
def test_several_workers_in_each_trial(labels, tmp_path):
    resources = TuneResources(workers_per_trial=2, cpus_per_trial=2)
    space = {"optimiser.learning_rate": RATE}
    config = tune_config(
        labels, tmp_path, space=space, scheduler="none", trials=2, resources=resources
    )
    check_room(config)
    run = OutputRun(Location(str(tmp_path / "search")), "tune", config)
    material = material_of(config, run.work.uri)
    results = search(config, material, run.work)
    assert [(result.status, result.epochs.tolist()) for result in results] == [
        ("finished", [1, 2])
    ] * 2
    publish(config, results, material, run)
    best = best_of(results, "mae")
    model = load_model(Location(str(tmp_path / "search" / "model")))
    assert model.record["validation"]["mae"] == best.reached("mae")
    assert model.record["epochs"] == 2


@pytest.mark.slow
def test_each_trial_weights_the_images_as_its_own_configuration_says(labels, tmp_path):
    space = {"loss.balance": SearchDimension(kind="choice", values=(0.0, 0.7))}
    config = tune_config(labels, tmp_path, 1, space=space, searcher="grid", trials=2)
    material = material_of(config, tmp_path / "work")
    task = TrialTask(config, material.plan, material.labels, None, None)
    wanted = []
    for balance in (0.0, 0.7):
        train = with_values(config.train, {"loss.balance": balance})
        rows = prepare(train, material.labels, None).train.table
        wanted.append(np.asarray(rows["weight"]))
        varied = with_values(train, {"seed": 5})  # the rows stay in the order of the search's seed
        assert trials._weights(varied, task).tolist() == wanted[-1].tolist()
    assert np.ptp(wanted[1]) > 0
    zeros = np.arange(len(wanted[1])) % 3 == 0
    batch = Batch(*[None] * 2, np.where(zeros, 0, wanted[0]), None, np.arange(len(zeros)), None)
    [found] = trials._weighted(lambda epoch: iter([batch]), wanted[1])(0)
    assert found.weights.tolist() == np.where(zeros, 0, wanted[1]).tolist()
    journals = [
        TrialFolder.of(Location(str(tmp_path / "work")), result.number).journal()
        for result in search(config, material, Location(str(tmp_path / "work")))
    ]
    assert journals[0][0]["train_loss"] != journals[1][0]["train_loss"]


def test_folder_of_a_trial_has_whole_states_alone(tmp_path):
    folder = TrialFolder.of(Location(str(tmp_path)), 3)
    assert (folder.newest(), folder.journal()) == (None, [])
    folder.keep({1})
    for epoch in (1, 2, 3, 2):
        folder.note({"epoch": epoch, "loss": epoch / 4})
    assert [entry["epoch"] for entry in folder.journal()] == [1, 2]
    for epoch in (1, 2, 3, 4):
        place = folder.place / f"epoch_{epoch:04d}"
        (place / "state.pt").write_bytes(b"...")
        if epoch < 4:  # the last one was interrupted
            (place / "whole.json").write_bytes(b"{}")
    assert folder.newest() == 3
    folder.keep({1, 3})
    assert folder.place.names() == ["epoch_0001", "epoch_0003", "journal.json"]
    assert folder.newest() == 3


def trial(number, value, mae, status="finished"):
    count = len(mae)
    return TrialResult(
        number=number,
        values={"network.dropout": value},
        status=status,
        error="went wrong" if status == "failed" else "",
        failures=int(status == "failed"),
        epochs=np.arange(1, count + 1),
        ended=1000.0 + 10 * number + np.arange(count),
        seconds=np.ones(count),
        figures={
            "loss": np.arange(count, dtype=float),
            "mae": np.array(mae, float),
            "spearman": -np.array(mae, float),
            "kendall": np.zeros(count),
            "pauc": np.full(count, np.nan),
        },
    )


def test_best_is_by_the_chosen_figure_and_its_best_epoch(labels, tmp_path):
    space = {"network.dropout": SPACE["network.dropout"]}
    results = [trial(0, 0.1, [3, 1, 4]), trial(1, 0.2, [], "failed"), trial(2, 0.15, [2, 2])]
    for best, number, epoch in (("mae", 0, 2), ("loss", 0, 1), ("spearman", 0, 2)):
        config = tune_config(labels, tmp_path, space=space, publish=False)
        config = replace(config, train=replace(config.train, best=best))
        output = Location(str(tmp_path / best))
        run = OutputRun(output, "tune", config)
        publish(config, results, None, run)
        text = (output / "best.yaml").read_bytes().decode()
        assert f"Best of 3 trials by validation {best}: " in text
        assert f"at epoch {epoch} of trial {number}." in text
        found = load_config(TrainConfig, tmp_path / best / "best.yaml")
        assert found == with_values(config.train, {"network.dropout": 0.1})
        said = read_json(output / MANIFEST)["results"]
        assert said["trials"] == {"failed": 1, "finished": 2}
        assert said["failures"] == 1
        assert said["best"]["network.dropout"] == 0.1
        page = (output / "search.html").read_bytes().decode()
        assert "went wrong" in page
        assert page.count("<svg ") == 3


def test_table_has_the_values_as_they_are(labels, tmp_path):
    space = {
        "network.dropout": SPACE["network.dropout"],
        "loss.kind": SearchDimension(kind="choice", values=("l1", "l2")),
        "optimiser.clip_norm": SearchDimension(kind="choice", values=(None, 1, 0.5)),
        "optimiser.ema": SearchDimension(kind="choice", values=(0, "0.5", True)),
    }
    config = tune_config(labels, tmp_path, space=space)
    values = {"loss.kind": "l2", "optimiser.clip_norm": 0.5, "optimiser.ema": True}
    results = [replace(trial(0, 0.1, [3, 1, 4]), values=values), trial(1, 0.2, [], "failed")]
    first, second = table_of(config, results).to_pylist()
    assert first["network.dropout"] is None
    assert (first["loss.kind"], first["optimiser.clip_norm"]) == ("l2", 0.5)
    assert first["optimiser.ema"] == "true"  # of several kinds: as text
    assert (first["mae"], first["pauc"]) == (1.0, None)
    assert (first["epoch"], first["epochs_run"], first["seconds"]) == (2, 3, 3.0)
    assert (second["status"], second["mae"], second["epoch"]) == ("failed", None, None)


@pytest.mark.slow
def test_model_is_the_one_of_the_best_epoch(labels, tmp_path):
    config = tune_config(labels, tmp_path, 3, trials=2, scheduler="none")
    run = OutputRun(Location(str(tmp_path / "search")), "tune", config)
    material = material_of(config, run.work.uri)
    results = search(config, material, run.work)
    best = best_of(results, "mae")
    publish(config, results, material, run)
    folder = Location(str(tmp_path / "search" / "model"))
    model = load_model(folder)
    assert model.record["best_epoch"] == best.epochs[best.best("mae")]
    assert model.record["validation"]["mae"] == best.reached("mae")
    assert [figures["mae"] for figures in model.record["history"]] == best.figures["mae"].tolist()
    manifest = read_json(folder / MANIFEST)
    assert manifest["command"] == "train"
    assert manifest["config"]["loss"]["kind"] == best.values["loss.kind"]
    assert folder.names() == [
        "manifest.json",
        "model.json",
        "model.safetensors",
        "rejects.parquet",
        "splits.parquet",
    ]
