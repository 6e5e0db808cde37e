"""The score command: one row for every image, also for those that cannot be read."""

import csv
import shutil

import numpy as np
import pytest
import torch
from drawn_faces import face, write_faces

from sdd_ray import score
from sdd_ray.config import main
from sdd_ray.core.calibration import QuantileMap
from sdd_ray.core.fitting import predict
from sdd_ray.core.models import Architecture, QualityArchitecture, build_quality
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.engine import inference
from sdd_ray.engine.scoring import ScoreStage
from sdd_ray.errors import ResourceError
from sdd_ray.settings import ScoreConfig, TrainConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import QualityModel, save_model
from sdd_ray.store.run import INCOMPLETE, MANIFEST, OutputRun, PartRecord

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def model():
    """A small network whose raw qualities spread over its calibration."""
    torch.manual_seed(0)
    architecture = QualityArchitecture(
        backbone=Architecture(width=0.25, input_size=(112, 112)), head="average", dropout=0.2
    )
    network, preprocessing = build_quality(architecture), Preprocessing()
    faces = preprocessing.apply_tensor(pixels([face(person, 0) for person in range(8)]))
    with torch.no_grad():
        for _ in range(20):  # Batch norms learn their statistics; without them all is one value.
            network(faces)
    raw = predict(network.eval(), faces)
    return QualityModel(network, architecture, preprocessing, QuantileMap.fit(raw))


def pixels(images):
    return torch.tensor(np.stack([np.asarray(image) for image in images]))


@pytest.fixture(scope="module")
def model_folder(model, tmp_path_factory):
    place = Location(str(tmp_path_factory.mktemp("model")))
    run = OutputRun(place, "train", TrainConfig(labels="l", output=place.uri))
    digest = save_model(place, model)
    run.complete([PartRecord("model", 8, 8, digest, 1, suffix=".safetensors")])
    return place.uri


@pytest.fixture
def do_score(model_folder, capsys, tmp_path):
    """Return a function that runs the command; it returns status, stdout and stderr."""

    def run(root, *words):
        arguments = [f"model={model_folder}", f"output={tmp_path}/qualities"]
        source = ["source.kind=folder", f"source.path={root}", "resources.workers=1"]
        status = main(ScoreConfig, score.run, [*arguments, *source, *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


@pytest.fixture
def images(tmp_path):
    """Folder of drawn faces and of two broken files, one of them in nobody's folder."""
    root = tmp_path / "faces"
    write_faces(root, identities=3, images=2)
    (root / "001" / "broken, really.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (root / "002" / "empty.png").touch()
    face(3, 0).save(root / "nobody.png")
    return root


BROKEN = {"001/broken, really.jpg": "damaged", "002/empty.png": "empty"}
FACES = {f"00{person}/00{n}.png": face(person, n) for person in range(3) for n in range(2)}
FACES["nobody.png"] = face(3, 0)


def test_every_image_has_a_row_in_both_files(do_score, images, tmp_path):
    status, out, _ = do_score(images, "images_per_shard=4")
    assert status == 0
    assert "score: 9 of 9 images, rejected damaged 1, empty 1" in out
    names = ["image_id", "quality", "raw", "reason"]
    table = open_dataset(f"{tmp_path}/qualities", ["score"]).read(names)
    rows = {row["image_id"]: row for row in table.to_pylist()}
    assert list(rows) == sorted([*FACES, *BROKEN])
    for image_id, row in rows.items():
        if image_id in BROKEN:
            assert (row["quality"], row["raw"], row["reason"]) == (-1, None, BROKEN[image_id])
        else:
            assert isinstance(row["quality"], int)
            assert 0 <= row["quality"] <= 100
            assert row["reason"] is None
    with (tmp_path / "qualities" / "qualities.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["image_id"] for line in lines] == list(rows)
    for line in lines:
        row = rows[line["image_id"]]
        assert (int(line["quality"]), line["reason"]) == (row["quality"], row["reason"] or "")


def test_qualities_are_those_of_the_model(do_score, images, model, tmp_path):
    assert do_score(images, "batch_size=2")[0] == 0
    table = open_dataset(f"{tmp_path}/qualities", ["score"]).read(["image_id", "quality", "raw"])
    rows = {row["image_id"]: row for row in table.to_pylist()}
    raw = predict(model.network, model.preprocessing.apply_tensor(pixels(FACES.values())))
    np.testing.assert_allclose([rows[i]["raw"] for i in FACES], raw, rtol=1e-4, atol=1e-5)
    qualities = [rows[i]["quality"] for i in FACES]
    np.testing.assert_allclose(qualities, model.calibration.apply(raw), atol=0.6)
    assert len(set(qualities)) > 3


def test_model_that_is_not_finished_is_refused(do_score, model_folder, tmp_path):
    root = tmp_path / "faces"
    write_faces(root, identities=1, images=1)
    status, _, err = do_score(root, f"model={tmp_path}")
    assert status == 1
    assert f"{tmp_path}: expected a dataset written by train, found no {MANIFEST}" in err


def test_share_of_failures_can_be_limited(do_score, tmp_path):
    root = tmp_path / "faces"
    write_faces(root, identities=1, images=3)
    (root / "000" / "empty.png").touch()
    status, _, err = do_score(root, "max_reject_share=0.2")
    assert status == 1
    assert "1 of 4 images had to be set aside (empty 1)" in err
    assert not (tmp_path / "qualities" / MANIFEST).exists()


def test_run_that_reaches_no_image_stops_and_goes_on_when_they_are_there(do_score, tmp_path):
    root = tmp_path / "faces"
    root.mkdir()
    for name in ("a.png", "b.png"):
        (root / name).symlink_to(tmp_path / "elsewhere" / name)
    status, _, err = do_score(root, "images_per_shard=1")
    assert status == 1
    assert f"none of 2 images can be reached; the first is a.png: cannot read {root}/a.png" in err
    assert not (tmp_path / "qualities" / MANIFEST).exists()
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.png", "b.png"):
        face(0, 0).save(tmp_path / "elsewhere" / name)
    status, out, _ = do_score(root, "images_per_shard=1")
    assert status == 0
    assert "score: 2 of 2 images" in out
    assert "rejected" not in out


def test_damaged_model_ends_the_run_before_any_work(do_score, images, model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    status, _, err = do_score(images, f"model={copy}")
    assert status == 1
    assert "model.safetensors" in err
    assert Location(f"{tmp_path}/qualities").names() == [INCOMPLETE]


def test_part_on_the_disk_of_another_node_is_named(do_score, images, monkeypatch, tmp_path):
    process = inference._process

    def lost(job, run, *others):
        for record, use in process(job, run, *others):
            (run.output / record.file).remove()
            yield record, use

    monkeypatch.setattr(inference, "_process", lost)
    status, _, err = do_score(images)
    assert status == 1
    assert "1 of 1 finished parts are not there, first part-000000.parquet" in err
    assert "give a shared folder or s3://" in err
    assert not (tmp_path / "qualities" / MANIFEST).exists()


def test_missing_gpu_is_no_cpu(model_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="expected the device cuda, but torch finds no CUDA"):
        ScoreStage(Location(model_folder), "cuda").load(1)
