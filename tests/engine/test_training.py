"""Training on Ray: images in a fixed order, several workers, and errors that name their cause."""

import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from labelled_faces import train_config, write_labels
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from sdd_ray.core.fitting import Fitter
from sdd_ray.engine import training, training_data
from sdd_ray.engine.fitting import Fit
from sdd_ray.engine.metrics import Advance
from sdd_ray.engine.training import check_resources, feeds, new_fit, plan_fit, train_network
from sdd_ray.engine.training_data import Unreadable, batches, decoded, image_datasets
from sdd_ray.engine.training_rows import Rows, prepare
from sdd_ray.errors import ResourceError, SddError, TooManyRejectsError, WeightsError
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import Content, Item, to_table
from sdd_ray.settings import ComputeConfig, NetworkConfig, OptimiserConfig, TrainResources
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.location import Location

IMAGES = 256
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it


@dataclass(frozen=True)
class UnevenSource:
    """Images whose pixels are their number; the first one takes longest to read."""

    delay_s: float = 0.0
    unreadable: tuple[int, ...] = ()

    needs_listing: bool = False

    def groups(self, items):
        return [[place] for place in range(len(items))]

    def fetch(self, items):
        number = int(items[0].image_id)
        if number in self.unreadable:
            return [ImageRejectedError("unreadable", "as the test wants it")]
        time.sleep(0 if number else self.delay_s)
        return [Content(np.full((112, 112, 3), number % 256, np.uint8))]


def prepared(tmp_path, targets=None, **changes):
    labels = write_labels(tmp_path / "labels", targets=targets)
    config = train_config(labels, tmp_path / "model", **changes)
    dataset = open_dataset(labels, ["label"])
    data = prepare(config, dataset, Location(str(tmp_path / "work")))
    return plan_fit(config, dataset, data, "train"), data


def do_train(plan, data, folder):
    return train_network(plan, data, Location(str(folder / "work")), Location(str(folder / "tb")))


def numbered(images=IMAGES):
    table = to_table(Item(str(n)) for n in range(images))
    for name, kind in (
        ("target", np.float32),
        ("weight", np.float32),
        ("key", np.uint64),
        ("row", np.int64),
    ):
        values = np.ones(images) if name == "weight" else np.arange(images)
        table = table.append_column(name, pa.array(values.astype(kind)))
    return Rows(table.combine_chunks(), (), images)


def read(dataset, size, unreadable=None, seed=None):
    unreadable = unreadable or Unreadable(1.0, IMAGES)
    return list(batches(dataset.iterator(), size, unreadable, seed))


@pytest.mark.usefixtures("ray_session")
def test_stand_ins_take_the_place_of_images_that_cannot_be_read():
    dataset = decoded(UnevenSource(unreadable=(3, 70, 71)), numbered())
    unreadable = Unreadable(0.1, IMAGES)
    found = read(dataset, 64, unreadable)
    weights = np.concatenate([batch.weights for batch in found])
    assert np.flatnonzero(weights == 0).tolist() == [3, 70, 71]
    assert np.all(np.delete(weights, [3, 70, 71]) == 1)
    for batch in found:
        shown = batch.images[:, 5, 7, 1]
        np.testing.assert_array_equal(shown[batch.weights > 0], batch.targets[batch.weights > 0])
        assert set(shown) <= set(batch.targets[batch.weights > 0])
    why = ("unreadable", "unreadable: as the test wants it")
    assert unreadable.found == dict.fromkeys(("3", "70", "71"), why)


@pytest.mark.usefixtures("ray_session")
def test_too_many_unreadable_images_are_an_error():
    dataset = decoded(UnevenSource(unreadable=tuple(range(28))), numbered())
    message = r"14 of 264 labelled images .* max_reject_share=0\.05; the first is 0: unreadable"
    with pytest.raises(TooManyRejectsError, match=message):
        read(dataset, 14, Unreadable(0.05, 264))
    assert sum((b.weights == 0).sum() for b in read(dataset, 14, Unreadable(0.2, 264))) == 28


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("cached", [True, False])
def test_images_keep_their_order_however_fast_they_are_read(monkeypatch, cached):
    monkeypatch.setattr(training_data, "_ROWS_PER_BLOCK", 16)
    elastic = not cached
    found = read(decoded(UnevenSource(delay_s=2.0), numbered(), cached, 2, elastic), 50)
    for name in ("targets", "keys", "rows"):
        together = np.concatenate([getattr(batch, name) for batch in found])
        np.testing.assert_array_equal(together, np.arange(IMAGES))
    for batch in found:
        np.testing.assert_array_equal(batch.images[:, 5, 7, 1], batch.targets)
        assert batch.image_ids.tolist() == [str(row) for row in batch.rows]


@pytest.mark.usefixtures("ray_session")
def test_shuffling_is_of_the_seed():
    dataset = decoded(UnevenSource(), numbered())
    first, again, other = (
        np.concatenate([batch.rows for batch in read(dataset, 50, seed=seed)]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(first) == 250  # whole batches only
    assert len(np.unique(first)) == 250


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (TrainResources(workers=4), r"4 worker\(s\) need 4 CPU, the cluster has 3 CPU"),
        (
            TrainResources(use_gpu=True),
            r"1 worker\(s\) need 1 CPU and 1 GPU, the cluster has 3 CPU",
        ),
        (
            TrainResources(workers=16, cpus_per_worker=0.1),
            r"optimiser.batch_size=16 leaves fewer than 2 images to each of resources.workers=16",
        ),
    ],
)
def test_resources_are_checked_before_work(tmp_path, resources, message):
    config = train_config("labels", tmp_path, resources=resources)
    with pytest.raises(ResourceError, match=message):
        check_resources(config)


TWO = TrainResources(workers=2, cpus_per_worker=0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_workers_with_every_option(tmp_path, capsys):
    plan, data = prepared(
        tmp_path,
        optimiser=OptimiserConfig(
            kind="adamw",
            schedule="cosine",
            warm_up_epochs=0.5,
            epochs=2,
            batch_size=16,
            accumulate=2,
            clip_norm=5.0,
            ema=0.9,
            learning_rate=1e-3,
        ),
        network=NetworkConfig(head="average", frozen_share=0.5, freeze_batch_norm=True),
        compute=ComputeConfig(precision="bfloat16", deterministic=True),
        resources=TWO,
    )
    trained = do_train(plan, data, tmp_path)
    shown = capsys.readouterr().err
    assert shown.count("train: epoch") == 2
    assert trained.best_epoch in (1, 2)
    assert len(trained.predicted) == data.validation.num_rows
    assert np.all(np.diff(trained.predicted) >= 0)
    assert f"validation loss {trained.figures['loss']:.2f}" in shown
    assert [figures["epoch"] for figures in trained.history] == [1, 2]
    np.testing.assert_equal(trained.history[trained.best_epoch - 1], trained.figures)
    assert trained.rejects == []


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_workers_publish_the_network_that_they_validated(tmp_path):
    """Each has batch statistics of its own until they agree on those of the first."""
    optimiser = OptimiserConfig(epochs=2, batch_size=16, learning_rate=1e-3, ema=0.8)
    plan, data = prepared(tmp_path, optimiser=optimiser, resources=TWO)
    trained = do_train(plan, data, tmp_path)
    assert trained.best_epoch == 2
    images = image_datasets(plan.config, data)
    fitter = Fitter(trained.network, trained.preprocessing, plan.recipe, torch.device("cpu"))
    found = fitter.predictions(read(images.validation, 64))
    # The average of the network that is there is the network.
    again = np.sort(np.concatenate([predicted for _, predicted in found]))
    np.testing.assert_allclose(again, trained.predicted, atol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_images_that_are_gone_stop_no_worker_and_are_named(tmp_path, monkeypatch):
    plan, data = prepared(tmp_path, resources=TWO, max_reject_share=0.5)
    gone = tuple(range(0, 42, 3))

    def uneven(_):
        return UnevenSource(unreadable=gone)

    def renamed(rows):
        ids = pa.array([str(n) for n in range(rows.num_rows)])
        table = rows.table.set_column(0, "image_id", ids)
        return Rows(table, (), rows.num_rows)

    monkeypatch.setattr(training_data, "open_source", uneven)
    data = replace(data, train=renamed(data.train), validation=renamed(data.validation))
    trained = do_train(plan, data, tmp_path)
    found = {reject.image_id for reject in trained.rejects}
    # Two epochs of whole batches need not have seen all of the training images.
    assert {str(n) for n in gone if n < data.validation.num_rows} <= found
    assert found <= {str(n) for n in gone}
    assert len(trained.predicted) == data.validation.num_rows - 4


class Told:
    """Stands in for metrics: what is finished, and what is open after each time."""

    def __init__(self):
        self.finished, self.open = 0, []

    def done(self, items, left):
        self.finished += max(items, 0)
        self.open.append(left)


def test_images_trained_again_count_again_and_an_early_end_leaves_none_open():
    told = Told()
    advance = Advance(told, total=100, at=20)
    for at in (30, 60, 40, 70):  # workers were lost at 60; the last checkpoint was at 40
        advance.reach(at)
    advance.end()
    assert told.finished == 10 + 30 + 30
    assert told.open == [80, 70, 40, 60, 30, 0]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_training_that_goes_on_tells_no_finished_epoch_as_open(tmp_path, monkeypatch):
    told = {}
    for epochs in (1, 2):
        told[epochs] = Told()
        monkeypatch.setattr(training, "stage_metrics", {"train": told[epochs]}.get)
        optimiser = OptimiserConfig(epochs=epochs, batch_size=16, warm_up_epochs=0)
        (tmp_path / str(epochs)).mkdir()
        plan, data = prepared(tmp_path / str(epochs), optimiser=optimiser)
        do_train(plan, data, tmp_path)
    images = data.train.num_rows
    assert (told[1].finished, told[1].open) == (images, [images, 0, 0])
    assert (told[2].finished, told[2].open) == (images, [images, 0, 0])


def fitted(tmp_path, name, **changes):
    """Return a fit in this process, without Ray Train, and the results of its epochs."""
    (tmp_path / name).mkdir()
    plan, data = prepared(tmp_path / name, **changes)
    images = image_datasets(plan.config, data)
    fit = new_fit(plan, torch.device("cpu"))
    feed = feeds(plan, images.train.iterator(), images.validation.iterator(), fit.unreadable)
    return fit, feed


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_workers_change_no_more_than_seeds_do(tmp_path):
    """Batches hold other images, and batch statistics are each worker's own: noise, as of seeds."""
    optimiser = OptimiserConfig(epochs=2, batch_size=16, learning_rate=1e-3)
    errors = []
    for seed in range(3):
        fit, feed = fitted(tmp_path, f"seed{seed}", optimiser=optimiser, seed=seed)
        errors.append([result.validation.mae for result in fit.epochs(None, *feed)][-1])
    plan, data = prepared(tmp_path, optimiser=optimiser, resources=TWO)
    together = do_train(plan, data, tmp_path).history[-1]["mae"]
    spread = max(errors) - min(errors)
    assert min(errors) - spread <= together <= max(errors) + spread


@pytest.mark.usefixtures("ray_session")
def test_training_without_gain_ends_early(tmp_path):
    optimiser = OptimiserConfig(epochs=9, batch_size=16, learning_rate=1e-12, warm_up_epochs=0)
    still = NetworkConfig(freeze_batch_norm=True, dropout=0.0)
    fit, feed = fitted(tmp_path, "a", optimiser=optimiser, network=still, patience=2)
    results = list(fit.epochs(None, *feed))
    best = int(np.argmin([result.validation.loss for result in results]))
    assert len(results) == best + 3 < 9
    # A run that was interrupted right there has nothing left to do.
    again = Fit(fit.plan, fit.network, fit.fitter)
    assert list(again.epochs(fit.state(results[-1]), *feed)) == []


@pytest.mark.usefixtures("ray_session")
def test_lines_within_an_epoch_tell_rate_and_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr("sdd_ray.engine.fitting._SECONDS_BETWEEN_LINES", 0.0)
    fit, feed = fitted(tmp_path, "a")
    said = []
    fit.say = lambda line, images: said.append((line, images))
    results = fit.epochs(None, *feed)
    next(results)
    next(results)
    assert [images for _, images in said] == [16, 32, 42 + 16, 42 + 32]
    assert said[0][0].startswith("epoch 1 of 2, 16 of 42 images (38 %), loss ")
    assert said[0][0].endswith(" left")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_loss_that_is_no_number_ends_training_at_once(tmp_path):
    plan, data = prepared(tmp_path, optimiser=OptimiserConfig(learning_rate=1e30, batch_size=16))
    assert plan.config.resources.max_failures == 3
    with pytest.raises(SddError) as caught:
        do_train(plan, data, tmp_path)
    message = "training failed: the loss is nan at epoch 1, step 2, images "
    assert str(caught.value).startswith(message)
    named = str(caught.value).removeprefix(message).partition(" and 8 more: lower")[0].split(", ")
    known = {item["image_id"] for item in data.train.table.select(["image_id"]).to_pylist()}
    assert len(named) == 8
    assert set(named) <= known
    # Of the controller, which does not try again: an error of the workers comes after 4 attempts.
    assert isinstance(caught.value.__cause__, ControllerError)


def test_lost_workers_come_back_and_mistakes_do_not():
    training._NotAgain().after_exception(None, {0: RayActorError(), 1: OSError("no route")})
    with pytest.raises(WeightsError, match="do not fit"):
        training._NotAgain().after_exception(None, {0: OSError(), 1: WeightsError("do not fit")})


def test_cause_is_of_the_first_worker():
    error = WorkerGroupError("long traceback", {2: OSError("second"), 1: OSError("first")})
    assert str(training._cause(error)) == "first"
