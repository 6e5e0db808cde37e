"""Scattered rows are brought together by Ray tasks, once, and only where it pays."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdd_ray import columns
from sdd_ray.engine import label_plan, shard_rows
from sdd_ray.engine.label_plan import LabelPlan, plan_labels
from sdd_ray.engine.shard_rows import RowSource, arrange, decoded_rows, regroup
from sdd_ray.errors import InputError
from sdd_ray.store.dataset import Dataset
from sdd_ray.store.location import Location

pytestmark = pytest.mark.usefixtures("ray_session")

NUM_ROWS = 120
SIZE = 3


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Cut the plan into shards of ten rows, and batches of some 50; both on the driver."""
    monkeypatch.setattr(label_plan, "ROWS_PER_SHARD", 10)
    monkeypatch.setattr(shard_rows, "ROWS_PER_BATCH", 50)


def table(numbers, storage="float32", size=SIZE) -> pa.Table:
    """Return rows of images with these numbers, five a person; an embedding is the number."""
    values = np.repeat(numbers + 1, size).astype(storage)
    data = [
        pa.array([f"img{n:04d}" for n in numbers], pa.string()),
        pa.array([f"p{n // 5:03d}" for n in numbers], pa.string()),
        pa.FixedSizeListArray.from_arrays(pa.array(values), size),
        pa.array(np.ones(len(numbers), np.float32)),
        pa.array(numbers.astype(np.uint64)),
    ]
    return pa.Table.from_arrays(data, schema=columns.embeddings(size, storage))


def plan_of(folder: Path, parts, storage="float32", sizes=None) -> LabelPlan:
    files = []
    for number, part in enumerate(parts):
        size = SIZE if sizes is None else sizes[number]
        content = table(part, storage, size)
        pq.write_table(content, folder / f"part-{number}.parquet", row_group_size=8)
        files.append(Location(str(folder / f"part-{number}.parquet")))
    return plan_labels(Dataset(Location(str(folder)), tuple(files), {}), drop_duplicates=True)


def scattered(seed=0) -> list[np.ndarray]:
    return np.split(np.random.default_rng(seed).permutation(NUM_ROWS), [30, 60, 61, 100])


def assert_reads(source, places, plan):
    for shard, place in zip(plan.shards, places, strict=True):
        numbers = [int(image_id.removeprefix("img")) for image_id in shard.image_ids.to_pylist()]
        wanted = np.repeat(np.array(numbers) + 1, SIZE).reshape(-1, SIZE)
        np.testing.assert_array_equal(source.read(place), wanted)


def written(work: Location) -> dict[str, int]:
    folder = Path(work.uri)
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}


@pytest.fixture
def work(tmp_path):
    return Location(str(tmp_path / "work"))


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_scattered_rows_are_regrouped(tmp_path, work, storage):
    plan = plan_of(tmp_path, scattered(), storage)
    assert decoded_rows(plan) > shard_rows.MAX_DECODED * plan.num_rows
    source, places = arrange(plan, work)
    assert source.row_groups is None
    assert_reads(source, places, plan)
    # Files that begin within 50 rows make a batch: of 30 and 30, of 1 and 39, and of 20 rows.
    assert list(written(work)) == [f"rows-{n:06d}.npy" for n in range(3)]
    arrays = [np.load(Path(file.uri)) for file in source.files]
    assert [len(array) for array in arrays] == [60, 40, 20]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}  # also of float16
    for array in arrays:
        assert (np.diff(array[:, 0]) > 0).all()  # in canonical order
    for place in places:  # what a shard needs of a file lies side by side
        for file in np.unique(place.files):
            assert (np.diff(place.rows[place.files == file]) == 1).all()


def test_rows_in_order_are_not(tmp_path, work):
    plan = plan_of(tmp_path, np.split(np.arange(NUM_ROWS), [30, 60, 61, 100]))
    source, places = arrange(plan, work)
    assert source.files == plan.files
    assert_reads(source, places, plan)
    assert not work.exists()


def test_rows_set_aside_are_left_out(tmp_path, work):
    parts = scattered()
    parts[3] = np.append(parts[3], [17, 18])  # two keys twice
    plan = plan_of(tmp_path, parts)
    assert {reject.image_id for reject in plan.rejects} == {"img0017", "img0018"}
    source, places = regroup(plan, RowSource(plan.files, plan.row_groups), work)
    assert_reads(source, places, plan)
    assert sum(len(np.load(Path(file.uri))) for file in source.files) == NUM_ROWS - 2


def test_a_batch_that_is_there_is_not_written_again(tmp_path, work):
    plan = plan_of(tmp_path, scattered())
    source, places = arrange(plan, work)
    before = written(work)
    again = arrange(plan, work)
    assert written(work) == before
    assert again[0] == source
    (work / "rows-000001.npy").remove()
    source, places = arrange(plan, work)
    after = written(work)
    assert {name for name in before if before[name] != after[name]} == {"rows-000001.npy"}
    assert_reads(source, places, plan)


def test_empty_files_among_others(tmp_path, work):
    parts = scattered()
    plan = plan_of(tmp_path, [parts[0][:0], *parts, parts[0][:0]])
    source, places = arrange(plan, work)
    assert_reads(source, places, plan)


def test_embeddings_of_two_sizes_are_refused_by_file(tmp_path, work):
    plan = plan_of(tmp_path, scattered(), sizes=[3, 4, 3, 3, 3])  # both in one batch
    with pytest.raises(
        InputError, match=r"part-1\.parquet: embeddings of 4 numbers, others have 3"
    ):
        arrange(plan, work)


def test_a_damaged_file_is_named(tmp_path, work):
    plan = plan_of(tmp_path, scattered())
    content = Path(plan.files[3].uri).read_bytes()
    plan.files[3].write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"part-3\.parquet is not a whole Parquet file"):
        arrange(plan, work)
