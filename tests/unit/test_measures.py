"""Scores without training: by hand, against plain definitions, and the laws they obey."""

import numpy as np
import pytest
import torch
from networks import settled_backbone
from scipy.ndimage import gaussian_filter, laplace

from sdd_ray.core.measures import DropoutStability, contrast, cosine, sharpness
from sdd_ray.core.models import Architecture

SMALL = Architecture(width=0.25, input_size=(112, 112))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)


def test_sharpness_is_the_variance_of_the_laplacian(images):
    grey = images.mean(axis=3)
    expected = [laplace(one)[1:-1, 1:-1].var() for one in grey]
    np.testing.assert_allclose(sharpness(images), expected, rtol=1e-5)


def test_contrast_is_the_deviation_of_grey(images):
    np.testing.assert_allclose(contrast(images), images.mean(axis=3).std(axis=(1, 2)), rtol=1e-5)


def test_even_blurred_and_halved_images(images):
    even = np.full((1, 20, 24, 3), 77, np.uint8)
    assert (sharpness(even)[0], contrast(even)[0]) == (0, 0)
    blurred = gaussian_filter(images, (0, 2, 2, 0))
    assert (sharpness(blurred) < sharpness(images)).all()
    halves = 2 * (images // 4)
    np.testing.assert_allclose(contrast(halves * 2), 2 * contrast(halves), rtol=1e-5)
    np.testing.assert_allclose(sharpness(halves * 2), 4 * sharpness(halves), rtol=1e-4)


def test_cosine_of_rows():
    a = np.array([[1, 0], [3, 4], [0, 0], [1, 1]], np.float32)
    b = np.array([[0, 2], [6, 8], [1, 1], [-2, -2]], np.float32)
    np.testing.assert_allclose(cosine(a, b), [0, 1, np.nan, -1], atol=1e-6)


def stability(passes=4, share=0.5, seed=0):
    return DropoutStability(settled_backbone(SMALL), passes, share, seed)


@pytest.fixture
def inputs():
    return torch.rand(5, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_stability_equals_its_definition(inputs):
    network = settled_backbone(SMALL)
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand((4, *network.feature_shape), generator=generator) >= 0.3
    features = network.feature_map(inputs)
    unit = []
    for mask in masks:
        embedding = network.embedding_of(torch.where(mask, features / 0.7, 0))
        unit.append((embedding / embedding.norm(dim=1, keepdim=True)).numpy())
    expected = []
    for row in range(5):
        distances = [
            np.linalg.norm(unit[a][row] - unit[b][row]) for a in range(4) for b in range(a)
        ]
        expected.append(2 / (1 + np.exp(np.mean(distances))))
    np.testing.assert_allclose(stability(4, 0.3, 3)(inputs).numpy(), expected, rtol=1e-4)


@torch.no_grad()
def test_stability_of_an_image_depends_on_no_other(inputs):
    scorer = stability()
    together = scorer(inputs)
    alone = torch.cat([scorer(inputs[row : row + 1]) for row in range(5)])
    np.testing.assert_allclose(together.numpy(), alone.numpy(), rtol=1e-4)
    np.testing.assert_array_equal(together.numpy(), stability()(inputs).numpy())
    assert len(set(together.tolist())) == 5
    assert not torch.equal(together, stability(seed=1)(inputs))


@torch.no_grad()
def test_the_less_is_dropped_the_more_stable(inputs):
    much, little, hardly = (stability(share=share)(inputs) for share in (0.7, 0.3, 0.01))
    assert (much < little).all()
    assert (little < hardly).all()
    assert ((hardly > 0.5) & (hardly <= 1)).all()


@pytest.mark.parametrize(("passes", "share"), [(1, 0.5), (3, 0.0), (3, 1.0)])
def test_wrong_numbers(passes, share):
    with pytest.raises(ValueError, match="expected two passes and a share"):
        stability(passes, share)


def test_the_embedding_of_the_feature_map_is_that_of_the_image(inputs):
    network = settled_backbone(SMALL)
    with torch.no_grad():
        torch.testing.assert_close(
            network.embedding_of(network.feature_map(inputs)), network(inputs), rtol=0, atol=0
        )
