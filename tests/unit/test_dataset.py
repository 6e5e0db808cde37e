"""Readers take complete outputs of the right command with the right columns, and nothing else."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdd_ray.errors import InputError
from sdd_ray.settings import LabelConfig
from sdd_ray.store.dataset import (
    open_dataset,
    read_any,
    read_json,
    read_parquet,
    read_parquet_with_groups,
    read_row_groups,
)
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun, Reject, parquet_bytes, write_part


@pytest.fixture
def place(tmp_path):
    return Location(str(tmp_path / "data"))


def rows(*ids):
    return pa.table({"image_id": pa.array(ids, pa.string()), "value": list(range(len(ids)))})


def begin(place):
    return OutputRun(place, "label", LabelConfig(embeddings="e", output="o"))


def write(place):
    run = begin(place)
    records = [
        write_part(place, "part-1", rows("c")),
        write_part(place, "part-0", rows("a", "b"), [Reject("r", "broken")]),
    ]
    return run.complete(records)


def test_files_are_read_in_order_of_name_and_rejects_are_not_data(place):
    manifest = write(place)
    dataset = open_dataset(place.uri, ["embed", "label"])
    assert [file.uri.rsplit("/", 1)[1] for file in dataset.files] == [
        "part-0.parquet",
        "part-1.parquet",
    ]
    assert dataset.read(["value", "image_id"]).to_pydict() == {
        "value": [0, 1, 0],
        "image_id": ["a", "b", "c"],
    }
    assert dataset.manifest == manifest
    assert dataset.digest == manifest["digest"]


def test_relative_path_is_made_absolute(place, tmp_path, monkeypatch):
    write(place)
    monkeypatch.chdir(tmp_path)
    assert open_dataset("data", ["label"]).location == place


def test_nothing_there(place):
    with pytest.raises(InputError, match="expected a dataset written by embed or label, found no"):
        open_dataset(place.uri, ["embed", "label"])


def test_incomplete_dataset(place):
    begin(place)
    write_part(place, "part-0", rows("a"))
    for read in (lambda: open_dataset(place.uri, ["label"]), lambda: read_any(place.uri, ["x"])):
        with pytest.raises(InputError, match="is not complete: run the command that writes it"):
            read()


def test_dataset_of_another_command(place):
    write(place)
    with pytest.raises(InputError, match="written by embed, found one of label"):
        open_dataset(place.uri, ["embed"])


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"null"])
def test_damaged_manifest(place, content):
    write(place)
    (place / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        open_dataset(place.uri, ["label"])


def test_missing_columns_are_named(place):
    write(place)
    dataset = open_dataset(place.uri, ["label"])
    with pytest.raises(
        InputError, match=r"part-0\.parquet: no column w, z; it has image_id, value"
    ):
        dataset.read(["value", "w", "z"])


@pytest.mark.parametrize("keep", [0, 3, 0.5, -1, -9])
def test_truncated_file_is_named(place, keep):
    write(place)
    file = place / "part-1.parquet"
    content = file.read_bytes()
    length = int(len(content) * keep) if isinstance(keep, float) else keep
    file.write_bytes(content[:length])
    with pytest.raises(InputError, match=r"part-1\.parquet is not a whole Parquet file"):
        open_dataset(place.uri, ["label"]).read(["image_id"])


def test_damaged_data_pages_are_noticed(place):
    table = pa.table({"image_id": [f"{i:09d}" for i in range(5000)]})
    content = bytearray(parquet_bytes(table))
    content[40:2000] = bytes(1960)
    (place / "a.parquet").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"a\.parquet is not a whole Parquet file"):
        read_parquet(place / "a.parquet")


@pytest.fixture
def grouped(tmp_path):
    """A file of row groups of 3, 3 and 1 rows."""
    pq.write_table(rows(*"abcdefg"), tmp_path / "a.parquet", row_group_size=3)
    return Location(str(tmp_path / "a.parquet"))


def test_sizes_of_row_groups(grouped):
    table, sizes = read_parquet_with_groups(grouped, ["value"])
    assert table.to_pydict() == {"value": list(range(7))}
    assert sizes == [3, 3, 1]


def test_some_row_groups(grouped):
    table = read_row_groups(grouped, [0, 2], ["value", "image_id"])
    assert table.to_pydict() == {"value": [0, 1, 2, 6], "image_id": ["a", "b", "c", "g"]}
    assert read_row_groups(grouped, [1], ["image_id"]).column_names == ["image_id"]


def test_an_empty_file_has_no_rows_in_its_groups(tmp_path):
    file = Location(str(tmp_path / "a.parquet"))
    file.write_bytes(parquet_bytes(rows()))
    table, sizes = read_parquet_with_groups(file, ["value"])
    assert (table.num_rows, sum(sizes)) == (0, 0)


@pytest.mark.parametrize(
    "read",
    [
        read_parquet_with_groups,
        lambda file, columns: read_row_groups(file, [0], columns),
    ],
    ids=["with_groups", "row_groups"],
)
def test_readers_of_row_groups_name_the_file(grouped, read):
    with pytest.raises(InputError, match=r"a\.parquet: no column w; it has image_id, value"):
        read(grouped, ["value", "w"])
    grouped.write_bytes(grouped.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"a\.parquet is not a whole Parquet file"):
        read(grouped, ["value"])
    grouped.remove()
    with pytest.raises(InputError, match=r"cannot read .*a\.parquet"):
        read(grouped, ["value"])


def test_a_damaged_row_group_is_met_only_by_those_who_read_it(tmp_path):
    file = Location(str(tmp_path / "a.parquet"))
    table = pa.table({"value": np.random.default_rng(0).permutation(9000)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3000, use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[40:4000] = bytes(3960)
    file.write_bytes(bytes(content))
    assert read_row_groups(file, [2], ["value"]).num_rows == 3000
    with pytest.raises(InputError, match=r"a\.parquet is not a whole Parquet file"):
        read_row_groups(file, [0, 2], ["value"])


def test_missing_file(place):
    with pytest.raises(InputError, match=r"cannot read .*a\.parquet"):
        read_parquet(place / "a.parquet")


def test_read_json(place):
    (place / "a.json").write_bytes(json.dumps({"a": 1}).encode())
    assert read_json(place / "a.json") == {"a": 1}


def test_read_any_takes_a_dataset_a_folder_or_a_file(place, tmp_path):
    write(place)
    wanted = {"value": [0, 1, 0]}
    assert read_any(place.uri, ["value"]).to_pydict() == wanted
    plain = Location(str(tmp_path / "plain"))
    for name, table in (("b", rows("c")), ("a", rows("a", "b"))):
        (plain / f"{name}.parquet").write_bytes(parquet_bytes(table))
    assert read_any(plain.uri, ["value"]).to_pydict() == wanted
    assert read_any((plain / "b.parquet").uri, ["image_id"]).to_pydict() == {"image_id": ["c"]}


def test_read_any_without_parquet_files(tmp_path):
    with pytest.raises(InputError, match="expected Parquet files, found none"):
        read_any(str(tmp_path), ["value"])
    with pytest.raises(InputError, match="cannot read"):
        read_any(str(tmp_path / "missing"), ["value"])


def test_part_that_is_missing_or_added_is_noticed(place):
    write(place)
    (place / "part-9.parquet").write_bytes(parquet_bytes(rows("stray")))
    assert open_dataset(place.uri, ["label"]).read(["image_id"]).num_rows == 3
    (place / "part-1.parquet").remove()
    for read in (
        lambda: open_dataset(place.uri, ["label"]),
        lambda: read_any(place.uri, ["value"]),
    ):
        with pytest.raises(InputError, match=r"1 of 2 parts are missing, first part-1\.parquet"):
            read()
