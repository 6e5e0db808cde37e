"""Label runs that are torn apart, and what users may hand over: nothing lost, nothing hidden."""

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_sets import clean, degraded, people
from label_runs import (
    Labeller,
    assert_adds_up,
    column,
    digest,
    identity_table,
    manifest,
    reasons,
    rejects,
    results,
)
from made_datasets import Rows, write_embeddings

from sdd_ray import columns, label
from sdd_ray.config import main
from sdd_ray.engine import label_scale, label_sums, labelling, shard_rows
from sdd_ray.engine.label_worker import LabelWorker
from sdd_ray.errors import InputError, OutputError
from sdd_ray.settings import LabelConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import MANIFEST, read_records

pytestmark = pytest.mark.usefixtures("ray_session", "small_shards")

NUM_SHARDS = 6  # of 60 rows: five people of twelve


@pytest.fixture(scope="module")
def unbroken(ray_session, small_shards, tmp_path_factory):
    """Labels of the degraded set by one worker, from one file, in order and unbroken."""
    return Labeller(tmp_path_factory.mktemp("unbroken"))(Rows(*degraded()))


def rewrite(embeddings, number, change, row_group_size=None):
    """Write a part of a dataset again, with its table changed."""
    file = Path(embeddings, f"part-{number:06d}.parquet")
    pq.write_table(change(pq.read_table(file)), file, row_group_size=row_group_size)
    return str(file)


@pytest.mark.slow
def test_five_workers_37_files_and_small_row_groups_give_the_same(do_label, unbroken, tmp_path):
    rows = Rows(*degraded()).shuffled(6)
    embeddings = write_embeddings(tmp_path / "embeddings", rows, num_files=37)
    for number in range(37):
        rewrite(embeddings, number, lambda table: table, row_group_size=1 + number % 5)
    workers = {"workers": 5, "cpus_per_worker": 0.5}
    labels = do_label.label(embeddings, str(tmp_path / "labels"), resources=workers)
    assert digest(labels) == digest(unbroken)
    assert identity_table(labels).equals(identity_table(unbroken))
    assert_adds_up(labels, 360)


@pytest.mark.slow
def test_a_worker_killed_in_every_pass_changes_nothing(do_label, unbroken, monkeypatch, tmp_path):
    killed = {stage: tmp_path / stage for stage in ("sum", "label", "scale")}

    def die(marker):  # Within a function, so that it travels to the workers by value.
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    sum_group, write_group = label_sums._sum_group, label_scale._write_group

    def killed_sum(*arguments):
        die(killed["sum"])
        return sum_group(*arguments)

    def killed_write(*arguments):
        die(killed["scale"])
        return write_group(*arguments)

    class Killed(LabelWorker):
        def _label(self, task, pairs):
            if task.number == 2:
                die(killed["label"])
            return super()._label(task, pairs)

    monkeypatch.setattr(label_sums, "_sum_group", killed_sum)
    monkeypatch.setattr(label_scale, "_write_group", killed_write)
    monkeypatch.setattr(labelling, "LabelWorker", Killed)
    labels = do_label(Rows(*degraded()), 5, 9)
    assert all(marker.exists() for marker in killed.values())
    assert digest(labels) == digest(unbroken)
    assert_adds_up(labels, 360)


# The driver

DRIVER = """
import os, signal, sys
from sdd_ray import label
from sdd_ray.config import main
from sdd_ray.engine import label_plan, label_scale
from sdd_ray.engine.progress import Progress
from sdd_ray.settings import LabelConfig

def die_in_stage(progress, items, rejected=0):
    if progress.stage == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)

label_plan.ROWS_PER_SHARD, label_scale.FAMILIES_PER_TASK = 50, 2
Progress.update = die_in_stage
sys.exit(main(LabelConfig, label.run, sys.argv[2:]))
"""
"""The command, with small shards; it is killed when the first piece of a stage is finished."""


def processes_with(variable):
    """Return the numbers of the processes that inherited a variable of the environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # of somebody else, or gone meanwhile
            continue
    return found


def run_until_killed(stage, argv):
    """Run the command until it is killed in a stage, and clear away what is left of its Ray.

    Most of that ends with the driver, but some of Ray's processes take a minute to see it.
    """
    name, value = "SDD_RAY_TEST_RUN", uuid.uuid4().hex
    command = [sys.executable, "-c", DRIVER, stage, *argv]
    try:
        done = subprocess.run(command, env=os.environ | {name: value}, check=False)
    finally:
        while left := processes_with(f"{name}={value}"):
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
    assert done.returncode == -signal.SIGKILL


def times(output):
    """Return when each finished raw part was written."""
    raw = Location(output) / "_work/raw"
    return {
        name: Path(output, "_work/raw", f"{name}.parquet").stat().st_mtime_ns
        for name in read_records(raw)
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_killed_driver_loses_nothing_that_was_finished(
    do_label, unbroken, monkeypatch, tmp_path, capsys
):
    """First in the pass that labels, then in the one that scales; then the command ends well."""
    embeddings = write_embeddings(tmp_path / "embeddings", Rows(*degraded()))
    output = str(tmp_path / "labels")
    argv = [f"embeddings={embeddings}", f"output={output}", "exact.tolerance=0"]
    argv += ["resources.workers=1", "ray.num_cpus=1", "ray.dashboard=false"]
    run_until_killed("label", argv)
    first = times(output)
    assert 0 < len(first) < NUM_SHARDS
    with pytest.raises(OutputError, match=r"was begun .* differs in exact\.tolerance"):
        do_label.label(embeddings, output, exact={"tolerance": 0.1})

    run_until_killed("scale", argv)
    second = times(output)
    assert len(second) == NUM_SHARDS
    assert second.items() >= first.items()
    assert not Path(output, MANIFEST).exists()
    assert 0 < len(list(Path(output).glob("part-*.parquet"))) < NUM_SHARDS
    scale = labelling.scale_labels

    def check_and_scale(*arguments):
        assert times(output) == second
        return scale(*arguments)

    monkeypatch.setattr(labelling, "scale_labels", check_and_scale)
    monkeypatch.setattr(label_scale, "FAMILIES_PER_TASK", 2)
    assert main(LabelConfig, label.run, argv) == 0
    assert "label: 360 of 360" in capsys.readouterr().out
    assert digest(output) == digest(unbroken)
    assert identity_table(output).equals(identity_table(unbroken))
    assert_adds_up(output, 360)
    left = {path.name for path in Path(output).rglob("*") if path.is_file()}
    assert not [name for name in left if name.startswith(".")], "half-written files are left"


# What users may hand over


def test_length_of_embeddings_does_not_matter(do_label, unbroken):
    rows = Rows(*degraded())
    lengths = np.random.default_rng(0).uniform(0.1, 30, len(rows.codes))
    rows.embeddings = (rows.embeddings * lengths[:, None]).astype(np.float32)
    labels = do_label(rows)
    for name in ("distance", "mated_std", "nonmated_q05"):
        np.testing.assert_allclose(column(labels, name), column(unbroken, name), atol=1e-6)
    found = column(labels, "pseudo_label")
    np.testing.assert_allclose(found, column(unbroken, "pseudo_label"), atol=1e-4)


def hostile():
    """Return rows with everything that can be wrong with one, and how often each is."""
    rows = Rows(*people([4, 1, 7, 2] * 25, 32, [0.5, 2.0], 3))
    rows.embeddings = rows.embeddings * np.float32(7)
    rows.embeddings[[5, 50]] = 0.0
    rows.embeddings[200:300] = 0.0  # a whole shard among them
    rows.embeddings[17, 3] = np.nan
    rows.embeddings[310, 0] = np.inf
    rows.embeddings[311, 0] = -np.inf
    rows.image_ids[30] = rows.image_ids[100] = rows.image_ids[130]
    rows.content[42] = rows.content[43]
    assert rows.codes[42] == rows.codes[43]
    rejected = {"zero_embedding": 102, "non_finite_embedding": 3, "duplicate_image_id": 3}
    return rows, rejected | {"duplicate_image": 1, "no_identity": 2}


def without_keys(table):
    """Take the identity from one image of the set, and the image_id from another."""
    for place, content in ((0, 7), (1, 3)):
        names = pa.compute.if_else(
            pa.compute.equal(table["content"], content), None, table.column(place)
        )
        table = table.set_column(place, table.schema.field(place), names)
    return table


@pytest.mark.parametrize(
    "keys",
    [
        {"min_images": 3, "trim": {"low": 0.1, "high": 0.1}, "scaling": "quantile"},
        {"method": "sampled", "sampled": {"normalisation": "per_round"}, "trim": {"low": 0.2}},
    ],
    ids=["left_out", "per_round"],
)
def test_everything_adds_up(do_label, tmp_path, keys):
    rows, expected = hostile()
    embeddings = write_embeddings(tmp_path / "embeddings", rows.shuffled(5), num_files=3)
    for number in range(3):
        rewrite(embeddings, number, without_keys)
    labels = do_label.label(embeddings, str(tmp_path / "labels"), max_reject_share=0.4, **keys)
    assert_adds_up(labels, len(rows.codes))
    assert 0 in manifest(labels)["parts"].values()
    found = [reason for _, reason in rejects(labels)]
    assert {reason: found.count(reason) for reason in set(found)} == expected
    alone = "too_few_images" if "min_images" in keys else "no_mated_comparison"
    assert set(results(labels)["unlabelled"]) == {alone, "trimmed"}
    assert set(reasons(labels)) == {alone, "trimmed", None}


def refused(do_label, embeddings, output, capsys):
    """Return what the command says of a dataset that it cannot label."""
    argv = [f"embeddings={embeddings}", f"output={output}", "resources.workers=1"]
    assert main(LabelConfig, label.run, argv) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert not Path(output, MANIFEST).exists()
    return message


def test_embeddings_of_two_sizes_are_refused_by_file(do_label, monkeypatch, tmp_path, capsys):
    """Also where the sizes meet only after rows were brought together, and when run once more."""
    monkeypatch.setattr(shard_rows, "ROWS_PER_BATCH", 90)
    rows = Rows(*clean()).shuffled(2)
    embeddings = write_embeddings(tmp_path / "embeddings", rows, num_files=4)
    short = Rows(rows.embeddings[180:270, :32], rows.codes[180:270], rows.image_ids[180:270])
    file = rewrite(embeddings, 2, lambda _: short.table())
    for _ in range(2):
        message = refused(do_label, embeddings, tmp_path / "labels", capsys)
        assert f"{file}: embeddings of 32 numbers, others have 64" in message
        assert len(list(Path(tmp_path, "labels/_work/rows").iterdir())) == 4


def test_embeddings_of_no_fixed_length_are_refused_by_file(do_label, tmp_path, capsys):
    embeddings = write_embeddings(tmp_path / "embeddings", Rows(*clean()), num_files=3)

    def variable(table):
        place = table.schema.get_field_index(columns.EMBEDDING)
        return table.set_column(
            place, columns.EMBEDDING, table[columns.EMBEDDING].cast(pa.list_(pa.float32()))
        )

    file = rewrite(embeddings, 1, variable)
    message = refused(do_label, embeddings, tmp_path / "labels", capsys)
    assert f"{file}: embedding: expected lists of one fixed length, got list<" in message


def test_a_file_without_a_column_is_named(do_label, tmp_path, capsys):
    embeddings = write_embeddings(tmp_path / "embeddings", Rows(*clean()), num_files=3)
    for name in (columns.EMBEDDING, columns.CONTENT):
        file = rewrite(embeddings, 2, lambda table, name=name: table.drop_columns([name]))
        message = refused(do_label, embeddings, tmp_path / name, capsys)
        assert f"{file}: no column {name}" in message


@pytest.mark.parametrize("part", [0, 3])
def test_a_truncated_file_is_named(do_label, part, tmp_path, capsys):
    embeddings = write_embeddings(tmp_path / "embeddings", Rows(*clean()), num_files=4)
    file = Path(embeddings, f"part-{part:06d}.parquet")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    message = refused(do_label, embeddings, tmp_path / "labels", capsys)
    assert f"{file} is not a whole Parquet file" in message


@pytest.mark.parametrize(("num_files", "message"), [(0, "no Parquet file"), (2, "no embeddings")])
def test_nothing_to_label_is_an_error(do_label, num_files, message, tmp_path, capsys):
    nobody = Rows(np.zeros((0, 8), np.float32), np.zeros(0, np.int64))
    embeddings = write_embeddings(tmp_path / "embeddings", nobody, num_files)
    found = refused(do_label, embeddings, tmp_path / "labels", capsys)
    assert f"{embeddings} holds {message}" in found


@pytest.mark.parametrize(("method", "number"), [("exact", 20), ("sampled", 1)])
def test_nobody_with_two_images_is_an_error(do_label, method, number):
    rows = Rows(*people([1] * number, 8, [0.5], 0))
    with pytest.raises(InputError, match="no image could be labelled: every one lacks a compari"):
        do_label(rows, method=method)
