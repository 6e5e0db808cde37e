"""The CUDA paths beside the CPU's. Run with `pytest -m gpu`, which fails where there is no GPU."""

import numpy as np
import pytest
import torch

from sdd_ray.core.fitting import Fitter, Recipe
from sdd_ray.core.models import QualityArchitecture, build_quality
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.store.recogniser import RecogniserSpec, load_recogniser
from sdd_ray.synthetic.samples import SyntheticSet, draw_sample

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def faces():
    if not torch.cuda.is_available():
        pytest.fail("-m gpu was asked for, but torch finds no CUDA device")
    spec = SyntheticSet(seed=3, num_identities=4, images_per_identity=8, degraded_share=0.0)
    return np.stack([draw_sample(spec, i, j).image for i in range(4) for j in range(8)])


def test_embeddings_agree_with_the_cpu(faces):
    cpu = load_recogniser(RecogniserSpec()).embed(faces)
    gpu = load_recogniser(RecogniserSpec(), device="cuda").embed(faces)
    cosine = (cpu * gpu).sum(1) / np.linalg.norm(cpu, axis=1) / np.linalg.norm(gpu, axis=1)
    assert cosine.min() > 0.9999


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
    gpu = load_recogniser(RecogniserSpec(**keys), device="cuda").embed(faces)
    cosine = (cpu * gpu).sum(1) / np.linalg.norm(cpu, axis=1) / np.linalg.norm(gpu, axis=1)
    assert cosine.min() > least


def test_batches_under_way_at_the_same_time_keep_their_results(faces):
    recogniser = load_recogniser(RecogniserSpec(), device="cuda")
    batches = [faces[first : first + 5] for first in range(0, len(faces), 5)] * 8
    one_by_one = [recogniser.embed(batch) for batch in batches]
    for together, alone in zip(recogniser.embed_many(batches), one_by_one, strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_training_lowers_the_loss_on_the_gpu(faces):
    torch.manual_seed(0)
    network = build_quality(QualityArchitecture()).cuda()
    recipe = Recipe(1e-3, 0.0, (100,), 0.1, 1.0, flip=True, seed=0)
    fitter = Fitter(network, Preprocessing(), recipe, torch.device("cuda"))
    targets = np.linspace(20, 80, len(faces), dtype=np.float32)
    losses = [
        loss for epoch in range(30) for _, loss in fitter.train_epoch([(faces, targets)], epoch)
    ]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    result, _ = fitter.validate([(faces, targets)])
    assert np.isfinite(result.loss)
