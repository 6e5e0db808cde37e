"""Training on Ray: images in a fixed order, several workers, and errors that name their cause."""

import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import ray
from labelled_faces import FACES, train_config, write_labels
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from sdd_ray.engine import training, training_data
from sdd_ray.engine.training import check_resources, train_network
from sdd_ray.engine.training_data import batches, decoded, image_datasets, prepare, unreadable
from sdd_ray.errors import InputError, ResourceError, SddError, TooManyRejectsError, WeightsError
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import Content, Item, to_table
from sdd_ray.settings import (
    OptimiserConfig,
    SourceConfig,
    SplitConfig,
    TrainResources,
)
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
    return config, prepare(config, open_dataset(labels, ["label"]))


def numbered():
    ids = [str(n) for n in range(IMAGES)]
    targets = pa.chunked_array([np.arange(IMAGES, dtype=np.float32)])
    return to_table(Item(i) for i in ids).append_column("target", targets)


@pytest.mark.usefixtures("ray_session")
def test_images_that_cannot_be_read_any_more_are_left_out_and_named():
    dataset = decoded(UnevenSource(unreadable=(3, 70, 71)), numbered())
    targets = np.concatenate([t for _, t in batches(dataset.iterator(), 64)])
    np.testing.assert_array_equal(targets, np.delete(np.arange(IMAGES), [3, 70, 71]))
    rejects = {reject.image_id: (reject.reason, reject.detail) for reject in unreadable(dataset)}
    wanted = ("unreadable", "unreadable: as the test wants it")
    assert rejects == dict.fromkeys(("3", "70", "71"), wanted)


@pytest.mark.usefixtures("ray_session")
def test_too_many_unreadable_images_stop_training(tmp_path, monkeypatch):
    config, data = prepared(tmp_path)
    lost = tuple(range(IMAGES))
    data = replace(data, train=numbered(), validation=numbered().slice(0, 8))
    monkeypatch.setattr(training_data, "open_source", lambda _: UnevenSource(unreadable=lost[:20]))
    with pytest.raises(TooManyRejectsError, match=r"28 of 264 labelled .* max_reject_share=0\.05"):
        image_datasets(config, data)
    found = image_datasets(replace(config, max_reject_share=0.2), data)
    assert len(found.rejects) == 28


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("cached", [True, False])
def test_images_keep_their_order_however_fast_they_are_read(monkeypatch, cached):
    monkeypatch.setattr(training_data, "_ROWS_PER_BLOCK", 16)
    monkeypatch.setattr(training_data, "_CACHE_SHARE", 0.3 if cached else 0.0)
    dataset = decoded(UnevenSource(delay_s=2.0), numbered())
    pairs = list(batches(dataset.iterator(), 50))
    targets = np.concatenate([t for _, t in pairs])
    np.testing.assert_array_equal(targets, np.arange(IMAGES))
    for images, wanted in pairs:
        np.testing.assert_array_equal(images[:, 5, 7, 1], wanted)


@pytest.mark.usefixtures("ray_session")
def test_shuffling_is_of_the_seed():
    dataset = decoded(UnevenSource(), numbered())
    first, again, other = (
        np.concatenate([t for _, t in batches(dataset.iterator(), 50, seed)]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(first) == 250  # whole batches only
    assert len(np.unique(first)) == 250


def test_order_of_images_is_of_ids_and_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(training_data, "_probe", lambda *_: None)
    config, data = prepared(tmp_path)
    backwards = write_labels(tmp_path / "backwards", backwards=True)
    same = prepare(config, open_dataset(backwards, ["label"]))
    assert same.train == data.train
    other = prepare(replace(config, seed=1), open_dataset(config.labels, ["label"])).train
    assert other != data.train
    assert other.sort_by("image_id") == data.train.sort_by("image_id")


def test_images_without_a_label_are_left_out(tmp_path):
    targets = [float(n % 7) if n % 3 else None for n in range(72)]
    _, data = prepared(tmp_path, targets)
    assert data.train.num_rows + data.validation.num_rows == 9 * 4
    assert data.num_identities == {"holdout": 3, "validation": 2, "train": 7}
    wanted = np.asarray(data.train["target"], np.float64).mean()
    assert data.mean_target == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("targets", "changes", "message"),
    [
        ([50.0] * 72, {}, "expected labels of different values, got 72 equal ones"),
        ([None] * 72, {}, "expected labels of different values, got 0 equal ones"),
        (
            None,
            {"split": SplitConfig(holdout_share=0.9, validation_share=0.9)},
            "cannot split the identities: expected more identities than 11",
        ),
        (
            None,
            {"optimiser": OptimiserConfig(batch_size=43)},
            r"42 labelled images are left .* \(optimiser.batch_size=43\)",
        ),
        (
            None,
            {"source": SourceConfig(synthetic=replace(FACES, seed=8))},
            r"none of 16 labelled images tried can be read from the source.*embedded\? The first:",
        ),
    ],
)
def test_labels_that_cannot_be_trained_on(tmp_path, targets, changes, message):
    with pytest.raises(InputError, match=message):
        prepared(tmp_path, targets, **changes)


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
            TrainResources(workers=9, cpus_per_worker=0.1),
            r"optimiser.batch_size=16 leaves fewer than 2 images to each of resources.workers=9",
        ),
    ],
)
def test_resources_are_checked_before_work(tmp_path, resources, message):
    config = train_config("labels", tmp_path, resources=resources)
    with pytest.raises(ResourceError, match=message):
        check_resources(config)


@pytest.mark.usefixtures("ray_session")
def test_two_workers(tmp_path, capsys):
    optimiser = OptimiserConfig(epochs=2, batch_size=16, learning_rate=1e-3)
    resources = TrainResources(workers=2, cpus_per_worker=0.5)
    config, data = prepared(tmp_path, optimiser=optimiser, resources=resources)
    trained = train_network(config, data, Location(str(tmp_path / "work")))
    shown = capsys.readouterr().err
    assert shown.count("train: epoch") == 2
    assert trained.best_epoch in (1, 2)
    assert len(trained.predicted) == data.validation.num_rows
    assert np.all(np.diff(trained.predicted) >= 0)
    assert f"validation loss {trained.figures['loss']:.2f}" in shown


@pytest.mark.usefixtures("ray_session")
def test_loss_that_is_no_number_ends_training_at_once(tmp_path):
    config, data = prepared(tmp_path, optimiser=OptimiserConfig(learning_rate=1e30, batch_size=16))
    assert config.resources.max_failures == 3
    with pytest.raises(SddError) as caught:
        train_network(config, data, Location(str(tmp_path / "work")))
    message = "training failed: the loss is nan at epoch 1, step 2: lower the learning rate"
    assert str(caught.value) == message
    # Of the controller, which does not try again: an error of the workers comes after 4 attempts.
    assert isinstance(caught.value.__cause__, ControllerError)


def test_lost_workers_come_back_and_mistakes_do_not():
    training._NotAgain().after_exception(None, {0: RayActorError(), 1: OSError("no route")})
    with pytest.raises(WeightsError, match="do not fit"):
        training._NotAgain().after_exception(None, {0: OSError(), 1: WeightsError("do not fit")})


def test_cause_is_of_the_first_worker():
    error = WorkerGroupError("long traceback", {2: OSError("second"), 1: OSError("first")})
    assert str(training._cause(error)) == "first"
