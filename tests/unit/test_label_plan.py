"""The label plan follows from the keys alone, and its shards hold whole identities."""

import pickle
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sdd_ray import columns
from sdd_ray.engine import label_plan
from sdd_ray.engine.label_plan import plan_labels, shard_bounds
from sdd_ray.errors import InputError
from sdd_ray.settings import EmbedConfig
from sdd_ray.store.dataset import Dataset, open_dataset
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun, Reject, write_part

Row = tuple[str | None, str | None, int]


@pytest.fixture
def embed(tmp_path):
    """Return a function that writes rows (image_id, identity, content) split over some files."""
    numbers = iter(range(100))

    def write(rows: list[Row], num_files: int = 1, in_runs: bool = False) -> Dataset:
        place = Location(str(tmp_path / str(next(numbers))))
        run = OutputRun(place, "embed", EmbedConfig(output="o"))
        parts = [rows[n::num_files] for n in range(num_files)]
        if in_runs:
            cuts = np.linspace(0, len(rows), num_files + 1).astype(int)
            parts = [rows[start:stop] for start, stop in pairwise(cuts)]
        records = [write_part(place, f"part-{n}", table(part)) for n, part in enumerate(parts)]
        run.complete(records)
        return open_dataset(place.uri, ["embed"])

    return write


def table(rows: list[Row]) -> pa.Table:
    ids, people, content = zip(*rows, strict=True) if rows else ((), (), ())
    # The embedding of a row is its content, by which a test finds it again.
    values = pa.array(np.repeat(np.asarray(content, np.float32), 2))
    data = [
        pa.array(ids, pa.string()),
        pa.array(people, pa.string()),
        pa.FixedSizeListArray.from_arrays(values, 2),
        pa.array(np.ones(len(rows), np.float32)),
        pa.array(content, pa.uint64()),
    ]
    return pa.Table.from_arrays(data, schema=columns.embeddings(2))


def people(*sizes: int) -> list[Row]:
    """Return rows of as many identities, with distinct contents."""
    rows = [(f"img{p}-{i}", f"p{p:03d}") for p, size in enumerate(sizes) for i in range(size)]
    return [(image_id, person, n) for n, (image_id, person) in enumerate(rows)]


def keys_of(plan) -> list[list[tuple[str, str, int]]]:
    return [
        list(zip(s.image_ids.to_pylist(), s.identities.to_pylist(), s.codes.tolist(), strict=True))
        for s in plan.shards
    ]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(label_plan, "ROWS_PER_SHARD", 5)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("num_files", [1, 2, 7])
def test_plan_does_not_depend_on_order_or_files(embed, num_files):
    rows = [*people(3, 1, 6, 2, 2, 9, 1), ("x", "p002", 1), ("img0-0", "p005", 77)]
    wanted = plan_labels(embed(rows), drop_duplicates=True)
    shuffled = [rows[i] for i in np.random.default_rng(num_files).permutation(len(rows))]
    plan = plan_labels(embed(shuffled, num_files), drop_duplicates=True)
    assert keys_of(plan) == keys_of(wanted)
    assert plan.rejects == wanted.rejects
    assert plan.num_identities == wanted.num_identities
    assert plan.duplicates_across_identities == wanted.duplicates_across_identities == 2
    assert len(plan.files) == num_files


@pytest.mark.usefixtures("small_shards")
def test_positions_lead_to_the_embeddings(embed):
    rows = people(3, 1, 6, 2)
    content_of = {image_id: content for image_id, _, content in rows}
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    dataset = embed(shuffled, 3)
    plan = plan_labels(dataset, drop_duplicates=True)
    files = [Dataset(dataset.location, (f,), {}).read(["embedding"]) for f in plan.files]
    for shard in plan.shards:
        for image_id, file, row in zip(
            shard.image_ids.to_pylist(), shard.files, shard.rows, strict=True
        ):
            assert files[file]["embedding"][int(row)].as_py()[0] == content_of[image_id]


@pytest.mark.usefixtures("small_shards")
def test_canonical_order_is_by_identity_then_image(embed):
    rows = [("b", "q", 1), ("z", "p", 2), ("a", "q", 3), ("y", "p", 4), ("10", "p", 5)]
    plan = plan_labels(embed(rows, 2), drop_duplicates=True)
    assert keys_of(plan) == [
        [("10", "p", 0), ("y", "p", 0), ("z", "p", 0), ("a", "q", 1), ("b", "q", 1)]
    ]
    assert plan.num_identities == 2


@pytest.mark.usefixtures("small_shards")
def test_shards_hold_whole_identities_and_close_when_full(embed):
    sizes = (3, 1, 6, 2, 3, 12, 1, 1)
    plan = plan_labels(embed(people(*sizes)), drop_duplicates=True)
    # 3 + 1 + 6 rows: the third identity fills the first shard and stays in it; 12 are cut.
    assert [len(shard.codes) for shard in plan.shards] == [10, 5, 5, 5, 2, 2]
    assert [sorted(set(shard.codes)) for shard in plan.shards] == [
        [0, 1, 2],
        [3, 4],
        [5],
        [5],
        [5],
        [6, 7],
    ]
    assert [shard.number for shard in plan.shards] == [0, 1, 2, 3, 4, 5]
    assert [shard.family for shard in plan.shards] == [
        (0, 1),
        (1, 2),
        (2, 5),
        (2, 5),
        (2, 5),
        (5, 6),
    ]
    assert plan.num_rows == sum(sizes)


def plain_bounds(sizes: list[int], room: int) -> list[tuple[int, int, tuple[int, int]]]:
    """Return the bounds of shards, one identity after the other."""
    shards: list[list[tuple[int, int]]] = []  # families of shards
    start = stop = 0
    for size in sizes:
        if size > 2 * room:
            shards += [[(start, stop)]] if stop > start else []
            ends = [stop + room * n for n in range(1, -(-size // room))] + [stop + size]
            shards.append(list(zip([stop, *ends[:-1]], ends, strict=True)))
            start = stop = stop + size
            continue
        stop += size
        if stop - start >= room:
            shards.append([(start, stop)])
            start = stop
    shards += [[(start, stop)]] if stop > start else []
    bounds, number = [], 0
    for family in shards:
        bounds += [(*piece, (number, number + len(family))) for piece in family]
        number += len(family)
    return bounds


@pytest.mark.parametrize("room", [1, 5, 6])
def test_shard_bounds_against_a_plain_loop(room, monkeypatch):
    monkeypatch.setattr(label_plan, "ROWS_PER_SHARD", room)
    rng = np.random.default_rng(3)
    for _ in range(100):
        sizes = rng.choice([1, 2, 3, 5, 8, 10, 11, 15, 31], rng.integers(1, 12))
        codes = np.repeat(np.arange(len(sizes)), sizes)
        bounds = shard_bounds(codes)
        assert bounds == plain_bounds(sizes.tolist(), room)
        assert [0, *(stop for _, stop, _ in bounds)] == [
            *(start for start, _, _ in bounds),
            len(codes),
        ]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("size", [10, 11, 15, 16])
def test_pieces_of_a_large_identity(embed, size):
    plan = plan_labels(embed(people(2, size, 3)), drop_duplicates=True)
    pieces = [shard for shard in plan.shards if 1 in shard.codes]
    if size <= 10:  # not more than twice a shard: whole, behind the first identity
        assert [len(shard.codes) for shard in pieces] == [2 + size]
        return
    assert all(set(shard.codes) == {1} for shard in pieces)
    assert [len(shard.codes) for shard in pieces[:-1]] == [5] * (len(pieces) - 1)
    assert {shard.family for shard in pieces} == {(1, 1 + len(pieces))}
    ids = [image_id for shard in pieces for image_id in shard.image_ids.to_pylist()]
    assert ids == sorted(f"img1-{i}" for i in range(size))


def refuse(*arguments, **options):
    raise AssertionError("the keys were sorted")


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("num_files", [1, 4])
def test_sorted_keys_are_not_sorted_again(embed, monkeypatch, num_files):
    rows = sorted(people(3, 1, 6, 2, 2, 9, 1), key=lambda row: (row[1], row[0]))
    shuffled = [rows[i] for i in np.random.default_rng(5).permutation(len(rows))]
    wanted = plan_labels(embed(shuffled, 3), drop_duplicates=True)
    monkeypatch.setattr(pc, "sort_indices", refuse)
    plan = plan_labels(embed(rows, num_files, in_runs=True), drop_duplicates=True)
    assert keys_of(plan) == keys_of(wanted)
    assert [shard.family for shard in plan.shards] == [shard.family for shard in wanted.shards]
    assert plan.shards[0].rows.tolist()[:3] == [0, 1, 2]
    with pytest.raises(AssertionError, match="the keys were sorted"):
        plan_labels(embed(shuffled), drop_duplicates=True)


@pytest.mark.parametrize(
    "keys",
    [
        [("p", "a"), ("p", "b"), ("q", "c"), ("r", "d"), ("q", "e")],
        [("p", "b"), ("p", "a")],
        [("q", "a"), ("p", "b")],
        [("p", "é"), ("p", "z"), ("p", "Z")],
        [("p1", "a"), ("p10", "b"), ("p", "c")],
    ],
)
def test_order_is_seen_wherever_it_is_broken(embed, keys):
    rows = [(image_id, person, n) for n, (person, image_id) in enumerate(keys)]
    plan = plan_labels(embed(rows), drop_duplicates=True)
    found = [(person, image_id) for shard in keys_of(plan) for image_id, person, _ in shard]
    assert found == sorted(keys, key=lambda key: (key[0].encode(), key[1].encode()))


def test_row_groups_of_every_file(tmp_path):
    rows = people(3, 4, 2, 5)
    place = Location(str(tmp_path))
    sizes = {"a": (rows[:7], 3), "b": (rows[7:7], 3), "c": (rows[7:], 100)}
    for name, (part, size) in sizes.items():
        pq.write_table(table(part), tmp_path / f"{name}.parquet", row_group_size=size)
    files = tuple(place / f"{name}.parquet" for name in sizes)
    plan = plan_labels(Dataset(place, files, {}), drop_duplicates=True)
    assert [starts[[0, -1]].tolist() for starts in plan.row_groups] == [[0, 7], [0, 0], [0, 7]]
    assert plan.row_groups[0].tolist() == [0, 3, 6, 7]
    assert plan.row_groups[2].tolist() == [0, 7]
    assert plan.files == files
    assert plan.num_rows == len(rows)


def test_shard_does_not_drag_the_whole_set_along(embed, monkeypatch):
    monkeypatch.setattr(label_plan, "ROWS_PER_SHARD", 100)
    plan = plan_labels(embed(people(*[10] * 100)), drop_duplicates=True)
    assert len(plan.shards) == 10
    sizes = [len(pickle.dumps(shard)) for shard in plan.shards]
    assert max(sizes) < 8000
    monkeypatch.setattr(label_plan, "ROWS_PER_SHARD", 1000)
    [whole] = plan_labels(embed(people(*[10] * 100)), drop_duplicates=True).shards
    assert sum(sizes) < 2 * len(pickle.dumps(whole))


def test_rows_of_one_image_id_are_all_set_aside(embed):
    rows = [("a", "p", 1), ("b", "p", 2), ("a", "q", 3), ("c", "q", 4), ("a", "q", 5)]
    plan = plan_labels(embed(rows, 2), drop_duplicates=True)
    assert plan.rejects == [Reject("a", "duplicate_image_id", "key not unique")] * 3
    assert keys_of(plan) == [[("b", "p", 0), ("c", "q", 1)]]


def test_equal_pixels_within_an_identity(embed):
    rows = [("c", "p", 7), ("a", "p", 7), ("b", "p", 7), ("d", "p", 8), ("e", "q", 9)]
    dropped = plan_labels(embed(rows, 3), drop_duplicates=True)
    detail = "equal pixels to another image of the identity"
    assert dropped.rejects == [Reject(i, "duplicate_image", detail) for i in ("b", "c")]
    assert keys_of(dropped) == [[("a", "p", 0), ("d", "p", 0), ("e", "q", 1)]]
    kept = plan_labels(embed(rows, 3), drop_duplicates=False)
    assert kept.rejects == []
    assert sum(len(shard.codes) for shard in kept.shards) == 5
    assert dropped.duplicates_across_identities == kept.duplicates_across_identities == 0


def test_equal_pixels_of_different_people_are_kept_and_counted(embed):
    rows = [("a", "p", 7), ("b", "q", 7), ("c", "r", 7), ("d", "r", 8), ("e", "s", 9)]
    plan = plan_labels(embed(rows), drop_duplicates=True)
    assert plan.rejects == []
    assert plan.duplicates_across_identities == 3


def test_contents_of_64_bits_are_told_apart(embed):
    high = 2**64 - 1
    rows = [("a", "p", high), ("b", "p", high - 1), ("c", "q", high), ("d", "q", high - 2)]
    plan = plan_labels(embed(rows), drop_duplicates=True)
    assert plan.rejects == []
    assert plan.duplicates_across_identities == 2


def test_rows_without_keys(embed):
    rows = [("a", None, 1), (None, "p", 2), (None, None, 3), ("b", "p", 4), ("c", "p", 5)]
    plan = plan_labels(embed(rows), drop_duplicates=True)
    detail = "image_id or identity is null"
    assert sorted(plan.rejects, key=lambda r: r.image_id) == [
        Reject("", "no_identity", detail),
        Reject("", "no_identity", detail),
        Reject("a", "no_identity", detail),
    ]
    assert keys_of(plan) == [[("b", "p", 0), ("c", "p", 0)]]


def test_nothing_to_label(embed):
    with pytest.raises(InputError, match="holds no embeddings"):
        plan_labels(embed([]), drop_duplicates=True)
    with pytest.raises(InputError, match="every row had to be set aside"):
        plan_labels(embed([("a", None, 1)]), drop_duplicates=True)
    with pytest.raises(InputError, match="every row had to be set aside"):
        plan_labels(embed([("a", "p", 1), ("a", "p", 2)]), drop_duplicates=True)
    empty = Dataset(Location("/nowhere"), (), {})
    with pytest.raises(InputError, match="holds no Parquet file"):
        plan_labels(empty, drop_duplicates=True)


def test_empty_files_among_others(embed):
    rows = people(2, 2)
    plan = plan_labels(embed(rows, 6), drop_duplicates=True)
    assert keys_of(plan) == keys_of(plan_labels(embed(rows), drop_duplicates=True))
