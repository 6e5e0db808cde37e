import numpy as np
import pytest
from embedding_sets import SETS, degraded, tiny
from label_oracles import brute_force, drawn
from scipy.stats import chisquare

from sdd_ray.core import reference as module
from sdd_ray.core.mated import PAD
from sdd_ray.core.reference import (
    Block,
    Rows,
    hits_among_all,
    sampling_order,
    similarities,
    tiles,
)
from sdd_ray.core.sampled import image_digests


def digests_of(num_images: int):
    return image_digests([f"image-{i}" for i in range(num_images)])


def test_order_of_sampling_is_for_ever():
    """Golden: mix(digest ^ mix(seed + 0xD1B54A32D192ED03)) of SplitMix64, by Python's integers."""
    digests = image_digests(["0001.jpg", "0002.jpg", "人.jpg"])
    assert sampling_order(digests, 0).tolist() == [
        0x76C4E1AFEA51D32B,
        0xF254A6784F14BCD5,
        0xE67886259048A0F7,
    ]
    assert sampling_order(digests, 1).tolist() == [
        0xD0E6802C88DE7B18,
        0xE6B5289639436FBF,
        0xF19D85E77BE79E6F,
    ]


def test_order_belongs_to_the_image():
    digests = digests_of(500)
    order = np.random.default_rng(0).permutation(500)
    whole = sampling_order(digests, 3)
    np.testing.assert_array_equal(sampling_order(digests[order], 3), whole[order])
    assert sampling_order(digests[7:8], 3)[0] == whole[7]
    assert whole.dtype == np.uint64
    assert len(set(whole.tolist())) == 500


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_order_is_uniform(seed):
    share = sampling_order(digests_of(20_000), seed) / 2.0**64
    counts = np.histogram(share, bins=40, range=(0, 1))[0]
    assert counts.sum() == 20_000
    assert chisquare(counts).pvalue > 1e-4
    assert abs(np.corrcoef(share[1:], share[:-1])[0, 1]) < 4 / np.sqrt(20_000)


def test_seeds_draw_independently():
    orders = [np.argsort(sampling_order(digests_of(5000), seed)) for seed in range(4)]
    first = [set(order[:500].tolist()) for order in orders]
    for one in range(4):
        for other in range(one):
            assert 20 < len(first[one] & first[other]) < 90  # 50 expected


@pytest.mark.parametrize("name", SETS)
def test_own_identity_is_padded(name):
    unit, codes = SETS[name]()
    sample = drawn(unit, codes, len(unit) // 2, 0)
    found = similarities(Rows(unit, codes), sample)
    is_own = codes[:, None] == sample.identities
    assert (found[is_own] == PAD).all()
    exact = unit.astype(np.float64) @ sample.unit.astype(np.float64).T
    np.testing.assert_allclose(found[~is_own], exact[~is_own], atol=1e-6)


def test_rows_of_identities_that_are_not_sampled():
    unit, codes = degraded()
    sample = Block(unit[24:36], codes[24:36])
    assert (similarities(Rows(unit[:24], codes[:24]), sample) > PAD).all()
    assert (similarities(Rows(unit[24:36], codes[24:36]), sample) == PAD).all()


def test_block_by_identity():
    unit, codes = tiny()
    order = np.random.default_rng(0).permutation(len(unit))
    block = Block(unit[order], codes[order]).sorted()
    assert (np.diff(block.identities) >= 0).all()
    expected = np.lexsort((np.arange(len(order)), codes[order]))
    np.testing.assert_array_equal(block.unit, unit[order][expected])
    assert block.unit.ctypes.data % 64 == 0


@pytest.mark.parametrize("sizes", [[1, 99], [10, 10, 10, 70], [25, 0, 75], [100]])
def test_tiles_do_not_depend_on_blocks(sizes, monkeypatch):
    monkeypatch.setattr(module, "COLUMN_TILE", 10)
    unit = np.arange(200, dtype=np.float32).reshape(100, 2)
    codes, cuts = np.arange(100), np.cumsum(sizes)[:-1]
    blocks = [
        Block(*piece) for piece in zip(np.split(unit, cuts), np.split(codes, cuts), strict=True)
    ]
    found = list(tiles(blocks))
    assert [len(tile.unit) for tile in found] == [10] * 10
    np.testing.assert_array_equal(np.concatenate([tile.unit for tile in found]), unit)
    np.testing.assert_array_equal(np.concatenate([tile.identities for tile in found]), codes)


def test_aligned_blocks_are_not_copied(monkeypatch):
    monkeypatch.setattr(module, "COLUMN_TILE", 10)
    unit = np.zeros((35, 2), np.float32)
    found = list(tiles([Block(unit, np.arange(35))]))
    assert [len(tile.unit) for tile in found] == [10, 10, 10, 5]
    assert all(np.shares_memory(tile.unit, unit) for tile in found)


def test_no_block_is_no_tile():
    assert list(tiles([])) == []
    assert list(tiles([Block(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))])) == []


@pytest.mark.parametrize("room", [(7, 5), (4096, 256)])
def test_hits_among_all_are_those_above_the_floor(room, monkeypatch):
    monkeypatch.setattr(module, "COLUMN_TILE", room[0])
    monkeypatch.setattr(module, "ROW_TILE", room[1])
    unit, codes = degraded()
    floor = np.random.default_rng(0).uniform(-0.5, 1.0, len(unit)).astype(np.float32)
    floor[::9] = np.inf
    order = np.random.default_rng(1).permutation(len(unit))
    blocks = [Block(unit[part], codes[part]) for part in np.array_split(order, 11)]
    found = hits_among_all(Rows(unit, codes), floor, blocks)
    for i, (_, nonmated) in enumerate(brute_force(unit, codes)):
        wanted = np.sort(nonmated[nonmated > floor[i]])
        hits = found.similarity[i]
        assert found.num_compared[i] == len(nonmated)
        assert found.count[i] == len(wanted) == np.count_nonzero(hits > PAD)
        np.testing.assert_allclose(np.sort(hits[hits > PAD]), wanted, atol=1e-6)


def test_rows_need_not_be_sorted_or_of_the_run():
    unit, codes = degraded()
    chosen = np.array([200, 5, 77])
    rows = Rows(unit[chosen], np.array([codes[200], 10**12, codes[77]]))
    found = hits_among_all(rows, np.full(3, -2, np.float32), [Block(unit, codes)])
    assert found.num_compared.tolist() == [348, 360, 348]
    assert found.count.tolist() == [348, 360, 348]


def test_nobody_has_no_hits():
    unit, codes = degraded()
    found = hits_among_all(Rows(unit[:2], codes[:2]), np.zeros(2, np.float32), [])
    assert found.num_compared.tolist() == [0, 0]
    assert found.similarity.shape == (2, 0)


@pytest.mark.parametrize(("shape", "number"), [((3, 2), 2), ((3,), 3)])
def test_block_is_checked(shape, number):
    with pytest.raises(ValueError, match=rf"\(C,\) identities, got .* and \({number},\)"):
        Block(np.zeros(shape, np.float32), np.zeros(number, np.int64))
