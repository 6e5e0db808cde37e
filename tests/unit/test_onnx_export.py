"""ONNX files against the model that they were made from."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_faces import face
from quality_models import made_model, pixels

from sdd_ray.core.calibration import QuantileMap, SigmoidMap
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.core.thresholds import Threshold
from sdd_ray.errors import ResourceError
from sdd_ray.store.onnx_export import _map_module, onnx_bytes, run_onnx
from sdd_ray.store.quality import QualityRunner

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")

FACES = pixels([face(person, n) for person in range(8) for n in range(3)])


def qualities(model, size=32):
    batches = [FACES[start : start + size] for start in range(0, len(FACES), size)]
    return np.concatenate(list(QualityRunner(model, "cpu").qualities(batches)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        Preprocessing(width=96, channel_order="bgr", mean=(90.0, 110.0, 120.0), std=(64, 70, 128)),
    ],
)
def test_files_compute_what_the_model_does_at_every_batch_size(preprocessing):
    model = made_model(preprocessing)
    wanted = qualities(model)
    assert np.ptp(wanted[:, 0]) > 0.01
    content = onnx_bytes(model, "float32")
    for size in (1, 5, 24):
        batches = [FACES[start : start + size] for start in range(0, len(FACES), size)]
        found = np.concatenate(list(run_onnx(content, batches)))
        np.testing.assert_allclose(found[:, 0], wanted[:, 0], atol=1e-4 * np.ptp(wanted[:, 0]))
        # Between near knots a quality moves much more than a raw one.
        np.testing.assert_allclose(found[:, 1], model.calibration.apply(found[:, 0]), atol=1e-3)
    # What was traced leaves nothing behind: the model computes as before.
    np.testing.assert_array_equal(qualities(model), wanted)


MAPS = [
    QuantileMap.fit(np.random.default_rng(0).normal(50, 20, 5000)),
    QuantileMap.fit(np.array([3.0, 3.0])),
    QuantileMap((0.0, 1e-6, 100.0), (0.0, 40.0, 100.0)),
    SigmoidMap(40.0, 7.5),
]


@pytest.mark.parametrize("calibration", MAPS)
def test_maps_in_the_graph_are_the_calibration(calibration):
    raw = np.linspace(-50, 150, 4001).astype(np.float32)
    found = _map_module(calibration)(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(found, calibration.apply(raw), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("calibration", MAPS[2:])
def test_maps_survive_the_export(calibration):
    model = replace(made_model(), calibration=calibration)
    wanted = qualities(model)[:, 1]
    (found,) = run_onnx(onnx_bytes(model, "float32"), [FACES])
    np.testing.assert_allclose(found[:, 1], wanted, atol=1e-3)


@pytest.mark.slow
def test_half_precision_is_near_and_half_the_size():
    wanted = qualities(made_model())[:, 0]
    content = onnx_bytes(made_model(), "float16")
    (found,) = run_onnx(content, [FACES])
    np.testing.assert_allclose(found[:, 0], wanted, atol=0.05 * np.ptp(wanted))
    assert len(content) < 0.7 * len(onnx_bytes(made_model(), "float32"))


@pytest.mark.slow
def test_integers_keep_most_of_the_order():
    pytest.importorskip("onnxruntime.quantization")
    wanted = qualities(made_model())[:, 0]
    content = onnx_bytes(made_model(), "int8", FACES)
    (found,) = run_onnx(content, [FACES])
    assert np.corrcoef(found[:, 0], wanted)[0, 1] > 0.7
    kinds = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert "QuantizeLinear" in kinds
    with pytest.raises(ValueError, match="int8 needs faces"):
        onnx_bytes(made_model(), "int8")


@pytest.mark.slow
def test_the_file_says_what_it_is():
    model = replace(
        made_model(),
        thresholds={"discard_0.1": Threshold(3.5, {"aim": "discard"})},
        calibrated={"version": 2},
        digest="abc",
    )
    loaded = onnx.load_from_string(onnx_bytes(model, "float32"))
    said = {item.key: item.value for item in loaded.metadata_props}
    assert said["weights_sha256"] == "abc"
    assert Preprocessing.from_dict(json.loads(said["preprocessing"])) == model.preprocessing
    assert QuantileMap.from_dict(json.loads(said["calibration"])) == model.calibration
    assert json.loads(said["thresholds"])["discard_0.1"]["raw"] == 3.5
    assert json.loads(said["calibrated"]) == {"version": 2}
    assert "uint8, RGB" in said["input"]
    assert [opset.version for opset in loaded.opset_import if opset.domain == ""] == [18]
    (given,) = loaded.graph.input
    first, *rest = given.type.tensor_type.shape.dim
    assert first.dim_param
    assert [dim.dim_value for dim in rest] == [112, 112, 3]
    assert [output.name for output in loaded.graph.output] == ["raw", "quality"]
    assert "/" not in "".join(p.value for node in loaded.graph.node for p in node.metadata_props)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ResourceError, match=r"pip install 'sdd-ray\[export\]'"):
        onnx_bytes(made_model(), "float32")
