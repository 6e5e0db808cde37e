import os
import subprocess
import sys
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_sets import SETS, Labelled, clean, degraded, mislabelled, one_big, people, tiny
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from sdd_ray.core import all_pairs_counts, all_pairs_plan, all_pairs_rows
from sdd_ray.core import all_pairs_triton as kernel
from sdd_ray.core.all_pairs import (
    AllPairsDistances,
    AllPairsPlan,
    ColumnBlock,
    RowTally,
    all_pairs_distances,
)
from sdd_ray.core.all_pairs_areas import LIMIT, BinnedRows, excess_ceilings
from sdd_ray.core.all_pairs_counts import (
    FORMATS,
    GRID,
    CountedRows,
    count_by_torch,
    in_format,
    on_grid,
    rounding_errors,
    similarity_error,
)
from sdd_ray.core.all_pairs_rows import MatedRows, tail_needs
from sdd_ray.core.mated import Shard
from sdd_ray.core.moments import partial_sums

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: torch for CPUs comes without it"
)

PLANS = {
    "plain": AllPairsPlan(),
    "coarse": AllPairsPlan(bins=64),
    "tf32": AllPairsPlan("tf32"),
    "float16": AllPairsPlan("float16"),
    "bf16": AllPairsPlan("bf16"),
    "tail": AllPairsPlan(tail_only=True),
    "tail, all of it": AllPairsPlan(tail_only=True, tolerance=0.0),
    "tail, coarse": AllPairsPlan(bins=64, tail_only=True),
    "tail, two bins": AllPairsPlan(bins=2, tail_only=True, tolerance=0.0),
    "tail, bf16": AllPairsPlan("bf16", tail_only=True, tolerance=0.0),
    "tail, bf16, coarse": AllPairsPlan("bf16", bins=512, tail_only=True, tolerance=0.01),
}
ROUNDING = 1e-7  # of embeddings to the grid, and of the oracle: not part of any bound


def label(unit, codes, plan, cuts=(), order=None) -> AllPairsDistances:
    """Return the labels when the columns come in another order and in pieces."""
    order = np.arange(len(unit)) if order is None else order
    pieces = zip(np.split(unit[order], cuts), np.split(codes[order], cuts), strict=True)
    blocks = [ColumnBlock.of(*piece, plan) for piece in pieces]
    return all_pairs_distances(Shard.of(unit, codes), blocks, plan, partial_sums(unit))


def by_scipy(unit, codes) -> np.ndarray:
    """Return the distances over all pairs, NaN for images with no mated or nonmated one."""
    similarity = unit.astype(np.float64) @ unit.astype(np.float64).T
    images = np.arange(len(unit))
    found = np.full(len(unit), np.nan)
    for i, row in enumerate(similarity):
        mated, nonmated = row[(codes == codes[i]) & (images != i)], row[codes != codes[i]]
        if len(mated) and len(nonmated):
            found[i] = wasserstein_distance(mated, nonmated)
    return found


def assert_same(found: AllPairsDistances, expected: AllPairsDistances) -> None:
    for name in ("distance", "error_bound", "num_mated", "num_nonmated", "reason"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


@pytest.fixture(scope="module")
def oracle():
    return {name: (*make(), by_scipy(*make())) for name, make in SETS.items()}


@pytest.fixture(scope="module", params=SETS)
def hard_set(request, oracle):
    return oracle[request.param]


def test_sorted_similarities_match_scipy(hard_set):
    unit, codes, expected = hard_set
    labels = label(unit, codes, AllPairsPlan(bins=None))
    np.testing.assert_allclose(labels.distance, expected, atol=1e-6)
    np.testing.assert_array_equal(labels.reason == 0, ~np.isnan(expected))
    assert (labels.error_bound[labels.reason == 0] == 0).all()


@pytest.mark.parametrize("name", PLANS)
def test_errors_are_within_their_bounds(hard_set, name):
    unit, codes, expected = hard_set
    labels = label(unit, codes, PLANS[name])
    has_label = ~np.isnan(expected)
    np.testing.assert_array_equal(labels.reason == 0, has_label)
    error = np.abs(labels.distance - expected)[has_label]
    assert (error <= labels.error_bound[has_label] + ROUNDING).all()
    assert (labels.distance[has_label] >= 0).all()


def test_bounds_say_something(oracle):
    """Else that errors are within them says little."""
    unit, codes, expected = oracle["degraded"]
    spread = np.nanstd(expected)
    for name, most in (("plain", 2.6e-4), ("float16", 1e-3), ("tf32", 1e-3), ("bf16", 5e-3)):
        labels = label(unit, codes, PLANS[name])
        assert labels.error_bound.max() < most < spread / 10, name
        assert np.abs(labels.distance - expected).max() > labels.error_bound.max() / 100, name
    for name in ("tail", "tail, bf16"):
        bound = label(unit, codes, PLANS[name]).error_bound
        assert np.median(bound) == 0, name
        assert bound.max() > 1e-4, name


def test_bf16_without_its_share_of_the_bound_is_out_of_it(oracle):
    """Else the part for the format would not be tested."""
    unit, codes, expected = oracle["one_big"]
    plan = AllPairsPlan("bf16", bins=1 << 16)
    error = np.abs(label(unit, codes, plan).distance - expected)
    assert (error > 1.0 / (1 << 16) + all_pairs_counts.CLIPPING).any()


@pytest.mark.parametrize(
    "plan",
    [AllPairsPlan(bins=None), *(PLANS[name] for name in ("plain", "bf16", "tail", "tail, bf16"))],
)
def test_order_and_size_of_blocks_change_no_bit(plan, monkeypatch):
    unit, codes = mislabelled()
    whole = label(unit, codes, plan)
    shuffled = np.random.default_rng(0).permutation(len(unit))
    assert_same(label(unit, codes, plan, [1, 2, 100, 100, 101]), whole)
    assert_same(label(unit, codes, plan, [64, 128], shuffled), whole)
    monkeypatch.setattr(all_pairs_counts, "TILE_COLUMNS", 7)
    monkeypatch.setattr(all_pairs_counts, "TILE_CELLS", 5 * (plan.bins or 1))
    assert_same(label(unit, codes, plan, [200], shuffled[::-1]), whole)


@pytest.mark.parametrize("plan", [AllPairsPlan(bins=None), PLANS["plain"], PLANS["bf16"]])
def test_tiles_of_rows_change_no_bit(plan, monkeypatch):
    unit, codes = one_big()
    whole = label(unit, codes, plan)
    monkeypatch.setattr(all_pairs_plan, "MAX_SIMILARITIES", 17 * len(unit))
    monkeypatch.setattr(all_pairs_plan, "MAX_CELLS", 17 * (plan.bins or 1))
    monkeypatch.setattr(all_pairs_rows, "TILE_PRODUCTS", 2000)
    monkeypatch.setattr(all_pairs_rows, "TILE_ROWS", 5)
    assert_same(label(unit, codes, plan), whole)


def test_tiles_of_rows_change_nothing_beyond_rounding_in_the_tail(monkeypatch):
    unit, codes = degraded()
    whole = label(unit, codes, PLANS["tail"])
    monkeypatch.setattr(all_pairs_plan, "MAX_CELLS", 17 * 4096)
    monkeypatch.setattr(all_pairs_rows, "TILE_ROWS", 5)
    parts = label(unit, codes, PLANS["tail"])
    np.testing.assert_allclose(parts.distance, whole.distance, atol=1e-9)
    np.testing.assert_allclose(parts.error_bound, whole.error_bound, atol=1e-9)


def test_threads_change_no_bit():
    unit, codes = degraded()
    whole = label(unit, codes, PLANS["plain"])
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert_same(label(unit, codes, PLANS["plain"]), whole)
    finally:
        torch.set_num_threads(num_threads)


def test_rows_may_be_any_of_the_shard():
    unit, codes = tiny()
    plan = PLANS["plain"]
    whole = label(unit, codes, plan)
    tally = RowTally(Shard.of(unit, codes), plan, range(10, 31))
    tally.add(ColumnBlock.of(unit, codes, plan))
    some = tally.finish()
    np.testing.assert_array_equal(some.distance, whole.distance[10:31])


def test_codes_of_identities_need_no_order():
    unit, codes = degraded()
    names = np.random.default_rng(1).integers(-(2**62), 2**62, codes.max() + 1)
    renamed = names[codes]
    assert_same(label(unit, renamed, PLANS["plain"]), label(unit, codes, PLANS["plain"]))


@pytest.mark.parametrize("plan", [AllPairsPlan(bins=None), PLANS["plain"], PLANS["tail"]])
def test_an_identity_of_one_image_is_nonmated_only(plan):
    unit, codes = clean()
    one = people([1], 64, [1.0], 9)[0]
    longer, more = np.concatenate([unit, one]), np.append(codes, codes.max() + 1)
    labels = label(longer, more, plan)
    assert labels.reason.tolist() == [0] * len(unit) + [1]
    assert np.isnan(labels.distance[-1])
    assert np.isnan(labels.error_bound[-1])
    assert labels.num_mated[-1] == 0
    assert labels.num_nonmated.tolist() == [len(unit) + 1 - 12] * len(unit) + [len(unit)]


@pytest.mark.parametrize("plan", [AllPairsPlan(bins=None), PLANS["plain"], PLANS["tail"]])
def test_one_identity_alone_has_no_label(plan):
    labels = label(clean()[0][:12], np.zeros(12, np.int64), plan)
    assert labels.reason.tolist() == [2] * 12
    assert np.isnan(labels.distance).all()
    alone = label(clean()[0][:1], np.zeros(1, np.int64), plan)
    assert alone.reason.tolist() == [1]


@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=12),
    size=st.integers(1, 20),
    noise=st.sampled_from([0.1, 0.7, 3.0]),
    seed=st.integers(0, 10_000),
    name=st.sampled_from(sorted(PLANS)),
)
def test_any_set_keeps_the_bounds(sizes, size, noise, seed, name):
    unit, codes = people(sizes, size, [noise, 1.0], seed)
    labels, expected = label(unit, codes, PLANS[name]), by_scipy(unit, codes)
    has_label = ~np.isnan(expected)
    np.testing.assert_array_equal(labels.reason == 0, has_label)
    error = np.abs(labels.distance - expected)[has_label]
    assert (error <= labels.error_bound[has_label] + ROUNDING).all()


def test_a_poor_mate_does_not_make_everybody_count():
    """One image of each identity is noise: half of everybody is above the smallest mated one."""
    unit, codes = people([20] * 40, 64, [0.4], 3)
    noise = np.random.default_rng(4).normal(size=(40, 64))
    unit[::20] = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32)
    shares = {}
    for tolerance in (0.0, 0.05):
        rows = MatedRows(Shard.of(unit, codes), range(len(unit)), "cpu")
        floor = tail_needs(rows, partial_sums(unit), tolerance).floor.numpy()
        shares[tolerance] = np.mean(unit @ unit.T > floor[:, None], axis=1)[1::20].mean()
    assert shares[0.05] < 0.01
    assert shares[0.0] > 0.1


# Numbers


def test_products_on_the_grid_are_exact():
    unit = on_grid(torch.from_numpy(degraded()[0][:40]))
    numbers = [[Fraction(float(x)) for x in row] for row in unit]
    computed = unit.double() @ unit.double().T
    for i, j in ((0, 0), (3, 17), (39, 1), (5, 6)):
        assert sum(a * b for a, b in zip(numbers[i], numbers[j], strict=True)) == Fraction(
            float(computed[i, j])
        )


def test_the_grid_moves_similarities_by_less_than_it_says():
    unit = torch.from_numpy(degraded()[0])
    moved = on_grid(unit).double() @ on_grid(unit).double().T - unit.double() @ unit.double().T
    assert 0 < moved.abs().max() < 64**0.5 * GRID


@given(st.floats(-1, 1, width=32), st.sampled_from(sorted(FORMATS)))
def test_formats_round_as_much_as_they_say(number, precision):
    grid = torch.round(torch.tensor([number]) / GRID) * GRID
    rounded = in_format(grid, precision).double()
    smallest = 2.0**-25 if precision == "float16" else 0.0
    error = (rounded - grid.double()).abs()
    assert float(error) <= max(FORMATS[precision].roundoff * float(grid.abs()), smallest)
    assert float(rounded / GRID) % 1 == 0
    assert torch.equal(in_format(rounded.float(), precision).double(), rounded)


@pytest.mark.parametrize("precision", FORMATS)
def test_similarities_are_off_by_no_more_than_they_say(precision):
    unit = on_grid(torch.from_numpy(degraded()[0]))
    values = in_format(unit, precision)
    error = (values.double() @ values.double().T - unit.double() @ unit.double().T).abs()
    rounding = rounding_errors(unit, values)
    bound = similarity_error(
        precision, 64, rounding=rounding[:, None] + rounding, accumulates=False
    )
    assert (error <= bound).all()
    largest = similarity_error(precision, 64, rounding=None, accumulates=False)
    assert (bound <= largest).all()
    if precision != "float32":
        assert error.max() > largest / 30


def test_float32_sums_are_off_by_no_more_than_they_say():
    unit = on_grid(torch.from_numpy(degraded()[0]))
    error = ((unit @ unit.T).double() - unit.double() @ unit.double().T).abs().max()
    bound = similarity_error("float32", 64, rounding=torch.zeros(()), accumulates=True)
    assert 0 < error < bound < 2e-5


def signs(num_identities: int, images: int, flips: float, seed: int) -> Labelled:
    """Return rows of ±1/8: similarities are exact in every format, and lie on edges of bins."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(num_identities), images)
    centres = rng.choice([-1.0, 1.0], (num_identities, 64))
    flipped = np.where(rng.random((len(codes), 64)) < flips, -1.0, 1.0)
    return (centres[codes] * flipped / 8.0).astype(np.float32), codes


def floors_of(kind, unit, codes) -> np.ndarray | None:
    """Return (N,) lowest bins of 64 to count: any, or the highest that a row has anything in."""
    if kind == "highest":
        return 63 - (counts_of(unit, codes, 64)[:, ::-1] > 0).argmax(axis=1)
    return np.random.default_rng(1).integers(0, 65, len(unit)) if kind == "any" else None


def counts_of(unit, codes, bins, floor_bin=None) -> np.ndarray:
    """Return (N, K) counts of exact similarities of rows with rows of other identities."""
    similarity = np.round(unit.astype(np.float64) @ unit.T.astype(np.float64) * 32) / 32
    place = np.minimum(np.floor((similarity + 1) * bins / 2), bins - 1).astype(int)
    counts = np.zeros((len(unit), bins), np.int32)
    for i, row in enumerate(place):
        counts[i] = np.bincount(row[codes != codes[i]], minlength=bins)
        if floor_bin is not None:
            counts[i, : floor_bin[i]] = 0
    return counts


@pytest.mark.parametrize("floors", ["none", "any", "highest"])
@pytest.mark.parametrize("precision", FORMATS)
def test_counts_are_those_of_numpy(precision, floors):
    unit, codes = signs(12, 9, 0.2, 0)
    floor_bin = floors_of(floors, unit, codes)
    rows = counted_rows(unit, codes, 64, floor_bin, precision)
    count_by_torch(rows, rows.values, rows.group)
    np.testing.assert_array_equal(rows.histogram, counts_of(unit, codes, 64, floor_bin))


def counted_rows(unit, codes, bins, floor_bin, precision) -> CountedRows:
    return CountedRows(
        in_format(torch.from_numpy(unit), precision),
        torch.from_numpy(codes.astype(np.int32)),
        None if floor_bin is None else torch.from_numpy(floor_bin.astype(np.int32)),
        torch.zeros((len(unit), bins), dtype=torch.int32),
    )


# Areas


@given(
    mated=st.lists(st.floats(-1, 1), min_size=1, max_size=6),
    counts=st.lists(st.integers(0, 5), min_size=8, max_size=8).filter(any),
    offset=st.floats(-0.3, 0.5),
)
def test_areas_are_those_between_the_distribution_functions(mated, counts, offset):
    padded = torch.tensor([[*sorted(mated), LIMIT, LIMIT]], dtype=torch.float64)
    rows = BinnedRows(padded, torch.tensor([len(mated)]), torch.tensor([counts]).cumsum(1))
    above, below = (float(area[0]) for area in rows.areas(torch.tensor([offset])))
    places = np.arange(8) / 4 - 1 + float(torch.tensor(offset))
    weights = np.array(counts) / sum(counts)
    distance = wasserstein_distance(mated, places, v_weights=weights)
    assert above + below == pytest.approx(distance, abs=1e-9)
    assert below - above == pytest.approx(np.mean(mated) - places @ weights, abs=1e-9)


def test_no_part_of_the_area_exceeds_its_ceiling():
    unit, codes = degraded()
    rows = MatedRows(Shard.of(unit, codes), range(len(unit)), "cpu")
    mated = rows.mated(slice(0, len(unit)))
    similarity = unit.astype(np.float64) @ unit.T.astype(np.float64)
    seen = []
    for i in range(len(unit)):
        nonmated = np.sort(similarity[i][codes != codes[i]])
        ceilings = excess_ceilings(
            mated[i : i + 1],
            torch.tensor([11]),
            torch.tensor([nonmated.mean()]),
            torch.tensor([nonmated.std()]),
        )[0]
        line = np.linspace(-1, 1, 4001)
        cdf = np.searchsorted(nonmated, line, side="right") / len(nonmated)
        for k in range(11):
            stop = float(mated[i, k + 1]) if k < 10 else 1.0
            part = (line >= float(mated[i, k])) & (line < stop)
            excess = np.maximum((k + 1) / 11 - cdf[part], 0).sum() * (line[1] - line[0])
            assert excess <= float(ceilings[k]) + 5e-4
            seen.append(excess)
    assert max(seen) > 0.01


# Complaints


@pytest.mark.parametrize(
    ("choices", "match"),
    [
        ({"precision": "fp8"}, "expected a precision of .*'bf16'.*, got 'fp8'"),
        ({"backend": "cuda"}, "expected backend auto, torch or triton, got 'cuda'"),
        ({"bins": 1000}, "expected a power of two from 2 to 65536 bins, got 1000"),
        ({"bins": 1}, "power of two"),
        ({"bins": 1 << 17}, "power of two"),
        ({"bins": None, "precision": "bf16"}, "without bins, got bf16"),
        ({"bins": None, "tail_only": True}, "tail_only=True"),
        ({"bins": None, "backend": "triton"}, "backend triton"),
        ({"tolerance": -0.1}, r"expected a tolerance in \[0, 2\], got -0.1"),
    ],
)
def test_plans_are_checked(choices, match):
    with pytest.raises(ValueError, match=match):
        AllPairsPlan(**choices)


def test_columns_are_checked():
    unit, codes = clean()
    plan = AllPairsPlan()
    with pytest.raises(ValueError, match=r"got \(360, 64\) and \(2,\)"):
        ColumnBlock.of(unit, codes[:2], plan)
    wrong = unit.copy()
    wrong[3] *= 2
    wrong[5] = np.nan
    with pytest.raises(ValueError, match=r"length, got 2 others among 360, the first of length 2"):
        ColumnBlock.of(wrong, codes, plan)
    tally = RowTally(Shard.of(unit, codes), plan)
    with pytest.raises(
        ValueError, match=r"expected columns of 64 numbers, torch\.float32, got 64, "
    ):
        tally.add(ColumnBlock.of(unit, codes, AllPairsPlan("bf16")))


def test_rows_are_checked():
    unit, codes = clean()
    shard = Shard.of(unit, codes)
    for rows in (range(0), range(361), range(0, 10, 2), range(-1, 3)):
        with pytest.raises(ValueError, match="expected consecutive rows among 360, at least one"):
            RowTally(shard, AllPairsPlan(), rows)
    with pytest.raises(ValueError, match="expected rows of unit length, got 360 others"):
        RowTally(Shard.of(2 * unit, codes), AllPairsPlan())


def test_columns_must_be_all_images_once():
    unit, codes = clean()
    plan = AllPairsPlan()
    shard = Shard.of(unit, codes)
    for columns in (unit[1:], np.concatenate([unit, unit[:1]])):
        tally = RowTally(shard, plan)
        own = codes[1:] if len(columns) < len(unit) else np.append(codes, codes[0])
        tally.add(ColumnBlock.of(columns, own, plan))
        with pytest.raises(ValueError, match=f"all 12 images of each .* got {12 + len(own) - 360}"):
            tally.finish()
    tail = AllPairsPlan(tail_only=True)
    with pytest.raises(ValueError, match="expected the 340 images of the sums, got 360"):
        all_pairs_distances(
            shard, [ColumnBlock.of(unit, codes, tail)], tail, partial_sums(unit[:340])
        )


def test_the_tail_needs_sums():
    shard, tail = Shard.of(*clean()), AllPairsPlan(tail_only=True)
    with pytest.raises(ValueError, match="expected sums of embeddings of size 64, got none"):
        RowTally(shard, tail)
    with pytest.raises(ValueError, match="got sums of size 3"):
        RowTally(shard, tail, sums=partial_sums(np.eye(3, dtype=np.float32)))


def test_the_kernel_is_checked(monkeypatch):
    rows = counted_rows(*signs(2, 2, 0.1, 0), 64, None, "float32")
    monkeypatch.setattr(kernel, "HAS_TRITON", True)
    with pytest.raises(ValueError, match=r"multiple of 64 .*, got 63 numbers and 256 cells"):
        kernel.count(rows, rows.values[:, :63], rows.group, "float32")
    monkeypatch.setattr(kernel, "HAS_TRITON", False)
    with pytest.raises(ValueError, match="expected Triton to be installed, got none"):
        kernel.count(rows, rows.values, rows.group, "float32")


def test_nothing_falls_back_in_silence():
    assert not AllPairsPlan().uses_triton
    assert AllPairsPlan(backend="triton").uses_triton
    assert not AllPairsPlan(device="cuda", backend="torch").uses_triton
    assert AllPairsPlan(device="cuda").uses_triton == (find_spec("triton") is not None)
    assert not AllPairsPlan(device="cuda", bins=None).uses_triton


# The kernel, by Triton's interpreter and compiler

INTERPRETED = ("float32", "tf32", "float16")  # Triton's interpreter cannot multiply bfloat16
INTERPRETED_PLANS = ("plain", "tf32", "float16", "tail", "tail, coarse")


def write_interpreted(folder: str) -> None:
    """Write what the kernel counts on the CPU; called in a process that interprets Triton."""
    found = {}
    unit, codes = signs(12, 9, 0.2, 0)
    shape = kernel.KernelShape(rows=32, columns=64, size=32, group=2)
    for precision in INTERPRETED:
        for floors in ("none", "any", "highest"):
            floor_bin = floors_of(floors, unit, codes)
            rows = counted_rows(unit, codes, 64, floor_bin, precision)
            for cut in (slice(0, 37), slice(37, None)):
                kernel.count(rows, rows.values[cut], rows.group[cut], precision, shape)
            found[f"{precision} {floors}"] = rows.histogram.numpy()
    for name in INTERPRETED_PLANS:
        plan = PLANS[name]
        plan = AllPairsPlan(plan.precision, 512, plan.tail_only, plan.tolerance, backend="triton")
        labels = label(*people([8] * 12, 50, [0.5, 2.0], 3), plan, [70])
        found[f"label {name}"] = np.stack([labels.distance, labels.error_bound])
    np.savez(Path(folder) / "found.npz", **found)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the kernel counts when its source is run by numpy, in a process of its own."""
    folder = tmp_path_factory.mktemp("interpreted")
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), *sys.path])
    subprocess.run(
        [sys.executable, "-c", f"import {__name__} as t; t.write_interpreted({str(folder)!r})"],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        check=True,
    )
    return np.load(folder / "found.npz")


@needs_triton
@pytest.mark.parametrize("floors", ["none", "any", "highest"])
@pytest.mark.parametrize("precision", INTERPRETED)
def test_the_kernel_counts_as_numpy_does(interpreted, precision, floors):
    unit, codes = signs(12, 9, 0.2, 0)
    expected = counts_of(unit, codes, 64, floors_of(floors, unit, codes))
    assert expected.sum() > 0
    np.testing.assert_array_equal(interpreted[f"{precision} {floors}"], expected)


@needs_triton
@pytest.mark.parametrize("name", INTERPRETED_PLANS)
def test_labels_by_the_kernel_are_within_their_bounds(interpreted, name):
    distance, bound = interpreted[f"label {name}"]
    expected = by_scipy(*people([8] * 12, 50, [0.5, 2.0], 3))
    assert (np.abs(distance - expected) <= bound + ROUNDING).all()
    assert bound.max() < 0.02


@needs_triton
@pytest.mark.parametrize(("capability", "memory_kib"), [(90, 227), (80, 99)])
@pytest.mark.parametrize("precision", FORMATS)
def test_the_kernel_compiles_for_gpus_that_are_not_here(
    precision, capability, memory_kib, monkeypatch, tmp_path
):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    shape = kernel.KernelShape.fitting(precision, divmod(capability, 10))
    numbers = {"bf16": "*bf16", "float16": "*fp16"}.get(precision, "*fp32")
    signature = dict.fromkeys(["rows", "columns"], numbers)
    signature |= dict.fromkeys(["row_group", "column_group", "floor_bin", "histogram"], "*i32")
    signature |= dict.fromkeys(["num_rows", "num_columns"], "i32")
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(6)}
    some = torch.zeros((1, 512))
    rows = CountedRows(some, some, some, torch.zeros((1, 4096)))
    constants = kernel.constants(rows, precision, shape)
    places = {(len(signature) + i,): value for i, value in enumerate(constants.values())}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel._count_tile, signature, places, aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": shape.num_warps, "num_stages": shape.num_stages},
    )
    assert compiled.metadata.shared <= memory_kib * 1024
    if capability == 90 and precision != "float32":
        assert "wgmma.mma_async" in compiled.asm["ptx"]


def test_triton_is_imported_only_where_it_is_used():
    code = "import sys; import sdd_ray.core.all_pairs; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
