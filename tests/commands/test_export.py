"""The export command: one file that computes what the model does, and a card beside it."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_faces import write_faces
from quality_models import made_model, write_model

from sdd_ray import export
from sdd_ray.config import main
from sdd_ray.engine import exporting
from sdd_ray.engine.exporting import compare
from sdd_ray.engine.model_card import model_card
from sdd_ray.settings import EvaluateConfig, ExportConfig, MethodConfig, ScoreConfig
from sdd_ray.store.dataset import read_json
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import load_model
from sdd_ray.store.run import MANIFEST, OutputRun

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")

SUMMARY = {
    "recogniser": "own",
    "method": "model",
    "fmr": 0.01,
    "evrc_0": 0.25,
    "evrc_0.2": 0.125,
    "normalised_pauc_0.3": 0.75,
    "normalised_pauc_0.3_low": 0.7,
    "normalised_pauc_0.3_high": 0.8,
}
RESULTS = {
    "images": 60,
    "identities": 12,
    "mated_comparisons": 120,
    "nonmated_comparisons": 1650,
    "discard_fractions": [0, 0.2],
    "discard_limit": 0.3,
    "recogniser": "own",
    "summary": [SUMMARY, {**SUMMARY, "method": "norm"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), made_model())


@pytest.fixture
def do_export(folder, tmp_path, capsys):
    def run(*words):
        source = ["source.synthetic.num_identities=4", "num_images=40"]
        given = [f"model={folder}", f"output={tmp_path}/exported", *source]
        status = main(ExportConfig, export.run, [*given, *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def scored(folder, digest):
    """A dataset of score, of a model with these weights."""
    place = Location(str(folder))
    run = OutputRun(place, "score", ScoreConfig(model="m", output=place.uri))
    run.complete([], {"weights_sha256": digest})
    return place.uri


@pytest.fixture
def evaluation(tmp_path, folder):
    place = Location(str(tmp_path / "evaluation"))
    qualities = scored(tmp_path / "qualities", load_model(Location(folder)).digest)
    method = MethodConfig(name="model", path=qualities)
    run = OutputRun(
        place, "evaluate", EvaluateConfig(embeddings="e", output=place.uri, methods=(method,))
    )
    run.complete([], RESULTS)
    return place.uri


def test_file_and_card(do_export, evaluation, tmp_path, folder):
    status, out, _ = do_export(f"evaluation={evaluation}")
    assert status == 0
    found = read_json(Location(f"{tmp_path}/exported/{MANIFEST}"))["results"]
    assert found["images"] == 40
    assert found["largest_raw_difference"] <= 1e-4
    assert found["spearman"] > 0.9999
    assert out.startswith(f"export: float32, {found['bytes']:,} bytes; on 40 images")
    session = onnxruntime.InferenceSession(f"{tmp_path}/exported/model.onnx")
    raw, quality = session.run(None, {"images": np.full((3, 112, 112, 3), 127, np.uint8)})
    assert raw.shape == quality.shape == (3,)
    card = (tmp_path / "exported" / "MODEL_CARD.md").read_text()
    assert "| own | 0.01 | 25.00% | 12.50% | 0.750 (0.700 to 0.800) |" in card
    assert card.count("| own |") == 1
    assert "60 images of 12 people" in card
    again, text, _ = do_export(f"evaluation={evaluation}")
    assert (again, text) == (0, out)


def test_a_file_that_computes_otherwise_is_refused(do_export, monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "onnx_bytes", lambda *_: b"any")
    wrong = [np.zeros((40, 2), np.float32)]
    monkeypatch.setattr(exporting, "run_onnx", lambda *_: wrong)
    status, _, err = do_export()
    assert status == 1
    assert "the ONNX file computes otherwise than the model" in err
    assert not (tmp_path / "exported" / MANIFEST).exists()


def test_differences_are_shares_of_the_span(monkeypatch):
    model = made_model()
    faces = np.random.default_rng(0).integers(0, 256, (20, 112, 112, 3), np.uint8)
    (wanted,) = exporting.QualityRunner(model, "cpu").qualities([faces])
    shifted = wanted + np.array([0.5, -2.0], np.float32)
    monkeypatch.setattr(exporting, "run_onnx", lambda *_: [shifted])
    found = compare(model, b"", faces)
    floor = 0.01 * max(1.0, np.abs(wanted[:, 0]).max())
    span = max(np.ptp(wanted[:, 0]), floor)
    assert found["largest_raw_difference"] == pytest.approx(0.5 / span, rel=1e-4)
    assert found["largest_quality_difference"] == pytest.approx(2.0, rel=1e-4)
    assert found["spearman"] == pytest.approx(1.0)


def test_too_few_images(do_export, tmp_path):
    write_faces(tmp_path / "faces", identities=2, images=2)
    (tmp_path / "faces" / "000" / "broken.png").write_bytes(b"broken")
    words = ["source.kind=folder", f"source.path={tmp_path}/faces"]
    status, _, err = do_export(*words)
    assert status == 1
    assert (
        "expected at least 16 images to compare with, could read 4 of 5; the first: not_an" in err
    )


def test_evaluations_without_the_model(do_export, evaluation):
    status, _, err = do_export(f"evaluation={evaluation}", "method=ours")
    assert status == 1
    assert "no method ours; it has model" in err


def test_evaluations_of_another_model(do_export, evaluation, tmp_path):
    """Its figures would stand in this model's card."""
    other = write_model(tmp_path / "other", made_model(seed=1))
    status, _, err = do_export(f"model={other}", f"evaluation={evaluation}")
    assert status == 1
    assert "expected qualities of the model with the weights" in err


def test_the_card_tells_the_training():
    """A record as train writes it."""
    record = {
        "best_epoch": 5,
        "epochs": 6,
        "validation": {"loss": 5.25, "spearman": 0.875, "pauc": None},
        "history": [{"loss": 9.0}],
        "train_images": 5018,
        "validation_images": 558,
        "identities": {"train": 360, "validation": 40, "holdout": 100},
    }
    figures = {"precision": "float32", "bytes": 10, "images": 20, "spearman": 1.0}
    figures |= {"largest_raw_difference": 0.0, "largest_quality_difference": 0.0}
    card = model_card(replace(made_model(), record=record), figures, None)
    assert "people: 360 to train, 40 to choose the epoch, 100 held out" in card
    assert "- images to train: 5,018" in card
    assert "on the validation images: loss 5.25, spearman 0.875" in card


def test_a_card_without_evaluation_or_thresholds_says_so():
    figures = {"precision": "int8", "bytes": 10, "images": 20, "spearman": 0.9}
    figures |= {"largest_raw_difference": 0.1, "largest_quality_difference": 3.0}
    card = model_card(made_model(), figures, None)
    assert "Not evaluated when this card was written" in card
    assert "rank correlation 0.900000" in card
    assert "threshold | raw" not in card
