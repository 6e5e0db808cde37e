"""The CUDA paths beside the CPU's. Run with `pytest -m gpu`, which fails where there is no GPU."""

import warnings

import numpy as np
import pytest
import torch
from batches import batch_of
from onnx_models import channel_means
from torch import nn

from sdd_ray.core.augmentation import degrade
from sdd_ray.core.fitting import Fitter, Recipe
from sdd_ray.core.models import QualityArchitecture, build_quality
from sdd_ray.core.preprocess import PRESETS, Preprocessing
from sdd_ray.core.schedule import Schedule
from sdd_ray.store.recogniser import RecogniserSpec, load_backbone, load_recogniser
from sdd_ray.store.torch_recogniser import Running, TorchRecogniser, compiled
from sdd_ray.synthetic.samples import SyntheticSet, draw_sample

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture(scope="module")
def faces():
    if not torch.cuda.is_available():
        pytest.fail("-m gpu was asked for, but torch finds no CUDA device")
    spec = SyntheticSet(seed=3, num_identities=4, images_per_identity=8, degraded_share=0.0)
    return np.stack([draw_sample(spec, i, j).image for i in range(4) for j in range(8)])


def cosines(left, right):
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def test_embeddings_agree_with_the_cpu(faces):
    cpu = load_recogniser(RecogniserSpec()).embed(faces)
    gpu = load_recogniser(RecogniserSpec(), device=DEVICE).embed(faces)
    assert cosines(cpu, gpu).min() > 0.9999


@pytest.mark.parametrize(
    ("keys", "least"),
    [
        ({"flip": True}, 0.9999),
        ({"precision": "float16"}, 0.999),
        ({"precision": "bfloat16"}, 0.98),
    ],
)
def test_other_ways_to_run_agree_with_the_cpu(faces, keys, least):
    cpu = load_recogniser(RecogniserSpec(flip=keys.get("flip", False))).embed(faces)
    gpu = load_recogniser(RecogniserSpec(**keys), device=DEVICE).embed(faces)
    assert cosines(cpu, gpu).min() > least


def test_batches_under_way_at_the_same_time_keep_their_results(faces):
    recogniser = load_recogniser(RecogniserSpec(), device=DEVICE)
    batches = [faces[first : first + 5] for first in range(0, len(faces), 5)] * 8
    one_by_one = [recogniser.embed(batch) for batch in batches]
    for together, alone in zip(recogniser.embed_many(batches), one_by_one, strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_views_and_read_only_images_are_taken_without_a_warning(faces):
    recogniser = load_recogniser(RecogniserSpec(), device=DEVICE)
    expected = recogniser.embed(faces)
    view = faces[:, :, ::-1].copy()[:, :, ::-1]
    fixed = faces.copy()
    fixed.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (view, fixed):
            np.testing.assert_allclose(recogniser.embed(same), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        recogniser.embed(faces.astype(np.float32))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("preset", PRESETS)
def test_preprocessing_gives_the_values_of_the_cpu(faces, preset, order):
    base = PRESETS[preset]
    preprocessing = Preprocessing(100, 96, order, base.scale, base.mean, base.std)
    for _ in range(2):  # the second time with values that are kept on the device
        values = preprocessing.apply_tensor(torch.from_numpy(faces).to(DEVICE))
        assert values.device.type == DEVICE
        np.testing.assert_allclose(values.cpu(), preprocessing.apply(faces), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("kind", ["script", "export"])
@pytest.mark.parametrize("flip", [False, True])
def test_programs_agree_with_the_cpu(faces, tmp_path, kind, flip):
    network, example = load_backbone(RecogniserSpec()).network, torch.zeros(3, 3, 112, 112)
    if kind == "script":
        torch.jit.save(torch.jit.trace(network, example), tmp_path / "program")
    else:
        sizes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(network, (example,), dynamic_shapes=sizes)
        torch.export.save(program, tmp_path / "program.pt2")
        (tmp_path / "program.pt2").rename(tmp_path / "program")
    spec = RecogniserSpec("program", str(tmp_path / "program"), trust=True, flip=flip)
    recogniser = load_recogniser(spec, device=DEVICE)
    found = np.concatenate(list(recogniser.embed_many([faces[:9], faces[9:10], faces[10:]])))
    cosine = cosines(found, load_recogniser(RecogniserSpec(flip=flip)).embed(faces))
    assert cosine.min() > 0.9999


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_network_gives_the_embeddings_of_the_cpu(faces, precision):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 5, 4), nn.PReLU(8), nn.AdaptiveAvgPool2d(3), nn.Flatten())
    network = nn.Sequential(*layers).eval()
    expected = TorchRecogniser(network, 72, Preprocessing(), Running(), {}).embed(faces)
    called = compiled(network.to(DEVICE).to(memory_format=torch.channels_last))
    running = Running(DEVICE, precision)
    recogniser = TorchRecogniser(called, 72, Preprocessing(), running, {})
    found = list(recogniser.embed_many([faces[:9], faces[9:10], faces[10:]]))
    assert [len(rows) for rows in found] == [9, 1, len(faces) - 10]
    least = 0.9999 if precision == "float32" else 0.99
    assert cosines(np.concatenate(found), expected).min() > least


@pytest.mark.parametrize("batch", ["N", 4])
@pytest.mark.parametrize("flip", [False, True])
def test_onnx_agrees_with_the_cpu(faces, tmp_path, batch, flip):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has no CUDA provider here; it needs onnxruntime-gpu")
    (tmp_path / "w.onnx").write_bytes(channel_means((batch, 3, 112, 112)))
    spec = RecogniserSpec("onnx", str(tmp_path / "w.onnx"), flip=flip)
    expected = load_recogniser(spec).embed(faces)
    recogniser = load_recogniser(spec, device=DEVICE)
    np.testing.assert_allclose(recogniser.embed(faces), expected, rtol=1e-3, atol=1e-4)
    batches = [faces[:9], faces[:0], faces[9:10], faces[10:]]
    found = list(recogniser.embed_many(batches))
    assert [len(rows) for rows in found] == [len(rows) for rows in batches]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_lowers_the_loss_on_the_gpu(faces, precision):
    torch.manual_seed(0)
    network = build_quality(QualityArchitecture()).to(DEVICE)
    recipe = Recipe(Schedule(1e-3, 30), precision=precision, degrade_share=0.2, ema=0.5)
    fitter = Fitter(network, Preprocessing(), recipe, torch.device(DEVICE))
    batch = batch_of(faces, np.linspace(20, 80, len(faces)))
    losses = [s.loss for epoch in range(30) for s in fitter.train_epoch([batch], epoch, 1)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    [(_, predicted)] = fitter.predictions([batch])
    assert np.isfinite(predicted).all()


def test_degraded_images_are_those_of_the_cpu(faces):
    keys = np.arange(len(faces)).astype(np.uint64)
    on_cpu = degrade(torch.from_numpy(faces), keys, 1.0, seed=3, epoch=2)
    on_gpu = degrade(torch.from_numpy(faces).to(DEVICE), keys, 1.0, seed=3, epoch=2)
    assert torch.equal(on_gpu.cpu(), on_cpu)
    assert not torch.equal(on_cpu, torch.from_numpy(faces))


def test_deterministic_training_repeats_to_the_bit(faces, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def weights():
        torch.manual_seed(0)
        network = build_quality(QualityArchitecture()).to(DEVICE)
        fitter = Fitter(network, Preprocessing(), Recipe(Schedule(1e-3, 3)), torch.device(DEVICE))
        batch = batch_of(faces, np.linspace(20, 80, len(faces)))
        torch.manual_seed(1)
        for epoch in range(3):
            list(fitter.train_epoch([batch], epoch, 1))
        return torch.cat([value.flatten().float() for value in network.state_dict().values()])

    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(weights(), weights())
    finally:
        torch.use_deterministic_algorithms(False)
