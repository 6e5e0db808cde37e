"""All pairs on the GPU. Run with `pytest -m gpu`, which fails where there is no GPU."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from embedding_sets import SETS, degraded, one_big
from scipy.stats import wasserstein_distance

from sdd_ray.core import all_pairs_triton as kernel
from sdd_ray.core.all_pairs import (
    AllPairsDistances,
    AllPairsPlan,
    ColumnBlock,
    all_pairs_distances,
)
from sdd_ray.core.all_pairs_counts import FORMATS, CountedRows, count_by_torch, in_format
from sdd_ray.core.mated import Shard
from sdd_ray.core.moments import partial_sums

pytestmark = pytest.mark.gpu

ROUNDING = 1e-7  # of embeddings to the grid, and of the oracle: not part of any bound


@pytest.fixture(scope="module", autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        pytest.fail("-m gpu was asked for, but torch finds no CUDA device")


@pytest.fixture(scope="module")
def triton():
    if find_spec("triton") is None:
        pytest.fail("-m gpu was asked for, but Triton is not installed beside torch for CUDA")


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    if request.param == "triton":
        request.getfixturevalue("triton")
    return request.param


def label(unit, codes, plan, cuts=(), order=None) -> AllPairsDistances:
    order = np.arange(len(unit)) if order is None else order
    pieces = zip(np.split(unit[order], cuts), np.split(codes[order], cuts), strict=True)
    blocks = [ColumnBlock.of(*piece, plan) for piece in pieces]
    return all_pairs_distances(Shard.of(unit, codes), blocks, plan, partial_sums(unit))


def by_scipy(unit, codes) -> np.ndarray:
    similarity = unit.astype(np.float64) @ unit.astype(np.float64).T
    images = np.arange(len(unit))
    found = np.full(len(unit), np.nan)
    for i, row in enumerate(similarity):
        mated, nonmated = row[(codes == codes[i]) & (images != i)], row[codes != codes[i]]
        if len(mated):
            found[i] = wasserstein_distance(mated, nonmated)
    return found


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("has_floor", [False, True])
@pytest.mark.parametrize("precision", FORMATS)
def test_the_kernel_counts_as_the_cpu_does(precision, has_floor, size):
    """Similarities of rows of equal sizes and random signs are exact in every format."""
    rng = np.random.default_rng(0)
    unit = torch.from_numpy(rng.choice([-1.0, 1.0], (1000, 64))).float() / 8.0
    unit = torch.nn.functional.pad(unit, (0, size - 64))
    group = torch.arange(1000, dtype=torch.int32) // 9
    floor_bin = torch.from_numpy(rng.integers(30, 65, 1000)).int() if has_floor else None
    counted = {}
    for device in ("cpu", "cuda"):
        values = in_format(unit, precision).to(device)
        rows = CountedRows(
            values[:300],
            group[:300].to(device),
            None if floor_bin is None else floor_bin[:300].to(device),
            torch.zeros((300, 64), dtype=torch.int32, device=device),
        )
        for part in (slice(0, 700), slice(700, None)):
            if device == "cpu":
                count_by_torch(rows, values[part], group[part])
            else:
                kernel.count(rows, values[part], group[part].to(device), precision)
        counted[device] = rows.histogram.cpu()
    assert counted["cpu"].sum() > 0
    assert torch.equal(counted["cuda"], counted["cpu"])


@pytest.mark.parametrize("tail_only", [False, True])
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("name", SETS)
def test_errors_are_within_their_bounds(name, precision, tail_only, backend):
    unit, codes = SETS[name]()
    plan = AllPairsPlan(precision, 4096, tail_only, device="cuda", backend=backend)
    labels, expected = label(unit, codes, plan), by_scipy(unit, codes)
    has_label = ~np.isnan(expected)
    np.testing.assert_array_equal(labels.reason == 0, has_label)
    error = np.abs(labels.distance - expected)[has_label]
    assert (error <= labels.error_bound[has_label] + ROUNDING).all()


def test_sorted_similarities_match_scipy():
    unit, codes = one_big()
    labels = label(unit, codes, AllPairsPlan(bins=None, device="cuda"))
    np.testing.assert_allclose(labels.distance, by_scipy(unit, codes), atol=1e-6)


@pytest.mark.parametrize("tail_only", [False, True])
def test_torch_gives_the_labels_of_the_cpu(tail_only):
    unit, codes = degraded()
    cpu, gpu = (
        label(unit, codes, AllPairsPlan(tail_only=tail_only, device=device, backend="torch"))
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(gpu.distance, cpu.distance, atol=1e-10)
    np.testing.assert_allclose(gpu.error_bound, cpu.error_bound, atol=1e-10)


@pytest.mark.parametrize("tail_only", [False, True])
@pytest.mark.parametrize("precision", FORMATS)
def test_order_and_size_of_blocks_change_no_bit(precision, tail_only, backend):
    unit, codes = degraded()
    plan = AllPairsPlan(precision, 4096, tail_only, device="cuda", backend=backend)
    whole = label(unit, codes, plan)
    shuffled = np.random.default_rng(0).permutation(len(unit))
    for again in (
        label(unit, codes, plan, [1, 2, 100, 100, 101]),
        label(unit, codes, plan, [64, 128], shuffled),
    ):
        np.testing.assert_array_equal(again.distance, whole.distance)
        np.testing.assert_array_equal(again.error_bound, whole.error_bound)


def test_the_kernel_is_used_where_it_can_be():
    assert AllPairsPlan(device="cuda").uses_triton == (find_spec("triton") is not None)
