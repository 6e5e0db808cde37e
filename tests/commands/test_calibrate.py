"""The calibrate command: another map, thresholds of the user's own images, the same network."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from quality_models import made_model, write_model

from sdd_ray import calibrate, columns
from sdd_ray.config import main
from sdd_ray.core.calibration import QuantileMap, SigmoidMap
from sdd_ray.core.thresholds import discard_thresholds
from sdd_ray.settings import CalibrateConfig, EvaluateConfig, MethodConfig, ScoreConfig
from sdd_ray.store.dataset import open_dataset, read_json
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import load_model
from sdd_ray.store.run import MANIFEST, OutputRun, parquet_bytes, write_part

RAW = np.random.default_rng(3).normal(40, 8, 500).astype(np.float32)
RAW[[3, 77]] = np.nan
_ADVICE = {
    "method": ["model", "model", "model", "other", "model"],
    "fmr": [0.001, 0.01, 0.001, 0.001, 0.001],
    "aim": ["discard", "discard", "fnmr", "fnmr", "fnmr"],
    "asked": [0.1, 0.1, 0.05, 0.05, 0.001],
    "threshold": [30.5, 30.5, 35.25, 99.0, np.nan],
    "low": [29.0, 29.0, 34.0, 98.0, np.nan],
    "high": [32.0, 32.0, np.nan, 100.0, np.nan],
    "discarded": [0.1, 0.1, 0.3, 0.5, np.nan],
    "fnmr": [0.2, 0.15, 0.05, 0.05, np.nan],
}


@pytest.fixture
def model(tmp_path):
    uri = write_model(tmp_path / "model", made_model())
    (tmp_path / "model" / "splits.parquet").write_bytes(b"whatever it is")
    return Location(uri)


@pytest.fixture
def qualities(tmp_path, model):
    """A dataset as score writes it, of qualities that are known."""
    place = Location(str(tmp_path / "qualities"))
    run = OutputRun(place, "score", ScoreConfig(model=model.uri, output=place.uri))
    ids = [f"{n:03d}" for n in range(len(RAW))]
    reasons = [None if known else "empty" for known in ~np.isnan(RAW)]
    rows = [ids, np.zeros(len(RAW), np.int8), pa.array(RAW, from_pandas=True), reasons]
    record = write_part(place, "part-000000", pa.table(rows, schema=columns.QUALITIES))
    run.complete([record], {"weights_sha256": load_model(model).digest})
    return place


def evaluation(folder, qualities, **method):
    """A folder as evaluate writes it, whose advice is known."""
    place = Location(str(folder))
    named = MethodConfig(name="model", path=qualities.uri, **{"column": "raw", **method})
    config = EvaluateConfig(embeddings="e", output=place.uri, methods=(named,))
    run = OutputRun(place, "evaluate", config)
    table = pa.table(_ADVICE)
    run.complete([write_part(place, "advice", table)])
    return place


@pytest.fixture
def do_calibrate(model, tmp_path, capsys):
    def run(*words):
        given = [f"model={model.uri}", f"output={tmp_path}/new"]
        status = main(CalibrateConfig, calibrate.run, [*given, *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


@pytest.mark.parametrize(("kind", "fitted"), [("quantile", QuantileMap), ("sigmoid", SigmoidMap)])
def test_map_and_thresholds_are_those_of_the_images(
    do_calibrate, model, qualities, tmp_path, kind, fitted
):
    status, out, _ = do_calibrate(f"qualities={qualities.uri}", f"map={kind}")
    assert status == 0
    old, new = load_model(model), load_model(Location(f"{tmp_path}/new"))
    assert new.calibration == fitted.fit(RAW[~np.isnan(RAW)])
    assert new.digest == old.digest
    assert (new.calibrated["version"], new.calibrated["images"]) == (2, 498)
    assert sorted(new.thresholds) == ["discard_0.05", "discard_0.1", "discard_0.2"]
    wanted = discard_thresholds(RAW, [0.05, 0.1, 0.2])
    for (name, found), (threshold, discarded) in zip(
        sorted(new.thresholds.items()), wanted, strict=True
    ):
        assert found.raw == threshold
        assert found.record["discarded"] == discarded
        line = next(line for line in out.splitlines() if line.startswith(name))
        assert f"{discarded:.2%}" in line
    # The old folder is as it was, and what lies beside the weights comes along.
    assert old.thresholds == {}
    assert (tmp_path / "new" / "splits.parquet").read_bytes() == b"whatever it is"
    again, text, _ = do_calibrate(f"qualities={qualities.uri}", f"map={kind}")
    assert (again, text) == (0, out)


def test_models_of_other_maps_are_other_models(do_calibrate, qualities, tmp_path):
    digests = set()
    for kind in ("quantile", "sigmoid"):
        words = [f"qualities={qualities.uri}", f"map={kind}", f"output={tmp_path}/{kind}"]
        assert do_calibrate(*words)[0] == 0
        digests.add(open_dataset(f"{tmp_path}/{kind}", ["calibrate"]).digest)
    assert len(digests) == 2
    words = [f"model={tmp_path}/sigmoid", f"qualities={qualities.uri}", f"output={tmp_path}/third"]
    assert do_calibrate(*words)[0] == 0
    assert load_model(Location(f"{tmp_path}/third")).calibrated["version"] == 3


def test_advice_of_an_evaluation_travels_with_the_model(do_calibrate, model, qualities, tmp_path):
    place = evaluation(tmp_path / "evaluation", qualities)
    assert do_calibrate(f"evaluation={place.uri}")[0] == 0
    new = load_model(Location(f"{tmp_path}/new"))
    assert new.calibration == load_model(model).calibration
    assert set(new.thresholds) == {"discard_0.1", "fnmr_0.05_at_fmr_0.001"}
    found = new.thresholds["fnmr_0.05_at_fmr_0.001"]
    assert found.raw == 35.25
    assert (found.record["low"], found.record["high"]) == (34.0, None)
    assert found.record["fnmr"] == 0.05
    # With images of one's own, their shares replace those of the evaluation.
    words = [f"evaluation={place.uri}", f"qualities={qualities.uri}", f"output={tmp_path}/both"]
    assert do_calibrate(*words)[0] == 0
    both = load_model(Location(f"{tmp_path}/both")).thresholds
    assert both["discard_0.1"].raw == discard_thresholds(RAW, [0.1])[0][0]
    assert both["fnmr_0.05_at_fmr_0.001"] == found


def test_qualities_of_another_model_are_refused(do_calibrate, qualities, tmp_path):
    other = write_model(tmp_path / "other", made_model(seed=1))
    status, _, err = do_calibrate(f"model={other}", f"qualities={qualities.uri}")
    assert status == 1
    assert "expected qualities of the model with the weights" in err
    assert "score the images with this model first" in err
    assert not (tmp_path / "new" / MANIFEST).exists()


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ({}, ["method=ours"], "no method ours; it has model"),
        ({"column": "quality"}, [], "evaluate it with column: raw"),
        ({"sign": -1}, [], "evaluate it with column: raw"),
    ],
)
def test_evaluations_of_something_else(do_calibrate, qualities, tmp_path, method, words, message):
    place = evaluation(tmp_path / "evaluation", qualities, **method)
    status, _, err = do_calibrate(f"evaluation={place.uri}", *words)
    assert status == 1
    assert message in err


def test_nothing_to_calibrate_by(do_calibrate):
    status, _, err = do_calibrate()
    assert status == 2
    assert "give qualities, evaluation, or both" in err


def test_images_without_any_quality(do_calibrate, qualities, model, tmp_path):
    part = tmp_path / "qualities" / "part-000000.parquet"
    table = open_dataset(qualities.uri, ["score"]).read(columns.QUALITIES.names)
    nothing = pa.array([None] * len(RAW), pa.float32())
    part.write_bytes(parquet_bytes(table.set_column(2, "raw", nothing)))
    status, _, err = do_calibrate(f"qualities={qualities.uri}")
    assert status == 1
    assert "none of 500 images has a quality" in err


def test_a_run_that_ended_before_its_manifest_is_made_again(do_calibrate, qualities, tmp_path):
    assert do_calibrate(f"qualities={qualities.uri}")[0] == 0
    manifest = read_json(Location(f"{tmp_path}/new/{MANIFEST}"))
    mark = {"identity": _identity_of(tmp_path, qualities), "seconds": 1.0}
    shutil.copytree(tmp_path / "new", tmp_path / "half")
    (tmp_path / "half" / MANIFEST).unlink()
    (tmp_path / "half" / "_incomplete.json").write_text(json.dumps(mark))
    assert do_calibrate(f"qualities={qualities.uri}", f"output={tmp_path}/half")[0] == 0
    assert read_json(Location(f"{tmp_path}/half/{MANIFEST}"))["digest"] == manifest["digest"]


def _identity_of(tmp_path, qualities):
    """The mark that the run has before it is complete."""
    place = Location(f"{tmp_path}/marked")
    model = open_dataset(f"{tmp_path}/model", ["train"])
    config = CalibrateConfig(model=model.location.uri, qualities=qualities.uri, output=place.uri)
    inputs = {"model": model.digest, "qualities": open_dataset(qualities.uri, ["score"]).digest}
    OutputRun(place, "calibrate", config, inputs)
    return read_json(place / "_incomplete.json")["identity"]
