"""Evaluation on sets so small that every figure is computed by hand.

Six images lie on a circle, so that a similarity is the cosine of an angle. Person 0 is at 0, 10 and
60 degrees, person 1 at 90, 100 and 40: the last image of each is the poor one.

    mated      10: 0.98, 60: 0.50, 50: 0.64; 10: 0.98, 50: 0.64, 60: 0.50
    nonmated   90: 0.00, 100: -0.17, 40: 0.77; 80: 0.17, 90: 0.00, 30: 0.87;
               30: 0.87, 40: 0.77, 20: 0.94
"""

import math
import shutil

import numpy as np
import pyarrow as pa
import pytest
from made_datasets import Rows, write_embeddings

from sdd_ray.core import discarding
from sdd_ray.engine import assessing, evaluating
from sdd_ray.engine.assessing import evaluate_by, evaluate_methods, protocol_of, read_methods
from sdd_ray.engine.evaluating import compare_all
from sdd_ray.engine.evaluation_tables import Groups, group_table
from sdd_ray.engine.qualities import read_qualities
from sdd_ray.errors import InputError
from sdd_ray.settings import BootstrapConfig, ComparisonsConfig, EvaluateConfig, MethodConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.run import parquet_bytes

ANGLES = [0, 10, 60, 90, 100, 40]
CODES = [0, 0, 0, 1, 1, 1]
IDS = ["a0", "a1", "a2", "b0", "b1", "b2"]
GOOD = {"a0": 90.0, "a1": 80.0, "a2": 1.0, "b0": 95.0, "b1": 85.0, "b2": 2.0}
FMR = 0.25


def rows(angles=ANGLES, codes=CODES, ids=IDS):
    radians = np.deg2rad(angles)
    circle = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    return Rows(circle, np.array(codes), list(ids))


def others(made):
    return made.codes, made.image_ids


def write_qualities(file, values, column="quality", kind=None):
    table = pa.table({"image_id": list(values), column: pa.array(list(values.values()), kind)})
    file.write_bytes(parquet_bytes(table))
    return MethodConfig(name=file.stem, path=str(file), column=column)


def compared(folder, made=None, **comparisons):
    embeddings = write_embeddings(folder / "embeddings", made or rows())
    return compare_all(open_dataset(embeddings, ["embed"]), ComparisonsConfig(**comparisons), [FMR])


def read_with(config, found):
    return config, *read_methods(config, found)


def evaluated(folder, *methods, **options):
    given = {"fmr": (FMR,), **options}
    config = EvaluateConfig(embeddings="any", output="any", methods=methods, **given)
    return evaluate_methods(*read_with(config, compared(folder)))


pytestmark = pytest.mark.usefixtures("ray_session")


def test_every_figure_by_hand(tmp_path):
    fractions = (0, 0.16, 0.17, 0.33, 0.34, 0.66, 0.67)
    quality = write_qualities(tmp_path / "q.parquet", GOOD)
    method, random = evaluated(tmp_path, quality, discard_fractions=fractions)
    assert (method.name, method.kind, method.read.failed) == ("q", "model", 0)
    assert (random.name, random.kind, random.read.failed) == ("random", "random", 0)
    (found,) = method.assessments
    # 0.25 of 9 are 2: the third of 0.94, 0.87, 0.87, ... is the threshold.
    assert found.point.threshold == pytest.approx(math.cos(math.radians(30)))
    assert found.point.achieved_fmr <= 2 / 9
    # All images: 4 of 6 mated ones are below it.
    # Without a2: 1 of 6 nonmated ones may be above: 0.77; 0.64 and 0.50 of 4 are below.
    # Without b2 too: 1 of 4 nonmated ones may be above: 0.00; none of 2 is below.
    figures = [4 / 6, 4 / 6, 1 / 2, 1 / 2, 0]
    np.testing.assert_allclose(found.table_evrc[:5], figures)
    # At the fixed threshold two comparisons leave with a2 (a third of all), then two with b2.
    np.testing.assert_allclose(found.table_edc[[0, 3, 4, 5, 6]], figures)
    # Nothing leaves before a third: no use within the limit of 0.3.
    assert found.areas[0.3].normalised.value == pytest.approx(1.0)


def test_images_without_a_quality_leave_first(tmp_path):
    missing = {k: v for k, v in GOOD.items() if k != "a0"} | {"b0": math.nan, "not compared": 1.0}
    quality = write_qualities(tmp_path / "q.parquet", missing)
    method, _ = evaluated(tmp_path, quality, discard_fractions=(0, 0.33, 0.34))
    read = method.read
    assert (read.failed, read.missing, read.unknown) == (1, 1, 1)
    assert np.isnan(method.qualities).tolist() == [True, False, False, True, False, False]
    (found,) = method.assessments
    # a0 and b0 leave together, when two of six may; then 1 of 4 nonmated ones may be above: 0.87,
    # and both mated ones are below.
    np.testing.assert_allclose(found.table_evrc, [4 / 6, 4 / 6, 1])


def test_minus_one_and_null_are_failures_and_small_is_good_by_sign(tmp_path):
    values = {**GOOD, "a0": -1, "b0": None}
    method = write_qualities(tmp_path / "q.parquet", {k: v and int(v) for k, v in values.items()})
    np.testing.assert_array_equal(
        read_qualities(method, IDS).values, [np.nan, 80, 1, np.nan, 85, 2]
    )
    poor = MethodConfig(name="q", path=method.path, sign=-1)
    np.testing.assert_array_equal(
        read_qualities(poor, IDS).values, [np.nan, -80, -1, np.nan, -85, -2]
    )
    other = write_qualities(tmp_path / "o.parquet", {"a0": -1, "a1": 7}, "UnifiedQualityScore")
    np.testing.assert_array_equal(read_qualities(other, IDS[:2]).values, [np.nan, 7])


def test_negative_scores_of_other_programs_are_scores(tmp_path):
    floats = write_qualities(tmp_path / "f.parquet", {"a0": -1.0, "a1": -0.5, "a2": math.nan})
    np.testing.assert_array_equal(read_qualities(floats, IDS[:3]).values, [-1, -0.5, np.nan])
    integers = write_qualities(tmp_path / "i.parquet", {"a0": -7, "a1": -1, "a2": 3})
    np.testing.assert_array_equal(read_qualities(integers, IDS[:3]).values, [-7, np.nan, 3])


def test_comparisons_are_of_the_part_asked_for(tmp_path):
    splits = tmp_path / "splits.parquet"
    parts = {"p0000": "holdout", "p0001": "train", "p0002": "holdout"}
    splits.write_bytes(
        parquet_bytes(pa.table({"identity": list(parts), "part": list(parts.values())}))
    )
    made = rows([*ANGLES, 5, 8], [*CODES, 2, 2], [*IDS, "c0", "c1"])
    found = compared(tmp_path, made, splits=str(splits))
    assert found.image_ids == ["a0", "a1", "a2", "c0", "c1"]
    assert len(found.mated.similarities) == 4
    assert found.num_nonmated == len(found.nonmated.similarities) == 6
    (tmp_path / "_incomplete.json").write_text("{}")
    shutil.rmtree(tmp_path / "embeddings")
    with pytest.raises(InputError, match=r"splits\.parquet is of a model that is not complete"):
        compared(tmp_path, made, splits=str(splits))
    (tmp_path / "manifest.json").write_text("{}")  # the mark of an output that is being cleaned
    shutil.rmtree(tmp_path / "embeddings")
    assert compared(tmp_path, made, splits=str(splits)).image_ids == found.image_ids


def test_embeddings_of_other_lengths_are_compared_by_angle(tmp_path):
    """As of float16 storage, which rounds every length."""
    lengths = np.array([0.5, 1.0, 2.0, 1.001, 0.999, 30.0], np.float32)
    made = rows()
    long = compared(tmp_path / "long", Rows(made.embeddings * lengths[:, None], *others(made)))
    unit = compared(tmp_path / "unit", made)
    np.testing.assert_allclose(np.linalg.norm(long.unit, axis=1), 1, atol=1e-6)
    for found, wanted in ((long.mated, unit.mated), (long.nonmated, unit.nonmated)):
        np.testing.assert_allclose(found.similarities, wanted.similarities, atol=1e-6)


def test_embeddings_without_a_direction_are_counted(tmp_path):
    made = rows()
    made.embeddings[[1, 4]] = [[0, 0], [np.nan, 1]]
    with pytest.raises(InputError, match="embeddings: 2 embeddings are zero or not finite"):
        compared(tmp_path, made)


def test_a_share_of_the_nonmated_comparisons(tmp_path):
    generator = np.random.default_rng(0)
    made = rows(generator.random(200) * 360, np.arange(200) // 4, [f"{n:03d}" for n in range(200)])
    found = compared(tmp_path, made, max_nonmated=2000)
    assert found.num_nonmated == 199 * 100 - 50 * 6
    assert len(found.nonmated.similarities) == found.num_made == 2000
    everything = compared(tmp_path / "all", made)
    for side in ("mated", "nonmated"):
        known, some = (
            dict(zip(zip(p.first, p.second, strict=True), p.similarities, strict=True))
            for p in (getattr(everything, side), getattr(found, side))
        )
        assert some.keys() <= known.keys()
        np.testing.assert_allclose([known[k] for k in some], list(some.values()), atol=1e-6)
    assert len(found.mated.similarities) == 50 * 6


@pytest.mark.parametrize("values", [{"elsewhere/1.jpg": 5.0}, {}])
def test_qualities_of_other_images(tmp_path, values):
    method = write_qualities(tmp_path / "q.parquet", values, kind=pa.float32())
    with pytest.raises(InputError, match=r"q\.parquet: none of the 6 compared images is in it"):
        read_qualities(method, IDS)


def test_files_of_other_programs(tmp_path):
    file = tmp_path / "q.parquet"
    table = pa.table({"image_id": pa.array(IDS, pa.large_string()), "quality": range(6)})
    file.write_bytes(parquet_bytes(table))
    method = MethodConfig(name="q", path=str(file))
    np.testing.assert_array_equal(read_qualities(method, IDS).values, np.arange(6))
    file.write_bytes(parquet_bytes(table.set_column(1, "quality", [["good"] * 6])))
    with pytest.raises(InputError, match=r"q\.parquet: expected text in image_id, numbers in qual"):
        read_qualities(method, IDS)


def test_scores_as_text_below_a_folder(tmp_path):
    file = tmp_path / "q.txt"
    file.write_text("/faces/a0 5\n/faces/b2 nan\nelsewhere 1\n")
    method = MethodConfig(name="q", path=str(file), root="/faces/")
    found = read_qualities(method, IDS)
    np.testing.assert_array_equal(found.values, [5, *[np.nan] * 5])
    assert (found.failed, found.missing, found.unknown) == (1, 4, 1)
    with pytest.raises(InputError, match=r"no key begins with methods\.root=/other"):
        read_qualities(MethodConfig(name="q", path=str(file), root="/other"), IDS)
    named = r"they are named like a0, its images like /faces/a0; see methods\.root"
    with pytest.raises(InputError, match=named):
        read_qualities(MethodConfig(name="q", path=str(file)), IDS)


def test_an_image_named_twice(tmp_path):
    file = tmp_path / "q.parquet"
    file.write_bytes(parquet_bytes(pa.table({"image_id": ["a0", "a0"], "quality": [1.0, 1.0]})))
    with pytest.raises(InputError, match=r"q\.parquet: an image_id occurs more than once"):
        read_qualities(MethodConfig(name="q", path=str(file)), IDS)


def test_too_few_comparisons_for_the_rate(tmp_path):
    method = write_qualities(tmp_path / "q.parquet", GOOD)
    message = r"fmr=0\.1 needs at least 10 nonmated comparisons, 9 are made; ask for a larger fmr"
    with pytest.raises(InputError, match=message):
        evaluated(tmp_path, method, fmr=(0.5, 0.1))


@pytest.mark.parametrize(
    ("codes", "kind"), [([0, 1, 2, 3, 4, 5], "mated"), ([0, 0, 0, 0, 0, 0], "nonmated")]
)
def test_a_kind_of_comparison_is_missing(tmp_path, codes, kind):
    with pytest.raises(InputError, match=f"6 images make no {kind} comparison"):
        compared(tmp_path, rows(codes=codes))


@pytest.fixture
def many(tmp_path, monkeypatch):
    """All comparisons of forty people, held and not held, and what a quality is worth by both."""
    generator = np.random.default_rng(6)
    codes = np.arange(160) // 4
    noise = generator.integers(0, 9, 160) / 9
    unit = generator.standard_normal((40, 8))[codes]
    unit += 2.5 * noise[:, None] * generator.standard_normal(unit.shape)
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    made = Rows(unit, codes)
    held = compared(tmp_path / "a", made, max_nonmated=None)
    monkeypatch.setattr(evaluating, "_HELD", 0)
    monkeypatch.setattr(evaluating, "_SAMPLE", 3000)
    monkeypatch.setattr(evaluating, "_LEAST_KEPT", 0)
    monkeypatch.setattr(evaluating, "_SPARE", 2.5)
    streamed = compared(tmp_path / "b", made, max_nonmated=None)
    quality = np.where(generator.random(160) < 0.1, np.nan, -noise)
    ids = dict(zip(made.image_ids, quality.tolist(), strict=True))
    config = EvaluateConfig(
        embeddings="any",
        output="any",
        methods=(write_qualities(tmp_path / "q.parquet", ids),),
        fmr=(FMR, 0.05),
        bootstrap=BootstrapConfig(draws=100),
    )
    return config, [(one, evaluate_methods(*read_with(config, one))[0]) for one in (streamed, held)]


def test_all_comparisons_without_holding_them(many):
    config, ((streamed, found), (held, wanted)) = many
    assert held.top is None
    assert streamed.num_made == held.num_made == streamed.num_nonmated == 160 * 159 // 2 - 240
    assert len(streamed.top.sorted) < 0.9 * streamed.num_made
    assert np.all(np.diff(streamed.top.sorted) <= 0)
    for one, other in zip(found.assessments, wanted.assessments, strict=True):
        assert one.point.threshold == pytest.approx(other.point.threshold, abs=1e-6)
        for name in ("edc", "fm_edc", "evrc", "achieved", "table_evrc"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12)
        assert one.advice == other.advice
    groups = Groups(["a", "b"], streamed.codes % 2)
    tables = [
        group_table(groups, one, [result], protocol_of(config)).to_pylist()
        for one, result in ((streamed, found), (held, wanted))
    ]
    assert tables[0] == tables[1]


def test_draws_of_comparisons_that_are_not_held(many):
    _, ((_, found), (_, wanted)) = many
    for name in ("edc", "evrc", "paucs", "aocs", "advice"):
        one, other = (getattr(method.draws, name) for method in (found, wanted))
        lost = np.isnan(one) & ~np.isnan(other)  # a draw may need more than was kept
        assert lost.mean() < 0.1
        known = ~np.isnan(one)
        assert known.any()
        np.testing.assert_allclose(one[known], other[known], atol=1e-9)


def test_draws_reach_as_deep_as_the_figures_do(tmp_path, monkeypatch):
    """A quality that knows the images which look alike spares false matches: thresholds fall."""
    generator = np.random.default_rng(3)
    codes = np.arange(240) // 6
    unit = generator.standard_normal((240, 16))
    faceless = generator.random(240) < 0.15
    unit[faceless] = unit[0] + 0.3 * generator.standard_normal((int(faceless.sum()), 16))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    made = Rows(unit, codes)
    ids = dict(zip(made.image_ids, (~faceless + generator.random(240) / 2).tolist(), strict=True))
    config = EvaluateConfig(
        embeddings="any",
        output="any",
        methods=(write_qualities(tmp_path / "q.parquet", ids),),
        fmr=(0.01,),
        bootstrap=BootstrapConfig(draws=100),
    )
    found = compared(tmp_path, made)
    drawn = {}
    for least in (1, 10**6):  # as few as the rate lets through, and all of them
        monkeypatch.setattr(discarding, "_LEAST_KEPT", least)
        monkeypatch.setattr(discarding, "_SPARE", 1.0)
        drawn[least] = evaluate_methods(*read_with(config, found))[0].draws
    for name in ("edc", "evrc", "paucs", "aocs", "advice"):
        one, other = (getattr(draws, name) for draws in drawn.values())
        lost = np.isnan(one) & ~np.isnan(other)
        assert lost.mean() < 0.05, name
        np.testing.assert_array_equal(one[~lost], other[~lost])


def test_more_is_needed_than_was_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluating, "_HELD", 0)
    monkeypatch.setattr(evaluating, "_SAMPLE", 4)
    monkeypatch.setattr(evaluating, "MOST_KEPT", 2)
    with pytest.raises(InputError, match=r"needs the 6 largest in memory, more than 2; ask for sm"):
        compared(tmp_path, max_nonmated=None)
    monkeypatch.setattr(evaluating, "MOST_KEPT", 100)
    monkeypatch.setattr(evaluating, "_SPARE", 1.0)
    monkeypatch.setattr(evaluating, "_LEAST_KEPT", 0)
    embeddings = write_embeddings(tmp_path / "b", rows())
    quality = write_qualities(tmp_path / "q.parquet", {**GOOD, "a2": 99.0, "b2": 98.0})
    config = EvaluateConfig(
        embeddings=embeddings,
        output="any",
        methods=(quality,),
        fmr=(FMR,),
        comparisons=ComparisonsConfig(max_nonmated=None),
        bootstrap=BootstrapConfig(draws=100),
    )
    seen = []
    dataset = open_dataset(embeddings, ["embed"])
    found = evaluate_by("a", dataset, config, seen.append)
    kept = [len(one.top.sorted) for one in seen]
    assert kept[0] < kept[1] == seen[0].top.size == 9
    assert capsys.readouterr().err.count("comparing again, to keep 4 times as many") == 1
    held = compared(tmp_path / "c")
    wanted = evaluate_methods(*read_with(config, held))
    for one, other in zip(found.methods, wanted, strict=True):
        np.testing.assert_array_equal(one.assessments[0].evrc, other.assessments[0].evrc)
        np.testing.assert_array_equal(one.assessments[0].edc, other.assessments[0].edc)
    monkeypatch.setattr(assessing, "MOST_KEPT", 1)
    with pytest.raises(InputError, match="not many more fit in memory; compare a sample"):
        evaluate_by("a", dataset, config, seen.append)
