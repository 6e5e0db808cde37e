import numpy as np
import pytest
from embedding_sets import SETS, duplicates, one_big
from label_oracles import brute_force, tile_of

from sdd_ray.core import mated as module
from sdd_ray.core.mated import PAD, Shard, mated_tiles


def shard_of_sizes(*sizes: int) -> Shard:
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((sum(sizes), 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return Shard.of(unit.astype(np.float32), np.repeat(np.arange(len(sizes)), sizes))


def tiles_of(shard, centre=None, **options):
    centre = np.zeros(len(shard.unit)) if centre is None else centre
    return list(mated_tiles(shard, centre, **options))


@pytest.mark.parametrize("room", [1, 50, 10_000, 1 << 30])
@pytest.mark.parametrize("name", SETS)
def test_each_row_and_each_mated_comparison_once(name, room, monkeypatch):
    monkeypatch.setattr(module, "MAX_TILE_PRODUCTS", room)
    unit, codes = SETS[name]()
    expected = brute_force(unit, codes)
    tiles = tiles_of(Shard.of(unit, codes))
    assert sorted(np.concatenate([tile.rows for tile in tiles]).tolist()) == list(range(len(unit)))
    for tile in tiles:
        width = tile.similarity.shape[1]
        assert width == tile.num_mated.max()
        for local, i in enumerate(tile.rows):
            assert tile.num_mated[local] == len(expected[i][0])
            assert (tile.similarity[local, : width - tile.num_mated[local]] == PAD).all()
            found = tile.similarity[local, width - tile.num_mated[local] :]
            np.testing.assert_allclose(found, np.sort(expected[i][0]), atol=1e-6)


@pytest.mark.parametrize("room", [1, 40, 2000, 1 << 30])
def test_tiles_keep_to_their_room(room, monkeypatch):
    monkeypatch.setattr(module, "MAX_TILE_PRODUCTS", room)
    shard = shard_of_sizes(3, 60, 5, 1, 2, 5, 4, 60, 1, 9)
    sizes = np.diff(shard.starts)
    for tile in tiles_of(shard):
        groups = np.unique(shard.group[tile.rows])
        if len(groups) == 1:
            assert len(tile.rows) == 1 or len(tile.rows) * sizes[groups[0]] <= room
        else:
            assert len(groups) * sizes[groups].max() ** 2 <= room
            assert sizes[groups].sum() == len(tile.rows)  # whole identities


def test_identities_of_similar_sizes_share_a_tile():
    shard = shard_of_sizes(10, 7, 1, 9, 8, 1)
    groups = [np.unique(shard.group[tile.rows]).tolist() for tile in tiles_of(shard)]
    assert groups == [[2, 5], [1, 4], [0, 3]]  # sizes 1 and 1, 7 and 8, 9 and 10


def test_a_huge_identity_is_worked_on_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "MAX_TILE_PRODUCTS", 10 * 600)
    unit, codes = one_big()
    huge = [tile for tile in tiles_of(Shard.of(unit, codes)) if tile.num_mated[0] == 599]
    assert [len(tile.rows) for tile in huge] == [10] * 60
    assert np.concatenate([tile.rows for tile in huge]).tolist() == list(range(3, 603))


def test_part_of_one_identity():
    unit, codes = one_big()
    shard = Shard.of(unit[3:603], codes[3:603])
    [whole] = tiles_of(shard)
    pieces = [tiles_of(shard, part=part) for part in [(0, 7), (7, 450), (450, 600)]]
    tiles = [tile for piece in pieces for tile in piece]
    assert np.concatenate([tile.rows for tile in tiles]).tolist() == list(range(600))
    found = np.concatenate([tile.similarity for tile in tiles])
    np.testing.assert_allclose(found, whole.similarity, atol=1e-6)


def test_identities_of_one_image_have_no_similarity():
    [tile] = tiles_of(shard_of_sizes(1, 1, 1))
    assert tile.rows.tolist() == [0, 1, 2]
    assert tile.similarity.shape == (3, 0)
    assert tile.num_mated.tolist() == [0, 0, 0]
    assert np.isinf(tile.smallest).all()
    assert (tile.largest == PAD).all()
    assert (tile.ranked(np.zeros(3)) == PAD).all()


@pytest.mark.parametrize("limit", [0.999, 0.9, 0.5, -1.0])
def test_similarities_above_a_limit_are_left_out(limit):
    unit, codes = duplicates()
    expected = brute_force(unit, codes, limit)
    for tile in tiles_of(Shard.of(unit, codes), max_similarity=limit):
        for local, i in enumerate(tile.rows):
            number = tile.num_mated[local]
            assert number == len(expected[i][0])
            found = tile.similarity[local, tile.similarity.shape[1] - number :]
            np.testing.assert_allclose(found, np.sort(expected[i][0]), atol=1e-6)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("limit", [None, 0.5])
def test_own_square_is_over_the_whole_identity(name, limit):
    unit, codes = SETS[name]()
    exact = unit.astype(np.float64) @ unit.astype(np.float64).T
    centre = exact.mean(axis=1)
    wanted = [((row[codes == c] - m) ** 2).sum() for row, c, m in zip(exact, codes, centre)]  # noqa: B905
    for tile in tiles_of(Shard.of(unit, codes), centre, max_similarity=limit):
        np.testing.assert_allclose(
            tile.own_square, np.array(wanted)[tile.rows], rtol=1e-4, atol=1e-10
        )


def test_ranks_are_linear_between_similarities():
    rng = np.random.default_rng(1)
    rows = [rng.uniform(-1, 1, number) for number in (1, 2, 7, 7, 20)]
    tile = tile_of(rows)
    for share in (0.0, 0.05, 0.5, 0.77, 1.0):
        found = tile.ranked(share * (tile.num_mated - 1))
        np.testing.assert_allclose(found, [np.quantile(row, share) for row in rows], atol=1e-6)
    np.testing.assert_allclose(tile.smallest, [row.min() for row in rows], atol=1e-7)
    np.testing.assert_allclose(tile.largest, [row.max() for row in rows], atol=1e-7)


def test_subset_keeps_rows_together():
    tile = tile_of([[0.1], [0.2, 0.3], [0.4, 0.5]])
    part = tile.subset(np.array([2, 0]))
    assert part.rows.tolist() == [2, 0]
    assert part.num_mated.tolist() == [2, 1]
    np.testing.assert_array_equal(part.similarity, tile.similarity[[2, 0]])


def test_a_shard_moved_in_memory_changes_no_bit():
    unit, codes = SETS["degraded"]()
    buffer = np.empty(unit.size + 3, np.float32)
    moved = buffer[3:].reshape(unit.shape)
    moved[:] = unit
    pairs = zip(tiles_of(Shard.of(unit, codes)), tiles_of(Shard.of(moved, codes)), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one.similarity, other.similarity)
        np.testing.assert_array_equal(one.own_square, other.own_square)


def test_shard_of_codes():
    shard = Shard.of(np.eye(5, dtype=np.float32), np.array([7, 7, 3, 3, 3]))
    assert shard.starts.tolist() == [0, 2, 5]
    assert shard.identities.tolist() == [7, 3]
    assert shard.group.tolist() == [0, 0, 1, 1, 1]
    assert shard.codes.tolist() == [7, 7, 3, 3, 3]


@pytest.mark.parametrize(
    ("starts", "identities", "match"),
    [
        ([0, 2, 2, 4], [1, 2, 3], "rise strictly from 0 to 4"),
        ([0, 2, 3], [1, 2], "rise strictly from 0 to 4"),
        ([1, 4], [1], "rise strictly from 0 to 4"),
        ([0], [], "rise strictly from 0 to 4"),
        ([0, 2, 4], [1], "expected 2 identities"),
    ],
)
def test_shard_is_checked(starts, identities, match):
    unit = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match=match):
        Shard(unit, np.array(starts), np.array(identities))


@pytest.mark.parametrize("unit", [np.eye(2), np.zeros((0, 2), np.float32), np.zeros(2, np.float32)])
def test_shard_needs_float32_rows(unit):
    with pytest.raises(ValueError, match="float32 embeddings with N >= 1, got float"):
        Shard(unit, np.array([0, 2]), np.array([1]))
