"""The measure command: one row for every image, the same for any batches and workers."""

import csv

import numpy as np
import pytest
import torch
from drawn_faces import face, write_faces

from sdd_ray import measure
from sdd_ray.config import main
from sdd_ray.core.measures import DropoutStability, contrast, cosine, sharpness
from sdd_ray.settings import MeasureConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.recogniser import RecogniserSpec, load_backbone, load_recogniser

pytestmark = pytest.mark.usefixtures("ray_session")
NAMES = ["sharpness", "contrast", "flip", "dropout"]


@pytest.fixture
def do_measure(tmp_path, capsys):
    """Return a function that runs the command; it returns status, stdout and stderr."""
    root = tmp_path / "faces"
    write_faces(root, identities=3, images=2)
    (root / "001" / "broken.jpg").write_bytes(b"no image")

    def run(*words):
        given = [f"output={tmp_path}/measures", "source.kind=folder", f"source.path={root}"]
        status = main(MeasureConfig, measure.run, [*given, "dropout.passes=3", *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def rows_of(folder):
    table = open_dataset(str(folder), ["measure"]).read(["image_id", *NAMES, "reason"])
    return {row.pop("image_id"): row for row in table.to_pylist()}


def test_values_are_those_of_the_functions(do_measure, tmp_path):
    status, out, _ = do_measure()
    assert status == 0
    assert "measure: 7 of 7 images, rejected not_an_image 1" in out
    rows = rows_of(tmp_path / "measures")
    broken = rows.pop("001/broken.jpg")
    assert broken == {**dict.fromkeys(NAMES), "reason": "not_an_image"}
    names = [f"00{person}/00{n}.png" for person in range(3) for n in range(2)]
    assert list(rows) == names
    images = np.stack([np.asarray(face(person, n)) for person in range(3) for n in range(2)])
    recogniser, backbone = load_recogniser(RecogniserSpec()), load_backbone(RecogniserSpec())
    with torch.no_grad():
        stable = DropoutStability(backbone.network, 3, 0.5, 0)(
            backbone.preprocessing.apply_tensor(torch.from_numpy(images))
        )
    flipped = np.ascontiguousarray(images[:, :, ::-1])
    for name, expected in (
        ("sharpness", sharpness(images)),
        ("contrast", contrast(images)),
        ("flip", cosine(recogniser.embed(images), recogniser.embed(flipped))),
        ("dropout", stable.numpy()),
    ):
        found = [rows[image][name] for image in names]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert len(set(found)) == 6
    with (tmp_path / "measures" / "measures.csv").open(newline="") as stream:
        lines = {line["image_id"]: line for line in csv.DictReader(stream)}
    assert float(lines[names[0]]["flip"]) == pytest.approx(rows[names[0]]["flip"], rel=1e-5)
    assert lines["001/broken.jpg"]["flip"] == ""


@pytest.mark.slow
def test_batches_and_shards_change_nothing_and_only_what_is_asked_for_is_there(
    do_measure, tmp_path
):
    assert do_measure()[0] == 0
    words = ["batch_size=1", "images_per_shard=2", "measures=[dropout, sharpness]"]
    assert do_measure(*words, f"output={tmp_path}/other")[0] == 0
    one, other = (rows_of(tmp_path / name) for name in ("measures", "other"))
    assert list(one) == list(other)
    for image, row in other.items():
        assert (row["contrast"], row["flip"]) == (None, None)
        if one[image]["sharpness"] is not None:
            assert row["sharpness"] == one[image]["sharpness"]
            assert row["dropout"] == pytest.approx(one[image]["dropout"], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recogniser.kind=onnx", "recogniser.path=n.onnx"], "dropout needs the network's layers"),
        (["recogniser.flip=true"], "makes an image and its mirror image the same"),
        (["measures=[flip, flip]"], "measures names one twice"),
        (["dropout.passes=1"], "dropout.passes"),
    ],
)
def test_mistakes_end_in_one_message(do_measure, words, message):
    status, _, err = do_measure(*words)
    assert status == 2
    assert message in err
