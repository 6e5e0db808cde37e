"""The score command: one row for every image, also for those that cannot be read."""

import csv
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_faces import face, write_faces
from quality_models import made_model, pixels, write_model

from sdd_ray import score
from sdd_ray.config import main
from sdd_ray.core.fitting import predict
from sdd_ray.core.thresholds import Threshold
from sdd_ray.engine import inference
from sdd_ray.engine.qualities import read_qualities
from sdd_ray.engine.scoring import ScoreStage
from sdd_ray.errors import InputError, ResourceError
from sdd_ray.score_paths import _as_they_come
from sdd_ray.scorer import Scorer
from sdd_ray.settings import MethodConfig, ScoreConfig
from sdd_ray.store.dataset import open_dataset, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import INCOMPLETE, MANIFEST

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def model():
    plain = made_model()
    least = float(np.median(plain.calibration.raw))
    return replace(plain, thresholds={"middle": Threshold(least, {"aim": "discard"})})


@pytest.fixture(scope="module")
def model_folder(model, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), model)


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
    raw = predict(
        model.network, model.preprocessing.apply_tensor(torch.tensor(pixels(FACES.values())))
    )
    np.testing.assert_allclose([rows[i]["raw"] for i in FACES], raw, rtol=1e-4, atol=1e-5)
    qualities = [rows[i]["quality"] for i in FACES]
    np.testing.assert_allclose(qualities, model.calibration.apply(raw), atol=0.6)
    assert len(set(qualities)) > 3


def test_model_that_is_not_finished_is_refused(do_score, model_folder, tmp_path):
    root = tmp_path / "faces"
    write_faces(root, identities=1, images=1)
    status, _, err = do_score(root, f"model={tmp_path}")
    assert status == 1
    assert (
        f"{tmp_path}: expected a dataset written by train or calibrate, found no {MANIFEST}" in err
    )


def test_share_of_failures_can_be_limited(do_score, tmp_path):
    root = tmp_path / "faces"
    write_faces(root, identities=1, images=3)
    (root / "000" / "empty.png").touch()
    status, _, err = do_score(root, "max_reject_share=0.2")
    assert status == 1
    assert "1 of 4 images had to be set aside (empty 1)" in err
    assert not (tmp_path / "qualities" / MANIFEST).exists()


@pytest.mark.slow
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


def rows_of(folder, *names):
    table = open_dataset(str(folder), ["score"]).read(["image_id", *names])
    return {row["image_id"]: row for row in table.sort_by("image_id").to_pylist()}


def test_workers_batches_and_the_api_agree(do_score, images, model_folder, tmp_path):
    ways = {
        "one": ["resources.workers=1", "batch_size=1"],
        "three": ["resources.workers=3", "images_per_shard=2", "batch_size=64"],
    }
    for name, words in ways.items():
        assert do_score(images, f"output={tmp_path}/{name}", *words)[0] == 0
    one, three = (rows_of(tmp_path / name, "quality", "raw", "reason") for name in ways)
    assert list(one) == list(three)
    scores = Scorer(model_folder).score([images / name for name in one])
    for place, (name, row) in enumerate(one.items()):
        assert row["reason"] == three[name]["reason"] == scores.reasons[place]
        if row["raw"] is not None:
            assert three[name]["raw"] == pytest.approx(row["raw"], rel=1e-5)
            assert scores.raw[place] == pytest.approx(row["raw"], rel=1e-5)
            assert abs(three[name]["quality"] - row["quality"]) <= 1


def test_thresholds_and_the_best_images_of_each_person(do_score, images, tmp_path, model):
    words = ["best.count=1", "images_per_shard=2", "format=ofiq", "threshold=middle"]
    assert do_score(images, *words)[0] == 0
    rows = rows_of(tmp_path / "qualities", "quality", "raw", "identity", "accepted")
    least = model.thresholds["middle"].raw
    for row in rows.values():
        assert row["accepted"] is (row["raw"] is not None and row["raw"] >= least)
    assert 0 < sum(row["accepted"] for row in rows.values()) < len(rows)
    # Who needs the person cannot do without it: an image in nobody's folder is set aside.
    assert "nobody.png" not in rows
    best = {}
    for name, row in rows.items():
        if row["raw"] is not None:
            assert row["identity"] == name[:3]
            best[name[:3]] = max(best.get(name[:3], (-np.inf, "")), (row["raw"], name))
    table = read_parquet(Location(f"{tmp_path}/qualities/best.parquet"))
    assert table["image_id"].to_pylist() == [best[person][1] for person in sorted(best)]
    file = tmp_path / "qualities" / "qualities.csv"
    head = file.read_text().splitlines()[0]
    assert head == (
        "Filename;UnifiedQualityScore;UnifiedQualityScore.scalar;reason;accepted;identity"
    )
    ofiq = MethodConfig(name="m", path=str(file), key="Filename", column="UnifiedQualityScore")
    wanted = [np.nan if row["raw"] is None else row["raw"] for row in rows.values()]
    found = read_qualities(ofiq, list(rows)).values.astype(np.float32)
    np.testing.assert_array_equal(found, np.array(wanted, np.float32))
    status, _, err = do_score(images, "threshold=none of them", f"output={tmp_path}/other")
    assert status == 1
    assert "the model has no threshold 'none of them'; it has middle" in err


@pytest.fixture
def on_paths(model_folder, capsysbinary, monkeypatch):
    """Return a function that scores paths without an output folder."""

    def run(*words, lines=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        status = main(ScoreConfig, score.run, [f"model={model_folder}", *words])
        out, err = capsysbinary.readouterr()
        assert b"Traceback" not in err
        return status, out.decode(), err.decode()

    return run


def test_paths_are_scored_without_ray(on_paths, images, model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    names = [f"{images}/{name}" for name in (*FACES, *BROKEN)]
    wanted = Scorer(model_folder).score(names)
    status, out, _ = on_paths(f"images={names}", "threshold=50")
    assert status == 0
    lines = list(csv.DictReader(io.StringIO(out)))
    assert [line["image_id"] for line in lines] == names
    assert [int(line["quality"]) for line in lines] == wanted.quality.tolist()
    assert [line["reason"] or None for line in lines] == list(wanted.reasons)
    assert [line["accepted"] for line in lines] == [
        str(quality >= 50).lower() for quality in wanted.quality
    ]


def test_paths_of_standard_input_are_scored_in_their_order(on_paths, images):
    names = [f"{images}/{name}" for name in FACES] * 3
    lines = "\n".join([*names, "", f"{images}/nowhere.png"]).encode() + b"\r\n"
    status, out, _ = on_paths("--stdin", "format=text", "batch_size=4", lines=lines)
    assert status == 0
    found = [line.rsplit(" ", 1) for line in out.splitlines()]
    assert [path for path, _ in found] == [*names, f"{images}/nowhere.png"]
    assert found[-1][1] == "nan"
    assert len({value for _, value in found}) == len(FACES) + 1


def test_who_has_read_enough_may_go(model_folder, images):
    words = f"{sys.executable} -m sdd_ray.score model={model_folder} --stdin batch_size=1"
    command = f"yes {images}/nobody.png | head -2000 | {words} | head -3"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=200, check=True
    )
    assert len(done.stdout.splitlines()) == 3
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_standard_input_that_breaks_off_is_an_error():
    def broken():
        yield from (b"a.png\n", b"\n", b"b.png\n", b"c.png\n")
        raise OSError("the line is dead")

    found = []
    with pytest.raises(InputError, match="standard input: the line is dead"):
        found.extend(_as_they_come(broken(), 2))
    assert [path for batch in found for path in batch] == ["a.png", "b.png", "c.png"]
    assert {len(batch) for batch in found} <= {1, 2}


def test_paths_that_lead_nowhere_are_an_error(on_paths, tmp_path):
    status, out, err = on_paths(f"images=[{tmp_path}/a.png]")
    assert status == 1
    assert f"{tmp_path}/a.png,-1,,unreadable" in out
    assert "none of 1 images can be reached; the first: " in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give output (for the images of source), images or stdin; got none"),
        (["images=[a.png]", "output=o"], "got output and images"),
        (["--stdin", "best.count=2"], "best needs output and source"),
        (["output=o", "best.column=raw"], "column=raw is a column of best.csv already"),
        (["--stdin", "format=text", "threshold=3"], "format=text has no column for threshold"),
        (["--stdin", "threshold=101"], "threshold"),
        (["--other"], "--other: no such option"),
    ],
)
def test_wrong_configurations(on_paths, words, message):
    status, _, err = on_paths(*words)
    assert status == 2
    assert message in err
    assert len(re.findall(r"^  ", err, re.MULTILINE)) <= 3
