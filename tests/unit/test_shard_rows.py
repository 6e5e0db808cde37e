"""Rows of shards are found wherever they lie; without Ray (see tests/engine/test_regrouping.py)."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdd_ray import columns
from sdd_ray.core.similarity import EMBEDDING_REASONS, usable_rows
from sdd_ray.engine import label_plan, shard_rows
from sdd_ray.engine.label_plan import LabelPlan, plan_labels
from sdd_ray.engine.shard_rows import (
    Place,
    RowSource,
    arrange,
    decoded_rows,
    forms_of,
    places_of,
    read_unit_rows,
)
from sdd_ray.errors import InputError
from sdd_ray.store.dataset import Dataset
from sdd_ray.store.location import Location

SIZE = 3
NUM_ROWS = 40


def table(numbers, size=SIZE, storage="float32", people=None) -> pa.Table:
    """Return rows of images with these numbers; ten images a person, or as `people` say."""
    numbers = np.asarray(numbers)
    people = numbers // 10 if people is None else np.asarray(people)[numbers]
    # The embedding of an image is its number, by which a test finds it again.
    values = np.repeat(numbers + 1, size).astype(storage)
    data = [
        pa.array([f"img{n:04d}" for n in numbers], pa.string()),
        pa.array([f"p{p:03d}" for p in people], pa.string()),
        pa.FixedSizeListArray.from_arrays(pa.array(values), size),
        pa.array(np.ones(len(numbers), np.float32)),
        pa.array(numbers.astype(np.uint64)),
    ]
    return pa.Table.from_arrays(data, schema=columns.embeddings(size, storage))


@pytest.fixture
def write(tmp_path):
    """Return a function that writes files of images with these numbers, and opens them."""

    def written(*parts, group_size=4, **options) -> Dataset:
        files = []
        for number, part in enumerate(parts):
            content = part if isinstance(part, pa.Table) else table(part, **options)
            pq.write_table(content, tmp_path / f"part-{number}.parquet", row_group_size=group_size)
            files.append(Location(str(tmp_path / f"part-{number}.parquet")))
        return Dataset(Location(str(tmp_path)), tuple(files), {})

    return written


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(label_plan, "ROWS_PER_SHARD", 8)


def plan_of(dataset) -> LabelPlan:
    return plan_labels(dataset, drop_duplicates=True)


def numbers_of(shard) -> list[int]:
    return [int(image_id.removeprefix("img")) for image_id in shard.image_ids.to_pylist()]


def assert_reads(source, places, plan):
    """Check that every shard gets its own rows."""
    for shard, place in zip(plan.shards, places, strict=True):
        wanted = np.repeat(np.array(numbers_of(shard)) + 1, SIZE).reshape(-1, SIZE)
        np.testing.assert_array_equal(source.read(place), wanted)


def sorted_files() -> list:
    return np.split(np.arange(NUM_ROWS), [13, 14, 30])


def scattered_files() -> list:
    return np.array_split(np.random.default_rng(0).permutation(NUM_ROWS), 4)


@pytest.mark.parametrize("group_size", [1, 3, 4, 1000])
@pytest.mark.parametrize("files", [sorted_files, scattered_files])
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_shards_read_their_rows_of_parquet_files(write, files, group_size, storage):
    plan = plan_of(write(*files(), group_size=group_size, storage=storage))
    source = RowSource(plan.files, plan.row_groups)
    assert len(plan.shards) == 4
    assert_reads(source, places_of(plan), plan)
    assert source.read(places_of(plan)[0]).dtype == np.float32


def test_rows_in_any_order_and_more_than_once(write):
    dataset = write(range(10), range(10, 25), range(25, 40))
    plan = plan_of(dataset)
    source = RowSource(plan.files, plan.row_groups)
    rng = np.random.default_rng(1)
    for _ in range(10):
        chosen = rng.integers(0, NUM_ROWS, 23)
        files = np.digitize(chosen, [10, 25]).astype(np.int32)
        rows = chosen - np.array([0, 10, 25])[files]
        np.testing.assert_array_equal(source.read(Place(files, rows))[:, 0], chosen + 1)


def test_only_the_row_groups_needed_are_read(write, monkeypatch):
    plan = plan_of(write(range(20), range(20, 40)))
    source = RowSource(plan.files, plan.row_groups)
    asked = []
    read = shard_rows.read_row_groups

    def watch(file, groups, names):
        asked.append((file.uri.rpartition("/")[2], groups))
        return read(file, groups, names)

    monkeypatch.setattr(shard_rows, "read_row_groups", watch)
    files, rows = np.array([0, 0, 1], np.int32), np.array([5, 14, 19])
    np.testing.assert_array_equal(source.read(Place(files, rows))[:, 0], [6, 15, 40])
    assert asked == [("part-0.parquet", [1, 3]), ("part-1.parquet", [4])]


def nothing() -> Place:
    return Place(np.zeros(0, np.int32), np.zeros(0, np.int64))


def test_no_rows(write):
    plan = plan_of(write(range(20)))
    assert len(RowSource(plan.files, plan.row_groups).read(nothing())) == 0


@pytest.fixture
def arrays(tmp_path):
    """Two files of regrouped rows: images 0 to 19, and 20 to 49."""
    files = []
    for number, part in enumerate(np.split(np.arange(1, 51, dtype=np.float32), [20])):
        np.save(tmp_path / f"rows-{number}.npy", np.repeat(part[:, None], SIZE, axis=1))
        files.append(Location(str(tmp_path / f"rows-{number}.npy")))
    return RowSource(tuple(files), None, forms=forms_of(files))


@pytest.mark.parametrize(
    "chosen", [range(5), range(15, 30), range(50), [3, 4, 9, 22, 23, 49], [0], [49], [19, 20], []]
)
def test_regrouped_rows_are_read_from_their_arrays(arrays, chosen):
    chosen = np.array(chosen, np.int64)
    files = (chosen >= 20).astype(np.int32)
    found = arrays.read(Place(files, chosen - 20 * files))
    wanted = np.repeat(chosen[:, None] + 1, SIZE, axis=1) if len(chosen) else found
    np.testing.assert_array_equal(found, wanted)


def test_rows_of_interleaved_arrays(arrays):
    files = np.array([1, 0, 1, 0, 0, 1], np.int32)
    found = arrays.read(Place(files, np.array([0, 7, 1, 8, 11, 29])))
    assert found[:, 0].tolist() == [21, 8, 22, 9, 12, 50]


def test_decoded_rows_are_those_of_whole_row_groups(write):
    # In order: shards of ten rows, in row groups of 4 of files of 13, 1, 16 and 10 rows.
    plan = plan_of(write(*sorted_files()))
    touched = [12, 1 + 4 + 1 + 8, 12, 10]  # rows 0-9; 10-19: 8-11, 12, 13, 14-21; ...
    assert decoded_rows(plan) == sum(touched)
    assert decoded_rows(plan_of(write(*sorted_files(), group_size=1))) == NUM_ROWS
    whole = plan_of(write(range(NUM_ROWS), group_size=1000))
    assert decoded_rows(whole) == NUM_ROWS * len(whole.shards)


def test_rows_in_order_are_read_where_they_lie(write, tmp_path):
    plan = plan_of(write(*sorted_files()))
    work = Location(str(tmp_path / "work"))
    source, places = arrange(plan, work)
    assert source == RowSource(plan.files, plan.row_groups)
    assert_reads(source, places, plan)
    assert not work.exists()


def test_one_shard_is_read_where_it_lies(write, tmp_path, monkeypatch):
    monkeypatch.setattr(label_plan, "ROWS_PER_SHARD", 1000)
    plan = plan_of(write(*scattered_files(), group_size=1000))
    source, places = arrange(plan, Location(str(tmp_path / "work")))
    assert len(plan.shards) == 1
    assert source.row_groups is not None
    assert_reads(source, places, plan)


def test_unusable_rows_are_left_out(write):
    content = table(range(10))
    values = np.repeat(np.arange(10, dtype=np.float32), SIZE).reshape(10, SIZE)
    values[4, 1] = np.nan
    place = content.schema.get_field_index("embedding")
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), SIZE)
    plan = plan_of(write(content.set_column(place, content.schema.field(place), lists)))
    unit, faults = read_unit_rows(RowSource(plan.files, plan.row_groups), places_of(plan)[0])
    assert [EMBEDDING_REASONS[code] for code in faults[[0, 4]]] == [
        "zero_embedding",
        "non_finite_embedding",
    ]
    np.testing.assert_array_equal(unit, usable_rows(values)[0])
    assert len(unit) == 8


def test_embeddings_of_two_sizes_are_refused_by_file(write):
    plan = plan_of(write(table(range(5)), table(range(5, 40), size=SIZE + 1)))
    source = RowSource(plan.files, plan.row_groups)
    message = r"part-1\.parquet: embeddings of 4 numbers, others have 3"
    with pytest.raises(InputError, match=message):
        source.read(places_of(plan)[0])


def test_file_with_a_null_embedding_is_named(write):
    content = table(range(10))
    place = content.schema.get_field_index("embedding")
    some = content["embedding"].to_pylist()
    some[7] = None
    kind = content.schema.field(place)
    plan = plan_of(write(content.set_column(place, kind, pa.array(some, kind.type))))
    with pytest.raises(InputError, match=r"part-0\.parquet: embedding: expected no nulls"):
        RowSource(plan.files, plan.row_groups).read(places_of(plan)[0])


def test_missing_file_is_named(write):
    plan = plan_of(write(range(10)))
    plan.files[0].remove()
    with pytest.raises(InputError, match=r"cannot read .*part-0\.parquet"):
        RowSource(plan.files, plan.row_groups).read(places_of(plan)[0])
