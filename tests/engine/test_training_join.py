"""Labels and images joined over files are those joined in memory, in the same order."""

import io
import tarfile
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_tables import random_labels, write_label_table
from labelled_faces import train_config

from sdd_ray.engine import training_join, training_rows
from sdd_ray.engine.training_join import _Cuts, _listed_rows
from sdd_ray.engine.training_labels import image_keys, order_of
from sdd_ray.engine.training_rows import prepare
from sdd_ray.errors import InputError
from sdd_ray.formats.items import Item, to_table
from sdd_ray.formats.source import open_source
from sdd_ray.settings import ListConfig, LossConfig, SourceConfig
from sdd_ray.store.location import Location

TABLE = random_labels(people=200, images=12)
IDS = TABLE["image_id"].to_pylist()
LOST = set(IDS[::11])
LISTED = [*(name for name in IDS if name not in LOST), *(f"other/{n}.jpg" for n in range(700))]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(training_rows, "_probe", lambda *_: None)
    monkeypatch.setattr(training_join, "ROWS_PER_PARTITION", 700)
    monkeypatch.setattr(training_join, "ROWS_PER_CHUNK", 500)
    monkeypatch.setattr(training_join, "_LISTING_TASKS", 2)


def folder(root):
    return SourceConfig(kind="folder", path=str(root))


def archives(root):
    """Three archives; one is damaged behind its first images, which are listed nonetheless."""
    (root / "tars").mkdir()
    for number in range(3):
        with tarfile.open(root / "tars" / f"{number}.tar", "w") as archive:
            for name in LISTED[number::3]:
                info = tarfile.TarInfo(name)
                info.size = 3
                archive.addfile(info, io.BytesIO(b"abc"))
    damaged = root / "tars" / "1.tar"
    content = bytearray(damaged.read_bytes())
    content[300 * 1024 : 300 * 1024 + 512] = b"?" * 512
    damaged.write_bytes(content)
    return SourceConfig(kind="tar", path=str(root / "tars"))


def lines(root, place="at"):
    """A list that holds some images twice, of which the first counts."""
    twice = [f"{name}\tsecond/{name}" for name in LISTED[:50]]
    text = "\n".join([f"{name}\t{place}/{name}" for name in LISTED] + twice)
    (root / "list.txt").write_text(text)
    layout = ListConfig(columns=("image_id", "path"))
    return SourceConfig(kind="list", path=str(root / "list.txt"), list_file=layout, identity="none")


def key_of(make, name):
    """Return the image_id that a source gives to one of the images."""
    where = f"{LISTED.index(name) % 3}.tar/" if make is archives and name in LISTED else ""
    return where + name


def write_landmarks(make, root, repeated=0):
    draws = np.random.default_rng(2)
    names = [name for name in LISTED if draws.random() < 0.8]
    text = [
        "\t".join([key_of(make, name), *(f"{x:.2f}" for x in draws.uniform(0, 112, 10))])
        for name in names
    ]
    (root / "points.txt").write_text("\n".join(text + text[:repeated]))
    return str(root / "points.txt")


def labels_for(make, root, files=5):
    keys = [key_of(make, name) for name in IDS]
    return write_label_table(root / "labels", TABLE.set_column(0, "image_id", [keys]), files)


def prepared(root, source, labels, join_in_memory=100, **changes):
    config = train_config(
        "labels", root / "model", source=source, join_in_memory=join_in_memory, **changes
    )
    return prepare(config, labels, Location(str(root / "work")))


def whole(rows):
    """Return all rows, of files as they are in them."""
    if rows.table is not None:
        return rows.table
    return pa.concat_tables(
        pq.ParquetFile(block.file).read_row_group(block.row_group) for block in rows.blocks
    )


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("has_landmarks", [False, True])
@pytest.mark.parametrize("make", [folder, archives, lines])
def test_rows_are_those_joined_in_memory(tmp_path, make, has_landmarks):
    labels, source = labels_for(make, tmp_path), make(tmp_path)
    if has_landmarks:
        source = replace(source, landmarks=write_landmarks(make, tmp_path))
    options = {"loss": LossConfig(weighting="error_bound", balance=0.5), "seed": 3}
    in_memory = prepared(tmp_path, source, labels, len(IDS), **options)
    on_disk = prepared(tmp_path, source, labels, **options)
    assert (on_disk.splits, on_disk.mean_target) == (in_memory.splits, in_memory.mean_target)
    for part in ("train", "validation"):
        wanted, found = whole(getattr(in_memory, part)), getattr(on_disk, part)
        assert found.table is None
        assert found.num_rows == wanted.num_rows > 100
        assert whole(found).schema == wanted.schema
        assert whole(found) == wanted
        if make is not folder:
            assert 0 < wanted["file"].null_count < wanted.num_rows / 2
        if has_landmarks:
            assert 0 < wanted["landmarks"].null_count < wanted.num_rows / 2
    assert not (tmp_path / "work" / "rows" / "cut").exists()


@pytest.mark.usefixtures("ray_session")
def test_blocks_are_row_groups_of_about_equal_size(tmp_path):
    data = prepared(tmp_path, folder(tmp_path), labels_for(folder, tmp_path))
    files = sorted({block.file for block in data.train.blocks})
    assert len(files) == 3  # about 600 rows each
    for file in files:
        rows = [block.rows for block in data.train.blocks if block.file == file]
        groups = [block.row_group for block in data.train.blocks if block.file == file]
        footer = pq.ParquetFile(file).metadata
        assert rows == [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
        assert groups == list(range(footer.num_row_groups))
        assert 256 <= min(rows) <= max(rows) <= 512
        assert max(rows) - min(rows) <= 1
    assert [block.file for block in data.train.blocks] == sorted(b.file for b in data.train.blocks)


@pytest.mark.usefixtures("ray_session")
def test_finished_join_is_found_again(tmp_path, monkeypatch):
    labels, source = labels_for(lines, tmp_path), lines(tmp_path)
    data = prepared(tmp_path, source, labels)
    monkeypatch.setattr(training_join, "run_tasks", None)
    assert prepared(tmp_path, source, labels) == data


@pytest.mark.usefixtures("ray_session")
def test_join_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    labels, source = labels_for(lines, tmp_path), lines(tmp_path)
    run_tasks = training_join.run_tasks

    def interrupted(calls):
        for result, label in run_tasks(calls, most=1):
            yield result, label
            if "train" in result:  # the first partition, where all others are about cutting
                raise KeyboardInterrupt

    monkeypatch.setattr(training_join, "run_tasks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, source, labels)
    rows = tmp_path / "work" / "rows"
    before = {file: file.stat().st_mtime_ns for file in rows.rglob("*.parquet")}
    cut = {file: file.stat().st_mtime_ns for file in rows.rglob("*.arrow")}
    assert len(before) >= 2
    assert len(cut) == 5  # of labels and list
    monkeypatch.setattr(training_join, "run_tasks", run_tasks)
    monkeypatch.setattr(Location, "remove_tree", lambda self: None)
    data = prepared(tmp_path, source, labels)
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert {f: f.stat().st_mtime_ns for f in rows.rglob("*.arrow")} == cut
    assert whole(data.train) == whole(prepared(tmp_path, source, labels, len(IDS)).train)


@pytest.mark.usefixtures("ray_session")
def test_source_that_was_replaced_is_joined_anew(tmp_path):
    labels = labels_for(lines, tmp_path)
    prepared(tmp_path, lines(tmp_path), labels)
    data = prepared(tmp_path, lines(tmp_path, place="elsewhere"), labels)
    files = [file for file in whole(data.train)["file"].to_pylist() if file]
    assert {file.split("/")[0] for file in files} == {"elsewhere"}


@pytest.mark.usefixtures("ray_session")
def test_source_without_images_has_no_file_for_any(tmp_path):
    labels, source = labels_for(lines, tmp_path), lines(tmp_path)
    (tmp_path / "list.txt").write_text("\n")
    data = prepared(tmp_path, source, labels)
    assert whole(data.train)["file"].null_count == data.train.num_rows
    assert whole(data.train) == whole(prepared(tmp_path, source, labels, len(IDS)).train)


def lose_list(root, source):
    (root / "list.txt").unlink()
    return source


def damage_labels(root, source):
    # What is read from it to begin with is whole.
    file = root / "labels" / "part-000003.parquet"
    pq.write_table(pq.read_table(file).drop_columns("image_id"), file)
    return source


def repeat_landmarks(root, source):
    return replace(source, landmarks=write_landmarks(lines, root, repeated=1))


def empty_landmarks(root, source):
    (root / "points.txt").write_text("\n\n")
    return replace(source, landmarks=str(root / "points.txt"))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_list, r"cannot (look at|read) .*list\.txt"),
        (damage_labels, r"part-000003\.parquet: no column image_id"),
        (
            repeat_landmarks,
            r"points\.txt: expected one line an image, got more for '0000/001\.jpg'",
        ),
        (empty_landmarks, r"points\.txt: expected lines of image_id and ten numbers, got none"),
    ],
)
@pytest.mark.parametrize("join_in_memory", [100, len(IDS)])
def test_mistakes_are_named_as_in_memory(tmp_path, change, message, join_in_memory):
    labels = labels_for(lines, tmp_path)
    source = change(tmp_path, lines(tmp_path))
    with pytest.raises(InputError, match=message):
        prepared(tmp_path, source, labels, join_in_memory)


def test_partitions_of_several_chunks_are_in_training_order(tmp_path):
    cuts = _Cuts(Location(str(tmp_path)), count=7, seed=4)
    draws = np.random.default_rng(0)
    ids = [f"image {n}" for n in draws.permutation(900)]
    tables = [
        pa.table({"image_id": ids[start:end], "part": draws.choice(["train", "validation"], 300)})
        for start, end in pairwise([0, 300, 600, 900])
    ]
    note = cuts.write("labels-00000", tables)
    assert cuts.note("labels-00000") == note
    assert cuts.note("labels-00001") is None
    chunks = {"labels-00000": note["chunks"]}
    found = [cuts.read(number, chunks) for number in range(7)]
    orders = [order_of(image_keys(part["image_id"].to_pylist()), 4) for part in found]
    assert all(one.max() < other.min() for one, other in pairwise(orders))
    assert min(map(len, orders)) > 80
    assert sorted(pa.concat_tables(found)["image_id"].to_pylist()) == sorted(ids)
    for part, counts in note["counts"].items():
        assert counts == [rows["part"].to_pylist().count(part) for rows in found]
    # Rows of a partition keep the order in which they came.
    place = {name: n for n, name in enumerate(ids)}
    assert all(
        (np.diff([place[i] for i in part["image_id"].to_pylist()]) > 0).all() for part in found
    )


def test_damaged_chunk_is_named(tmp_path):
    cuts = _Cuts(Location(str(tmp_path)), count=2, seed=0)
    cuts.write("listing-00000", [to_table([Item("a"), Item("b")])])
    file = tmp_path / "listing-00000-00000.arrow"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"listing-00000-00000\.arrow is damaged"):
        cuts.read(0, {"listing-00000": 1})


def test_long_listings_come_in_chunks(tmp_path):
    tables = list(_listed_rows(open_source(lines(tmp_path)), None))
    assert [table.num_rows for table in tables] == [500] * (len(tables) - 1) + [
        (len(LISTED) + 50) % 500
    ]
    found = pa.concat_tables(tables)["image_id"].to_pylist()
    assert found == LISTED + LISTED[:50]
