"""Images without a quality that are left out, and methods with several seeds."""

from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest
from made_datasets import Rows, write_embeddings

from sdd_ray.engine import evaluating
from sdd_ray.engine.assessing import evaluate_methods, read_methods
from sdd_ray.engine.evaluating import compare_all
from sdd_ray.engine.evaluation_output import _summary_rows, protocol_of
from sdd_ray.errors import InputError
from sdd_ray.settings import BootstrapConfig, ComparisonsConfig, EvaluateConfig, MethodConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.run import parquet_bytes

pytestmark = pytest.mark.usefixtures("ray_session")

PEOPLE, EACH = 20, 4
IMAGES = PEOPLE * EACH


@pytest.fixture
def faces():
    """Return 80 images of 20 people, in an order of their own, and the noise of each."""
    generator = np.random.default_rng(7)
    codes = np.repeat(np.arange(PEOPLE), EACH)
    noise = generator.random(IMAGES)
    unit = generator.standard_normal((PEOPLE, 8))[codes]
    unit += 2.5 * noise[:, None] * generator.standard_normal(unit.shape)
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    return Rows(unit, codes), noise


def write(file, image_ids, values):
    file.write_bytes(parquet_bytes(pa.table({"image_id": image_ids, "quality": values})))
    return str(file)


def evaluation(*methods, **options):
    given = {"fmr": (0.2, 0.1), "bootstrap": BootstrapConfig(draws=100), **options}
    return EvaluateConfig(embeddings="any", output="any", methods=methods, **given)


def compared(folder, rows, max_nonmated):
    dataset = open_dataset(write_embeddings(folder, rows), ["embed"])
    return compare_all(dataset, ComparisonsConfig(max_nonmated=max_nonmated), [0.2])


def assert_same(one, other):
    for field in fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            np.testing.assert_allclose(mine, theirs, atol=1e-9, equal_nan=True)
        elif isinstance(mine, dict):
            assert {k: repr(v) for k, v in mine.items()} == {k: repr(v) for k, v in theirs.items()}
        elif field.name != "point":
            assert repr(mine) == repr(theirs)


@pytest.mark.parametrize("held", [evaluating._HELD, 0])
def test_left_out_is_as_if_the_images_had_not_been_there(tmp_path, faces, monkeypatch, held):
    rows, noise = faces
    monkeypatch.setattr(evaluating, "_HELD", held)
    monkeypatch.setattr(evaluating, "_SAMPLE", 1500)
    monkeypatch.setattr(evaluating, "_SPARE", 4.9)
    quality, other = -noise, noise.copy()
    quality[[0, 1, 17]] = np.nan
    other[[17, 40, 41, 42, 43]] = np.nan  # all images of a person
    known = ~np.isnan(quality + other)
    methods = [
        MethodConfig(name=name, path=write(tmp_path / f"{name}.parquet", rows.image_ids, values))
        for name, values in (("q", quality), ("o", other))
    ]
    config = evaluation(*methods, failures="left_out")
    found, read = read_methods(config, compared(tmp_path / "all", rows, None))
    kept = np.flatnonzero(known)
    some = Rows(rows.embeddings[kept], rows.codes[kept], [rows.image_ids[row] for row in kept])
    wanted = compared(tmp_path / "some", some, None)
    assert found.counts == {"left out, without a quality": IMAGES - len(kept)}
    assert found.image_ids == wanted.image_ids
    assert found.identities == wanted.identities
    assert found.num_nonmated == wanted.num_nonmated
    assert (found.top is None) == (held > 0)
    # The counts of what each file lacks stay as they are.
    results = evaluate_methods(config, found, read)
    assert [m.read.failed for m in results] == [3, 5, 0]
    plain = evaluate_methods(*(config, *read_methods(evaluation(*methods), wanted)))
    for mine, theirs in zip(results, plain, strict=True):
        np.testing.assert_array_equal(mine.qualities, theirs.qualities)
        for one, same in zip(mine.assessments, theirs.assessments, strict=True):
            assert_same(one, same)
        if mine.draws is not None:
            assert_same(mine.draws, theirs.draws)


def test_too_few_have_a_quality(tmp_path, faces):
    rows, noise = faces
    method = MethodConfig(
        name="q", path=write(tmp_path / "q.parquet", rows.image_ids[:4], noise[:4])
    )
    message = "4 of 80 images have a quality by every method, and make no nonmated comparison"
    with pytest.raises(InputError, match=message):
        read_methods(
            evaluation(method, failures="left_out"), compared(tmp_path / "e", rows, 10_000)
        )


def test_figures_of_several_seeds_are_means_and_their_spread_is_told(tmp_path, faces):
    rows, noise = faces
    generator = np.random.default_rng(3)
    files = [
        write(tmp_path / f"{n}.parquet", rows.image_ids, -noise + 0.3 * generator.random(IMAGES))
        for n in range(3)
    ]
    together = MethodConfig(name="seeds", path=files[0], seeds=tuple(files[1:]))
    alone = [MethodConfig(name=str(n), path=file) for n, file in enumerate(files)]
    config = evaluation(together, *alone)
    found = compared(tmp_path / "e", rows, 10_000)
    mean, *each, _ = evaluate_methods(config, *read_methods(config, found))
    protocol = protocol_of(config)
    for number in range(2):
        areas = [m.assessments[number].areas[0.3].normalised.value for m in each]
        row = _summary_rows(mean, protocol)[number]
        assert row["seeds"] == 3
        assert row["normalised_pauc_0.3"] == pytest.approx(np.mean(areas))
        assert row["normalised_pauc_0.3_seed_std"] == pytest.approx(np.std(areas, ddof=1))
        aocs = [m.assessments[number].aoc.value for m in each]
        assert row["aoc"] == pytest.approx(np.mean(aocs), nan_ok=True)
        of_one = _summary_rows(each[0], protocol)[number]
        assert of_one["seeds"] == 1
        assert np.isnan(of_one["aoc_seed_std"])
        # A draw takes some of the three seeds: it lies between their own figures.
        drawn = np.stack([m.draws.paucs[:, number, 0] for m in each])
        mixed = mean.draws.paucs[:, number, 0]
        assert np.all((mixed >= drawn.min(0) - 1e-12) & (mixed <= drawn.max(0) + 1e-12))
        assert np.any(np.abs(mixed - drawn.mean(0)) > 1e-6)
        assert mean.assessments[number].advice == ()


def test_the_same_seed_twice_is_one(tmp_path, faces):
    rows, noise = faces
    file = write(tmp_path / "q.parquet", rows.image_ids, -noise)
    twice = MethodConfig(name="twice", path=file, seeds=(file,))
    config = evaluation(twice, MethodConfig(name="once", path=file))
    two, one, _ = evaluate_methods(
        config, *read_methods(config, compared(tmp_path / "e", rows, 10_000))
    )
    np.testing.assert_allclose(two.draws.paucs, one.draws.paucs, atol=1e-12)
    np.testing.assert_allclose(two.draws.evrc, one.draws.evrc, atol=1e-12)
    row = _summary_rows(two, protocol_of(config))[0]
    assert row["normalised_pauc_0.3_seed_std"] == pytest.approx(0)
