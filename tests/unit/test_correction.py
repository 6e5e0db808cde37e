import numpy as np
import pytest
from embedding_sets import SETS

from sdd_ray.core import correction as module
from sdd_ray.core.correction import Reference, ReferenceBlock, RowTile, certificate, correction
from sdd_ray.core.wasserstein import Comparisons


def rows_tile(unit, codes, rows) -> tuple[RowTile, list[np.ndarray]]:
    """Return some rows as a tile, and each row's nonmated similarities."""
    similarity = unit[rows].astype(np.float64) @ unit.astype(np.float64).T
    same = codes[rows][:, None] == codes
    mated = same & (np.arange(len(unit)) != rows[:, None])
    comparisons = Comparisons(np.nonzero(mated)[0], similarity[mated].astype(np.float32))
    tile = RowTile(unit[rows], codes[rows], comparisons.sorted(), mated.sum(axis=1))
    return tile, [row[~own] for row, own in zip(similarity, same, strict=True)]


def positive_part(mated, nonmated) -> float:
    """Return the integral of (F_P - F_N)^+ by the definition."""
    points = np.sort(np.concatenate([mated, nonmated]))
    share_p = np.searchsorted(np.sort(mated), points[:-1], side="right") / len(mated)
    share_n = np.searchsorted(np.sort(nonmated), points[:-1], side="right") / len(nonmated)
    return float((np.diff(points) * np.maximum(share_p - share_n, 0)).sum())


@pytest.fixture(params=SETS)
def tile_set(request):
    unit, codes = SETS[request.param]()
    rows = np.unique(np.random.default_rng(0).integers(0, len(unit), 60))
    tile, nonmated = rows_tile(unit, codes, rows)
    has_mated = tile.num_mated > 0
    expected = [
        positive_part(tile.mated.similarity[tile.mated.row == i], nonmated[i]) if known else 0.0
        for i, known in enumerate(has_mated)
    ]
    return unit, codes, tile, nonmated, np.array(expected)


def test_exhaustive_matches_the_definition(tile_set):
    unit, codes, tile, nonmated, expected = tile_set
    excess, _, num_nonmated = correction(tile, Reference([ReferenceBlock(unit, codes)], True))
    np.testing.assert_allclose(excess, expected, atol=1e-6)
    assert num_nonmated.tolist() == [len(row) for row in nonmated]


def test_certificate_is_never_violated(tile_set):
    _, _, tile, nonmated, expected = tile_set
    mean = np.array([row.mean() for row in nonmated])
    std = np.array([row.std() for row in nonmated])
    bound = certificate(tile.mated, tile.num_mated, mean, std)
    assert (expected <= bound + 1e-6).all()
    assert (bound <= 2.0).all()


def test_certificate_matches_numeric_integration():
    mated = np.float32([-0.4, 0.05, 0.3, 0.3, 0.9])
    comparisons = Comparisons(np.zeros(5, np.int64), mated)
    bound = certificate(comparisons, np.array([5]), np.array([0.1]), np.array([0.2]))
    grid = np.linspace(-0.4, 1, 2_000_001)
    middle = (grid[1:] + grid[:-1]) / 2
    tail = 1 / (1 + (np.maximum(middle - 0.1, 0) / 0.2) ** 2)
    above = 1 - np.searchsorted(mated, middle, side="right") / 5
    expected = (np.maximum(tail - above, 0) * np.diff(grid)).sum()
    assert bound[0] == pytest.approx(expected, abs=1e-6)


def test_own_identity_is_left_out_wherever_it_lies():
    unit, codes = SETS["degraded"]()
    tile, _ = rows_tile(unit, codes, np.arange(24))
    order = np.random.default_rng(1).permutation(len(unit))
    excess, _, num_nonmated = correction(tile, Reference([ReferenceBlock(unit, codes)], True))
    shuffled = Reference(
        [ReferenceBlock(unit[part], codes[part]) for part in np.array_split(order, 9)], True
    )
    again, _, num_again = correction(tile, shuffled)
    assert excess.max() > 0.001
    np.testing.assert_allclose(again, excess, atol=1e-6)
    np.testing.assert_array_equal(num_again, num_nonmated)


@pytest.mark.parametrize("sizes", [[1, 99], [10, 10, 10, 70], [25, 0, 75], [100]])
def test_tiles_do_not_depend_on_blocks(sizes, monkeypatch):
    monkeypatch.setattr(module, "COLUMN_TILE", 10)
    unit = np.arange(200, dtype=np.float32).reshape(100, 2)
    codes, cuts = np.arange(100), np.cumsum(sizes)[:-1]
    blocks = [
        ReferenceBlock(*piece)
        for piece in zip(np.split(unit, cuts), np.split(codes, cuts), strict=True)
    ]
    tiles = list(Reference(blocks, True).tiles())
    assert [len(tile.unit) for tile in tiles] == [10] * 10
    np.testing.assert_array_equal(np.concatenate([tile.unit for tile in tiles]), unit)
    np.testing.assert_array_equal(np.concatenate([tile.identities for tile in tiles]), codes)


def test_aligned_blocks_are_not_copied(monkeypatch):
    monkeypatch.setattr(module, "COLUMN_TILE", 10)
    unit = np.zeros((35, 2), np.float32)
    tiles = list(Reference([ReferenceBlock(unit, np.arange(35))], True).tiles())
    assert [len(tile.unit) for tile in tiles] == [10, 10, 10, 5]
    assert all(np.shares_memory(tile.unit, unit) for tile in tiles)


def test_block_is_checked():
    with pytest.raises(ValueError, match=r"\(C,\) identities, got \(3, 2\) and \(2,\)"):
        ReferenceBlock(np.zeros((3, 2), np.float32), np.zeros(2, np.int64))
