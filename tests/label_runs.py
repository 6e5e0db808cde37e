"""Runs of the label command on made embeddings, and what they leave, for tests of the engine."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
from made_datasets import read_rows, write_embeddings
from scipy.stats import wasserstein_distance

from sdd_ray import label
from sdd_ray.config import load_tree
from sdd_ray.settings import LabelConfig
from sdd_ray.store.dataset import open_dataset, read_json, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import MANIFEST

ONE_WORKER = {"workers": 1, "cpus_per_worker": 0.5}
TWO_WORKERS = {"workers": 2, "cpus_per_worker": 0.5}
EXACT = {"tolerance": 0.0}


class Labeller:
    """Writes rows as a dataset of embeddings and labels it, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = iter(range(100))

    def __call__(self, rows, num_files=1, seed=None, **keys):
        """Return the path of the labels; `keys` are keys of the configuration."""
        number = next(self._numbers)
        rows = rows if seed is None else rows.shuffled(seed)
        embeddings = write_embeddings(self.folder / f"embeddings{number}", rows, num_files)
        return self.label(embeddings, str(self.folder / f"labels{number}"), **keys)

    def label(self, embeddings, output, **keys):
        """Return the path of the labels of a dataset."""
        tree = {"embeddings": embeddings, "output": output, "resources": ONE_WORKER, "exact": EXACT}
        tree |= keys
        label.run(load_tree(LabelConfig, tree))
        return output


def distances_by_scipy(unit, codes):
    """Return the distance of every row over all pairs, NaN where there is none of a kind."""
    similarity = unit.astype(np.float64) @ unit.astype(np.float64).T
    found = np.full(len(codes), np.nan)
    for row, code in enumerate(codes):
        same = codes == code
        mated = np.delete(similarity[row], np.flatnonzero(~same | (np.arange(len(codes)) == row)))
        if len(mated) and not same.all():
            found[row] = wasserstein_distance(mated, similarity[row][~same])
    return found


def column(folder, name):
    """Return a column of labels in the order of image_id, which is the order of `Rows`."""
    values = [row[name] for row in read_rows(folder, "label", ["image_id", name])]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def reasons(folder):
    """Return why each image has no label, or None, in the order of image_id."""
    return [row["reason"] for row in read_rows(folder, "label", ["image_id", "reason"])]


def manifest(folder):
    return read_json(Location(folder) / MANIFEST)


def results(folder):
    return manifest(folder)["results"]


def digest(folder):
    return open_dataset(folder, ["label"]).digest


def identity_table(folder):
    """Return the table of identities."""
    files = results(folder)["identity_files"]
    return pa.concat_tables([read_parquet(Location(folder) / name) for name in files])


def identities(folder):
    """Return the rows of the identity table, without what rounding may move."""
    names = ["identity", "num_images", "num_labelled", "mated_histogram", "nonmated_histogram"]
    return identity_table(folder).select(names).to_pylist()


def rejects(folder):
    names = ["image_id", "reason"]
    table = read_parquet(Location(folder) / "rejects.parquet", names)
    return sorted((row["image_id"], row["reason"]) for row in table.to_pylist())


def assert_equals_scipy(labels, unit, codes):
    wanted = distances_by_scipy(unit, codes)
    np.testing.assert_allclose(column(labels, "distance"), wanted, atol=1e-5, rtol=0)
    assert (column(labels, "error_bound")[~np.isnan(wanted)] == 0).all()


def assert_adds_up(labels, num_rows):
    """Check that every row that went in is labelled, or has one reason why it is not."""
    found = manifest(labels)
    table = open_dataset(labels, ["label"]).read(["image_id", "pseudo_label", "reason"])
    assert table["pseudo_label"].is_null().to_pylist() == table["reason"].is_valid().to_pylist()
    unlabelled = Counter(reason for reason in table["reason"].to_pylist() if reason is not None)
    rejected = Counter(reason for _, reason in rejects(labels))
    assert found["results"]["labelled"] == table.num_rows - sum(unlabelled.values())
    assert found["results"]["unlabelled"] == unlabelled
    assert found["counts"]["rejected"] == rejected
    assert found["counts"]["rows_out"] == table.num_rows
    assert found["counts"]["rows_in"] == table.num_rows + sum(rejected.values()) == num_rows
    counted = identity_table(labels)
    assert sum(counted["num_images"].to_pylist()) == table.num_rows
    assert sum(counted["num_labelled"].to_pylist()) == found["results"]["labelled"]
    assert pa.compute.count_distinct(table["image_id"]).as_py() == table.num_rows
