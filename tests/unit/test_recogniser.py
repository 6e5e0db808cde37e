import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sdd_ray.core.models import Architecture, build_backbone
from sdd_ray.core.preprocess import PRESETS, Preprocessing
from sdd_ray.errors import ConfigError, InputError, ResourceError, WeightsError
from sdd_ray.settings import PreprocessingConfig, RecogniserConfig
from sdd_ray.store.onnx_session import OnnxSession
from sdd_ray.store.recogniser import (
    DEMO_WEIGHTS,
    RecogniserSpec,
    load_backbone,
    load_recogniser,
    recogniser_spec,
)
from sdd_ray.store.weights import digest, save_weights

SMALL = Architecture(embedding_size=16, width=0.25, input_size=(112, 96))
NARROW = Preprocessing(width=96)


def _varint(number):
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _field(number, value):
    """Return one field of a protobuf message: an integer, or text, bytes or a message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    body = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _tensor_info(name, shape, element_type):
    sizes = (_field(2, size) if isinstance(size, str) else _field(1, size) for size in shape)
    dimensions = b"".join(_field(1, size) for size in sizes)
    kind = _field(1, element_type) + (_field(2, dimensions) if shape else b"")
    return _field(1, name) + _field(2, _field(1, kind))


def _onnx(batch, *, channels=3, height=112, width=112, name="data", pool=True, element_type=1):
    """Return an ONNX file whose embedding is the mean of each channel.

    Written by hand, because the package onnx is not needed for anything else.
    Source of the field numbers: onnx.proto, ModelProto, GraphProto, NodeProto.
    """
    operations = [("GlobalAveragePool", name, "mean"), ("Flatten", "mean", "embedding")]
    if not pool:
        operations = [("GlobalMaxPool", name, "mean"), ("Squeeze", "mean", "embedding")]
    nodes = [
        _field(1, source) + _field(2, target) + _field(4, kind)
        for kind, source, target in operations
    ]
    graph = b"".join(_field(1, node) for node in nodes)
    graph += _field(2, "means")
    graph += _field(11, _tensor_info(name, [batch, channels, height, width], element_type))
    graph += _field(12, _tensor_info("embedding", [], element_type))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 112, 112, 3), dtype=np.uint8)


@pytest.fixture
def spec(tmp_path):
    torch.manual_seed(0)
    save_weights(tmp_path / "w.safetensors", build_backbone(SMALL).state_dict())
    return RecogniserSpec("torch", str(tmp_path / "w.safetensors"), SMALL, NARROW)


@pytest.fixture(autouse=True)
def _keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_torch_weights_embed_like_the_network(spec, images):
    recogniser = load_recogniser(spec, threads=1)
    assert recogniser.embedding_size == 16
    embeddings = recogniser.embed(images)
    assert embeddings.dtype == np.float32
    network = load_backbone(spec).network
    assert not network.training
    with torch.inference_mode():
        expected = network(torch.from_numpy(NARROW.apply(images))).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)


def test_views_and_read_only_images_are_taken(spec, images):
    recogniser = load_recogniser(spec)
    expected = recogniser.embed(images)
    images.flags.writeable = False
    np.testing.assert_array_equal(recogniser.embed(images), expected)
    view = images[:, :, ::-1].copy()[:, :, ::-1]
    np.testing.assert_array_equal(recogniser.embed(view), expected)


def test_threads_are_set(spec):
    load_recogniser(spec, threads=1)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_no_images_give_no_embeddings(spec, images, tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        (tmp_path / "w.onnx").write_bytes(_onnx(1))
        spec = RecogniserSpec("onnx", str(tmp_path / "w.onnx"))
    recogniser = load_recogniser(spec)
    assert recogniser.embed(images[:0]).shape == (0, recogniser.embedding_size)


def test_description_says_what_decides_the_embeddings(spec):
    description = json.loads(json.dumps(load_recogniser(spec).describe()))
    assert description == {
        "kind": "torch",
        "weights_sha256": digest(spec.path),
        "architecture": SMALL.to_dict(),
        "preprocessing": NARROW.to_dict(),
        "flip": False,
    }


def test_flip_averages_with_the_mirror_image(spec, images):
    plain = load_recogniser(spec)
    both = load_recogniser(RecogniserSpec("torch", spec.path, SMALL, NARROW, flip=True))
    expected = (plain.embed(images) + plain.embed(images[:, :, ::-1].copy())) / 2
    np.testing.assert_allclose(both.embed(images), expected, atol=1e-5)
    np.testing.assert_allclose(both.embed(images[:, :, ::-1]), expected, atol=1e-5)
    assert both.embedding_size == 16
    assert both.describe() == {**plain.describe(), "flip": True}


def test_weights_of_another_architecture_are_refused(spec):
    other = RecogniserSpec("torch", spec.path, Architecture(input_size=(112, 96)), NARROW)
    with pytest.raises(WeightsError, match="do not fit MobileFaceNet"):
        load_recogniser(other)


def test_contradictions_are_named(spec):
    with pytest.raises(ConfigError, match=r"input of \(112, 96\) pixels, got \(112, 112\)"):
        load_recogniser(RecogniserSpec("torch", spec.path, SMALL))
    for kind in ("torch", "onnx"):
        with pytest.raises(ConfigError, match=rf"recogniser\.kind={kind} needs recogniser\.path"):
            load_recogniser(RecogniserSpec(kind))
    with pytest.raises(ConfigError, match="cannot be trained further"):
        load_backbone(RecogniserSpec("onnx", "w.onnx"))


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_missing_weights_are_named(kind):
    with pytest.raises(InputError, match=r"nowhere\.pt"):
        load_recogniser(RecogniserSpec(kind, "nowhere.pt"))


def test_a_missing_gpu_is_no_cpu(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="expected the device cuda"):
        load_recogniser(spec, device="cuda")
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    (tmp_path / "w.onnx").write_bytes(_onnx(1))
    with pytest.raises(ResourceError, match=r"CUDAExecutionProvider, got one with \['CPU"):
        load_recogniser(RecogniserSpec("onnx", str(tmp_path / "w.onnx")), device="cuda")


def test_a_gpu_that_does_not_start_is_no_cpu(tmp_path, monkeypatch):
    # onnxruntime goes on with the CPU when the libraries of CUDA are missing.
    onnxruntime = pytest.importorskip("onnxruntime")

    class FallenBack:
        def __init__(self, *args, **kwargs):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    (tmp_path / "w.onnx").write_bytes(_onnx(1))
    with pytest.raises(ResourceError, match="could not start CUDAExecutionProvider"):
        load_recogniser(RecogniserSpec("onnx", str(tmp_path / "w.onnx")), device="cuda")


def test_missing_onnxruntime_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "w.onnx").write_bytes(_onnx(1))
    with pytest.raises(ResourceError, match=r"pip install 'sdd-ray\[onnx\]'"):
        load_recogniser(RecogniserSpec("onnx", str(tmp_path / "w.onnx")))


@pytest.mark.parametrize("batch", [1, 4, 7, 20, "N"])
@pytest.mark.parametrize("name", ["data", "input.1"])
def test_onnx_of_any_batch_size_gives_every_row(tmp_path, images, batch, name):
    pytest.importorskip("onnxruntime")
    (tmp_path / "w.onnx").write_bytes(_onnx(batch, name=name))
    preprocessing = PRESETS["imagenet"]
    recogniser = load_recogniser(
        RecogniserSpec("onnx", str(tmp_path / "w.onnx"), preprocessing=preprocessing)
    )
    assert recogniser.embedding_size == 3
    expected = preprocessing.apply(images).mean((2, 3))
    np.testing.assert_allclose(recogniser.embed(images), expected, atol=1e-5)
    assert recogniser.describe()["weights_sha256"] == digest(tmp_path / "w.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot load it"),
        (b"no onnx", "cannot load it"),
        (_onnx(1, width=96), r"input of \(N, 3, 112, 112\), channels first, got \[1, 3, 112, 96\]"),
        (_onnx(1, channels=112, width=3), "channels first"),
        (_onnx(1, element_type=10), r"type tensor\(float\), got data tensor\(float16\)"),
        (_onnx("N", pool=False), "expected 1 rows in the output embedding"),
    ],
)
def test_other_onnx_files_are_refused(tmp_path, content, message):
    pytest.importorskip("onnxruntime")
    (tmp_path / "w.onnx").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_recogniser(RecogniserSpec("onnx", str(tmp_path / "w.onnx")))


def test_error_while_an_onnx_file_runs_names_the_file(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "w.onnx").write_bytes(_onnx(1))
    session = OnnxSession(tmp_path / "w.onnx", threads=1, device="cpu")
    with pytest.raises(WeightsError, match=r"w\.onnx: onnxruntime cannot run it"):
        session.run(np.zeros((1, 3, 50, 50), np.float32))


def test_configuration_becomes_a_specification():
    config = RecogniserConfig(
        kind="torch",
        path="w.pt",
        embedding_size=16,
        preprocessing=PreprocessingConfig(width=96, channel_order="bgr", std=(1.0, 2.0, 3.0)),
        flip=True,
    )
    assert recogniser_spec(config) == RecogniserSpec(
        "torch",
        str(Path("w.pt").absolute()),
        Architecture(embedding_size=16, input_size=(112, 96)),
        Preprocessing(width=96, channel_order="bgr", std=(1.0, 2.0, 3.0)),
        flip=True,
    )


def test_the_packaged_recogniser_describes_itself(spec, tmp_path, monkeypatch, images):
    weights = tmp_path / "w.safetensors"
    monkeypatch.setattr("sdd_ray.store.recogniser.DEMO_WEIGHTS", weights)
    with pytest.raises(InputError, match=r"w\.json: not the description"):
        load_recogniser(RecogniserSpec())
    description = {"architecture": SMALL.to_dict(), "preprocessing": NARROW.to_dict()}
    weights.with_suffix(".json").write_text(json.dumps(description))
    recogniser = load_recogniser(RecogniserSpec())
    np.testing.assert_array_equal(recogniser.embed(images), load_recogniser(spec).embed(images))
    backbone, architecture, preprocessing = load_backbone(RecogniserSpec())
    assert (architecture, preprocessing) == (SMALL, NARROW)
    assert not backbone.training


def test_the_packaged_recogniser_loads(images):
    if not DEMO_WEIGHTS.is_file():
        pytest.skip("the packaged recogniser has not been made yet")
    recogniser = load_recogniser(RecogniserSpec())
    assert recogniser.embed(images).shape == (7, recogniser.embedding_size)


def test_real_weights_embed_the_same_in_both_formats(shared_data, cfp_images):
    pytest.importorskip("onnxruntime")
    folder = shared_data / "recognizers"
    onnx, torch_weights = (
        load_recogniser(
            RecogniserSpec(
                kind, str(folder / f"mobilefacenet_a.{suffix}"), preprocessing=PRESETS["imagenet"]
            )
        ).embed(cfp_images)
        for kind, suffix in (("onnx", "onnx"), ("torch", "pt"))
    )
    norms = np.linalg.norm(onnx, axis=1) * np.linalg.norm(torch_weights, axis=1)
    assert ((onnx * torch_weights).sum(1) / norms).min() > 0.9999
    unit = onnx / np.linalg.norm(onnx, axis=1, keepdims=True)
    # Ten frontal and four profile pictures of the first person, then six of the second.
    similarities = unit @ unit.T
    assert similarities[:10, :10].mean() > similarities[:10, 14:].mean() + 0.3
