"""Every way to label, scale and leave out, in whole runs: against plain definitions."""

from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from embedding_sets import degraded, people
from label_oracles import brute_force
from label_runs import (
    TWO_WORKERS,
    Labeller,
    assert_adds_up,
    column,
    digest,
    distances_by_scipy,
    identity_table,
    manifest,
    reasons,
    results,
)
from made_datasets import Rows, read_rows, write_embeddings
from scipy.stats import wasserstein_distance
from sklearn.metrics import roc_auc_score

from sdd_ray import label
from sdd_ray.config import main
from sdd_ray.core import sampled
from sdd_ray.core.distributions import IDENTITY_BINS
from sdd_ray.core.distributions import NUM_BINS as SET_BINS
from sdd_ray.core.leave_one_out import NUM_BINS
from sdd_ray.core.shard_statistics import QUANTILES
from sdd_ray.core.similarity import normalise
from sdd_ray.engine import labelling
from sdd_ray.engine.progress import Progress
from sdd_ray.errors import InputError
from sdd_ray.settings import LabelConfig
from sdd_ray.store.dataset import open_dataset, read_parquet
from sdd_ray.store.location import Location

pytestmark = pytest.mark.usefixtures("ray_session", "small_shards")

NOTHING_COUNTED = {"count_with": 0}


@cache
def some_alone():
    """Return 55 people of one image each, more than a shard of them, and 15 of six."""
    unit, codes = people([1] * 55 + [6] * 15, 64, [0.5, 1.5, 4.0], 11)
    return normalise(unit)[0], codes  # as the engine sees them


def is_alone(codes):
    return np.bincount(codes)[codes] == 1


def assert_no_mated_comparison(labels, alone):
    """Check that images alone in their identity have no label, and why."""
    assert reasons(labels) == ["no_mated_comparison" if one else None for one in alone]
    for name in ("distance", "pseudo_label"):
        np.testing.assert_array_equal(np.isnan(column(labels, name)), alone)


def min_max(values):
    return 100 * (values - np.nanmin(values)) / (np.nanmax(values) - np.nanmin(values))


# Leave one out


def bins_of_pairs(unit):
    """Return the bin of every similarity: embeddings as integers, nothing is rounded but them."""
    points = np.rint(unit.astype(np.float64) * 2**26).astype(np.int64)
    shifted = (points @ points.T).astype(object) + 2**52
    return np.clip((shifted * NUM_BINS // 2**53).astype(np.int64), 0, NUM_BINS - 1)


def area(mated, nonmated):
    """Return 1 - AUC, a fraction."""
    nonmated = np.sort(nonmated)
    lower, upper = (np.searchsorted(nonmated, mated, side) for side in ("left", "right"))
    twice = int(np.sum(2 * (len(nonmated) - upper) + (upper - lower)))
    return Fraction(twice, 2 * len(mated) * len(nonmated))


def fnmr_at_one_percent(mated, nonmated):
    allowed = sum(count / len(nonmated) <= 0.01 for count in range(1, len(nonmated)))
    threshold = sorted(nonmated, reverse=True)[allowed]
    return Fraction(int(np.sum(mated < threshold)), len(mated))


def removals(bins, codes, error):
    """Return each image's error(all) - error(all but the image), found by removing it."""

    def of(kept):
        first, second = np.triu_indices(len(kept), 1)
        of_pair, same = bins[kept[first], kept[second]], codes[kept[first]] == codes[kept[second]]
        return error(of_pair[same], of_pair[~same])

    everybody = np.arange(len(codes))
    whole = of(everybody)
    return np.array([float(whole - of(np.delete(everybody, i))) for i in everybody])


@pytest.fixture(scope="module")
def left_out(ray_session, small_shards, tmp_path_factory):
    """Labels by equation (4), by one worker, from one file, in order and unbroken."""
    do_label = Labeller(tmp_path_factory.mktemp("left_out"))
    return do_label(Rows(*some_alone()), method="leave_one_out")


def assert_leaves_out(labels, error):
    unit, codes = some_alone()
    alone = is_alone(codes)
    wanted = np.where(alone, np.nan, removals(bins_of_pairs(unit), codes, error))
    assert len(np.unique(wanted[~alone])) > 5
    np.testing.assert_array_equal(column(labels, "leave_one_out"), wanted)
    # A large Q is a poor image.
    np.testing.assert_allclose(column(labels, "pseudo_label"), min_max(-wanted), atol=1e-4)
    assert_no_mated_comparison(labels, alone)
    scale = results(labels)["scale"]["knots"]
    np.testing.assert_allclose(scale, [np.nanmin(-wanted), np.nanmax(-wanted)], rtol=1e-12)
    distance = distances_by_scipy(unit, codes)
    np.testing.assert_allclose(column(labels, "distance"), distance, atol=1e-6)


def test_leave_one_out_equals_removing_each_image(left_out):
    assert_leaves_out(left_out, area)
    labels, change = column(left_out, "pseudo_label"), column(left_out, "leave_one_out")
    assert labels[np.nanargmax(change)] == 0
    assert labels[np.nanargmin(change)] == 100


def test_leave_one_out_at_one_fmr_equals_removing_each_image(do_label):
    keys = {"method": "leave_one_out", "leave_one_out": {"fmr": 0.01}}
    assert_leaves_out(do_label(Rows(*some_alone()), 3, 1, **keys), fnmr_at_one_percent)


@pytest.mark.slow
def test_leave_one_out_resumes_elsewhere_with_the_pairs_it_counted(
    do_label, left_out, monkeypatch, tmp_path
):
    """From other files in another order, at last with three workers; broken off in between."""
    rows = Rows(*some_alone()).shuffled(4)
    embeddings = write_embeddings(tmp_path / "embeddings", rows, num_files=7)
    keys = {"method": "leave_one_out"}
    output = str(tmp_path / "labels")

    def interrupt(progress, items, rejected=0):
        if progress.stage == "label":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            do_label.label(embeddings, output, **keys)
    pairs = Path(output, "_work", "pairs.npz")
    written = pairs.stat().st_mtime_ns
    scale = labelling.scale_labels

    def check_and_scale(*arguments):
        assert pairs.stat().st_mtime_ns == written
        return scale(*arguments)

    monkeypatch.setattr(labelling, "scale_labels", check_and_scale)
    keys["resources"] = {"workers": 3, "cpus_per_worker": 0.5}
    assert digest(do_label.label(embeddings, output, **keys)) == digest(left_out)


def test_a_rate_that_so_few_pairs_cannot_show_is_an_error(do_label):
    rows = Rows(*people([6, 6, 6], 16, [0.5], 0))
    with pytest.raises(InputError, match=r"leave_one_out\.fmr=0\.0001 .* 108 nonmated pairs"):
        do_label(rows, method="leave_one_out", leave_one_out={"fmr": 1e-4})


def test_images_whose_removal_leaves_too_little_say_so(do_label):
    """102 nonmated pairs allow one false match at 1 %; without 2 of them they still do."""
    unit, codes = people([51, 2], 16, [0.5, 2.0], 0)
    keys = {"method": "leave_one_out", "leave_one_out": {"fmr": 0.01}}
    labels = do_label(Rows(unit, codes), **keys)
    small = codes == 1
    assert reasons(labels) == ["too_few_comparisons_left" if one else None for one in small]
    np.testing.assert_array_equal(np.isnan(column(labels, "leave_one_out")), small)
    np.testing.assert_array_equal(np.isnan(column(labels, "pseudo_label")), small)
    assert_adds_up(labels, len(codes))


# All pairs

BY_BINS = {"bins": 4096}
BY_TAILS = {"bins": 4096, "tail_only": True, "precision": "bf16"}


def test_all_pairs_sorted_equal_scipy(do_label):
    unit, codes = some_alone()
    labels = do_label(Rows(unit, codes), method="all_pairs", **NOTHING_COUNTED)
    distance = column(labels, "distance")
    np.testing.assert_allclose(distance, distances_by_scipy(unit, codes), atol=1e-6)
    alone = is_alone(codes)
    assert (column(labels, "error_bound")[~alone] == 0).all()
    np.testing.assert_allclose(column(labels, "pseudo_label"), min_max(distance), atol=1e-4)
    assert_no_mated_comparison(labels, alone)
    assert results(labels)["settled_by"] == {"all_images": int((~alone).sum())}


def check_counted(do_label, options, num_files=1, seed=None, **keys):
    """Return labels by similarities that are counted, after a comparison with scipy."""
    unit, codes = some_alone()
    keys |= {"method": "all_pairs", "all_pairs": options, **NOTHING_COUNTED}
    labels = do_label(Rows(unit, codes), num_files, seed, **keys)
    error = np.abs(column(labels, "distance") - distances_by_scipy(unit, codes))
    bound, alone = column(labels, "error_bound"), is_alone(codes)
    assert (error[~alone] <= bound[~alone] + 1e-7).all()
    assert np.nanmax(bound) < 0.02
    assert np.nanmax(error) > 1e-6, "the set is too easy to tell a bound from none"
    assert results(labels)["largest_error_bound"] == pytest.approx(np.nanmax(bound))
    return labels


def test_all_pairs_in_bins_are_within_their_bounds(do_label):
    check_counted(do_label, BY_BINS)


def test_all_pairs_by_tails_are_within_their_bounds_and_the_same_again(do_label):
    labels = check_counted(do_label, BY_TAILS)
    again = check_counted(do_label, BY_TAILS, 5, 2, resources=TWO_WORKERS)
    assert digest(again) == digest(labels)


# The paper's estimator


def rounds_of(unit, codes):
    """Return (N, K) distances of all rounds, in canonical order, with the default options."""
    sizes = np.bincount(codes)
    start = (np.cumsum(sizes) - sizes)[codes]
    places = sampled.Places(np.arange(len(codes)), start, start + sizes[codes], len(codes))
    digests = sampled.image_digests(Rows(unit, codes).image_ids)
    partners = sampled.draw(digests, places, sampled.SamplingPlan())
    return sampled.round_distances(
        *(sampled.partner_similarities(unit, unit, side) for side in partners)
    )


def test_rounds_are_scaled_one_by_one_as_in_the_paper(do_label):
    unit, codes = some_alone()
    keys = {"method": "sampled", "sampled": {"normalisation": "per_round"}, **NOTHING_COUNTED}
    labels = do_label(Rows(unit, codes), **keys)
    rounds = rounds_of(unit, codes)
    wanted = np.mean([min_max(rounds[:, k]) for k in range(rounds.shape[1])], axis=0)
    found = column(labels, "pseudo_label")
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(column(labels, "distance"), rounds.mean(axis=1), atol=1e-6)
    assert 0 < np.nanmin(found) < np.nanmax(found) < 100  # no image is at the end of every round
    assert_no_mated_comparison(labels, is_alone(codes))
    found = results(labels)
    assert found["scale"] is None
    knots = np.array([scale["knots"] for scale in found["round_scales"]])
    wanted = np.stack([np.nanmin(rounds, axis=0), np.nanmax(rounds, axis=0)], axis=1)
    np.testing.assert_allclose(knots, wanted, rtol=1e-12)


# What is left out


@cache
def small_people():
    return people([2, 3, 1, 5] * 12, 64, [0.5, 2.0], 12)


@pytest.fixture(scope="module")
def of_three(ray_session, small_shards, tmp_path_factory):
    """Labels of people of three images and more; nothing is counted."""
    do_label = Labeller(tmp_path_factory.mktemp("of_three"))
    return do_label(Rows(*small_people()), min_images=3, **NOTHING_COUNTED)


def test_identities_of_few_images_get_no_label_and_still_count(of_three):
    labels, (unit, codes) = of_three, small_people()
    few = np.bincount(codes)[codes] < 3
    assert reasons(labels) == ["too_few_images" if one else None for one in few]
    wanted = np.where(few, np.nan, distances_by_scipy(unit, codes))
    for name in ("distance", "error_bound", "pseudo_label"):
        np.testing.assert_array_equal(np.isnan(column(labels, name)), few)
    np.testing.assert_allclose(column(labels, "distance"), wanted, atol=1e-6)
    np.testing.assert_allclose(column(labels, "pseudo_label"), min_max(wanted), atol=1e-4)
    assert not np.isnan(column(labels, "nonmated_mean")).any()
    assert_adds_up(labels, len(codes))


def test_near_copies_are_left_out(do_label):
    unit, codes = people([6] * 20, 64, [0.5, 1.5], 13)
    unit[codes == 3] = unit[18]  # one person of whom there is one image, six times
    unit[[61, 63]] = unit[60]
    unit = normalise(unit)[0]
    limit = {"max_mated_similarity": 0.999}
    labels = do_label(Rows(unit, codes), **limit, **NOTHING_COUNTED)
    sides = brute_force(unit, codes, 0.999)
    wanted = [wasserstein_distance(*side) if len(side[0]) else np.nan for side in sides]
    np.testing.assert_allclose(column(labels, "distance"), wanted, atol=1e-6)
    num_mated = [len(mated) for mated, _ in sides]
    assert column(labels, "num_mated").tolist() == num_mated
    assert {0, 3, 5} == set(num_mated)
    of_copies = codes == 3
    assert_no_mated_comparison(labels, of_copies)
    for name, function in (
        ("mean", np.mean),
        ("std", np.std),
        ("q25", lambda s: np.quantile(s, 0.25)),
    ):
        expected = [function(mated) if len(mated) else np.nan for mated, _ in sides]
        np.testing.assert_allclose(column(labels, f"mated_{name}"), expected, atol=1e-6)
    histograms = np.array(identity_table(labels)["mated_histogram"].to_pylist())
    pairs = np.bincount(codes, num_mated) / 2
    assert histograms.sum(axis=1).tolist() == pairs.tolist()
    assert results(labels)["similarities"]["mated"] == pairs.sum()


@pytest.mark.parametrize(
    ("scaling", "method"),
    [
        ("min_max", "sampled"),
        ("quantile", "exact"),
        pytest.param("none", "exact", marks=pytest.mark.slow),
    ],
)
def test_ends_that_are_trimmed_get_no_label(do_label, scaling, method):
    unit, codes = some_alone()
    trim = {"low": 0.1, "high": 0.05}
    keys = {"trim": trim, "scaling": scaling, "method": method, **NOTHING_COUNTED}
    labels = do_label(Rows(unit, codes), **keys)
    distance = column(labels, "distance")
    of_all = distances_by_scipy(unit, codes)
    wanted = rounds_of(unit, codes).mean(axis=1) if method == "sampled" else of_all
    np.testing.assert_allclose(distance, wanted, atol=1e-6)
    ends = np.nanquantile(distance, [0.1, 0.95])
    kept = (distance >= ends[0]) & (distance <= ends[1])
    has_distance = ~np.isnan(distance)
    # 90 distances: 9 below the tenth percent, 5 above the last five, by their ranks.
    assert np.count_nonzero(has_distance & (distance < ends[0])) == 9
    assert np.count_nonzero(has_distance & (distance > ends[1])) == 5
    expected = np.where(kept, None, np.where(has_distance, "trimmed", "no_mated_comparison"))
    assert reasons(labels) == expected.tolist()
    found, some = results(labels), distance[kept]
    np.testing.assert_allclose(found["kept_values"], ends, atol=1e-6)
    assert found["unlabelled"] == {"trimmed": 14, "no_mated_comparison": 55}
    wanted = {
        "min_max": lambda: min_max(some),
        "quantile": lambda: 100 * some.argsort().argsort() / (len(some) - 1),
        "none": lambda: some,
    }[scaling]()
    found = column(labels, "pseudo_label")
    np.testing.assert_array_equal(np.isnan(found), ~kept)
    np.testing.assert_allclose(found[kept], wanted, atol=1.0 if scaling == "quantile" else 1e-3)
    assert results(labels)["round_scales"] is None
    knots = results(labels)["scale"]["knots"]
    assert len(knots) == {"min_max": 2, "quantile": 101, "none": 0}[scaling]
    if knots:
        np.testing.assert_allclose([knots[0], knots[-1]], [some.min(), some.max()], atol=1e-6)
    assert_adds_up(labels, len(codes))


def test_trimming_that_leaves_no_label_is_an_error(do_label):
    unit, codes = people([2, 1, 1], 16, [0.5], 0)
    with pytest.raises(InputError, match=r"trim\.low=0\.4 and trim\.high=0\.4 leave none of 2"):
        do_label(Rows(unit, codes), trim={"low": 0.4, "high": 0.4})


# What is counted


@pytest.fixture(scope="module")
def counted(ray_session, small_shards, tmp_path_factory):
    """Labels of the degraded set; all images are counted with, and the ends trimmed."""
    do_label = Labeller(tmp_path_factory.mktemp("counted"))
    return do_label(Rows(*degraded()), count_with=1000, trim={"low": 0.1})


def test_counting_with_all_images_is_exact(counted):
    sides = brute_force(*degraded())
    for place, share in enumerate(QUANTILES):
        for kind, name in ((0, "mated"), (1, "nonmated")):
            wanted = [np.quantile(side[kind], share) for side in sides]
            found = column(counted, f"{name}_q{round(100 * share):02d}")
            np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=f"{name} {place}")


def test_counting_with_nobody_says_nothing(of_three):
    for share in QUANTILES:
        assert np.isnan(column(of_three, f"nonmated_q{round(100 * share):02d}")).all()
        known = ~np.isnan(column(of_three, f"mated_q{round(100 * share):02d}"))
        np.testing.assert_array_equal(known, ~is_alone(small_people()[1]))
    table = identity_table(of_three)
    assert not np.array(table["nonmated_histogram"].to_pylist()).any()
    pairs = 12 * (1 + 3 + 0 + 10)
    assert np.array(table["mated_histogram"].to_pylist()).sum() == pairs
    found = results(of_three)["similarities"]
    assert found == {"mated": pairs, "nonmated_counted": 0, "auc": None, "at_fmr": {}}
    rates = read_parquet(Location(of_three) / "error_rates.parquet")
    assert rates["fmr"].null_count == rates.num_rows
    assert rates["fnmr"].null_count == 0


def test_identities_are_those_of_the_labels(counted):
    rows = read_rows(counted, "label", ["image_id", "identity", "pseudo_label"])
    wanted = pd.DataFrame(rows).groupby("identity")["pseudo_label"]
    found = identity_table(counted).to_pandas().set_index("identity")
    assert found.index.tolist() == [f"p{code:04d}" for code in range(30)]
    assert found["num_images"].tolist() == wanted.size().tolist()
    assert found["num_labelled"].tolist() == wanted.count().tolist()
    assert set(found["num_labelled"]) > {12}, "nothing was trimmed"
    for name in ("mean", "min", "max"):
        np.testing.assert_allclose(found[f"label_{name}"], wanted.agg(name), rtol=1e-6)
    np.testing.assert_allclose(found["label_std"], wanted.std(ddof=0), rtol=1e-5)


def pooled(sides, kind):
    return np.concatenate([side[kind] for side in sides])


def counts(similarities, num_bins):
    return np.histogram(similarities, num_bins, (-1, 1))[0]


def test_histograms_of_identities_are_those_of_all_pairs(counted):
    unit, codes = degraded()
    sides = brute_force(unit, codes)
    table = identity_table(counted)
    for kind, name, halves in ((0, "mated", 2), (1, "nonmated", 1)):
        found = np.array(table[f"{name}_histogram"].to_pylist())
        wanted = np.array(
            [
                counts(
                    pooled([sides[i] for i in np.flatnonzero(codes == code)], kind), IDENTITY_BINS
                )
                for code in range(30)
            ]
        )
        np.testing.assert_array_equal(found.sum(axis=1), wanted.sum(axis=1) / halves)
        # But for similarities at the edge of a bin, which float32 puts on either side.
        assert np.abs(found - wanted / halves).sum() <= 1e-4 * found.sum()


def test_error_rates_are_those_of_all_pairs(counted):
    sides = brute_force(*degraded())
    mated, nonmated = pooled(sides, 0), pooled(sides, 1)
    rates = read_parquet(Location(counted) / "error_rates.parquet").to_pandas()
    assert len(rates) == SET_BINS + 1
    np.testing.assert_array_equal(rates["threshold"], np.linspace(-1, 1, SET_BINS + 1))
    assert rates["mated"].sum() == len(mated) / 2
    assert rates["nonmated"].sum() == len(nonmated)
    assert rates["fmr"].is_monotonic_decreasing
    assert rates["fnmr"].is_monotonic_increasing
    assert rates["fmr"].iloc[[0, -1]].tolist() == [1, 0]
    assert rates["fnmr"].iloc[[0, -1]].tolist() == [0, 1]
    for row in rates.iloc[1000:4000:300].itertuples():
        assert row.fmr == pytest.approx(np.mean(nonmated >= row.threshold), abs=1e-4)
        assert row.fnmr == pytest.approx(np.mean(mated < row.threshold), abs=1e-3)
    found = results(counted)["similarities"]
    assert (found["mated"], found["nonmated_counted"]) == (len(mated) / 2, len(nonmated))
    truth = np.repeat([1, 0], [len(mated), len(nonmated)])
    auc = roc_auc_score(truth, np.concatenate([mated, nonmated]))
    assert found["auc"] == pytest.approx(auc, abs=1e-5)
    assert set(found["at_fmr"]) == {"0.1", "0.01", "0.001", "0.0001"}
    for fmr, stated in found["at_fmr"].items():
        threshold = np.quantile(nonmated, 1 - float(fmr), method="higher")
        assert stated["threshold"] == pytest.approx(threshold, abs=2 * 2 / SET_BINS)
        assert stated["fnmr"] == pytest.approx(np.mean(mated < threshold), abs=0.01)


def test_what_is_counted_does_not_depend_on_workers_files_or_order(do_label, counted):
    keys = {"count_with": 1000, "trim": {"low": 0.1}, "resources": TWO_WORKERS}
    again = do_label(Rows(*degraded()), 7, 5, **keys)
    assert digest(again) == digest(counted)
    assert identity_table(again).equals(identity_table(counted))
    rates = [read_parquet(Location(folder) / "error_rates.parquet") for folder in (again, counted)]
    assert rates[0].equals(rates[1])
    assert results(again) == results(counted)
    assert len(open_dataset(again, ["label"]).files) > 4
    assert manifest(again)["counts"] == manifest(counted)["counts"]


# What does not go together


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["resources.gpus_per_worker=1"], "resources.gpus_per_worker must be 0"),
        (["method=all_pairs", "resources.gpus_per_worker=1"], "needs all_pairs.bins"),
        (["method=all_pairs", "all_pairs.tail_only=true"], "need all_pairs.bins"),
        (["method=all_pairs", "all_pairs.precision=bf16"], "need all_pairs.bins"),
        (["method=all_pairs", "all_pairs.bins=1000"], "all_pairs.bins: "),
        (
            ["method=sampled", "sampled.normalisation=per_round", "scaling=quantile"],
            "sampled.normalisation=per_round",
        ),
        (["method=sampled", "max_mated_similarity=0.9"], "max_mated_similarity is not known"),
        (["method=leave_one_out", "max_mated_similarity=0.9"], "max_mated_similarity is not known"),
        (["trim.low=0.6", "trim.high=0.4"], "trim.low=0.6 and trim.high=0.4 leave no label"),
        (["trim.low=1.0"], "trim.low: "),
        (["leave_one_out.fmr=0"], "leave_one_out.fmr: "),
    ],
)
def test_what_does_not_go_together_is_refused(options, key, tmp_path, capsys):
    argv = [f"embeddings={tmp_path}", f"output={tmp_path}/labels", *options]
    assert main(LabelConfig, label.run, argv) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / "labels").exists()
