"""Recognisers: the same embeddings whatever the format, and the right questions when in doubt."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import settled_backbone
from pydantic import ValidationError
from torch import nn

from sdd_ray.core.models import Architecture, architecture_names, build_backbone
from sdd_ray.core.preprocess import PRESETS, Preprocessing
from sdd_ray.errors import ConfigError, InputError, ResourceError, WeightsError
from sdd_ray.settings import PreprocessingConfig, RecogniserConfig, TrainConfig
from sdd_ray.store.recogniser import (
    DEMO_WEIGHTS,
    RecogniserSpec,
    load_backbone,
    load_recogniser,
    recogniser_spec,
    weights_digest,
)
from sdd_ray.store.torch_recogniser import Running, TorchRecogniser, compiled
from sdd_ray.store.weights import digest, save_weights

SMALL = Architecture(embedding_size=16, width=0.25, input_size=(112, 96))
NARROW = Preprocessing(width=96)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 112, 112, 3), dtype=np.uint8)


def written(path, architecture, weights=None, **options):
    """Write weights, random ones if none are given; return the specification of the recogniser."""
    if weights is None:
        weights = settled_backbone(architecture).state_dict()
    save_weights(path, weights)
    height, width = architecture.input_size
    preprocessing = Preprocessing(height=height, width=width)
    return RecogniserSpec("torch", str(path), preprocessing=preprocessing, **options)


@pytest.fixture
def spec(tmp_path):
    return written(tmp_path / "w.safetensors", SMALL)


@pytest.fixture(autouse=True)
def _keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cosines(left, right):
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(1) / norms


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


@pytest.mark.parametrize("kind", ["torch", "demo"])
def test_batches_are_embedded_in_order_whatever_their_size(spec, images, kind):
    recogniser = load_recogniser(spec if kind == "torch" else RecogniserSpec())
    expected = recogniser.embed(images)
    taken = []

    def batches():
        for start, stop in ((0, 3), (3, 3), (3, 4), (4, 7)):
            taken.append(stop)
            yield images[start:stop]

    results = recogniser.embed_many(batches())
    np.testing.assert_allclose(next(results), expected[:3], rtol=1e-4, atol=1e-5)
    assert taken == [3]  # on a CPU nothing is read ahead
    rest = list(results)
    assert [len(rows) for rows in rest] == [0, 1, 3]
    np.testing.assert_allclose(np.concatenate(rest), expected[3:], rtol=1e-4, atol=1e-5)
    assert list(recogniser.embed_many([])) == []


def test_a_gpu_gets_the_next_batch_before_a_result_is_waited_for(spec, images, monkeypatch):
    recogniser = load_recogniser(spec)
    expected = recogniser.embed(images)
    submit = recogniser._submit
    events = []

    def batches():
        for start in range(3):
            events.append(f"batch {start}")
            yield images[start : start + 1]

    def on_the_cpu(batch):
        monkeypatch.setattr(recogniser, "_is_cuda", False)
        output = submit(batch)
        monkeypatch.setattr(recogniser, "_is_cuda", True)
        return output

    monkeypatch.setattr(recogniser, "_submit", on_the_cpu)
    monkeypatch.setattr(recogniser, "_is_cuda", True)
    for row, result in enumerate(recogniser.embed_many(batches())):
        events.append(f"result {row}")
        np.testing.assert_allclose(result, expected[row : row + 1], rtol=1e-3, atol=1e-4)
    assert events == ["batch 0", "batch 1", "result 0", "batch 2", "result 1", "result 2"]


def test_views_and_read_only_images_are_taken(spec, images):
    recogniser = load_recogniser(spec)
    expected = recogniser.embed(images)
    images.flags.writeable = False
    np.testing.assert_array_equal(recogniser.embed(images), expected)
    view = images[:, :, ::-1].copy()[:, :, ::-1]
    np.testing.assert_array_equal(recogniser.embed(view), expected)
    wide = np.repeat(images, 2, 2)[:, :, ::2]
    np.testing.assert_array_equal(recogniser.embed(wide), expected)


def test_images_are_copied_once_into_memory_that_a_gpu_can_copy_from(spec, images, monkeypatch):
    recogniser = load_recogniser(spec)
    empty, pinned = torch.empty, []

    def noting(*shape, pin_memory=False, **options):
        pinned.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", noting)
    for is_cuda in (False, True):  # without a stream, as there is none here
        monkeypatch.setattr(recogniser, "_is_cuda", is_cuda)
        inputs = recogniser._inputs(images[:, :, ::-1])
        np.testing.assert_allclose(inputs, NARROW.apply(images[:, :, ::-1]), atol=1e-6)
    assert pinned == [False, True]


def test_other_images_are_refused(spec, images):
    recogniser = load_recogniser(spec)
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        recogniser.embed(images.astype(np.float32))
    with pytest.raises(ValueError, match="of at least 112 x 96 pixels, got 112 x 90"):
        recogniser.embed(images[:, :, :90])


def test_threads_are_set(spec):
    load_recogniser(spec, threads=1)
    assert torch.get_num_threads() == 1


def test_no_images_give_no_embeddings(spec, images):
    recogniser = load_recogniser(spec)
    assert recogniser.embed(images[:0]).shape == (0, recogniser.embedding_size)


def test_description_says_what_decides_the_embeddings(spec):
    description = json.loads(json.dumps(load_recogniser(spec).describe()))
    assert description == {
        "kind": "torch",
        "weights_sha256": digest(spec.path),
        "architecture": SMALL.to_dict(),
        "dropped_tensors": [],
        "compile": False,
        "preprocessing": NARROW.to_dict(),
        "precision": "float32",
        "flip": False,
    }
    assert weights_digest(spec) == digest(spec.path)


@pytest.mark.parametrize("width", [96, 95])  # margins that are even and odd
def test_flip_averages_with_the_mirror_image(tmp_path, images, width):
    architecture = Architecture(embedding_size=16, width=0.25, input_size=(112, width))
    network = settled_backbone(architecture)

    def recogniser(flip):
        preprocessing = Preprocessing(width=width)
        return TorchRecogniser(network, 16, preprocessing, Running(flip=flip), {})

    plain, both = recogniser(False), recogniser(True)
    mirrored = plain.embed(images[:, :, ::-1].copy())
    assert not np.allclose(plain.embed(images), mirrored, atol=0.1)
    expected = (plain.embed(images) + mirrored) / 2
    np.testing.assert_allclose(both.embed(images), expected, atol=1e-4)
    np.testing.assert_allclose(both.embed(images[:, :, ::-1]), expected, atol=1e-4)
    assert both.embedding_size == 16
    assert both.describe() == {**plain.describe(), "flip": True}


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_near(images, precision):
    exact = load_recogniser(RecogniserSpec()).embed(images)
    recogniser = load_recogniser(RecogniserSpec(precision=precision))
    half = recogniser.embed(images)
    assert half.dtype == np.float32
    assert not np.array_equal(half, exact)
    assert cosines(half, exact).min() > 0.999
    assert recogniser.describe()["precision"] == precision


def test_order_of_channels_in_memory_does_not_matter(spec, images):
    network = load_backbone(spec).network
    orders = []

    def noting(inputs):
        orders.append(inputs.is_contiguous(memory_format=torch.channels_last))
        return network(inputs)

    first, last = (
        TorchRecogniser(noting, 16, NARROW, Running(channels_last=is_last), {}).embed(images)
        for is_last in (False, True)
    )
    assert orders == [False, True]
    assert cosines(first, last).min() > 0.9999


class _Tiny(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) * 2


@pytest.mark.slow
def test_compiled_network_gives_the_same_embeddings(images):
    expected = Preprocessing().apply(images).mean((2, 3)) * 2
    recogniser = TorchRecogniser(compiled(_Tiny()), 3, Preprocessing(), Running(), {})
    for size in (7, 4):
        np.testing.assert_allclose(recogniser.embed(images[:size]), expected[:size], atol=1e-4)


def test_a_compiler_that_is_not_there_is_named(images, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    torch._dynamo.reset()
    recogniser = TorchRecogniser(compiled(_Tiny()), 3, Preprocessing(), Running(), {})
    with pytest.raises(ResourceError, match=r"needs a C\+\+ compiler .*recogniser\.compile=false"):
        recogniser.embed(images)


def test_a_gpu_that_is_too_small_is_named(images):
    def too_large(inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    recogniser = TorchRecogniser(too_large, 3, Preprocessing(), Running(), {})
    with pytest.raises(ResourceError, match="does not suffice for 7 images at once; lower batch_"):
        recogniser.embed(images)


def test_a_missing_gpu_is_no_cpu(spec, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="expected the device cuda"):
        load_recogniser(spec, device="cuda")


def test_classifier_and_prefix_of_training_are_taken_off_and_noted(tmp_path, images, spec):
    network = build_backbone(SMALL)
    network.load_state_dict(load_backbone(spec).network.state_dict())
    weights = {
        f"model.{name}": value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    weights["head.kernel"] = torch.ones(16, 1000)
    other = written(tmp_path / "trained.safetensors", SMALL, weights)
    recogniser = load_recogniser(other)
    np.testing.assert_array_equal(recogniser.embed(images), load_recogniser(spec).embed(images))
    assert recogniser.describe()["dropped_tensors"] == ["head.kernel"]
    assert load_backbone(other).dropped == ("head.kernel",)


def test_architecture_may_be_named_where_tensors_do_not_tell(tmp_path, images):
    spec = written(tmp_path / "w.safetensors", Architecture("iresnet18", 512))
    found = load_recogniser(spec)
    assert found.describe()["architecture"]["name"] == "iresnet18"
    named = load_recogniser(
        RecogniserSpec("torch", spec.path, "iresnet18_magface", spec.preprocessing)
    )
    assert named.describe()["architecture"]["name"] == "iresnet18_magface"
    # They differ in the epsilon of batch normalisation alone.
    assert not np.array_equal(named.embed(images[:1]), found.embed(images[:1]))


@pytest.mark.parametrize("name", ["iresnet50", "mobilefacenet_insightface"])
def test_weights_of_another_architecture_are_refused(spec, name):
    other = RecogniserSpec("torch", spec.path, name, NARROW)
    with pytest.raises(WeightsError, match=rf"as {name}: the weights do not fit .* missing"):
        load_recogniser(other)


def test_weights_of_no_architecture_are_explained(tmp_path):
    weights = build_backbone(SMALL).state_dict()
    del weights["conv3.bias"]
    weights["stray"] = torch.ones(1)
    spec = written(tmp_path / "w.safetensors", SMALL, weights)
    message = r"w\.safetensors: expected weights of a built-in .*mobilefacenet.*conv3\.bias.*stray"
    with pytest.raises(WeightsError, match=message):
        load_recogniser(spec)


def test_contradictions_are_named(spec):
    with pytest.raises(ConfigError, match=r"of \(112, 96\) pixels, but .* makes them \(112, 112\)"):
        load_recogniser(RecogniserSpec("torch", spec.path))
    for kind in ("torch", "onnx", "program"):
        with pytest.raises(ConfigError, match=rf"recogniser\.kind={kind} needs recogniser\.path"):
            load_recogniser(RecogniserSpec(kind))
    with pytest.raises(ConfigError, match="cannot be trained further"):
        load_backbone(RecogniserSpec("onnx", "w.onnx"))


def test_missing_weights_are_named():
    with pytest.raises(InputError, match=r"nowhere\.pt"):
        load_recogniser(RecogniserSpec("torch", "nowhere.pt"))


def test_configuration_becomes_a_specification():
    config = RecogniserConfig(
        kind="torch",
        path="w.pt",
        architecture="iresnet50",
        preprocessing=PreprocessingConfig(width=96, channel_order="bgr", std=(1.0, 2.0, 3.0)),
        flip=True,
        precision="bfloat16",
        compile=True,
    )
    assert recogniser_spec(config) == RecogniserSpec(
        "torch",
        str(Path("w.pt").absolute()),
        "iresnet50",
        Preprocessing(width=96, channel_order="bgr", std=(1.0, 2.0, 3.0)),
        flip=True,
        precision="bfloat16",
        compile=True,
    )
    onnx = RecogniserConfig(kind="onnx", path="/w.onnx", layout="nhwc", output="embedding")
    expected = RecogniserSpec("onnx", "/w.onnx", layout="nhwc", output="embedding")
    assert recogniser_spec(onnx) == expected
    program = RecogniserConfig(kind="program", path="/w.pt2", trust=True)
    assert recogniser_spec(program) == RecogniserSpec("program", "/w.pt2", trust=True)


def test_unknown_architecture_names_the_known_ones():
    config = RecogniserConfig(kind="torch", path="w.pt", architecture="iresnet51")
    with pytest.raises(ConfigError, match=r"expected one of .*iresnet50.*, got iresnet51"):
        recogniser_spec(config)
    assert "iresnet50" in architecture_names()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_presets_fill_the_arithmetic(images, name, order):
    config = RecogniserConfig(
        kind="onnx",
        path="w.onnx",
        preprocessing=PreprocessingConfig(preset=name, channel_order=order, height=100),
    )
    found = recogniser_spec(config).preprocessing
    assert (found.height, found.width, found.channel_order) == (100, 112, order)
    # Every colour keeps its own mean and deviation, whatever place it has.
    expected = PRESETS[name].apply(images)[:, :, 6:106]
    values = found.apply(images)
    np.testing.assert_array_equal(values if order == "rgb" else values[:, ::-1], expected)


def test_every_preset_can_be_asked_for():
    for name in PRESETS:
        assert PreprocessingConfig(preset=name).preset == name
    default = recogniser_spec(RecogniserConfig(kind="onnx", path="w.onnx")).preprocessing
    assert default == Preprocessing() == PRESETS["arcface"]


@pytest.mark.parametrize("given", [{"scale": 255.0}, {"mean": (1.0, 1, 1), "std": (1.0, 1, 1)}])
def test_a_preset_beside_its_values_is_refused(given):
    with pytest.raises(
        ValidationError, match=rf"preset=imagenet .*{', '.join(given)} is given too"
    ):
        PreprocessingConfig(preset="imagenet", **given)


@pytest.mark.parametrize(
    ("kind", "options", "kinds"),
    [
        ("onnx", {"architecture": "iresnet50"}, "torch"),
        ("torch", {"layout": "nchw"}, "onnx"),
        ("program", {"output": "e"}, "onnx"),
        ("onnx", {"precision": "float16"}, "demo or torch or program"),
        ("program", {"compile": True}, "demo or torch"),
        ("torch", {"trust": True}, "program"),
    ],
)
def test_options_of_another_kind_are_refused(kind, options, kinds):
    (name,) = options
    with pytest.raises(ValidationError, match=rf"{name} goes with recogniser\.kind={kinds} only"):
        RecogniserConfig(kind=kind, path="w", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": True}, r"recogniser\.flip: of no effect on training"),
        ({"precision": "float16"}, r"recogniser\.precision: of no effect"),
        ({"compile": True, "flip": True}, r"recogniser\.flip, recogniser\.compile: of no effect"),
        ({"kind": "onnx", "path": "w", "layout": "nchw"}, "cannot be trained further"),
        ({"kind": "program", "path": "w", "trust": True}, "cannot be trained further"),
    ],
)
def test_training_refuses_what_it_would_not_heed(options, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig(labels="l", output="o", recogniser=RecogniserConfig(**options))


def test_training_takes_a_network_and_its_preprocessing():
    heeded = {"architecture": "iresnet50", "preprocessing": PreprocessingConfig(preset="raw")}
    recogniser = RecogniserConfig(kind="torch", path="w.pt", **heeded)
    assert TrainConfig(labels="l", output="o", recogniser=recogniser).recogniser == recogniser


def test_the_packaged_recogniser_describes_itself(spec, tmp_path, monkeypatch, images):
    weights = tmp_path / "w.safetensors"
    monkeypatch.setattr("sdd_ray.store.recogniser.DEMO_WEIGHTS", weights)
    with pytest.raises(InputError, match=r"w\.json: not the description"):
        load_recogniser(RecogniserSpec())
    description = {"architecture": SMALL.to_dict(), "preprocessing": NARROW.to_dict()}
    weights.with_suffix(".json").write_text(json.dumps(description))
    recogniser = load_recogniser(RecogniserSpec())
    np.testing.assert_array_equal(recogniser.embed(images), load_recogniser(spec).embed(images))
    backbone = load_backbone(RecogniserSpec())
    assert (backbone.architecture, backbone.preprocessing) == (SMALL, NARROW)
    assert not backbone.network.training


def test_the_packaged_recogniser_loads(images):
    if not DEMO_WEIGHTS.is_file():
        pytest.skip("the packaged recogniser has not been made yet")
    recogniser = load_recogniser(RecogniserSpec())
    assert recogniser.embed(images).shape == (7, recogniser.embedding_size)


def test_real_weights_embed_the_same_in_every_format(shared_data, cfp_images, tmp_path):
    pytest.importorskip("onnxruntime")
    folder = shared_data / "recognizers"
    specs = {
        "onnx": RecogniserSpec("onnx", str(folder / "mobilefacenet_a.onnx")),
        "torch": RecogniserSpec("torch", str(folder / "mobilefacenet_a.pt")),
    }
    backbone = load_backbone(specs["torch"])
    assert backbone.architecture == Architecture("mobilefacenet")
    inputs = torch.from_numpy(PRESETS["imagenet"].apply(cfp_images))
    torch.jit.save(torch.jit.trace(backbone.network, inputs[:2]), tmp_path / "a.ts")
    specs["program"] = RecogniserSpec("program", str(tmp_path / "a.ts"), trust=True)
    found = {
        name: load_recogniser(replace(spec, preprocessing=PRESETS["imagenet"])).embed(cfp_images)
        for name, spec in specs.items()
    }
    for name in ("torch", "program"):
        assert cosines(found[name], found["onnx"]).min() > 0.9999
    half = replace(specs["torch"], preprocessing=PRESETS["imagenet"], precision="bfloat16")
    assert cosines(load_recogniser(half).embed(cfp_images), found["torch"]).min() > 0.999
    unit = found["onnx"] / np.linalg.norm(found["onnx"], axis=1, keepdims=True)
    # Ten frontal and four profile pictures of the first person, then six of the second.
    similarities = unit @ unit.T
    assert similarities[:10, :10].mean() > similarities[:10, 14:].mean() + 0.3


def test_another_real_checkpoint_is_recognised_by_its_tensors(shared_data, cfp_images):
    path = str(shared_data / "recognizers" / "mobilefacenet_b.ckpt")
    preprocessing = Preprocessing(width=96, std=(128.0, 128.0, 128.0))
    recogniser = load_recogniser(RecogniserSpec("torch", path, preprocessing=preprocessing))
    assert recogniser.describe()["architecture"]["name"] == "mobilefacenet_xiaoccer"
    embeddings = recogniser.embed(cfp_images)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarities = unit @ unit.T
    assert similarities[:10, :10].mean() > similarities[:10, 14:].mean() + 0.3
