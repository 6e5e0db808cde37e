"""The rows that training reads: which ones, with which targets and weights, in which order."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from label_tables import label_table, random_labels, write_label_table
from labelled_faces import FACES, train_config, write_labels

from sdd_ray import columns
from sdd_ray.core.label_weights import LabelWeights
from sdd_ray.engine import training_rows
from sdd_ray.engine.training_rows import prepare
from sdd_ray.errors import InputError
from sdd_ray.settings import ListConfig, LossConfig, OptimiserConfig, SourceConfig, SplitConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.location import Location

MASK = 2**64 - 1
WORK = Location("/nowhere")


def prepared(tmp_path, targets=None, **changes):
    labels = write_labels(tmp_path / "labels", targets=targets)
    config = train_config(labels, tmp_path / "model", **changes)
    return config, prepare(config, open_dataset(labels, ["label"]), WORK)


@pytest.fixture
def _no_images(monkeypatch):
    monkeypatch.setattr(training_rows, "_probe", lambda *_: None)


def folder_config(tmp_path, **changes):
    source = SourceConfig(kind="folder", path=str(tmp_path))
    return train_config("labels", tmp_path / "model", **{"source": source, **changes})


def mixed(state):
    """Return the output of SplitMix64, by plain integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def key_of(image_id):
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "little")


def order_of(image_id, seed):
    golden = 0x9E3779B97F4A7C15
    return mixed(key_of(image_id) ^ mixed((seed * golden + golden) & MASK))


@pytest.mark.usefixtures("_no_images")
@pytest.mark.parametrize("files", [1, 4])
def test_rows_are_those_of_the_labels_in_the_order_of_a_hash(tmp_path, files):
    table = random_labels(people=20, images=9)
    labels = write_label_table(tmp_path / "labels", table, files)
    data = prepare(folder_config(tmp_path, seed=5), labels, WORK)
    part_of = dict(zip(*data.splits.to_pydict().values(), strict=True))
    assert data.splits["identity"].to_pylist() == sorted(set(table["identity"].to_pylist()))
    for part in ("train", "validation"):
        wanted = [
            row
            for row in table.to_pylist()
            if row["pseudo_label"] is not None and part_of[row["identity"]] == part
        ]
        wanted.sort(key=lambda row: order_of(row["image_id"], 5))
        rows = getattr(data, part)
        assert rows.table.schema.names == [*columns.INDEX.names, "target", "weight", "key", "row"]
        kinds = [str(rows.table.schema.field(n).type) for n in ("target", "weight", "key", "row")]
        assert kinds == ["float", "float", "uint64", "int64"]
        assert rows.num_rows == rows.table.num_rows == len(wanted) > 0
        assert rows.table["image_id"].to_pylist() == [row["image_id"] for row in wanted]
        assert rows.table["target"].to_pylist() == [row["pseudo_label"] for row in wanted]
        assert rows.table["key"].to_pylist() == [key_of(row["image_id"]) for row in wanted]
        assert rows.table["row"].to_pylist() == list(range(len(wanted)))
        assert set(rows.table["weight"].to_pylist()) == {1.0}


@pytest.mark.usefixtures("_no_images")
def test_order_of_images_is_of_ids_and_seed(tmp_path):
    config, data = prepared(tmp_path)
    backwards = write_labels(tmp_path / "backwards", backwards=True)
    assert prepare(config, open_dataset(backwards, ["label"]), WORK) == data
    labels = open_dataset(config.labels, ["label"])
    other = prepare(replace(config, seed=1), labels, WORK).train.table
    assert other["image_id"] != data.train.table["image_id"]
    same = [t.sort_by("image_id").drop_columns("row") for t in (other, data.train.table)]
    assert same[0] == same[1]


@pytest.mark.usefixtures("_no_images")
def test_two_images_of_one_hash_are_in_order_of_their_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sdd_ray.engine.training_labels.image_keys", lambda ids: np.ones(len(ids), np.uint64)
    )
    _, data = prepared(tmp_path)
    ids = data.train.table["image_id"].to_pylist()
    assert ids == sorted(ids)


@pytest.mark.usefixtures("_no_images")
def test_items_of_packed_sources_are_joined(tmp_path):
    table = random_labels(people=20, images=9)
    lost = table["image_id"].to_pylist()[::7]
    ids = [name for name in table["image_id"].to_pylist() if name not in lost]
    lines = [f"{name}\tfolder/{key_of(name)}.png" for name in reversed(ids)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    layout = ListConfig(columns=("image_id", "path"))
    source = SourceConfig(
        kind="list", path=str(tmp_path / "list.txt"), list_file=layout, identity="none"
    )
    labels = write_label_table(tmp_path / "labels", table)
    data = prepare(folder_config(tmp_path, source=source), labels, WORK)
    for rows in (data.train, data.validation):
        found = dict(
            zip(*rows.table.select(["image_id", "file"]).to_pydict().values(), strict=True)
        )
        assert found == {
            name: None if name in lost else f"folder/{key_of(name)}.png" for name in found
        }
        assert None in found.values()


@pytest.mark.usefixtures("_no_images")
@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(balance=0.7),
        LossConfig(weighting="num_mated"),
        LossConfig(weighting="error_bound", balance=0.5),
    ],
)
def test_weights_are_fitted_on_the_training_labels(tmp_path, loss):
    table = random_labels(people=20, images=9)
    labels = write_label_table(tmp_path / "labels", table, 3)
    data = prepare(folder_config(tmp_path, loss=loss), labels, WORK)
    label_of = {row["image_id"]: row for row in table.to_pylist()}

    def evidence(rows):
        name = loss.weighting
        if name == "none":
            return {}
        known = [label_of[i][name] for i in rows.table["image_id"].to_pylist()]
        return {name: np.array([0 if value is None else value for value in known])}

    targets = [np.asarray(rows.table["target"]) for rows in (data.train, data.validation)]
    # Labels are 100 times the distance.
    fitted = LabelWeights.fit(
        targets[0], loss.balance, loss.weighting, **evidence(data.train), label_per_distance=100.0
    )
    assert data.mean_target == pytest.approx(targets[0].mean(dtype=float))
    weights = [np.asarray(rows.table["weight"]) for rows in (data.train, data.validation)]
    assert weights[0].mean() == pytest.approx(1)
    assert np.ptp(weights[0]) > 0.1
    for rows, labels_of_part, found in zip(
        (data.train, data.validation), targets, weights, strict=True
    ):
        wanted = fitted.apply(labels_of_part, **evidence(rows))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("distances", [[None] * 40, [0.5] * 40])
def test_error_bounds_need_distances(tmp_path, distances):
    ids = [f"{n % 10}/{n}" for n in range(40)]
    people = [name.split("/")[0] for name in ids]
    table = label_table(ids, people, pseudo_label=np.arange(40.0), distance=distances)
    labels = write_label_table(tmp_path / "labels", table)
    config = folder_config(tmp_path, loss=LossConfig(weighting="error_bound"))
    with pytest.raises(InputError, match=r"labels: loss\.weighting=error_bound needs labels that"):
        prepare(config, labels, WORK)


def test_images_without_a_label_are_left_out(tmp_path):
    targets = [float(n % 7) if n % 3 else None for n in range(72)]
    _, data = prepared(tmp_path, targets)
    assert data.train.num_rows + data.validation.num_rows == 9 * 4
    assert data.num_identities == {"holdout": 3, "validation": 2, "train": 7}
    assert data.mean_target == pytest.approx(np.asarray(data.train.table["target"]).mean())
    assert data.summary == (
        "28 images of 7 identities to train, 8 of 2 to choose the epoch, 3 identities held out"
    )


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


def test_damaged_file_of_labels(tmp_path):
    labels = write_label_table(tmp_path / "labels", random_labels(people=20, images=9), 2)
    (tmp_path / "labels" / "part-000001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"part-000001\.parquet is not a whole Parquet file"):
        prepare(folder_config(tmp_path), labels, WORK)


def test_table_of_rows_is_one_chunk(tmp_path):
    """So that a slice of it travels to workers without the rest."""
    _, data = prepared(tmp_path)
    assert {data.train.table[name].num_chunks for name in data.train.table.schema.names} == {1}
